//! The shapes of OpenAI's answers (openai-openapi, August 2026).

use bytes::Bytes;
use http::StatusCode;

use super::answer::{Answer, Draft, Event};
use super::call::Endpoint;
use super::responses;
use super::text::Text;
use super::tools::{self, ToolCall, escaped};

pub(super) fn write(draft: &Draft<'_>) -> Answer {
    match (draft.call.endpoint, draft.call.stream) {
        (Endpoint::Embeddings, _) => embeddings(draft),
        (Endpoint::Responses, _) => responses::write(draft),
        (_, false) => completion(draft),
        (_, true) => Answer::events(completion_events(draft)),
    }
}

/// `GET /v1/models`.
pub(super) fn models(names: &[String]) -> Answer {
    let data: Vec<String> = names.iter().map(|name| model_object(name)).collect();
    let body = format!(r#"{{"object":"list","data":[{}]}}"#, data.join(","));
    Answer::json(StatusCode::OK, body)
}

/// `GET /v1/models/{id}`.
pub(super) fn model(name: &str) -> Answer {
    Answer::json(StatusCode::OK, model_object(name))
}

fn model_object(name: &str) -> String {
    let name = serde_json::Value::from(name);
    format!(r#"{{"id":{name},"object":"model","created":1735689600,"owned_by":"llmq"}}"#)
}

/// The parts in which chat and plain completions differ.
struct Kind {
    id: &'static str,
    whole: &'static str,
    chunk: &'static str,
    is_chat: bool,
}

fn kind(draft: &Draft<'_>) -> Kind {
    if draft.call.endpoint == Endpoint::Chat {
        Kind {
            id: "chatcmpl",
            whole: "chat.completion",
            chunk: "chat.completion.chunk",
            is_chat: true,
        }
    } else {
        Kind {
            id: "cmpl",
            whole: "text_completion",
            chunk: "text_completion",
            is_chat: false,
        }
    }
}

/// A call that was demanded by its name ends with `stop` ("Function calling", OpenAI's guides).
fn finish_reason(draft: &Draft<'_>) -> &'static str {
    match draft.tool() {
        _ if draft.is_cut() => "length",
        Some(tool) if !tool.forced => "tool_calls",
        _ => "stop",
    }
}

/// The parts of a call that its first chunk tells, and a whole answer too.
fn tool_call(draft: &Draft<'_>, index: u32, tool: &ToolCall, arguments: &str) -> String {
    format!(
        r#""id":"call_{:08x}_{index}","type":"function","function":{{"name":"{}","arguments":"{}"}}"#,
        draft.number,
        escaped(&tool.name),
        escaped(arguments),
    )
}

fn completion(draft: &Draft<'_>) -> Answer {
    let kind = kind(draft);
    let reason = finish_reason(draft);
    let mut choices = String::new();
    for index in 0..draft.call.choices {
        if index > 0 {
            choices.push(',');
        }
        choices.push_str(&if kind.is_chat {
            let said = match draft.tool() {
                Some(tool) => {
                    let call = tool_call(draft, index, tool, &tool.arguments);
                    format!(r#""content":null,"tool_calls":[{{{call}}}]"#)
                }
                None => format!(r#""content":"{}""#, draft.text(index)),
            };
            format!(
                r#"{{"index":{index},"message":{{"role":"assistant",{said},"refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"{reason}"}}"#
            )
        } else {
            let text = draft.text(index);
            format!(r#"{{"index":{index},"text":"{text}","logprobs":null,"finish_reason":"{reason}"}}"#)
        });
    }
    let body = format!(
        r#"{{"id":"{}-{:08x}","object":"{}","created":{},"model":{},"choices":[{choices}],"usage":{},"service_tier":"default","system_fingerprint":"fp_mock"}}"#,
        kind.id,
        draft.number,
        kind.whole,
        draft.created,
        draft.model_json(),
        usage(draft),
    );
    Answer::json(StatusCode::OK, body)
}

fn usage(draft: &Draft<'_>) -> String {
    let input = draft.input_tokens();
    let output = draft.output_tokens() * u64::from(draft.call.choices);
    format!(
        r#"{{"prompt_tokens":{input},"completion_tokens":{output},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":0,"cache_write_tokens":0,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}}"#,
        input + output
    )
}

/// Data lines without an `event:` line, ended by `[DONE]`. With `include_usage` every chunk has
/// a `usage`, null in all but one of its own before the end.
fn completion_events(draft: &Draft<'_>) -> Vec<Event> {
    let kind = kind(draft);
    let head = format!(
        r#"data: {{"id":"{}-{:08x}","object":"{}","created":{},"model":{},"service_tier":"default","system_fingerprint":"fp_mock""#,
        kind.id,
        draft.number,
        kind.chunk,
        draft.created,
        draft.model_json(),
    );
    let no_usage = if draft.call.include_usage {
        r#","usage":null"#
    } else {
        ""
    };
    let chunk = |index: u32, delta: &str, reason: &str| {
        format!(
            "{head},\"choices\":[{{\"index\":{index},{delta},\"logprobs\":null,\"finish_reason\":{reason}}}]{no_usage}}}\n\n"
        )
    };
    let mut events = Vec::new();
    for index in 0..draft.call.choices {
        for (delta, tokens) in deltas(draft, &kind, index) {
            events.push(event(chunk(index, &delta, "null"), tokens));
        }
        let delta = if kind.is_chat {
            r#""delta":{}"#
        } else {
            r#""text":"""#
        };
        let reason = format!("\"{}\"", finish_reason(draft));
        events.push(event(chunk(index, delta, &reason), 0));
    }
    if draft.call.include_usage {
        let last = format!("{head},\"choices\":[],\"usage\":{}}}\n\n", usage(draft));
        events.push(event(last, 0));
    }
    events.push(event("data: [DONE]\n\n".to_owned(), 0));
    events
}

/// What the chunks of one answer say, but for its end.
fn deltas(draft: &Draft<'_>, kind: &Kind, index: u32) -> Vec<(String, u64)> {
    let pieces = || draft.pieces(index).into_iter();
    if !kind.is_chat {
        let text = |(piece, tokens)| (format!(r#""text":"{piece}""#), tokens);
        return pieces().map(text).collect();
    }
    let Some(tool) = draft.tool() else {
        let role = r#""delta":{"role":"assistant","content":"","refusal":null}"#.to_owned();
        let text = |(piece, tokens)| (format!(r#""delta":{{"content":"{piece}"}}"#), tokens);
        return std::iter::once((role, 0))
            .chain(pieces().map(text))
            .collect();
    };
    let begun = tool_call(draft, index, tool, "");
    let begun = format!(
        r#""delta":{{"role":"assistant","content":null,"tool_calls":[{{"index":0,{begun}}}],"refusal":null}}"#
    );
    let part = |part: String| {
        let part = escaped(&part);
        let call = format!(r#"{{"index":0,"function":{{"arguments":"{part}"}}}}"#);
        (format!(r#""delta":{{"tool_calls":[{call}]}}"#), 0)
    };
    let begun = std::iter::once((begun, draft.output_tokens()));
    begun
        .chain(tools::parts(&tool.arguments).into_iter().map(part))
        .collect()
}

pub(super) fn event(text: String, tokens: u64) -> Event {
    Event {
        bytes: Bytes::from(text),
        tokens,
    }
}

fn embeddings(draft: &Draft<'_>) -> Answer {
    let mut data = String::new();
    for (index, input) in draft.call.embeddings.iter().enumerate() {
        if index > 0 {
            data.push(',');
        }
        let vector = vector(input, draft);
        let embedding = if draft.call.base64 {
            let bytes: Vec<u8> = vector
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect();
            format!("\"{}\"", base64(&bytes))
        } else {
            let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
            format!("[{}]", numbers.join(","))
        };
        data.push_str(&format!(
            r#"{{"object":"embedding","index":{index},"embedding":{embedding}}}"#
        ));
    }
    let tokens = draft.input_tokens();
    let body = format!(
        r#"{{"object":"list","data":[{data}],"model":{},"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#,
        draft.model_json()
    );
    Answer::json(StatusCode::OK, body)
}

/// A vector of length 1 that follows from the text and the seed.
fn vector(input: &Text, draft: &Draft<'_>) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(input.digest ^ draft.seed);
    let raw: Vec<f32> = (0..draft.call.dimensions)
        .map(|_| random.f32() - 0.5)
        .collect();
    let length = raw.iter().map(|number| number * number).sum::<f32>().sqrt();
    raw.into_iter()
        .map(|number| number / length.max(f32::MIN_POSITIVE))
        .collect()
}

/// Standard base64 with padding (RFC 4648 §4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| group.get(index).copied().map_or(0, usize::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            if digit <= group.len() {
                text.push(char::from(ALPHABET[bits >> (18 - 6 * digit) & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648 §10.
        let rows = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in rows {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
