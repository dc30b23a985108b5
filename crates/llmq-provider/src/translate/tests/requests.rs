use serde_json::{Value, json};

use super::super::{OutputCap, Target, request};
use crate::Operation;

fn read(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// The body for an Anthropic upstream, without what is the same in each.
fn to_anthropic(body: &Value) -> Value {
    let bytes = body.to_string();
    let translated = request(
        Operation::ChatCompletions,
        bytes.as_bytes(),
        Target::new("c"),
    )
    .unwrap();
    assert_eq!(translated.operation, Operation::Messages);
    read(&translated.body)
}

fn to_openai(body: &Value) -> Value {
    let bytes = body.to_string();
    let translated = request(Operation::Messages, bytes.as_bytes(), Target::new("g")).unwrap();
    assert_eq!(translated.operation, Operation::ChatCompletions);
    read(&translated.body)
}

/// What `messages` become at Anthropic: the system text and the messages.
#[track_caller]
fn messages_to_anthropic(messages: Value, system: Value, expected: Value) {
    let body = to_anthropic(&json!({"model": "x", "messages": messages}));
    assert_eq!(body.get("system").cloned().unwrap_or_default(), system);
    assert_eq!(body["messages"], expected);
}

/// What `messages` become at OpenAI.
#[track_caller]
fn messages_to_openai(messages: Value, expected: Value) {
    let body = to_openai(&json!({"model": "x", "max_tokens": 9, "messages": messages}));
    assert_eq!(body["messages"], expected);
}

#[test]
fn system_texts_at_the_start_become_the_system_text_and_later_ones_stay() {
    messages_to_anthropic(
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]),
        json!("Be brief."),
        json!([{"role": "user", "content": "Hi"}]),
    );
    messages_to_anthropic(
        json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}]},
            {"role": "system", "content": "b"},
            {"role": "user", "content": "Hi"},
            {"role": "system", "content": "c"},
        ]),
        json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        json!([{"role": "user", "content": "Hi"}, {"role": "system", "content": "c"}]),
    );
}

#[test]
fn images_and_files_find_their_source() {
    messages_to_anthropic(
        json!([{"role": "user", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "high"}},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        ]}]),
        Value::Null,
        json!([{"role": "user", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.jpg"}},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}, "title": "a.pdf"},
        ]}]),
    );
}

#[test]
fn a_tools_results_and_what_the_user_says_next_are_one_turn() {
    messages_to_anthropic(
        json!([
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [], "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "w", "arguments": "{\"at\": \"Paris\"}"}},
                {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "call_1", "name": "w", "content": "12"},
            {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "So?"},
        ]),
        Value::Null,
        json!([
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "call_1", "name": "w", "input": {"at": "Paris"}},
                {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "12"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"type": "text", "text": "So?"},
            ]},
        ]),
    );
}

#[test]
fn blank_texts_beside_others_and_thoughts_are_left_out() {
    messages_to_anthropic(
        json!([
            {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Hello", "reasoning_content": "a greeting"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant", "content": "\n\n", "tool_calls": []},
            {"role": "user", "content": ""},
        ]),
        Value::Null,
        json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": ""},
        ]),
    );
}

#[test]
fn each_member_of_a_chat_completion_finds_its_place() {
    let table = [
        (json!({"max_tokens": 5}), json!({"max_tokens": 5})),
        (
            json!({"max_completion_tokens": 6}),
            json!({"max_tokens": 6}),
        ),
        (
            json!({"max_completion_tokens": 6, "max_tokens": 6}),
            json!({"max_tokens": 6}),
        ),
        (
            json!({"temperature": 1, "top_p": 0.5}),
            json!({"temperature": 1, "top_p": 0.5}),
        ),
        (json!({"stop": "END"}), json!({"stop_sequences": ["END"]})),
        (
            json!({"stop": ["a", "b"]}),
            json!({"stop_sequences": ["a", "b"]}),
        ),
        (
            json!({"stream": true, "stream_options": {"include_usage": true}}),
            json!({"stream": true}),
        ),
        (
            json!({"stream": false, "n": 1, "logprobs": false, "logit_bias": {}, "store": false}),
            json!({}),
        ),
        (
            json!({"seed": null, "modalities": ["text"], "presence_penalty": 0}),
            json!({}),
        ),
        (
            json!({"metadata": {"a": "b"}, "prompt_cache_key": "k"}),
            json!({}),
        ),
        (json!({"user": "u"}), json!({"metadata": {"user_id": "u"}})),
        (
            json!({"user": "u", "safety_identifier": "s"}),
            json!({"metadata": {"user_id": "s"}}),
        ),
        (
            json!({"service_tier": "auto"}),
            json!({"service_tier": "auto"}),
        ),
        (
            json!({"service_tier": "default"}),
            json!({"service_tier": "standard_only"}),
        ),
        (
            json!({"reasoning_effort": "high"}),
            json!({"output_config": {"effort": "high"}}),
        ),
        (
            json!({"reasoning_effort": "none"}),
            json!({"thinking": {"type": "disabled"}}),
        ),
        (json!({"response_format": {"type": "text"}}), json!({})),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "object"}}}}),
            json!({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}),
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true}}], "tool_choice": "auto"}),
            json!({"tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": true}], "tool_choice": {"type": "auto"}}),
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": false}),
            json!({"tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}], "tool_choice": {"type": "auto", "disable_parallel_tool_use": true}}),
        ),
        (json!({"parallel_tool_calls": false}), json!({})),
        (
            json!({"tool_choice": "required", "parallel_tool_calls": true}),
            json!({"tool_choice": {"type": "any"}}),
        ),
        (
            json!({"tool_choice": "none", "parallel_tool_calls": false}),
            json!({"tool_choice": {"type": "none"}}),
        ),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": false}),
            json!({"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true}}),
        ),
    ];
    for (members, expected) in table {
        let user = json!([{"role": "user", "content": "Hi"}]);
        let mut body = json!({"model": "x", "messages": user.clone()});
        let mut whole = json!({"model": "c", "max_tokens": 1024, "messages": user});
        body.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        whole
            .as_object_mut()
            .unwrap()
            .extend(expected.as_object().unwrap().clone());
        assert_eq!(to_anthropic(&body), whole, "{members}");
    }
}

#[test]
fn each_member_of_a_message_request_finds_its_place() {
    let table = [
        (
            json!({"max_tokens": 5}),
            json!({"max_completion_tokens": 5}),
        ),
        (
            json!({"system": "s"}),
            json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}]}),
        ),
        (
            json!({"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]}),
            json!({"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"role": "user", "content": "Hi"}]}),
        ),
        (
            json!({"temperature": 0.2, "top_p": 0.9}),
            json!({"temperature": 0.2, "top_p": 0.9}),
        ),
        (json!({"stop_sequences": ["a"]}), json!({"stop": ["a"]})),
        (
            json!({"stream": true}),
            json!({"stream": true, "stream_options": {"include_usage": true}}),
        ),
        (
            json!({"stream": false, "cache_control": {"type": "ephemeral"}, "speed": "standard"}),
            json!({}),
        ),
        (json!({"metadata": {"user_id": "u"}}), json!({"user": "u"})),
        (
            json!({"service_tier": "standard_only"}),
            json!({"service_tier": "default"}),
        ),
        (
            json!({"thinking": {"type": "disabled"}}),
            json!({"reasoning_effort": "none"}),
        ),
        (
            json!({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
            json!({"reasoning_effort": "low"}),
        ),
        (
            json!({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}),
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": true}}}),
        ),
        (
            json!({"tools": [{"type": "custom", "name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}]}),
            json!({"tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]}),
        ),
        (
            json!({"tool_choice": {"type": "any"}}),
            json!({"tool_choice": "required"}),
        ),
        (
            json!({"tool_choice": {"type": "none"}}),
            json!({"tool_choice": "none"}),
        ),
        (
            json!({"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true}}),
            json!({"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": false}),
        ),
    ];
    for (members, expected) in table {
        let user = json!([{"role": "user", "content": "Hi"}]);
        let mut body = json!({"model": "x", "messages": user.clone()});
        let mut whole = json!({"model": "g", "messages": user});
        body.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        whole
            .as_object_mut()
            .unwrap()
            .extend(expected.as_object().unwrap().clone());
        assert_eq!(to_openai(&body), whole, "{members}");
    }
}

#[test]
fn blocks_become_parts_calls_and_results() {
    messages_to_openai(
        json!([
            {"role": "user", "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.jpg"}},
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "plain"}},
                {"type": "text", "text": "What?"},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "w", "input": {"at": "Paris"}},
                {"type": "tool_use", "id": "toolu_2", "name": "w", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "12"},
                {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": true, "content": [{"type": "text", "text": "no"}]},
                {"type": "text", "text": "So?"},
            ]},
            {"role": "system", "content": "Be brief."},
            {"role": "assistant", "content": "Warm."},
            {"role": "user", "content": "Thanks"},
        ]),
        json!([
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}},
                {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
                {"type": "text", "text": "plain"},
                {"type": "text", "text": "What?"},
            ]},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "w", "arguments": "{\"at\":\"Paris\"}"}},
                {"id": "toolu_2", "type": "function", "function": {"name": "w", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "12"},
            {"role": "tool", "tool_call_id": "toolu_2", "content": [{"type": "text", "text": "The tool failed:"}, {"type": "text", "text": "no"}]},
            {"role": "user", "content": "So?"},
            {"role": "system", "content": "Be brief."},
            {"role": "assistant", "content": "Warm."},
            {"role": "user", "content": "Thanks"},
        ]),
    );
}

#[test]
fn a_target_has_its_own_cap_and_may_refuse_to_tell_usage() {
    let body = br#"{"model":"x","max_tokens":5,"stream":true,"messages":[{"role":"user","content":"Hi"}]}"#;
    let target = Target {
        cap: OutputCap::MaxTokens,
        ask_stream_usage: false,
        ..Target::new("g")
    };
    let translated = request(Operation::Messages, body, target).unwrap();
    assert_eq!(
        translated.body,
        r#"{"model":"g","messages":[{"role":"user","content":"Hi"}],"max_tokens":5,"stream":true}"#
    );
    let body = br#"{"messages":[{"role":"user","content":"Hi"}]}"#;
    let target = Target {
        max_tokens: 77,
        ..Target::new("c")
    };
    let translated = request(Operation::ChatCompletions, body, target).unwrap();
    assert_eq!(read(&translated.body)["max_tokens"], 77);
}

#[test]
fn numbers_schemas_and_escapes_keep_their_bytes() {
    let body = r#"{"messages":[{"role":"user","content":"\u00e9\/\ud83d"}],"temperature":0.10,
        "tools":[{"type":"function","function":{"name":"f","parameters":{"z":1e400,  "a":12345678901234567890123}}}]}"#;
    let translated = request(
        Operation::ChatCompletions,
        body.as_bytes(),
        Target::new("c"),
    )
    .unwrap();
    let written = String::from_utf8(translated.body.to_vec()).unwrap();
    for kept in [
        r#""\u00e9\/\ud83d""#,
        r#""temperature":0.10"#,
        r#"{"z":1e400,  "a":12345678901234567890123}"#,
    ] {
        assert!(written.contains(kept), "{kept} in {written}");
    }
}

#[test]
fn what_was_left_out_is_told() {
    let left_out = |operation, body: &Value| {
        let bytes = body.to_string();
        let translated = request(operation, bytes.as_bytes(), Target::new("m")).unwrap();
        translated.left_out.into_iter().collect::<Vec<_>>()
    };
    let chat = json!({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://e/a", "detail": "low"}}]}],
        "metadata": {"a": "b"}, "prediction": null});
    assert_eq!(
        left_out(Operation::ChatCompletions, &chat),
        ["detail", "metadata"]
    );
    let message = json!({"messages": [
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}]});
    assert_eq!(
        left_out(Operation::Messages, &message),
        ["cache_control", "redacted_thinking"]
    );
    let plain = json!({"messages": [{"role": "user", "content": "a"}]});
    assert!(left_out(Operation::Messages, &plain).is_empty());
}
