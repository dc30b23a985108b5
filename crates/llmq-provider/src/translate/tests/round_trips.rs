//! What survives both ways is equal.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Target, answer, request};
use crate::{Dialect, Operation};

/// There and back again.
fn both_ways(operation: Operation, body: &Value) -> Value {
    let there = request(operation, body.to_string().as_bytes(), Target::new("m")).unwrap();
    let back = request(there.operation, &there.body, Target::new("m")).unwrap();
    assert_eq!(back.operation, operation);
    serde_json::from_slice(&back.body).unwrap()
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,8}", any::<String>()]
        .prop_filter("Anthropic takes no blank texts", |text| {
            !text.trim().is_empty()
        })
}

/// A tool's arguments.
fn object() -> impl Strategy<Value = Value> {
    proptest::collection::btree_map("[a-z]{1,4}", any::<i32>(), 0..3)
        .prop_map(|members| json!(members))
}

fn chat_part() -> impl Strategy<Value = Value> {
    prop_oneof![
        text().prop_map(|text| json!({"type": "text", "text": text})),
        "[a-z]{1,6}".prop_map(|path| json!({"type": "image_url", "image_url": {"url": format!("https://e/{path}")}})),
        "[A-Za-z0-9+/]{4}".prop_map(|data| json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}})),
        ("[a-z]{1,6}", "[A-Za-z0-9+/]{4}").prop_map(|(name, data)| json!({"type": "file", "file": {
            "filename": name, "file_data": format!("data:application/pdf;base64,{data}")}})),
    ]
}

/// One exchange: what the user says, and what the model does and hears of it.
fn chat_turn() -> impl Strategy<Value = Vec<Value>> {
    let user = prop_oneof![
        text().prop_map(|text| json!(text)),
        proptest::collection::vec(chat_part(), 2..4).prop_map(|parts| json!(parts)),
    ];
    let calls = proptest::collection::vec((text(), object(), text()), 0..3);
    (user, proptest::option::of(text()), calls).prop_map(|(user, said, calls)| {
        let mut turn = vec![json!({"role": "user", "content": user})];
        if calls.is_empty() {
            turn.push(json!({"role": "assistant", "content": said.unwrap_or_else(|| "ok".to_owned())}));
            return turn;
        }
        let call = |(index, (name, input, _)): (usize, &(String, Value, String))| {
            json!({"id": format!("call_{index}"), "type": "function", "function": {"name": name, "arguments": input.to_string()}})
        };
        let tool_calls: Vec<Value> = calls.iter().enumerate().map(call).collect();
        turn.push(json!({"role": "assistant", "content": said, "tool_calls": tool_calls}));
        for (index, (_, _, result)) in calls.iter().enumerate() {
            turn.push(json!({"role": "tool", "tool_call_id": format!("call_{index}"), "content": result}));
        }
        turn
    })
}

/// Members that have exactly one counterpart each.
fn chat_members() -> impl Strategy<Value = Value> {
    let choice = prop_oneof![
        Just(json!("auto")),
        Just(json!("required")),
        Just(json!({"type": "function", "function": {"name": "f"}})),
    ];
    (text(), object(), choice, any::<bool>(), "low|high", 1..9_999_u32, text()).prop_map(
        |(description, schema, choice, stream, effort, cap, user)| {
            let tool = json!({"type": "function", "function": {"name": "f", "description": description, "parameters": schema}});
            let mut members = json!({"model": "m", "max_completion_tokens": cap, "tools": [tool],
                "tool_choice": choice, "parallel_tool_calls": false, "stop": ["a", "b"], "user": user,
                "temperature": 0.5, "top_p": 0.25, "reasoning_effort": effort, "service_tier": "default"});
            if stream {
                members["stream"] = json!(true);
                members["stream_options"] = json!({"include_usage": true});
            }
            members
        },
    )
}

/// The JSON pointers (RFC 6901) of all values inside `value`.
fn pointers(value: &Value, path: String, all: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(members) => members
            .iter()
            .map(|(name, inner)| (name.clone(), inner))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(at, inner)| (at.to_string(), inner))
            .collect(),
        _ => Vec::new(),
    };
    for (step, inner) in inner {
        let path = format!("{path}/{step}");
        pointers(inner, path.clone(), all);
        all.push(path);
    }
}

proptest! {
    #[test]
    fn a_chat_completion_comes_back_as_it_went(
        system in proptest::option::of(text()),
        turns in proptest::collection::vec(chat_turn(), 0..4),
        last in text(),
        mut body in chat_members(),
    ) {
        let system = system.map(|system| json!({"role": "system", "content": system}));
        let last = json!({"role": "user", "content": last});
        let messages: Vec<Value> = system.into_iter().chain(turns.concat()).chain([last]).collect();
        body["messages"] = json!(messages);
        prop_assert_eq!(both_ways(Operation::ChatCompletions, &body), body);
    }

    #[test]
    fn a_message_request_comes_back_as_it_went(
        system in proptest::collection::vec(text(), 2..4),
        asked in text(),
        said in text(),
        input in object(),
        results in proptest::collection::vec(text(), 2..4),
        also in text(),
        later in text(),
    ) {
        let block = |text: &String| json!({"type": "text", "text": text});
        let texts = |texts: &[String]| texts.iter().map(block).collect::<Vec<_>>();
        let body = json!({"model": "m", "max_tokens": 5, "system": texts(&system),
            "messages": [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": [block(&said), {"type": "tool_use", "id": "t", "name": "f", "input": input}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": texts(&results)}, block(&also)]},
                {"role": "system", "content": later},
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object"}, "strict": true}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "stop_sequences": ["a"], "temperature": 0.5, "top_p": 0.5, "metadata": {"user_id": "u"},
            "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": input}},
            "service_tier": "auto", "stream": true});
        prop_assert_eq!(both_ways(Operation::Messages, &body), body);
    }

    #[test]
    fn an_answer_comes_back_as_it_went(
        said in text(),
        calls in proptest::collection::vec((text(), object()), 1..4),
        counts in proptest::array::uniform5(0..1_000_000_u64),
        model in text(),
    ) {
        let call = |(index, (name, input)): (usize, &(String, Value))| {
            json!({"type": "tool_use", "id": format!("toolu_{index}"), "name": name, "input": input})
        };
        let text = json!({"type": "text", "text": said});
        let content: Vec<Value> = [text].into_iter().chain(calls.iter().enumerate().map(call)).collect();
        let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content,
            "stop_reason": "tool_use", "stop_sequence": null,
            "usage": {"input_tokens": counts[0], "cache_creation_input_tokens": counts[1],
                "cache_read_input_tokens": counts[2], "output_tokens": counts[3],
                "output_tokens_details": {"thinking_tokens": counts[4]}}});
        let chat = answer(Dialect::OpenAi, message.to_string().as_bytes(), 7).unwrap();
        let back = answer(Dialect::Anthropic, &chat, 7).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Value>(&back).unwrap(), message);
    }

    #[test]
    fn a_member_of_any_kind_is_translated_or_named(
        body in chat_members(),
        turn in chat_turn(),
        at in any::<prop::sample::Index>(),
        other in prop_oneof![Just(json!(7)), Just(json!("x")), Just(json!([1])), Just(json!({"a": []})), Just(json!(true))],
    ) {
        let mut chat = body;
        let asked = json!({"role": "user", "content": "And then?"});
        chat["messages"] = turn.into_iter().chain([asked]).collect();
        let message = request(Operation::ChatCompletions, chat.to_string().as_bytes(), Target::new("m")).unwrap();
        let message: Value = serde_json::from_slice(&message.body).unwrap();
        for (operation, mut body) in [(Operation::ChatCompletions, chat), (Operation::Messages, message)] {
            let mut paths = Vec::new();
            pointers(&body, String::new(), &mut paths);
            let path = &paths[at.index(paths.len())];
            *body.pointer_mut(path).unwrap() = other.clone();
            match request(operation, body.to_string().as_bytes(), Target::new("m")) {
                Ok(translated) => prop_assert!(serde_json::from_slice::<Value>(&translated.body).is_ok()),
                Err(refused) => prop_assert!(refused.path().is_some_and(|path| !path.is_empty())),
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for to in [Dialect::OpenAi, Dialect::Anthropic] {
            let _ = answer(to, &bytes, 7);
            let _ = super::super::error(to, 500, &bytes);
            let _ = super::streams::translated(to, &[&bytes]);
        }
        for operation in Operation::ALL {
            let _ = request(operation, &bytes, Target::new("m"));
        }
    }
}
