use serde_json::{Value, json};

use super::super::{Target, Untranslatable, request};
use crate::Operation;

#[track_caller]
fn refused(operation: Operation, body: &Value) -> Untranslatable {
    let bytes = body.to_string();
    request(operation, bytes.as_bytes(), Target::new("m")).expect_err(&bytes)
}

#[test]
fn what_a_chat_completion_asks_in_vain_is_refused_by_name() {
    let user = json!([{"role": "user", "content": "Hi"}]);
    for (member, value) in [
        ("n", json!(2)),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(3)),
        ("logit_bias", json!({"50256": -100})),
        ("frequency_penalty", json!(0.5)),
        ("presence_penalty", json!(-1)),
        ("seed", json!(7)),
        ("store", json!(true)),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "alloy", "format": "wav"})),
        ("verbosity", json!("low")),
        ("web_search_options", json!({})),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!("auto")),
        ("moderation", json!({"model": "m"})),
        ("temperature", json!(1.5)),
        ("reasoning_effort", json!("minimal")),
        ("service_tier", json!("flex")),
        ("invented", json!(1)),
    ] {
        let refused = refused(
            Operation::ChatCompletions,
            &json!({"messages": user, member: value}),
        );
        assert!(
            matches!(refused, Untranslatable::NoCounterpart { .. }),
            "{member}"
        );
        assert_eq!(refused.path(), Some(member));
    }
}

#[test]
fn what_a_message_request_asks_in_vain_is_refused_by_name() {
    let user = json!([{"role": "user", "content": "Hi"}]);
    for (path, member, value) in [
        ("top_k", "top_k", json!(5)),
        ("max_tokens", "max_tokens", json!(0)),
        ("container", "container", json!("c")),
        ("mcp_servers", "mcp_servers", json!([{"type": "url"}])),
        ("context_management", "context_management", json!({})),
        ("speed", "speed", json!("fast")),
        ("inference_geo", "inference_geo", json!("us")),
        (
            "thinking.type",
            "thinking",
            json!({"type": "enabled", "budget_tokens": 1024}),
        ),
        (
            "thinking.display",
            "thinking",
            json!({"type": "adaptive", "display": "summarized"}),
        ),
        (
            "output_config.format.type",
            "output_config",
            json!({"format": {"type": "grammar"}}),
        ),
        ("metadata.team", "metadata", json!({"team": "x"})),
        (
            "tools[0].type",
            "tools",
            json!([{"type": "web_search_20250305", "name": "web_search"}]),
        ),
        (
            "tools[0].input_examples",
            "tools",
            json!([{"name": "f", "input_schema": {}, "input_examples": [{}]}]),
        ),
        (
            "tools[0].defer_loading",
            "tools",
            json!([{"name": "f", "input_schema": {}, "defer_loading": true}]),
        ),
        ("invented", "invented", json!(1)),
    ] {
        let refused = refused(
            Operation::Messages,
            &json!({"messages": user, member: value}),
        );
        assert!(
            matches!(refused, Untranslatable::NoCounterpart { .. }),
            "{path}"
        );
        assert_eq!(refused.path(), Some(path));
    }
}

#[test]
fn what_a_chat_message_says_in_vain_is_refused_by_name() {
    let call = |function: Value| json!({"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]});
    for (path, message) in [
        (
            "name",
            json!({"role": "user", "content": "Hi", "name": "Ann"}),
        ),
        ("audio", json!({"role": "assistant", "audio": {"id": "a"}})),
        (
            "function_call",
            json!({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}),
        ),
        (
            "role",
            json!({"role": "function", "name": "f", "content": "x"}),
        ),
        (
            "content[0].type",
            json!({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}),
        ),
        (
            "content[0].type",
            json!({"role": "system", "content": [{"type": "image_url"}]}),
        ),
        (
            "content[1].image_url.url",
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/svg+xml,<svg/>"}}]}),
        ),
        (
            "content[0].file.file_id",
            json!({"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}),
        ),
        (
            "content[0].file.file_data",
            json!({"role": "user", "content": [{"type": "file", "file": {"file_data": "data:text/csv;base64,YQ=="}}]}),
        ),
        (
            "tool_calls[0].type",
            json!({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {}}]}),
        ),
        (
            "tool_calls[0].function.arguments",
            call(json!({"name": "f", "arguments": "{\"a\":"})),
        ),
        (
            "tool_calls[0].function.arguments",
            call(json!({"name": "f", "arguments": "[1]"})),
        ),
        (
            "invented",
            json!({"role": "user", "content": "Hi", "invented": 1}),
        ),
    ] {
        let body = json!({"messages": [{"role": "user", "content": "Hi"}, message]});
        let refused = refused(Operation::ChatCompletions, &body);
        assert!(
            matches!(refused, Untranslatable::NoCounterpart { .. }),
            "{message}"
        );
        assert_eq!(refused.path().unwrap(), format!("messages[1].{path}"));
    }
}

#[test]
fn what_a_block_says_in_vain_is_refused_by_name() {
    let user = |block: Value| json!({"role": "user", "content": [block]});
    for (path, message) in [
        ("type", user(json!({"type": "search_result"}))),
        (
            "type",
            user(json!({"type": "container_upload", "file_id": "f"})),
        ),
        (
            "source.type",
            user(json!({"type": "image", "source": {"type": "file", "file_id": "f"}})),
        ),
        (
            "source.type",
            user(json!({"type": "document", "source": {"type": "url", "url": "https://e/a.pdf"}})),
        ),
        (
            "context",
            user(json!({"type": "document", "context": "c", "source": {}})),
        ),
        (
            "citations",
            user(json!({"type": "document", "citations": {"enabled": true}, "source": {}})),
        ),
        (
            "content[0].type",
            user(
                json!({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}),
            ),
        ),
        (
            "type",
            json!({"role": "assistant", "content": [{"type": "server_tool_use", "id": "s"}]}),
        ),
        (
            "caller",
            json!({"role": "assistant", "content": [{"type": "tool_use", "caller": {"type": "code_execution_20250825"}}]}),
        ),
    ] {
        let body = json!({"messages": [message, {"role": "user", "content": "Hi"}]});
        let refused = refused(Operation::Messages, &body);
        assert!(
            matches!(refused, Untranslatable::NoCounterpart { .. }),
            "{message}"
        );
        assert_eq!(
            refused.path().unwrap(),
            format!("messages[0].content[0].{path}")
        );
    }
}

#[test]
fn an_answer_that_was_begun_is_not_taken_for_one_to_be_answered() {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer is ("}]});
    assert_eq!(
        refused(Operation::Messages, &body).path(),
        Some("messages[1]")
    );
}

/// It was passed on: Anthropic became the author of the last answer, or refused it with a 400.
#[test]
fn an_answer_to_the_models_own_words_is_not_asked_of_one_who_continues_them() {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer is ("}]});
    assert_eq!(
        refused(Operation::ChatCompletions, &body).path(),
        Some("messages[1]")
    );
}

#[test]
fn what_is_wrong_in_its_own_dialect_is_named_too() {
    let table = [
        ("messages", json!({})),
        ("messages", json!({"messages": "Hi"})),
        ("messages[0]", json!({"messages": ["Hi"]})),
        (
            "messages[0].role",
            json!({"messages": [{"role": "robot", "content": "Hi"}]}),
        ),
        (
            "messages[0].content",
            json!({"messages": [{"role": "user", "content": 7}]}),
        ),
        ("stream", json!({"messages": [], "stream": "yes"})),
        ("max_tokens", json!({"messages": [], "max_tokens": "9"})),
        (
            "tools[0].function.name",
            json!({"messages": [], "tools": [{"type": "function", "function": {}}]}),
        ),
        ("tools", json!({"messages": [], "tools": {}})),
        ("stop", json!({"messages": [], "stop": 7})),
    ];
    for (path, body) in table {
        let refused = refused(Operation::ChatCompletions, &body);
        assert!(
            matches!(refused, Untranslatable::Invalid { .. }),
            "{body}: {refused}"
        );
        assert_eq!(refused.path(), Some(path));
    }
    for bytes in ["", "[]", "null", "{", "{\"messages\":[}", "\u{feff}{}"] {
        let refused = request(Operation::Messages, bytes.as_bytes(), Target::new("m"));
        assert_eq!(refused, Err(Untranslatable::NotAnObject), "{bytes}");
    }
}

#[test]
fn an_operation_of_one_dialect_only_is_refused() {
    for operation in [
        Operation::Responses,
        Operation::Embeddings,
        Operation::Completions,
        Operation::CountTokens,
        Operation::Models,
    ] {
        let refused = refused(operation, &json!({}));
        assert_eq!(refused, Untranslatable::Operation { operation });
        assert!(refused.to_string().contains(operation.path()));
    }
}
