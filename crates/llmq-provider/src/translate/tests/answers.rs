use serde_json::{Value, json};

use super::super::answer;
use super::samples::{ANTHROPIC_CALL_WHOLE, OPENAI_CALLS_WHOLE};
use crate::Dialect;

#[track_caller]
fn told(to: Dialect, body: &Value) -> Value {
    let bytes = answer(to, body.to_string().as_bytes(), 7).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn message(content: Value, stop_reason: &str) -> Value {
    json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5-20251001",
        "content": content, "stop_reason": stop_reason, "stop_sequence": null,
        "usage": {"input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5,
            "output_tokens_details": {"thinking_tokens": 2}}})
}

fn chat(message: Value, finish_reason: &Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 17, "completion_tokens": 5, "total_tokens": 22,
            "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 2}},
        "system_fingerprint": "fp", "service_tier": "default"})
}

#[test]
fn a_message_is_told_as_a_chat_completion() {
    let body = message(
        json!([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo", "citations": null}]),
        "end_turn",
    );
    let expected = json!({"id": "msg_1", "object": "chat.completion", "created": 7, "model": "claude-haiku-4-5-20251001",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello", "refusal": null}, "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 17, "completion_tokens": 5, "total_tokens": 22,
            "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 2}}});
    assert_eq!(told(Dialect::OpenAi, &body), expected);
}

#[test]
fn a_chat_completion_is_told_as_a_message() {
    let body = chat(
        json!({"role": "assistant", "content": "Hello", "refusal": null, "annotations": []}),
        &json!("stop"),
    );
    let mut expected = message(json!([{"type": "text", "text": "Hello"}]), "end_turn");
    expected["id"] = json!("chatcmpl-1");
    expected["model"] = json!("gpt-4o-mini-2024-07-18");
    assert_eq!(told(Dialect::Anthropic, &body), expected);
}

#[test]
fn calls_keep_their_ids_names_and_arguments() {
    let read = |to, body: &str| -> Value {
        serde_json::from_slice(&answer(to, body.as_bytes(), 7).unwrap()).unwrap()
    };
    let chat = read(Dialect::OpenAi, ANTHROPIC_CALL_WHOLE);
    let calls = json!([
        {"id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6", "type": "function", "function": {"name": "get_weather", "arguments": "{\"location\": \"San Francisco, CA\"}"}},
        {"id": "toolu_2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]);
    assert_eq!(chat["choices"][0]["message"]["tool_calls"], calls);
    assert_eq!(chat["choices"][0]["finish_reason"], "tool_calls");
    let message = read(Dialect::Anthropic, OPENAI_CALLS_WHOLE);
    let content = json!([
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call_a", "name": "get_weather", "input": {"at": "Paris"}},
        {"type": "tool_use", "id": "call_b", "name": "now", "input": {}},
    ]);
    assert_eq!(message["content"], content);
    assert_eq!(message["stop_reason"], "tool_use");
}

#[test]
fn each_reason_to_stop_has_its_word() {
    for (stop_reason, finish_reason) in [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("new_reason", "stop"),
    ] {
        let body = message(json!([{"type": "text", "text": "x"}]), stop_reason);
        assert_eq!(
            told(Dialect::OpenAi, &body)["choices"][0]["finish_reason"],
            finish_reason
        );
    }
    for (finish_reason, stop_reason) in [
        (json!("stop"), "end_turn"),
        (json!("length"), "max_tokens"),
        (json!("model_length"), "max_tokens"),
        (json!("content_filter"), "refusal"),
        (json!("tool_calls"), "tool_use"),
        (json!("eos"), "end_turn"),
        (Value::Null, "end_turn"),
        // A word of which nobody knows whether it cuts the answer off was told as `end_turn`.
        (json!("new_reason"), "new_reason"),
    ] {
        let body = chat(json!({"role": "assistant", "content": "x"}), &finish_reason);
        assert_eq!(told(Dialect::Anthropic, &body)["stop_reason"], stop_reason);
    }
    // OpenAI says `stop` after a call that was demanded by name.
    let call =
        json!([{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let body = chat(
        json!({"role": "assistant", "content": null, "tool_calls": call}),
        &json!("stop"),
    );
    assert_eq!(told(Dialect::Anthropic, &body)["stop_reason"], "tool_use");
}

#[test]
fn refusals_and_thoughts_find_their_place() {
    let mut body = message(
        json!([{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]),
        "refusal",
    );
    body["stop_details"] =
        json!({"type": "refusal", "category": "bio", "explanation": "Not this."});
    let told_message = &told(Dialect::OpenAi, &body)["choices"][0]["message"];
    let expected = json!({"role": "assistant", "content": "", "refusal": "Not this.", "reasoning_content": "hm"});
    assert_eq!(told_message, &expected);
    let body = chat(
        json!({"role": "assistant", "content": null, "refusal": "No."}),
        &json!("stop"),
    );
    assert_eq!(
        told(Dialect::Anthropic, &body)["content"],
        json!([{"type": "text", "text": "No."}])
    );
}

#[test]
fn a_text_in_parts_is_not_lost() {
    let parts = json!([{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let body = chat(
        json!({"role": "assistant", "content": parts}),
        &json!("stop"),
    );
    let expected = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    assert_eq!(told(Dialect::Anthropic, &body)["content"], expected);
}

#[test]
fn arguments_that_are_not_json_spoil_an_answer_unless_the_cap_cut_them() {
    let call =
        json!([{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":"}}]);
    let body = |finish: &str| {
        chat(
            json!({"role": "assistant", "content": "x", "tool_calls": call}),
            &json!(finish),
        )
    };
    assert!(
        answer(
            Dialect::Anthropic,
            body("tool_calls").to_string().as_bytes(),
            7
        )
        .is_err()
    );
    for reason in ["length", "model_length"] {
        let cut = told(Dialect::Anthropic, &body(reason));
        assert_eq!(cut["content"], json!([{"type": "text", "text": "x"}]));
        assert_eq!(cut["stop_reason"], "max_tokens");
    }
}

/// llama.cpp of early 2026 and text-generation-inference write the object itself, and the tool was
/// called with `{}`.
#[test]
fn arguments_outside_a_text_are_not_lost() {
    let body = |arguments: &Value| {
        let function = json!({"name": "f", "arguments": arguments});
        let call = json!([{"id": "a", "type": "function", "function": function}]);
        chat(
            json!({"role": "assistant", "content": null, "tool_calls": call}),
            &json!("tool_calls"),
        )
    };
    let input = |arguments: Value| {
        told(Dialect::Anthropic, &body(&arguments))["content"][0]["input"].take()
    };
    assert_eq!(input(json!({"city": "Paris"})), json!({"city": "Paris"}));
    assert_eq!(input(Value::Null), json!({}));
    let listed = body(&json!(["Paris"])).to_string();
    assert!(answer(Dialect::Anthropic, listed.as_bytes(), 7).is_err());
}

#[test]
fn what_an_answer_does_not_say_is_not_invented() {
    let bare = json!({"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn"});
    assert_eq!(told(Dialect::OpenAi, &bare).get("usage"), None);
    let bare = json!({"choices": [{"message": {"content": "x"}}]});
    assert_eq!(told(Dialect::Anthropic, &bare)["usage"]["output_tokens"], 0);
}

#[test]
fn what_is_no_answer_is_not_told_as_one() {
    for body in [
        "",
        "<html>",
        "[]",
        "{}",
        r#"{"choices":[]}"#,
        r#"{"choices":[{}]}"#,
        r#"{"content":"x"}"#,
    ] {
        assert!(
            answer(Dialect::OpenAi, body.as_bytes(), 7).is_err(),
            "{body}"
        );
        assert!(
            answer(Dialect::Anthropic, body.as_bytes(), 7).is_err(),
            "{body}"
        );
    }
}
