//! The shapes of Anthropic's answers (platform.claude.com, read in autumn 2026).

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::answer::{Answer, Draft, Event};
use super::call::Endpoint;
use super::tools::{self, ToolCall, escaped};

pub(super) fn write(draft: &Draft<'_>) -> Answer {
    if draft.call.endpoint == Endpoint::CountTokens {
        let body = format!(r#"{{"input_tokens":{}}}"#, draft.input_tokens());
        return Answer::json(StatusCode::OK, body);
    }
    if draft.call.stream {
        return Answer::events(events(draft));
    }
    let content = match draft.tool() {
        Some(tool) => tool_block(draft, tool, &tool.arguments),
        None => format!(r#"{{"type":"text","text":"{}"}}"#, draft.text(0)),
    };
    let reason = format!("\"{}\"", stop_reason(draft));
    let body = message(draft, &content, &reason, draft.output_tokens());
    Answer::json(StatusCode::OK, body)
}

/// `GET /v1/models`: all of them on one page.
pub(super) fn models(names: &[String]) -> Answer {
    let data: Vec<Value> = names.iter().map(|name| model_object(name)).collect();
    let body = json!({
        "data": data, "has_more": false, "first_id": names.first(), "last_id": names.last(),
    });
    Answer::json(StatusCode::OK, body.to_string())
}

/// `GET /v1/models/{id}`.
pub(super) fn model(name: &str) -> Answer {
    Answer::json(StatusCode::OK, model_object(name).to_string())
}

fn model_object(name: &str) -> Value {
    json!({
        "type": "model", "id": name, "display_name": name, "lifecycle": "active",
        "created_at": "2025-01-01T00:00:00Z",
    })
}

fn stop_reason(draft: &Draft<'_>) -> &'static str {
    if draft.is_cut() {
        "max_tokens"
    } else if draft.tool().is_some() {
        "tool_use"
    } else {
        "end_turn"
    }
}

fn tool_block(draft: &Draft<'_>, tool: &ToolCall, input: &str) -> String {
    format!(
        r#"{{"type":"tool_use","id":"toolu_{:08x}","name":"{}","input":{input}}}"#,
        draft.number,
        escaped(&tool.name),
    )
}

fn message(draft: &Draft<'_>, content: &str, stop_reason: &str, output: u64) -> String {
    format!(
        r#"{{"id":"msg_{:08x}","type":"message","role":"assistant","model":{},"content":[{content}],"stop_reason":{stop_reason},"stop_sequence":null,"usage":{{"input_tokens":{},"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0}},"output_tokens":{output},"service_tier":"standard"}}}}"#,
        draft.number,
        draft.model_json(),
        draft.input_tokens(),
    )
}

/// Each event has an `event:` line and the same name in `type`; the usage in `message_delta` is
/// the whole so far.
fn events(draft: &Draft<'_>) -> Vec<Event> {
    let mut events = Vec::new();
    let mut push = |kind: &str, fields: &str, tokens: u64| {
        let text = format!("event: {kind}\ndata: {{\"type\":\"{kind}\"{fields}}}\n\n");
        events.push(Event {
            bytes: Bytes::from(text),
            tokens,
        });
    };
    let begun = format!(r#","message":{}"#, message(draft, "", "null", 0));
    push("message_start", &begun, 0);
    let block = match draft.tool() {
        Some(tool) => tool_block(draft, tool, "{}"),
        None => r#"{"type":"text","text":""}"#.to_owned(),
    };
    push(
        "content_block_start",
        &format!(r#","index":0,"content_block":{block}"#),
        0,
    );
    push("ping", "", 0);
    let deltas: Vec<(String, u64)> = match draft.tool() {
        Some(tool) => {
            let mut tokens = draft.output_tokens();
            let parts = tools::parts(&tool.arguments).into_iter();
            let delta = |part: String| {
                let part = escaped(&part);
                format!(r#"{{"type":"input_json_delta","partial_json":"{part}"}}"#)
            };
            parts
                .map(|part| (delta(part), std::mem::take(&mut tokens)))
                .collect()
        }
        None => {
            let delta = |text| format!(r#"{{"type":"text_delta","text":"{text}"}}"#);
            draft
                .pieces(0)
                .into_iter()
                .map(|(text, tokens)| (delta(text), tokens))
                .collect()
        }
    };
    for (delta, tokens) in deltas {
        push(
            "content_block_delta",
            &format!(r#","index":0,"delta":{delta}"#),
            tokens,
        );
    }
    push("content_block_stop", r#","index":0"#, 0);
    let end = format!(
        r#","delta":{{"stop_reason":"{}","stop_sequence":null}},"usage":{{"output_tokens":{}}}"#,
        stop_reason(draft),
        draft.output_tokens()
    );
    push("message_delta", &end, 0);
    push("message_stop", "", 0);
    events
}

#[cfg(test)]
mod tests {
    use super::super::answer::Content;
    use super::*;

    fn body(answer: &Answer) -> Value {
        let Content::Whole(bytes) = &answer.content else {
            panic!("it comes whole");
        };
        serde_json::from_slice(bytes).unwrap()
    }

    /// Anthropic's own SDK once got OpenAI's list: the path and the method are the same.
    #[test]
    fn the_list_of_models_is_one_page_of_anthropics_shape() {
        let page = body(&models(&["a".to_owned(), "b".to_owned()]));
        assert_eq!(page["data"][1]["type"], "model");
        assert_eq!(page["data"][1], body(&model("b")));
        let ends = [&page["first_id"], &page["last_id"], &page["has_more"]];
        assert_eq!(ends, [&json!("a"), &json!("b"), &json!(false)]);
        assert!(body(&models(&[]))["first_id"].is_null());
    }
}
