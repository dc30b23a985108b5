//! What a call that is served gets: the shapes of each endpoint, streamed and whole.

use std::time::Duration;

use http::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use llmq_provider::mock::MockConfig;
use llmq_strict::Charge;
use serde_json::{Value, json};

use crate::caller::{CHAT, chat, instant, limits, message, start};

#[tokio::test]
async fn every_endpoint_answers_in_its_own_shape_and_counts_exactly() {
    let (server, caller) = start(instant()).await;
    // 18 characters are 5 tokens.
    let answer = caller.post(CHAT, chat("eighteen letters..")).await;
    assert_eq!(answer.header("x-request-id"), "req_mock00000001");
    assert!(answer.header("openai-processing-ms").parse::<u64>().is_ok());
    let body = answer.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "gpt-x");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["prompt_tokens"], 5);
    assert_eq!(body["usage"]["completion_tokens"], 40);
    assert_eq!(body["usage"]["total_tokens"], 45);
    let text = body["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text.split(' ').count(), 40);
    let again = caller.post(CHAT, chat("eighteen letters..")).await.json();
    assert_eq!(
        again["choices"], body["choices"],
        "the text follows from the prompt"
    );

    let capped = json!({"model": "m", "prompt": "x", "max_tokens": 3, "n": 2});
    let body = caller.post("/v1/completions", capped).await.json();
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"][1]["finish_reason"], "length");
    assert_eq!(body["usage"]["completion_tokens"], 6);

    let body = caller
        .post(
            "/v1/responses",
            json!({"model": "m", "instructions": "1234", "input": "12345"}),
        )
        .await
        .json();
    assert_eq!(
        (&body["object"], &body["status"]),
        (&json!("response"), &json!("completed"))
    );
    assert_eq!(body["usage"]["input_tokens"], 3);
    assert!(body["output"][0]["content"][0]["text"].is_string());

    let body = caller
        .post(
            "/v1/embeddings",
            json!({"model": "m", "input": ["1234", "12345"], "dimensions": 3}),
        )
        .await
        .json();
    assert_eq!(body["data"][1]["embedding"].as_array().unwrap().len(), 3);
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": 3, "total_tokens": 3})
    );
    let coded =
        json!({"model": "m", "input": "1234", "dimensions": 3, "encoding_format": "base64"});
    let body = caller.post("/v1/embeddings", coded).await.json();
    assert_eq!(body["data"][0]["embedding"].as_str().unwrap().len(), 16);

    let answer = caller.post("/v1/messages", message("12345")).await;
    assert_eq!(answer.header("request-id"), "req_mock00000007");
    let body = answer.json();
    assert_eq!(
        (&body["type"], &body["stop_reason"]),
        (&json!("message"), &json!("max_tokens"))
    );
    assert_eq!(
        (
            &body["usage"]["input_tokens"],
            &body["usage"]["output_tokens"]
        ),
        (&json!(2), &json!(5))
    );
    let body = caller
        .post("/v1/messages/count_tokens", message("12345"))
        .await
        .json();
    assert_eq!(body, json!({"input_tokens": 2}));

    let body = caller.get("/v1/models").await.json();
    assert_eq!(
        (&body["object"], &body["data"][0]["id"]),
        (&json!("list"), &json!("mock"))
    );
    let body = caller.get("/v1/models/any/name").await.json();
    assert_eq!(
        (&body["object"], &body["id"]),
        (&json!("model"), &json!("any/name"))
    );
    assert_eq!(
        caller.get("/v1/nothing").await.status,
        StatusCode::NOT_FOUND
    );

    let report = server.shutdown().await;
    assert_eq!((report.calls, report.accepted, report.in_flight), (8, 7, 0));
    assert_eq!(
        (
            report.answers.distinct,
            report.answers.repeated,
            report.answers.most
        ),
        (6, 1, 2)
    );
    assert_eq!(report.output_tokens, 40 + 40 + 6 + 40 + 5);
}

/// A limit was charged for one of three answers, and two never came.
#[tokio::test]
async fn each_prompt_of_a_completion_is_answered_and_charged() {
    let config = MockConfig {
        limits: limits(&["tokens=1000/1h"]),
        ..instant()
    };
    let (server, caller) = start(config).await;
    let mut call = json!({"model": "m", "prompt": ["a", "b", "c"], "max_tokens": 5});
    let body = caller.post("/v1/completions", call.clone()).await.json();
    let choices = body["choices"].as_array().unwrap();
    let indices: Vec<&Value> = choices.iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(body["usage"]["total_tokens"], 1 + 3 * 5);

    call["stream"] = json!(true);
    let answer = caller.post("/v1/completions", call).await;
    let ends = answer.text.matches(r#""finish_reason":"length""#).count();
    assert_eq!(ends, 3);
    let report = server.shutdown().await;
    assert_eq!(report.limits[0].used, 2 * 16);
}

#[tokio::test]
async fn streams_have_the_shapes_of_their_dialects() {
    let config = MockConfig {
        limits: limits(&["output_tokens=1M/1h"]),
        charge: Charge::Stream,
        ..instant()
    };
    let (server, caller) = start(config).await;
    let mut body = chat("1234");
    let whole = caller.post(CHAT, body.clone()).await.json();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let answer = caller.post(CHAT, body).await;
    let events = answer.events();
    assert!(events.iter().all(|(name, _)| name.is_none()));
    assert_eq!(events.last().unwrap().1, "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|(_, data)| serde_json::from_str(data).unwrap())
        .collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"]),
        (&json!([]), &json!(41))
    );
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["usage"].is_null())
    );
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "stop"
    );
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(
        text, whole["choices"][0]["message"]["content"],
        "streamed or not, the same text"
    );

    let mut body = message("1234");
    body["stream"] = json!(true);
    let answer = caller.post("/v1/messages", body).await;
    let events = answer.events();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.unwrap()).collect();
    assert_eq!(names[..3], ["message_start", "content_block_start", "ping"]);
    assert_eq!(
        names[names.len() - 3..],
        ["content_block_stop", "message_delta", "message_stop"]
    );
    for (name, data) in &events {
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name.unwrap());
        if *name == Some("message_delta") {
            assert_eq!(
                (
                    &data["usage"]["output_tokens"],
                    &data["delta"]["stop_reason"]
                ),
                (&json!(5), &json!("max_tokens"))
            );
        }
    }

    let answer = caller
        .post(
            "/v1/responses",
            json!({"model": "m", "input": "1234", "stream": true}),
        )
        .await;
    let events = answer.events();
    for (number, (name, data)) in events.iter().enumerate() {
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            (&data["type"], &data["sequence_number"]),
            (&json!(name.unwrap()), &json!(number))
        );
    }
    let last: Value = serde_json::from_str(events.last().unwrap().1).unwrap();
    assert_eq!(last["response"]["usage"]["output_tokens"], 40);
    let report = server.shutdown().await;
    assert_eq!((report.status[&200], report.output_tokens), (4, 125));
    assert_eq!(report.limits[0].used, 125, "each token is charged once");
}

/// The Responses API was answered in words, whatever tools it offered.
#[tokio::test]
async fn a_response_calls_the_tool_that_it_is_offered_and_answers_its_result() {
    let (_server, caller) = start(instant()).await;
    let parameters = json!({"type": "object", "required": ["days"],
        "properties": {"days": {"type": "integer"}}});
    let tools = json!([{"type": "web_search"},
        {"type": "function", "name": "weather", "parameters": parameters}]);
    let question = json!({"role": "user", "content": "How is the weather?"});
    let ask = async |input: Value, stream: bool| {
        let body = json!({"model": "m", "input": input, "tools": tools, "stream": stream});
        caller.post("/v1/responses", body).await
    };
    let whole = ask(json!([question]), false).await.json();
    let call = &whole["output"][0];
    assert_eq!(
        (&call["type"], &call["name"], &call["arguments"]),
        (
            &json!("function_call"),
            &json!("weather"),
            &json!(r#"{"days":1}"#)
        )
    );
    let streamed = ask(json!([question]), true).await;
    let events: Vec<Value> = streamed
        .events()
        .iter()
        .map(|(_, data)| serde_json::from_str(data).unwrap())
        .collect();
    let deltas = events.iter().filter_map(|event| event["delta"].as_str());
    assert_eq!(deltas.collect::<String>(), r#"{"days":1}"#);
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["output"][0]["arguments"], call["arguments"]);
    assert_eq!(last["usage"], whole["usage"]);
    let result = json!({"type": "function_call_output", "call_id": call["call_id"],
        "output": "sunny"});
    let told = ask(json!([question, call, result]), false).await.json();
    assert_eq!(told["output"][0]["type"], "message");
}

#[tokio::test]
async fn latency_is_drawn_around_its_mean() {
    let config = MockConfig {
        latency: Duration::from_millis(20),
        jitter: 0.5,
        ..instant()
    };
    let (server, caller) = start(config).await;
    for stream in [false, true] {
        let started = tokio::time::Instant::now();
        let mut body = chat("x");
        body["stream"] = json!(stream);
        assert_eq!(caller.post(CHAT, body).await.status, StatusCode::OK);
        assert!(
            started.elapsed() >= Duration::from_millis(9),
            "{stream}: {:?}",
            started.elapsed()
        );
    }
    server.shutdown().await;
}

#[tokio::test]
async fn http2_clients_are_served_too() {
    let (server, mut caller) = start(instant()).await;
    caller.client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let answer = caller.post(CHAT, chat("x")).await;
    assert_eq!(answer.json()["object"], "chat.completion");
    drop(caller);
    assert_eq!(server.shutdown().await.status[&200], 1);
}
