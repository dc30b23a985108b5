//! OpenAI's tools and the choice among them as Anthropic's.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::Untranslatable;
use super::anthropic::{Tool, ToolChoice};
use super::json::{Json, Members, Text, members_of};
use super::refusal::At;

/// Reads `tools`.
pub(super) fn tools<'a>(top: &mut Members<'a>) -> Result<Vec<Tool<'a>>, Untranslatable> {
    let items = top.array("tools")?.unwrap_or_default();
    let read = |(index, item)| tool(item).at_item(index).at("tools");
    items.into_iter().enumerate().map(read).collect()
}

fn tool(item: &RawValue) -> Result<Tool<'_>, Untranslatable> {
    let mut members = members_of(item)?;
    if members.word("type")? != "function" {
        return Err(Untranslatable::no_counterpart(
            "type",
            "only functions have a counterpart",
        ));
    }
    let expected = || Untranslatable::invalid("function", "an object");
    let mut function = members.object("function")?.ok_or_else(expected)?;
    members.finish()?;
    let read = || {
        let tool = Tool {
            name: function.required_text("name")?.json(),
            description: function.text("description")?.map(Text::json),
            input_schema: function
                .raw_object("parameters")?
                .unwrap_or_else(no_parameters),
            strict: function.flag("strict")?.unwrap_or(false),
        };
        function.finish()?;
        Ok(tool)
    };
    read().at("function")
}

/// OpenAI reads absent parameters as none; Anthropic requires a schema.
fn no_parameters<'a>() -> Json<'a> {
    let schema = serde_json::json!({"type": "object", "properties": {}});
    let json = serde_json::value::to_raw_value(&schema);
    Cow::Owned(json.expect("a schema can be written"))
}

/// Reads `tool_choice` and `parallel_tool_calls`. Without tools there is nothing to choose.
pub(super) fn choice<'a>(
    top: &mut Members<'a>,
    has_tools: bool,
) -> Result<Option<ToolChoice<'a>>, Untranslatable> {
    let one_at_a_time = top.flag("parallel_tool_calls")? == Some(false);
    let choice = match top.take("tool_choice") {
        None => None,
        Some(value) => Some(chosen(value).at("tool_choice")?),
    };
    let implied = || {
        (one_at_a_time && has_tools).then_some(ToolChoice {
            kind: "auto",
            name: None,
            disable_parallel_tool_use: true,
        })
    };
    let with_parallel = |choice: ToolChoice<'a>| ToolChoice {
        disable_parallel_tool_use: one_at_a_time && choice.kind != "none",
        ..choice
    };
    Ok(choice.map(with_parallel).or_else(implied))
}

fn chosen(value: &RawValue) -> Result<ToolChoice<'_>, Untranslatable> {
    let of = |kind, name| ToolChoice {
        kind,
        name,
        disable_parallel_tool_use: false,
    };
    if let Some(word) = Text::of(value) {
        return match word.to_str().as_ref() {
            "auto" => Ok(of("auto", None)),
            "none" => Ok(of("none", None)),
            "required" => Ok(of("any", None)),
            _ => Err(Untranslatable::invalid(
                "",
                "auto, none, required or a function",
            )),
        };
    }
    let mut members = members_of(value)?;
    if members.word("type")? != "function" {
        return Err(Untranslatable::no_counterpart(
            "type",
            "only a function can be chosen there",
        ));
    }
    let expected = || Untranslatable::invalid("function", "an object");
    let mut function = members.object("function")?.ok_or_else(expected)?;
    let name = function.required_text("name").at("function")?.json();
    function.finish().at("function")?;
    members.finish()?;
    Ok(of("tool", Some(name)))
}
