//! Streams put together as the official SDKs do it, strictly: what they would stumble over
//! panics here.

use serde_json::{Value, json};

/// The data of each event, with its name; comments are left aside.
pub(super) fn events(stream: &[u8]) -> Vec<(String, Value)> {
    let mut splitter = crate::SseSplitter::new();
    let mut events = Vec::new();
    let mut note = |event: crate::SseEvent<'_>| {
        let name = String::from_utf8(event.name.to_vec()).unwrap();
        let data = serde_json::from_slice(event.data)
            .unwrap_or_else(|_| Value::from(String::from_utf8(event.data.to_vec()).unwrap()));
        events.push((name, data));
    };
    splitter.push(stream, &mut note).unwrap();
    assert!(stream.is_empty() || stream.ends_with(b"\n"), "half a line");
    events
}

/// A whole chat completion out of its chunks.
pub(super) fn chat(stream: &[u8]) -> Value {
    let mut message = json!({"role": null, "content": "", "refusal": null});
    let (mut head, mut finish, mut usage) = (Value::Null, Value::Null, Value::Null);
    let mut events = events(stream);
    assert_eq!(events.pop().unwrap().1, "[DONE]");
    for (name, chunk) in events {
        assert_eq!(name, "");
        assert_eq!(chunk["object"], "chat.completion.chunk");
        head = json!([chunk["id"], chunk["model"], chunk["created"]]);
        if let Some(told) = chunk.get("usage").filter(|usage| !usage.is_null()) {
            usage = told.clone();
        }
        let Some(choice) = chunk["choices"].get(0) else {
            continue;
        };
        assert_eq!(finish, Value::Null, "a chunk after the end");
        finish = choice["finish_reason"].clone();
        add_delta(&mut message, &choice["delta"]);
    }
    if message["content"] == "" && message.get("tool_calls").is_some() {
        message["content"] = Value::Null;
    }
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": finish});
    let mut whole = json!({"id": head[0], "object": "chat.completion", "created": head[2],
        "model": head[1], "choices": [choice]});
    if !usage.is_null() {
        whole["usage"] = usage;
    }
    whole
}

fn add_delta(message: &mut Value, delta: &Value) {
    if let Some(role) = delta.get("role") {
        assert_eq!(message["role"], Value::Null, "the role comes once");
        message["role"] = role.clone();
    }
    assert_ne!(message["role"], Value::Null, "the role comes first");
    for name in ["content", "refusal", "reasoning_content"] {
        if let Some(text) = delta.get(name).and_then(Value::as_str) {
            let so_far = message
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default();
            message[name] = Value::from(format!("{so_far}{text}"));
        }
    }
    for call in delta
        .get("tool_calls")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let calls = &mut message["tool_calls"];
        if calls.is_null() {
            *calls = json!([]);
        }
        let calls = calls.as_array_mut().unwrap();
        let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
        if index == calls.len() {
            assert!(call["id"].is_string() && call["function"]["name"].is_string());
            let mut first = call.clone();
            first.as_object_mut().unwrap().remove("index");
            calls.push(first);
        } else {
            let arguments = &mut calls[index]["function"]["arguments"];
            let more = call["function"]["arguments"].as_str().unwrap();
            *arguments = Value::from(format!("{}{more}", arguments.as_str().unwrap()));
        }
    }
}

/// A whole message out of its events.
pub(super) fn message(stream: &[u8]) -> Value {
    let mut message = Value::Null;
    let mut open: Option<(u64, String)> = None;
    let mut ended = false;
    for (name, event) in events(stream) {
        assert_eq!(event["type"], name.as_str());
        assert!(!ended, "an event after the end");
        match name.as_str() {
            "ping" => {}
            "message_start" => {
                assert!(message.is_null());
                message = event["message"].clone();
                assert_eq!(message["content"], json!([]));
            }
            "content_block_start" => {
                assert!(open.is_none(), "a block inside another");
                let content = message["content"].as_array_mut().unwrap();
                let index = event["index"].as_u64().unwrap();
                assert_eq!(usize::try_from(index), Ok(content.len()));
                content.push(event["content_block"].clone());
                open = Some((index, String::new()));
            }
            "content_block_delta" => add_block_delta(&mut message, open.as_mut().unwrap(), &event),
            "content_block_stop" => close_block(&mut message, &open.take().unwrap(), &event),
            "message_delta" => {
                assert!(open.is_none(), "the message ends inside a block");
                let members = event["delta"].as_object().unwrap().clone();
                message.as_object_mut().unwrap().extend(members);
                message["usage"] = event["usage"].clone();
            }
            "message_stop" => ended = true,
            name => panic!("an event of the name {name}"),
        }
    }
    assert!(ended, "no end");
    message
}

fn add_block_delta(message: &mut Value, open: &mut (u64, String), event: &Value) {
    assert_eq!(event["index"], open.0);
    let block = message["content"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap();
    let delta = &event["delta"];
    match delta["type"].as_str().unwrap() {
        "text_delta" => {
            let text = format!(
                "{}{}",
                block["text"].as_str().unwrap(),
                delta["text"].as_str().unwrap()
            );
            block["text"] = Value::from(text);
        }
        "input_json_delta" => {
            assert_eq!(block["type"], "tool_use");
            open.1.push_str(delta["partial_json"].as_str().unwrap());
        }
        kind => panic!("a delta of the type {kind}"),
    }
}

fn close_block(message: &mut Value, open: &(u64, String), event: &Value) {
    assert_eq!(event["index"], open.0);
    let block = message["content"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap();
    if !open.1.is_empty() {
        block["input"] = serde_json::from_str(&open.1).unwrap();
    }
}
