//! A chat completion's request as one for a message.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::anthropic::{Format, Metadata, OutputConfig, Request, Thinking};
use super::json::{Json, Members, Text};
use super::messages_to_anthropic::conversation;
use super::refusal::At;
use super::rules::{Rule, leave_out, refuse};
use super::{Target, Translated, Untranslatable, tools_to_anthropic, written};
use crate::Operation;

/// Members without a counterpart. The values beside them ask for what happens anyway.
pub(super) const RULES: [Rule; 15] = [
    Rule("n", &["1"], "a call brings one answer there"),
    Rule("logprobs", &["false"], "probabilities are not told there"),
    Rule("top_logprobs", &["0"], "probabilities are not told there"),
    Rule("logit_bias", &["{}"], "tokens cannot be weighed there"),
    Rule(
        "frequency_penalty",
        &["0", "0.0"],
        "there is no such penalty there",
    ),
    Rule(
        "presence_penalty",
        &["0", "0.0"],
        "there is no such penalty there",
    ),
    Rule("seed", &[], "sampling cannot be seeded there"),
    Rule("store", &["false"], "answers are not stored there"),
    Rule("modalities", &["[\"text\"]"], "answers are texts there"),
    Rule("audio", &[], "answers are texts there"),
    Rule("moderation", &[], "there is no such moderation there"),
    Rule(
        "verbosity",
        &["\"medium\""],
        "ask for short or long answers in words",
    ),
    Rule("web_search_options", &[], "the search is OpenAI's own"),
    Rule("functions", &["[]"], "it is deprecated; use `tools`"),
    Rule("function_call", &[], "it is deprecated; use `tool_choice`"),
];

/// Members that change cost or speed, or label what OpenAI stores (`store` is refused).
pub(super) const HINTS: [&str; 5] = [
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
];

pub(super) fn translate(
    mut top: Members<'_>,
    target: Target<'_>,
) -> Result<Translated, Untranslatable> {
    let mut left_out = BTreeSet::new();
    top.take("model");
    refuse(&mut top, &RULES)?;
    leave_out(&mut top, &HINTS, &mut left_out);
    let messages = top
        .array("messages")?
        .ok_or_else(|| Untranslatable::invalid("messages", "an array"))?;
    let conversation = conversation(&messages, &mut left_out).at("messages")?;
    let tools = tools_to_anthropic::tools(&mut top)?;
    let tool_choice = tools_to_anthropic::choice(&mut top, !tools.is_empty())?;
    let (thinking, effort) = reasoning(&mut top)?;
    let format = response_format(&mut top)?;
    let has_config = effort.is_some() || format.is_some();
    let stream = top.flag("stream")?.unwrap_or(false);
    let include_usage = stream_options(&mut top)?;
    let request = Request {
        model: target.model,
        max_tokens: cap(&mut top, target.max_tokens)?,
        system: conversation.system,
        messages: conversation.messages,
        tools,
        tool_choice,
        stop_sequences: stop(&mut top)?,
        temperature: temperature(&mut top)?,
        top_p: top.number("top_p")?.map(Cow::Borrowed),
        thinking,
        output_config: has_config.then_some(OutputConfig { effort, format }),
        metadata: user(&mut top, &mut left_out)?,
        service_tier: service_tier(&mut top)?,
        stream,
    };
    top.finish()?;
    Ok(Translated {
        operation: Operation::Messages,
        body: written(&request),
        include_usage,
        left_out,
    })
}

fn cap<'a>(top: &mut Members<'a>, default: u32) -> Result<Json<'a>, Untranslatable> {
    let old = top.number("max_tokens")?;
    let new = top.number("max_completion_tokens")?;
    if let (Some(old), Some(new)) = (old, new)
        && old.get() != new.get()
    {
        return Err(Untranslatable::invalid(
            "max_tokens",
            "absent, or the same as `max_completion_tokens`",
        ));
    }
    if let Some(cap) = new.or(old) {
        return Ok(Cow::Borrowed(cap));
    }
    let default = serde_json::value::to_raw_value(&default);
    Ok(Cow::Owned(default.expect("a number can be written")))
}

/// OpenAI takes 0 to 2, Anthropic 0 to 1: what is above is not the same at either.
fn temperature<'a>(top: &mut Members<'a>) -> Result<Option<Json<'a>>, Untranslatable> {
    let value = top.number("temperature")?;
    let degrees = value.and_then(|value| value.get().parse::<f64>().ok());
    if degrees.is_some_and(|degrees| degrees > 1.0) {
        return Err(Untranslatable::no_counterpart(
            "temperature",
            "there it goes from 0 to 1",
        ));
    }
    Ok(value.map(Cow::Borrowed))
}

fn stop<'a>(top: &mut Members<'a>) -> Result<Vec<Json<'a>>, Untranslatable> {
    let expected = || Untranslatable::invalid("stop", "a text or an array of texts");
    let Some(value) = top.take("stop") else {
        return Ok(Vec::new());
    };
    if let Some(text) = Text::of(value) {
        return Ok(vec![text.json()]);
    }
    let items = super::json::items_of(value).map_err(|_| expected())?;
    let read = |item| Text::of(item).map(Text::json).ok_or_else(expected);
    items.into_iter().map(read).collect()
}

fn stream_options(top: &mut Members<'_>) -> Result<bool, Untranslatable> {
    let Some(mut options) = top.object("stream_options")? else {
        return Ok(false);
    };
    let mut read = || {
        let padding = Rule("include_obfuscation", &["false"], "streams are not padded");
        refuse(&mut options, &[padding])?;
        options.flag("include_usage")
    };
    let include_usage = read().at("stream_options")?;
    options.finish().at("stream_options")?;
    Ok(include_usage.unwrap_or(false))
}

/// Anthropic's effort has the same words, but for the two least.
fn reasoning<'a>(
    top: &mut Members<'a>,
) -> Result<(Option<Thinking>, Option<Json<'a>>), Untranslatable> {
    let Some(effort) = top.text("reasoning_effort")? else {
        return Ok((None, None));
    };
    match effort.to_str().as_ref() {
        "none" => Ok((Some(Thinking::Disabled), None)),
        "minimal" => Err(Untranslatable::no_counterpart(
            "reasoning_effort",
            "the least effort there is `low`, and `none` is none",
        )),
        _ => Ok((None, Some(effort.json()))),
    }
}

fn response_format<'a>(top: &mut Members<'a>) -> Result<Option<Format<'a>>, Untranslatable> {
    let Some(format) = top.object("response_format")? else {
        return Ok(None);
    };
    format_of(format).at("response_format")
}

fn format_of<'a>(mut format: Members<'a>) -> Result<Option<Format<'a>>, Untranslatable> {
    let kind = format.word("type")?;
    let schema = match kind.as_ref() {
        "text" => None,
        "json_schema" => {
            let expected = || Untranslatable::invalid("json_schema", "an object");
            let schema = format.object("json_schema")?.ok_or_else(expected)?;
            Some(schema_of(schema).at("json_schema")?)
        }
        "json_object" => {
            return Err(Untranslatable::no_counterpart(
                "type",
                "JSON without a schema cannot be asked for there; use `json_schema`",
            ));
        }
        _ => return Err(Untranslatable::invalid("type", "text or json_schema")),
    };
    format.finish()?;
    Ok(schema.map(|schema| Format::JsonSchema { schema }))
}

/// The name is a label; schemas are always kept to at Anthropic, so `strict` says nothing new.
fn schema_of<'a>(mut schema: Members<'a>) -> Result<Json<'a>, Untranslatable> {
    schema.text("name")?;
    schema.flag("strict")?;
    let description = Rule(
        "description",
        &["\"\""],
        "a format has none there; put it into the schema",
    );
    refuse(&mut schema, &[description])?;
    let json = schema
        .raw_object("schema")?
        .ok_or_else(|| Untranslatable::invalid("schema", "an object"))?;
    schema.finish()?;
    Ok(json)
}

/// Whose call it is, for the provider's watch against abuse. `safety_identifier` is the newer
/// name; `user` beside it only steers OpenAI's cache.
fn user<'a>(
    top: &mut Members<'a>,
    left_out: &mut BTreeSet<&'static str>,
) -> Result<Option<Metadata<'a>>, Untranslatable> {
    let newer = top.text("safety_identifier")?;
    let older = top.text("user")?;
    if newer.is_some() && older.is_some() {
        left_out.insert("user");
    }
    let user = newer.or(older).map(Text::json);
    Ok(user.map(|user_id| Metadata { user_id }))
}

fn service_tier(top: &mut Members<'_>) -> Result<Option<&'static str>, Untranslatable> {
    match top.word("service_tier")?.as_ref() {
        "" => Ok(None),
        "auto" => Ok(Some("auto")),
        "default" => Ok(Some("standard_only")),
        _ => Err(Untranslatable::no_counterpart(
            "service_tier",
            "only `auto` and `default` have a counterpart",
        )),
    }
}
