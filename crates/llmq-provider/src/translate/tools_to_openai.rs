//! Anthropic's tools and the choice among them as OpenAI's.

use std::collections::BTreeSet;

use serde_json::value::RawValue;

use super::Untranslatable;
use super::json::{Members, Text, members_of};
use super::openai::{Function, Name, Tool, ToolChoice};
use super::refusal::At;
use super::rules::{Rule, leave_out, refuse};

pub(super) const RULES: [Rule; 3] = [
    Rule(
        "allowed_callers",
        &["[\"direct\"]"],
        "only the model itself calls tools there",
    ),
    Rule(
        "defer_loading",
        &["false"],
        "tools cannot be loaded later there",
    ),
    Rule(
        "input_examples",
        &["[]"],
        "functions have no examples there; put them into the description",
    ),
];

/// Members that change cost or speed only.
pub(super) const HINTS: [&str; 2] = ["cache_control", "eager_input_streaming"];

/// Reads `tools`.
pub(super) fn tools<'a>(
    top: &mut Members<'a>,
    left_out: &mut BTreeSet<&'static str>,
) -> Result<Vec<Tool<'a>>, Untranslatable> {
    let items = top.array("tools")?.unwrap_or_default();
    let mut tools = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        tools.push(tool(item, left_out).at_item(index).at("tools")?);
    }
    Ok(tools)
}

fn tool<'a>(
    item: &'a RawValue,
    left_out: &mut BTreeSet<&'static str>,
) -> Result<Tool<'a>, Untranslatable> {
    let mut members = members_of(item)?;
    if !matches!(members.word("type")?.as_ref(), "" | "custom") {
        return Err(Untranslatable::no_counterpart(
            "type",
            "only tools of your own have a counterpart, not the provider's",
        ));
    }
    refuse(&mut members, &RULES)?;
    leave_out(&mut members, &HINTS, left_out);
    let function = Function {
        name: members.required_text("name")?.json(),
        description: members.text("description")?.map(Text::json),
        parameters: members
            .raw_object("input_schema")?
            .ok_or_else(|| Untranslatable::invalid("input_schema", "an object"))?,
        strict: members.flag("strict")?,
    };
    members.finish()?;
    Ok(Tool {
        kind: "function",
        function,
    })
}

/// Reads `tool_choice`: what is chosen, and whether several tools may be called at once.
pub(super) fn choice<'a>(
    top: &mut Members<'a>,
) -> Result<(Option<ToolChoice<'a>>, Option<bool>), Untranslatable> {
    let Some(mut members) = top.object("tool_choice")? else {
        return Ok((None, None));
    };
    let mut read = || {
        let choice = match members.word("type")?.as_ref() {
            "auto" => ToolChoice::Mode("auto"),
            "any" => ToolChoice::Mode("required"),
            "none" => ToolChoice::Mode("none"),
            "tool" => ToolChoice::Named {
                kind: "function",
                function: Name {
                    name: members.required_text("name")?.json(),
                },
            },
            _ => return Err(Untranslatable::invalid("type", "auto, any, tool or none")),
        };
        let one_at_a_time = members.flag("disable_parallel_tool_use")?;
        Ok((Some(choice), one_at_a_time.map(|one| !one)))
    };
    let chosen = read().at("tool_choice")?;
    members.finish().at("tool_choice")?;
    Ok(chosen)
}
