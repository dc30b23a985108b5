//! A message's request as one for a chat completion.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::json::{Json, Members, Text, quoted};
use super::messages_to_openai::conversation;
use super::openai::{Request, ResponseFormat, Schema, StreamOptions};
use super::refusal::At;
use super::rules::{Rule, leave_out, refuse};
use super::{OutputCap, Target, Translated, Untranslatable, tools_to_openai, written};
use crate::Operation;

/// Members without a counterpart. The values beside them ask for what happens anyway.
pub(super) const RULES: [Rule; 9] = [
    Rule(
        "top_k",
        &[],
        "sampling cannot be cut to so many tokens there",
    ),
    Rule("container", &[], "containers are Anthropic's own"),
    Rule("context_management", &[], "contexts are not managed there"),
    Rule(
        "mcp_servers",
        &["[]"],
        "the provider calls no servers there",
    ),
    Rule("diagnostics", &[], "there are no such diagnostics there"),
    Rule("inference_geo", &[], "the place cannot be chosen there"),
    Rule(
        "speed",
        &["\"standard\""],
        "the speed cannot be chosen there",
    ),
    Rule("user_profile_id", &[], "it is known to Anthropic only"),
    Rule("workspace_id", &[], "it is known to Anthropic only"),
];

pub(super) fn translate(
    mut top: Members<'_>,
    target: Target<'_>,
) -> Result<Translated, Untranslatable> {
    let mut left_out = BTreeSet::new();
    top.take("model");
    refuse(&mut top, &RULES)?;
    leave_out(&mut top, &["cache_control"], &mut left_out);
    let messages = conversation(&mut top, &mut left_out)?;
    let tools = tools_to_openai::tools(&mut top, &mut left_out)?;
    let (tool_choice, parallel_tool_calls) = tools_to_openai::choice(&mut top)?;
    let cap = cap(&mut top)?;
    let (max_completion_tokens, max_tokens) = match target.cap {
        OutputCap::MaxCompletionTokens => (cap, None),
        OutputCap::MaxTokens => (None, cap),
    };
    let (effort, response_format) = output_config(&mut top)?;
    let stream = top.flag("stream")?.filter(|stream| *stream);
    let ask_usage = stream.is_some() && target.ask_stream_usage;
    let request = Request {
        model: target.model,
        messages,
        max_completion_tokens,
        max_tokens,
        tools,
        tool_choice,
        parallel_tool_calls,
        stop: stop(&mut top)?,
        temperature: top.number("temperature")?.map(Cow::Borrowed),
        top_p: top.number("top_p")?.map(Cow::Borrowed),
        reasoning_effort: reasoning(&mut top, effort)?,
        response_format,
        user: user(&mut top)?,
        service_tier: service_tier(&mut top)?,
        stream,
        stream_options: ask_usage.then_some(StreamOptions {
            include_usage: true,
        }),
    };
    top.finish()?;
    Ok(Translated {
        operation: Operation::ChatCompletions,
        body: written(&request),
        include_usage: false,
        left_out,
    })
}

fn cap<'a>(top: &mut Members<'a>) -> Result<Option<Json<'a>>, Untranslatable> {
    match top.number("max_tokens")? {
        Some(cap) if cap.get() == "0" => Err(Untranslatable::no_counterpart(
            "max_tokens",
            "a cache cannot be filled without an answer there",
        )),
        cap => Ok(cap.map(Cow::Borrowed)),
    }
}

fn stop<'a>(top: &mut Members<'a>) -> Result<Vec<Json<'a>>, Untranslatable> {
    let items = top.array("stop_sequences")?.unwrap_or_default();
    let expected = || Untranslatable::invalid("stop_sequences", "an array of texts");
    let read = |item| Text::of(item).map(Text::json).ok_or_else(expected);
    items.into_iter().map(read).collect()
}

/// `output_config`: the effort and the format of the answer.
fn output_config<'a>(
    top: &mut Members<'a>,
) -> Result<(Option<Json<'a>>, Option<ResponseFormat<'a>>), Untranslatable> {
    let Some(mut config) = top.object("output_config")? else {
        return Ok((None, None));
    };
    let mut read = || {
        let effort = config.text("effort")?.map(Text::json);
        let format = config.object("format")?;
        let format = format.map(|format| format_of(format).at("format"));
        Ok((effort, format.transpose()?))
    };
    let read = read().at("output_config")?;
    config.finish().at("output_config")?;
    Ok(read)
}

fn format_of<'a>(mut format: Members<'a>) -> Result<ResponseFormat<'a>, Untranslatable> {
    if format.word("type")? != "json_schema" {
        return Err(Untranslatable::no_counterpart(
            "type",
            "only `json_schema` has a counterpart",
        ));
    }
    let schema = format
        .raw_object("schema")?
        .ok_or_else(|| Untranslatable::invalid("schema", "an object"))?;
    format.finish()?;
    Ok(ResponseFormat::JsonSchema {
        json_schema: Schema {
            name: "answer",
            schema,
            strict: true,
        },
    })
}

/// `thinking`: off is no effort, and adaptive is how OpenAI's models think anyway.
fn reasoning<'a>(
    top: &mut Members<'a>,
    effort: Option<Json<'a>>,
) -> Result<Option<Json<'a>>, Untranslatable> {
    let Some(mut thinking) = top.object("thinking")? else {
        return Ok(effort);
    };
    let read = || {
        let display = Rule(
            "display",
            &["\"omitted\""],
            "what the model thinks is not shown there",
        );
        refuse(&mut thinking, &[display])?;
        match thinking.word("type")?.as_ref() {
            "adaptive" => Ok(effort),
            "disabled" => Ok(Some(quoted("none"))),
            _ => Err(Untranslatable::no_counterpart(
                "type",
                "only `adaptive` and `disabled` have a counterpart; say how much by `output_config.effort`",
            )),
        }
    };
    let effort = read().at("thinking")?;
    thinking.finish().at("thinking")?;
    Ok(effort)
}

fn user<'a>(top: &mut Members<'a>) -> Result<Option<Json<'a>>, Untranslatable> {
    let Some(mut metadata) = top.object("metadata")? else {
        return Ok(None);
    };
    let user = metadata.text("user_id").at("metadata")?;
    metadata.finish().at("metadata")?;
    Ok(user.map(Text::json))
}

fn service_tier(top: &mut Members<'_>) -> Result<Option<&'static str>, Untranslatable> {
    match top.word("service_tier")?.as_ref() {
        "" => Ok(None),
        "auto" => Ok(Some("auto")),
        "standard_only" => Ok(Some("default")),
        _ => Err(Untranslatable::invalid(
            "service_tier",
            "auto or standard_only",
        )),
    }
}
