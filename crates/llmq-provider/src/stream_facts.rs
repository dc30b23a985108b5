use memchr::memmem;
use serde::Deserialize;

use crate::answer::{Body, Choice, Text};
use crate::lenient::{First, Lenient, Object};
use crate::{AnswerFacts, SseEvent};

/// What a stream says of itself, put together from its events.
#[derive(Debug, Default)]
pub(crate) struct StreamFacts(AnswerFacts);

/// An event of any dialect, as far as it tells of the answer and not of its text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Event {
    id: Text,
    model: Text,
    choices: Lenient<First<Choice>>,
    /// Anthropic's `message_start`.
    message: Lenient<Object<Body>>,
    /// Anthropic's `message_delta`.
    delta: Lenient<Object<Body>>,
    /// The first and the last events of the Responses API.
    response: Lenient<Object<Body>>,
}

impl StreamFacts {
    /// Takes an event, with whether it comes before the answer's second piece, and whether it ends
    /// one of its choices: those between are text alone, and are not looked into.
    pub(crate) fn take(&mut self, event: SseEvent<'_>, is_early: bool, ends: bool) {
        let has = |word: &str| memmem::find(event.data, word.as_bytes()).is_some();
        let tells = is_early || ends || has("\"stop_reason\"") || has("\"response\"");
        if !tells {
            return;
        }
        let Ok(event) = serde_json::from_slice::<Event>(event.data) else {
            return;
        };
        let (message, response) = (event.message.0.0, event.response.0.0);
        let facts = &mut self.0;
        keep(&mut facts.id, [event.id, message.id, response.id.clone()]);
        keep(
            &mut facts.model,
            [event.model, message.model, response.model.clone()],
        );
        let chosen = event.choices.0.0.unwrap_or_default().finish_reason;
        let stopped = event.delta.0.0.stop_reason;
        keep(
            &mut facts.finish_reason,
            [chosen, stopped, response.reason_to_end()],
        );
    }

    pub(crate) fn facts(&self) -> &AnswerFacts {
        &self.0
    }
}

/// What was said first counts; an empty text says nothing.
fn keep(kept: &mut Option<String>, said: [Text; 3]) {
    if kept.is_none() {
        let mut said = said.into_iter().filter_map(|Lenient(text)| text);
        *kept = said.find(|text| !text.is_empty());
    }
}

impl Body {
    /// Why a response ended that is told of in a stream, if it has.
    fn reason_to_end(self) -> Text {
        let status = self.status.0.filter(|status| {
            let is_under_way = ["queued", "in_progress"].contains(&status.as_str());
            !is_under_way
        });
        Lenient(self.incomplete_details.0.0.reason.0.or(status))
    }
}

#[cfg(test)]
mod tests {
    use crate::{AnswerFacts, Dialect, Operation, StreamReader};

    fn facts(dialect: Dialect, operation: Operation, events: &[&str]) -> Option<AnswerFacts> {
        let mut reader = StreamReader::new(dialect, operation).telling();
        for event in events {
            let event = format!("data: {event}\n\n");
            reader.push(event.as_bytes()).unwrap();
        }
        reader.facts()
    }

    #[track_caller]
    fn check(dialect: Dialect, operation: Operation, events: &[&str], told: [Option<&str>; 3]) {
        let facts = facts(dialect, operation, events).unwrap();
        let found = [&facts.id, &facts.model, &facts.finish_reason];
        assert_eq!(found.map(Option::as_deref), told, "{events:?}");
    }

    #[test]
    fn every_dialect_says_who_answered_and_why_it_ended() {
        check(
            Dialect::OpenAi,
            Operation::ChatCompletions,
            &[
                r#"{"id":"c-1","model":"m-1","choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}"#,
                r#"{"id":"c-1","model":"m-1","choices":[{"delta":{"content":"\"response\""},"finish_reason":null}]}"#,
                r#"{"id":"c-1","model":"m-1","choices":[{"delta":{},"finish_reason":"length"}]}"#,
                r#"{"id":"c-1","model":"m-1","choices":[],"usage":{"prompt_tokens":1}}"#,
                "[DONE]",
            ],
            [Some("c-1"), Some("m-1"), Some("length")],
        );
        check(
            Dialect::Anthropic,
            Operation::Messages,
            &[
                r#"{"type":"message_start","message":{"id":"msg_1","model":"m-2","stop_reason":null}}"#,
                r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}"#,
                r#"{"type":"message_stop"}"#,
            ],
            [Some("msg_1"), Some("m-2"), Some("end_turn")],
        );
        check(
            Dialect::OpenAi,
            Operation::ChatCompletions,
            &[
                r#"{"id":"c-1","model":"m-1","choices":[{"delta":{"content":"a"},"finish_reason":""}]}"#,
                r#"{"id":"c-1","model":"m-1","choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            ],
            [Some("c-1"), Some("m-1"), Some("stop")],
        );
        let begun = r#"{"type":"response.created","response":{"id":"resp_1","model":"m-3","status":"in_progress"}}"#;
        let delta = r#"{"type":"response.output_text.delta","delta":"a"}"#;
        for (end, reason) in [
            (
                r#"{"type":"response.completed","response":{"id":"resp_1","status":"completed"}}"#,
                Some("completed"),
            ),
            (
                r#"{"type":"response.incomplete","response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}"#,
                Some("max_output_tokens"),
            ),
            (delta, None),
        ] {
            check(
                Dialect::OpenAi,
                Operation::Responses,
                &[begun, delta, end],
                [Some("resp_1"), Some("m-3"), reason],
            );
        }
    }

    #[test]
    fn odd_events_tell_nothing() {
        for odd in [
            "{}",
            r#"{"id":[],"model":{},"choices":7}"#,
            r#"{"delta":[1]}"#,
        ] {
            check(
                Dialect::OpenAi,
                Operation::ChatCompletions,
                &[odd],
                [None; 3],
            );
        }
    }
}
