use bytes::BytesMut;
use serde_json::{Value, json};

use super::super::{StreamBroken, StreamOptions, StreamTranslator, answer};
use super::fold;
use super::samples::{
    ANTHROPIC_CALL, ANTHROPIC_CALL_WHOLE, ANTHROPIC_THOUGHT, OPENAI_CALLS, OPENAI_CALLS_WHOLE,
    OPENAI_TEXT,
};
use crate::Dialect;

const OPTIONS: StreamOptions = StreamOptions {
    include_usage: true,
    created_s: 7,
};

/// What `pieces` become, and how it ended.
pub(super) fn translated(to: Dialect, pieces: &[&[u8]]) -> (Vec<u8>, Result<(), StreamBroken>) {
    let mut translator = StreamTranslator::new(to, OPTIONS);
    let mut out = BytesMut::new();
    let pushed = pieces
        .iter()
        .try_for_each(|piece| translator.push(piece, &mut out));
    let ended = pushed.and_then(|()| translator.finish(&mut out));
    assert_eq!(translator.is_whole(), ended.is_ok());
    (out.to_vec(), ended)
}

fn whole(to: Dialect, stream: &str) -> Vec<u8> {
    let (out, ended) = translated(to, &[stream.as_bytes()]);
    assert_eq!(ended, Ok(()));
    out
}

#[test]
fn a_streamed_answer_says_what_the_whole_one_says() {
    let table = [
        (Dialect::OpenAi, ANTHROPIC_CALL, ANTHROPIC_CALL_WHOLE),
        (Dialect::Anthropic, OPENAI_CALLS, OPENAI_CALLS_WHOLE),
    ];
    for (to, stream, body) in table {
        let stream = whole(to, stream);
        let streamed = match to {
            Dialect::OpenAi => fold::chat(&stream),
            Dialect::Anthropic => fold::message(&stream),
        };
        let whole = answer(to, body.as_bytes(), OPTIONS.created_s).unwrap();
        assert_eq!(streamed, serde_json::from_slice::<Value>(&whole).unwrap());
    }
}

#[test]
fn a_message_becomes_chunks_in_their_order() {
    let events = fold::events(&whole(Dialect::OpenAi, ANTHROPIC_CALL));
    let deltas: Vec<&Value> = events
        .iter()
        .map(|(_, data)| &data["choices"][0]["delta"])
        .collect();
    let call = |index: u64, id: &str, name: &str| json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]});
    let part = |index: u64, arguments: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]});
    let expected = [
        json!({"role": "assistant", "content": ""}),
        json!({"content": "Okay"}),
        json!({"content": ", ☀ let's"}),
        call(0, "toolu_01T1x1fJ34qAmk2tNTrN7Up6", "get_weather"),
        part(0, "{\"location\":"),
        part(0, " \"San Francisco, CA\"}"),
        call(1, "toolu_2", "now"),
        part(1, "{}"),
        json!({}),
        Value::Null,
        Value::Null,
    ];
    assert_eq!(deltas, expected.iter().collect::<Vec<_>>());
    let usage = json!({"prompt_tokens": 572, "completion_tokens": 89, "total_tokens": 661,
        "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 0}});
    assert_eq!(events[9].1["usage"], usage);
    assert_eq!(events[9].1["choices"], json!([]));
    assert_eq!(events[0].1.get("usage"), Some(&Value::Null));
}

#[test]
fn usage_is_told_only_to_those_who_asked() {
    let mut translator = StreamTranslator::new(Dialect::OpenAi, StreamOptions::default());
    let mut out = BytesMut::new();
    translator
        .push(ANTHROPIC_CALL.as_bytes(), &mut out)
        .unwrap();
    assert!(translator.is_whole());
    assert!(!String::from_utf8(out.to_vec()).unwrap().contains("usage"));
}

#[test]
fn thoughts_are_told_apart_from_the_answer() {
    let chat = fold::chat(&whole(Dialect::OpenAi, ANTHROPIC_THOUGHT));
    let message = &chat["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "27 * 453 is");
    assert_eq!(message["content"], "12,231");
    assert_eq!(chat["choices"][0]["finish_reason"], "length");
    let details = json!({"reasoning_tokens": 12});
    assert_eq!(chat["usage"]["completion_tokens_details"], details);
}

/// LocalAI and others say `""` where OpenAI says `null`: each chunk then ended its block, and a call
/// in two pieces could not be told at all. Some gateways write the reason into every chunk.
#[test]
fn a_reason_to_end_in_every_chunk_changes_nothing() {
    let told = |stream: &str| {
        let mut events = fold::events(&whole(Dialect::Anthropic, stream));
        events.retain(|(name, _)| name != "ping");
        events
    };
    for (stream, reason) in [(OPENAI_TEXT, "stop"), (OPENAI_CALLS, "tool_calls")] {
        let expected = told(stream);
        for every in ["", reason] {
            let stream = stream.replace(
                "\"finish_reason\":null",
                &format!("\"finish_reason\":\"{every}\""),
            );
            assert_eq!(told(&stream), expected, "{every:?}");
            let end = stream.find("data: [DONE]").unwrap();
            let before = stream[..end].rfind(&format!("\"{reason}\"")).unwrap();
            let last = stream[..before].rfind("data: ").unwrap();
            let (_, ended) = translated(Dialect::Anthropic, &[&stream.as_bytes()[..last]]);
            assert_eq!(ended, Err(StreamBroken::CutOff), "{every:?}");
        }
    }
}

/// A heartbeat of some proxies; it broke a translated stream, and no other.
#[test]
fn an_event_without_data_says_nothing() {
    for (to, stream) in [
        (Dialect::OpenAi, ANTHROPIC_CALL),
        (Dialect::Anthropic, OPENAI_CALLS),
    ] {
        for empty in ["data:\n\n", "event: ping\ndata: \n\n"] {
            let beating = stream.replace("\n\n", &format!("\n\n{empty}"));
            assert_eq!(whole(to, &beating), whole(to, stream));
        }
    }
}

#[test]
fn chunks_become_events_in_their_order() {
    let events = fold::events(&whole(Dialect::Anthropic, OPENAI_TEXT));
    let usage = json!({"input_tokens": 0, "output_tokens": 0,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0});
    let text = |text: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    let expected = [
        json!({"type": "message_start", "message": {"id": "chatcmpl-123", "type": "message", "role": "assistant",
            "model": "gpt-4o-mini", "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage}}),
        json!({"type": "ping"}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        text("Hel"),
        text("lo ☀"),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {"input_tokens": 11, "output_tokens": 10, "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 8, "output_tokens_details": {"thinking_tokens": 4}}}),
        json!({"type": "message_stop"}),
    ];
    let told: Vec<Value> = events.into_iter().map(|(_, data)| data).collect();
    assert_eq!(told, expected);
}

#[test]
fn an_event_is_told_as_soon_as_it_is_there() {
    let mut translator = StreamTranslator::new(Dialect::Anthropic, OPTIONS);
    let mut out = BytesMut::new();
    for event in OPENAI_CALLS.split_inclusive("\n\n") {
        let before = out.len();
        translator.push(event.as_bytes(), &mut out).unwrap();
        let is_usage = event.contains("\"choices\":[]");
        assert_eq!(out.len() == before, is_usage, "{event}");
        assert_eq!(
            translator.is_answered(),
            event.contains("finish_reason\":\"") || is_usage || event.contains("DONE")
        );
    }
}

#[test]
fn where_the_bytes_are_cut_does_not_matter() {
    for (to, stream) in [
        (Dialect::OpenAi, ANTHROPIC_CALL),
        (Dialect::OpenAi, ANTHROPIC_THOUGHT),
        (Dialect::Anthropic, OPENAI_TEXT),
        (Dialect::Anthropic, OPENAI_CALLS),
    ] {
        let stream = stream.as_bytes();
        let expected = translated(to, &[stream]);
        for at in 0..=stream.len() {
            let (left, right) = stream.split_at(at);
            assert_eq!(translated(to, &[left, right]), expected, "at {at}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(translated(to, &bytes), expected);
    }
}

fn chunk(delta: &Value, finish: &Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
    format!(
        "data: {}\n\n",
        json!({"id": "x-1", "model": "m", "choices": [choice]})
    )
}

/// Of Mistral's models that think it left nothing.
#[test]
fn a_text_in_parts_is_not_lost_in_a_stream() {
    let stream = [
        chunk(
            &json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}),
            &Value::Null,
        ),
        chunk(
            &json!({"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}),
            &Value::Null,
        ),
        chunk(&json!({"content": ""}), &json!("stop")),
        "data: [DONE]\n\n".to_owned(),
    ];
    let message = fold::message(&whole(Dialect::Anthropic, &stream.concat()));
    let expected = json!([{"type": "text", "text": "Hello"}]);
    assert_eq!(message["content"], expected);
}

/// The tool was called with `{}`.
#[test]
fn arguments_outside_a_text_are_not_lost_in_a_stream() {
    let stream = |arguments: &Value| {
        let function = json!({"name": "f", "arguments": arguments});
        let call = json!({"tool_calls": [{"index": 0, "id": "a", "function": function}]});
        let call = chunk(&call, &Value::Null);
        let end = chunk(&json!({}), &json!("tool_calls"));
        format!("{call}{end}data: [DONE]\n\n")
    };
    let arguments = json!({"city": "Paris"});
    let message = fold::message(&whole(Dialect::Anthropic, &stream(&arguments)));
    assert_eq!(message["content"][0]["input"], arguments);
    let listed = stream(&json!(["Paris"]));
    let (_, ended) = translated(Dialect::Anthropic, &[listed.as_bytes()]);
    assert!(matches!(ended, Err(StreamBroken::Malformed(_))));
}

/// They came out as answers that had ended in order.
#[test]
fn reasons_to_end_that_are_no_end_are_not_told_as_one() {
    let stream = |reason: &str| {
        let word = chunk(&json!({"content": "Hi"}), &Value::Null);
        let end = chunk(&json!({}), &json!(reason));
        format!("{word}{end}data: [DONE]\n\n")
    };
    for (reason, told) in [("model_length", "max_tokens"), ("new_reason", "new_reason")] {
        let message = fold::message(&whole(Dialect::Anthropic, &stream(reason)));
        assert_eq!(message["stop_reason"], told);
    }
    for reason in ["error", "insufficient_system_resource", "abort"] {
        let (_, ended) = translated(Dialect::Anthropic, &[stream(reason).as_bytes()]);
        assert!(
            matches!(ended, Err(StreamBroken::Failed { .. })),
            "{reason}"
        );
    }
}

#[test]
fn servers_that_stream_calls_in_their_own_way_are_understood() {
    let call = |id: &Value, name: &str, arguments: &str| json!({"tool_calls": [{"index": 0, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]});
    // Every call has the index 0, one has no id, and the reason is `stop`.
    let stream = [
        "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n".to_owned(),
        chunk(&call(&json!("a"), "f", "{}"), &Value::Null),
        chunk(&call(&json!("b"), "g", "{\"x\":"), &Value::Null),
        chunk(&call(&json!("b"), "", "1}"), &Value::Null),
        chunk(&json!({"content": "and"}), &Value::Null),
        chunk(&call(&Value::Null, "h", "{}"), &Value::Null),
        chunk(&json!({"reasoning_content": "hm"}), &json!("stop")),
        "data: [DONE]\n\n".to_owned(),
    ];
    let message = fold::message(&whole(Dialect::Anthropic, &stream.concat()));
    assert_eq!(
        message["content"],
        json!([
            {"type": "tool_use", "id": "a", "name": "f", "input": {}},
            {"type": "tool_use", "id": "b", "name": "g", "input": {"x": 1}},
            {"type": "text", "text": "and"},
            {"type": "tool_use", "id": "call_x1_2", "name": "h", "input": {}},
        ])
    );
    assert_eq!(message["stop_reason"], "tool_use");
    assert_eq!(
        (&message["id"], &message["model"]),
        (&json!("x-1"), &json!("m"))
    );
}
