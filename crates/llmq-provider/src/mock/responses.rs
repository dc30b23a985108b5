//! The shapes of OpenAI's Responses API (openai-openapi, August 2026).

use http::StatusCode;

use super::answer::{Answer, Draft, Event};
use super::openai::event;
use super::tools::{self, ToolCall, escaped};

pub(super) fn write(draft: &Draft<'_>) -> Answer {
    if draft.call.stream {
        return Answer::events(events(draft));
    }
    let output = match draft.tool() {
        Some(tool) => call_item(draft, "completed", tool, &tool.arguments),
        None => message_item(draft, status(draft), &text_part(&draft.text(0))),
    };
    Answer::json(StatusCode::OK, response(draft, Some(&output)))
}

/// How a finished response is called.
fn status(draft: &Draft<'_>) -> &'static str {
    if draft.is_cut() {
        "incomplete"
    } else {
        "completed"
    }
}

/// A response with its output; none: it has only begun.
fn response(draft: &Draft<'_>, output: Option<&str>) -> String {
    let (status, usage) = match output {
        None => ("in_progress", "null".to_owned()),
        Some(_) => (status(draft), usage(draft)),
    };
    let output = output.unwrap_or_default();
    let incomplete = if status == "incomplete" {
        r#"{"reason":"max_output_tokens"}"#
    } else {
        "null"
    };
    let cap = draft
        .call
        .cap
        .map_or("null".to_owned(), |cap| cap.to_string());
    format!(
        r#"{{"id":"resp_{:08x}","object":"response","created_at":{},"status":"{status}","error":null,"incomplete_details":{incomplete},"instructions":null,"max_output_tokens":{cap},"model":{},"output":[{output}],"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"metadata":{{}},"service_tier":"default","usage":{usage}}}"#,
        draft.number,
        draft.created,
        draft.model_json(),
    )
}

fn usage(draft: &Draft<'_>) -> String {
    let (input, output) = (draft.input_tokens(), draft.output_tokens());
    format!(
        r#"{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":0,"cache_write_tokens":0}},"output_tokens":{output},"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{}}}"#,
        input + output
    )
}

fn text_part(text: &str) -> String {
    format!(r#"{{"type":"output_text","text":"{text}","annotations":[],"logprobs":[]}}"#)
}

fn message_item(draft: &Draft<'_>, status: &str, content: &str) -> String {
    format!(
        r#"{{"id":"msg_{:08x}","type":"message","status":"{status}","role":"assistant","content":[{content}]}}"#,
        draft.number
    )
}

fn call_item(draft: &Draft<'_>, status: &str, tool: &ToolCall, arguments: &str) -> String {
    format!(
        r#"{{"id":"fc_{0:08x}","type":"function_call","status":"{status}","call_id":"call_{0:08x}","name":"{1}","arguments":"{2}"}}"#,
        draft.number,
        escaped(&tool.name),
        escaped(arguments),
    )
}

/// Named events with a running `sequence_number`; no `[DONE]`.
#[derive(Default)]
struct Named(Vec<Event>);

impl Named {
    fn push(&mut self, kind: &str, fields: &str, tokens: u64) {
        let number = self.0.len();
        let text = format!(
            "event: {kind}\ndata: {{\"type\":\"{kind}\",\"sequence_number\":{number},{fields}}}\n\n"
        );
        self.0.push(event(text, tokens));
    }
}

fn events(draft: &Draft<'_>) -> Vec<Event> {
    let mut events = Named::default();
    let begun = format!(r#""response":{}"#, response(draft, None));
    events.push("response.created", &begun, 0);
    events.push("response.in_progress", &begun, 0);
    let output = match draft.tool() {
        Some(tool) => call_events(draft, tool, &mut events),
        None => message_events(draft, &mut events),
    };
    events.push(
        "response.output_item.done",
        &format!(r#""output_index":0,"item":{output}"#),
        0,
    );
    let done = format!(r#""response":{}"#, response(draft, Some(&output)));
    events.push(&format!("response.{}", status(draft)), &done, 0);
    events.0
}

/// The events of a text; gives the item that it makes.
fn message_events(draft: &Draft<'_>, events: &mut Named) -> String {
    let place = format!(
        r#""item_id":"msg_{:08x}","output_index":0,"content_index":0"#,
        draft.number
    );
    let item = message_item(draft, "in_progress", "");
    events.push(
        "response.output_item.added",
        &format!(r#""output_index":0,"item":{item}"#),
        0,
    );
    events.push(
        "response.content_part.added",
        &format!(r#"{place},"part":{}"#, text_part("")),
        0,
    );
    let mut text = String::new();
    for (piece, tokens) in draft.pieces(0) {
        events.push(
            "response.output_text.delta",
            &format!(r#"{place},"delta":"{piece}","logprobs":[]"#),
            tokens,
        );
        text.push_str(&piece);
    }
    events.push(
        "response.output_text.done",
        &format!(r#"{place},"text":"{text}","logprobs":[]"#),
        0,
    );
    events.push(
        "response.content_part.done",
        &format!(r#"{place},"part":{}"#, text_part(&text)),
        0,
    );
    message_item(draft, status(draft), &text_part(&text))
}

/// The events of a call of a tool; gives the item that it makes.
fn call_events(draft: &Draft<'_>, tool: &ToolCall, events: &mut Named) -> String {
    let place = format!(r#""item_id":"fc_{:08x}","output_index":0"#, draft.number);
    let item = call_item(draft, "in_progress", tool, "");
    events.push(
        "response.output_item.added",
        &format!(r#""output_index":0,"item":{item}"#),
        0,
    );
    let mut tokens = draft.output_tokens();
    for part in tools::parts(&tool.arguments) {
        events.push(
            "response.function_call_arguments.delta",
            &format!(r#"{place},"delta":"{}""#, escaped(&part)),
            std::mem::take(&mut tokens),
        );
    }
    events.push(
        "response.function_call_arguments.done",
        &format!(
            r#"{place},"name":"{}","arguments":"{}""#,
            escaped(&tool.name),
            escaped(&tool.arguments)
        ),
        0,
    );
    call_item(draft, "completed", tool, &tool.arguments)
}
