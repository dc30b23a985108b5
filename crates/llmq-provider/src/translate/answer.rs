//! Whole answers.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::json::{Json, Members, Text, arguments_of, items_of, joined, members_of, quoted};
use super::usage::Tally;
use super::{anthropic, openai, stop, written};
use crate::Dialect;

/// An upstream's answer cannot be read well enough to be told in the other dialect.
///
/// The caller cannot help it; it is the upstream's failure, as a body that is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the upstream's answer cannot be translated: {reason}")]
pub struct UnreadableAnswer {
    reason: &'static str,
}

/// A whole answer told in the dialect `to`; `body` is in the other one.
///
/// `created_s` is when it came, in seconds of Unix time; OpenAI's answers say so. The id and
/// the model stay as the upstream said them. What has no place in `to` is left out, such as
/// OpenAI's fingerprints or Anthropic's signatures.
///
/// # Errors
///
/// [`UnreadableAnswer`] when the body is not an answer, or a tool's arguments are not JSON in
/// an answer that claims to be whole.
///
/// ```
/// use llmq_provider::Dialect;
/// use llmq_provider::translate::answer;
/// let body = br#"{"id":"msg_1","model":"claude-haiku-4-5","content":[{"type":"text","text":"Hi"}],
///     "stop_reason":"end_turn","usage":{"input_tokens":9,"output_tokens":2}}"#;
/// let chat = answer(Dialect::OpenAi, body, 1_700_000_000)?;
/// let chat: serde_json::Value = serde_json::from_slice(&chat).unwrap();
/// assert_eq!(chat["choices"][0]["message"]["content"], "Hi");
/// assert_eq!(chat["usage"]["total_tokens"], 11);
/// # Ok::<(), llmq_provider::translate::UnreadableAnswer>(())
/// ```
pub fn answer(to: Dialect, body: &[u8], created_s: u64) -> Result<Bytes, UnreadableAnswer> {
    let members = Members::read(body).ok_or(UnreadableAnswer {
        reason: "it is not a JSON object",
    })?;
    match to {
        Dialect::OpenAi => for_openai(members, created_s),
        Dialect::Anthropic => for_anthropic(members),
    }
}

/// A member that is a text, else an empty one: a missing name must not spoil an answer.
pub(super) fn text_or_empty<'a>(members: &mut Members<'a>, name: &str) -> Json<'a> {
    text_of(members, name).map_or_else(|| quoted(""), Text::json)
}

/// A member that is a text; anything else counts as absent.
pub(super) fn text_of<'a>(members: &mut Members<'a>, name: &str) -> Option<Text<'a>> {
    members.take(name).and_then(Text::of)
}

/// A member that is an array; anything else counts as an empty one.
pub(super) fn array_of<'a>(members: &mut Members<'a>, name: &str) -> Vec<&'a RawValue> {
    members.array(name).ok().flatten().unwrap_or_default()
}

fn word_of<'a>(members: &mut Members<'a>, name: &str) -> Cow<'a, str> {
    text_of(members, name).map_or(Cow::Borrowed(""), Text::to_str)
}

fn for_openai(mut body: Members<'_>, created_s: u64) -> Result<Bytes, UnreadableAnswer> {
    let content = body.array("content").ok().flatten();
    let content = content.ok_or(UnreadableAnswer {
        reason: "it has no content",
    })?;
    let (mut texts, mut thoughts, mut tool_calls) = (Vec::new(), Vec::new(), Vec::new());
    for block in content {
        let Ok(mut block) = members_of(block) else {
            continue;
        };
        match word_of(&mut block, "type").as_ref() {
            "text" => texts.extend(text_of(&mut block, "text")),
            "thinking" => thoughts.extend(text_of(&mut block, "thinking")),
            "tool_use" => tool_calls.push(tool_call(block)),
            _ => {}
        }
    }
    let stop_reason = word_of(&mut body, "stop_reason");
    let says_nothing = texts.is_empty() && !tool_calls.is_empty();
    let message = openai::AnswerMessage {
        role: "assistant",
        content: (!says_nothing).then(|| joined(&texts)),
        refusal: refusal(&mut body),
        reasoning_content: (!thoughts.is_empty()).then(|| joined(&thoughts)),
        tool_calls,
    };
    let mut tally = Tally::default();
    if let Some(usage) = body.take("usage") {
        tally.add(usage);
    }
    Ok(written(&openai::Answer {
        id: text_or_empty(&mut body, "id"),
        object: "chat.completion",
        created: created_s,
        model: text_or_empty(&mut body, "model"),
        choices: [openai::Choice {
            index: 0,
            message,
            logprobs: None,
            finish_reason: stop::for_openai(&stop_reason),
        }],
        usage: tally.for_openai(),
    }))
}

/// Why Anthropic's model refused, if it says so.
pub(super) fn refusal<'a>(holder: &mut Members<'a>) -> Option<Json<'a>> {
    let mut details = holder.object("stop_details").ok().flatten()?;
    text_of(&mut details, "explanation").map(Text::json)
}

fn tool_call(mut block: Members<'_>) -> openai::ToolCall<'_> {
    let input = block.raw_object("input").ok().flatten();
    openai::ToolCall {
        id: text_or_empty(&mut block, "id"),
        kind: "function",
        function: openai::Called {
            name: text_or_empty(&mut block, "name"),
            arguments: quoted(input.as_deref().map_or("{}", RawValue::get)),
        },
    }
}

fn for_anthropic(mut body: Members<'_>) -> Result<Bytes, UnreadableAnswer> {
    let unreadable = |reason| UnreadableAnswer { reason };
    let choices = array_of(&mut body, "choices");
    let choice = choices.first().ok_or(unreadable("it has no choices"))?;
    let mut choice = members_of(choice).map_err(|_| unreadable("its choice is not an object"))?;
    let message = choice.object("message").ok().flatten();
    let mut message = message.ok_or(unreadable("it has no message"))?;
    let finish_reason = word_of(&mut choice, "finish_reason");
    let said = texts_of(&mut message)
        .into_iter()
        .chain(text_of(&mut message, "refusal"));
    let said = said.filter(|text| !text.is_empty());
    let mut content: Vec<_> = said
        .map(|text| anthropic::Block::Text { text: text.json() })
        .collect();
    let id = text_or_empty(&mut body, "id");
    let calls = array_of(&mut message, "tool_calls");
    let mut calls_tools = false;
    for (index, call) in calls.into_iter().enumerate() {
        match tool_use(call, &id, index) {
            Some(block) => content.push(block),
            // The cap cut the arguments: the stop reason says that the answer is not whole, and
            // half an object cannot be written.
            None if stop::is_cut_off(&finish_reason) => continue,
            None => return Err(unreadable("a call's arguments are not a JSON object")),
        }
        calls_tools = true;
    }
    let mut tally = Tally::default();
    if let Some(usage) = body.take("usage") {
        tally.add(usage);
    }
    Ok(written(&anthropic::Answer {
        id,
        kind: "message",
        role: anthropic::Role::Assistant,
        model: text_or_empty(&mut body, "model"),
        content,
        stop_reason: Some(stop::for_anthropic(&finish_reason, calls_tools)),
        stop_sequence: None,
        usage: tally.for_anthropic(),
    }))
}

/// The content of a message, or of a piece of one: a text, or, at a few servers, parts of which
/// some are texts.
pub(super) fn texts_of<'a>(message: &mut Members<'a>) -> Vec<Text<'a>> {
    let Some(content) = message.take("content") else {
        return Vec::new();
    };
    if let Some(text) = Text::of(content) {
        return vec![text];
    }
    let parts = items_of(content).unwrap_or_default();
    let text = |part| text_of(&mut members_of(part).ok()?, "text");
    parts.into_iter().filter_map(text).collect()
}

/// `None` when the arguments are not one whole object.
fn tool_use<'a>(
    call: &'a RawValue,
    answer_id: &RawValue,
    index: usize,
) -> Option<anthropic::Block<'a>> {
    let mut call = members_of(call).ok()?;
    let mut function = call.object("function").ok().flatten()?;
    let input = arguments_of(&mut function)?;
    let id = text_of(&mut call, "id").filter(|id| !id.is_empty());
    Some(anthropic::Block::ToolUse {
        id: id.map_or_else(|| call_id(answer_id, index), Text::json),
        name: text_or_empty(&mut function, "name"),
        input,
    })
}

/// An id for a call whose server gave none: the result of the tool must name one.
pub(super) fn call_id(answer_id: &RawValue, index: usize) -> Json<'static> {
    let of = Text::of(answer_id).map_or(Cow::Borrowed(""), Text::to_str);
    let of: String = of.chars().filter(char::is_ascii_alphanumeric).collect();
    quoted(&format!("call_{of}_{index}"))
}
