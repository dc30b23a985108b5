//! What a stream says before its answer begins.

use std::borrow::Cow;
use std::cell::OnceCell;

use serde::Deserialize;
use serde_json::Value;

use crate::SseEvent;
use crate::codes::is_failure;
use crate::lenient::Lenient;

/// Events that name what will come, or only show that somebody is there: Anthropic's ("Streaming
/// messages", docs.anthropic.com, 2026) and those of the Responses API (platform docs, 2026).
const NAMES: [&str; 6] = [
    "ping",
    "message_start",
    "response.created",
    "response.queued",
    "response.in_progress",
    "keepalive",
];

/// A look into an event, which is read once and only where somebody asks.
pub(crate) struct Look<'a> {
    event: SseEvent<'a>,
    chunk: OnceCell<Option<Chunk<'a>>>,
}

impl<'a> Look<'a> {
    pub(crate) fn at(event: SseEvent<'a>) -> Self {
        Self {
            event,
            chunk: OnceCell::new(),
        }
    }

    pub(crate) fn data(&self) -> &'a [u8] {
        self.event.data
    }

    fn chunk(&self) -> Option<&Chunk<'a>> {
        let read = || serde_json::from_slice(self.event.data).ok();
        self.chunk.get_or_init(read).as_ref()
    }

    /// Whether an event brings nothing of the answer yet. What is not known to be such an event is
    /// part of the answer.
    pub(crate) fn is_opening(&self) -> bool {
        let is_named = |name: &[u8]| NAMES.iter().any(|known| known.as_bytes() == name);
        if self.event.data.trim_ascii().is_empty() || is_named(self.event.name) {
            return true;
        }
        let Some(chunk) = self.chunk() else {
            return false;
        };
        match (&chunk.kind, &chunk.choices) {
            // Servers that leave the event's name out still write its type.
            (Some(kind), _) => is_named(kind.as_bytes()),
            // OpenAI's first chunk of a chat says whose turn it is, with an empty text; Azure
            // begins with what its filter thinks of the prompt, and no choice.
            (None, Some(choices)) => !choices.iter().any(Choice::says_something),
            (None, None) => false,
        }
    }

    /// Whether an event brings a piece of the answer: at least one token. False where that cannot
    /// be told from what comes around it.
    pub(crate) fn is_piece(&self) -> bool {
        let Some(chunk) = self.chunk() else {
            return false;
        };
        // Anthropic's deltas are objects, those of the Responses API texts.
        let says_more = |name| {
            chunk
                .delta
                .get(name)
                .is_some_and(|text| !says_nothing(text))
        };
        match &chunk.delta {
            Value::String(text) => !text.is_empty(),
            Value::Object(_) => ["text", "thinking", "partial_json"]
                .into_iter()
                .any(says_more),
            _ => self.choices().iter().any(Choice::says_something),
        }
    }

    /// The pieces of answers that a chunk of a chat or completion brings; none where it cannot be
    /// read.
    pub(crate) fn choices(&self) -> &[Choice] {
        let choices = self.chunk().and_then(|chunk| chunk.choices.as_deref());
        choices.unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    delta: Value,
}

/// A piece of one answer: of a chat's, or a completion's.
#[derive(Deserialize)]
pub(crate) struct Choice {
    #[serde(default)]
    index: Lenient<Option<u64>>,
    #[serde(default)]
    delta: Value,
    #[serde(default)]
    text: Value,
    #[serde(default)]
    finish_reason: Value,
}

impl Choice {
    /// Which of the answers it belongs to.
    pub(crate) fn index(&self) -> u64 {
        self.index.0.unwrap_or(0)
    }

    /// Whether it says why its answer ended.
    pub(crate) fn ends(&self) -> bool {
        !says_nothing(&self.finish_reason)
    }

    /// Whether that is a failure.
    pub(crate) fn has_failed(&self) -> bool {
        self.finish_reason.as_str().is_some_and(is_failure)
    }

    /// Whether it brings something of its answer.
    pub(crate) fn says_something(&self) -> bool {
        let delta_says = match &self.delta {
            Value::Object(delta) => delta
                .iter()
                .any(|(name, value)| name != "role" && !says_nothing(value)),
            other => !says_nothing(other),
        };
        delta_says || !says_nothing(&self.text)
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, data: &str, opens: bool) {
        let event = SseEvent {
            name: name.as_bytes(),
            data: data.as_bytes(),
        };
        assert_eq!(Look::at(event).is_opening(), opens, "{name} {data}");
    }

    #[test]
    fn what_comes_before_the_first_token_is_told_from_it() {
        check(
            "",
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            true,
        );
        check(
            "",
            r#"{"choices":[{"delta":{"role":"assistant","content":null,"refusal":null}}]}"#,
            true,
        );
        check(
            "",
            r#"{"choices":[],"prompt_filter_results":[{"prompt_index":0}]}"#,
            true,
        );
        check(
            "message_start",
            r#"{"type":"message_start","message":{"usage":{"input_tokens":25}}}"#,
            true,
        );
        check("", r#"{"type":"ping"}"#, true);
        check(
            "response.created",
            r#"{"type":"response.created","response":{}}"#,
            true,
        );
        check(
            "",
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":""}]}"#,
            true,
        );
        check("", r#"{"choices":[{"delta":null}]}"#, true);
        // Some gateways give a reason to end in every chunk.
        check(
            "",
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}"#,
            true,
        );
        check("", "", true);

        check("", r#"{"choices":[{"delta":{"content":"H"}}]}"#, false);
        check(
            "",
            r#"{"choices":[{"delta":{"reasoning_content":"Hm"}}]}"#,
            false,
        );
        check(
            "",
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
            false,
        );
        check("", r#"{"choices":[{"text":"a"}]}"#, false);
        check(
            "content_block_start",
            r#"{"type":"content_block_start","index":0}"#,
            false,
        );
        check(
            "",
            r#"{"type":"response.output_text.delta","delta":"a"}"#,
            false,
        );
        check("", r#"{"choices":[7]}"#, false);
        check("", r#"{"anything":"else"}"#, false);
    }
}
