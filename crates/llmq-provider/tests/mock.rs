//! The stand-in provider, asked over real connections by a client that is none of ours.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use llmq_core::LimitSpec;
use llmq_provider::Secret;
use llmq_provider::mock::{Hints, MockConfig, MockServer, Outage, OutageStyle, Report};
use llmq_strict::Charge;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// A server without latency on a free port.
fn instant() -> MockConfig {
    MockConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        latency: Duration::ZERO,
        ..MockConfig::default()
    }
}

fn limits(texts: &[&str]) -> Vec<LimitSpec> {
    texts
        .iter()
        .map(|text| text.parse().expect("a limit"))
        .collect()
}

#[derive(Clone)]
struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    key: &'static str,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
            .to_str()
            .expect("ASCII")
    }

    /// The `data:` of each event, with its `event:` if it has one.
    fn events(&self) -> Vec<(Option<&str>, &str)> {
        assert_eq!(
            self.header("content-type"),
            "text/event-stream; charset=utf-8"
        );
        let blocks = self.text.split_terminator("\n\n");
        blocks.map(event_of).collect()
    }
}

fn event_of(block: &str) -> (Option<&str>, &str) {
    let (event, data) = match block.split_once('\n') {
        Some((event, data)) => (event.strip_prefix("event: "), data),
        None => (None, block),
    };
    (
        event,
        data.strip_prefix("data: ")
            .unwrap_or_else(|| panic!("{block}")),
    )
}

impl Caller {
    fn of(server: &MockServer) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            base: format!("http://{}", server.addr()),
            key: "sk-a-key-of-the-test",
        }
    }

    async fn try_post(&self, path: &str, body: &str) -> Result<Answer, String> {
        let request = Request::post(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(Full::from(body.to_owned()))
            .expect("a request");
        self.send(request).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.try_post(path, &body.to_string())
            .await
            .expect("an answer")
    }

    async fn get(&self, path: &str) -> Answer {
        let request = Request::get(format!("{}{path}", self.base)).body(Full::default());
        self.send(request.expect("a request"))
            .await
            .expect("an answer")
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let answer = self
            .client
            .request(request)
            .await
            .map_err(|error| error.to_string())?;
        let (parts, body) = answer.into_parts();
        let bytes = body
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).expect("UTF-8"),
        })
    }
}

async fn start(config: MockConfig) -> (MockServer, Caller) {
    let server = MockServer::start(config).await.expect("an answer");
    let caller = Caller::of(&server);
    (server, caller)
}

const CHAT: &str = "/v1/chat/completions";

fn chat(prompt: &str) -> Value {
    json!({"model": "gpt-x", "messages": [{"role": "user", "content": prompt}]})
}

fn message(prompt: &str) -> Value {
    json!({"model": "claude-x", "max_tokens": 5, "messages": [{"role": "user", "content": prompt}]})
}

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

#[tokio::test]
async fn limits_let_exactly_their_count_through_whatever_arrives_at_once() {
    let config = MockConfig {
        limits: limits(&["requests=50/1h", "tokens=100k/1h"]),
        ..instant()
    };
    let (server, caller) = start(config).await;
    let mut calls = JoinSet::new();
    for number in 0..200 {
        let caller = caller.clone();
        calls.spawn(async move { caller.post(CHAT, chat(&number.to_string())).await.status });
    }
    let statuses = calls.join_all().await;
    let count = |status| statuses.iter().filter(|seen| **seen == status).count();
    assert_eq!(
        (count(StatusCode::OK), count(StatusCode::TOO_MANY_REQUESTS)),
        (50, 150)
    );
    let over_http: Report = serde_json::from_str(&caller.get("/mock/report").await.text).unwrap();
    let report = server.shutdown().await;
    assert_eq!(
        (report.accepted, report.refused, report.limits[0].refused),
        (50, 150, 150)
    );
    assert_eq!((report.limits[0].used, report.limits[0].remaining), (50, 0));
    assert_eq!((report.status[&200], report.status[&429]), (50, 150));
    assert_eq!(
        (over_http.status, over_http.limits),
        (report.status, report.limits)
    );
}

#[tokio::test]
async fn openai_headers_and_refusals_read_as_the_real_ones() {
    let config = MockConfig {
        limits: limits(&[
            "requests=500/1m:bucket",
            "requests=2/1d:bucket",
            "tokens=1M/1m:bucket",
        ]),
        ..instant()
    };
    let (server, caller) = start(config).await;
    let answer = caller
        .post(
            CHAT,
            json!({"model": "gpt-x", "messages": [], "max_tokens": 519}),
        )
        .await;
    // The window that takes longest to fill up again is the one that is shown.
    assert_eq!(answer.header("x-ratelimit-limit-requests"), "2");
    assert_eq!(answer.header("x-ratelimit-remaining-requests"), "1");
    assert_eq!(answer.header("x-ratelimit-reset-requests"), "12h0m0s");
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), "1000000");
    assert_eq!(answer.header("x-ratelimit-remaining-tokens"), "999481");
    assert_eq!(answer.header("x-ratelimit-reset-tokens"), "31ms");
    assert!(!answer.headers.contains_key("retry-after"));

    caller.post(CHAT, chat("1")).await;
    let answer = caller.post(CHAT, chat("1")).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"], &error["param"]),
        (
            &json!("requests"),
            &json!("rate_limit_exceeded"),
            &json!(null)
        )
    );
    let text = error["message"].as_str().unwrap();
    assert!(text.starts_with("Rate limit reached for gpt-x in organization org-mock on requests per day (RPD): Limit 2, Used 2, Requested 1. Please try again in 1"), "{text}");
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((43_100..=43_200).contains(&seconds), "{seconds}");

    let answer = caller
        .post(
            CHAT,
            json!({"model": "gpt-x", "messages": [], "max_tokens": 1_000_001}),
        )
        .await;
    let text = answer.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(text.starts_with("Request too large for gpt-x in organization org-mock on tokens per min (TPM): Limit 1000000, Requested 1000001."), "{text}");
    assert!(!answer.headers.contains_key("retry-after"));
    server.shutdown().await;
}

#[tokio::test]
async fn anthropic_headers_and_refusals_read_as_the_real_ones() {
    let config = MockConfig {
        limits: limits(&[
            "requests=2/1m:bucket",
            "input_tokens=50k/1m:bucket",
            "output_tokens=8k/1m:bucket",
        ]),
        charge: Charge::Stream,
        ..instant()
    };
    let (server, caller) = start(config).await;
    let answer = caller
        .post("/v1/messages", message(&"x".repeat(2_400)))
        .await;
    assert_eq!(answer.header("anthropic-ratelimit-requests-remaining"), "1");
    assert_eq!(
        answer.header("anthropic-ratelimit-input-tokens-limit"),
        "50000"
    );
    // 600 used, and rounded to the nearest thousand.
    assert_eq!(
        answer.header("anthropic-ratelimit-input-tokens-remaining"),
        "49000"
    );
    assert_eq!(
        answer.header("anthropic-ratelimit-output-tokens-remaining"),
        "8000"
    );
    assert_eq!(answer.header("anthropic-ratelimit-tokens-limit"), "58000");
    let reset = answer.header("anthropic-ratelimit-requests-reset");
    assert_eq!((reset.len(), &reset[10..11], &reset[19..]), (20, "T", "Z"));
    caller.post("/v1/messages", message("x")).await;
    let answer = caller.post("/v1/messages", message("x")).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    let body = answer.json();
    assert_eq!(
        (&body["type"], &body["error"]["type"]),
        (&json!("error"), &json!("rate_limit_error"))
    );
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("2 requests per minute")
    );
    assert!(body["request_id"].is_string());
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((25..=30).contains(&seconds), "{seconds}");
    let report = server.shutdown().await;
    assert_eq!(report.limits[2].used, 10, "output as produced");
}

#[tokio::test]
async fn hints_can_be_withheld() {
    let config = MockConfig {
        limits: limits(&["requests=1/1h"]),
        rate_headers: Hints::Withheld,
        retry_after: Hints::Withheld,
        ..instant()
    };
    let (server, caller) = start(config).await;
    for status in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let answer = caller.post(CHAT, chat("x")).await;
        assert_eq!(answer.status, status);
        let told = answer
            .headers
            .keys()
            .any(|name| name.as_str().starts_with("x-ratelimit"));
        assert!(!told && !answer.headers.contains_key("retry-after"));
    }
    server.shutdown().await;
}

#[tokio::test]
async fn wrong_keys_bodies_and_spent_money_are_told_apart() {
    let config = MockConfig {
        quota: Some(1),
        ..instant()
    };
    let (server, mut caller) = start(config).await;
    caller.key = "bad";
    let answer = caller.post(CHAT, chat("x")).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["code"]),
        (401, &json!("invalid_api_key"))
    );
    let answer = caller.post("/v1/messages", message("x")).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["type"]),
        (401, &json!("authentication_error"))
    );
    caller.key = "good";
    let answer = caller.try_post(CHAT, "{\"model\"").await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["type"]),
        (400, &json!("invalid_request_error"))
    );
    let answer = caller.post(CHAT, json!({"model": "m"})).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["param"]),
        (400, &json!("messages"))
    );
    assert_eq!(caller.post(CHAT, chat("x")).await.status, StatusCode::OK);
    let answer = caller.post(CHAT, chat("x")).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["code"]),
        (429, &json!("insufficient_quota"))
    );
    assert!(!answer.headers.contains_key("retry-after"));
    let answer = caller.post("/v1/messages", message("x")).await;
    assert_eq!(
        answer.json()["error"]["details"]["error_code"],
        "enforced_spend_limit_reached"
    );
    assert_eq!(server.shutdown().await.out_of_money, 2);

    let config = MockConfig {
        api_keys: vec![Secret::new("sk-one"), Secret::new("sk-two")],
        ..instant()
    };
    let (server, mut caller) = start(config).await;
    for (key, status) in [("sk-two", 200), ("sk-three", 401)] {
        caller.key = key;
        assert_eq!(caller.post(CHAT, chat("x")).await.status.as_u16(), status);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn faults_come_in_their_shares_and_are_in_the_books() {
    let config = MockConfig {
        fail: 0.3,
        drop: 0.2,
        limits: limits(&["concurrency=1"]),
        ..instant()
    };
    let (server, caller) = start(config).await;
    let (mut broken, mut html, mut dropped) = (0, 0, 0);
    for _ in 0..300 {
        match caller.try_post(CHAT, &chat("x").to_string()).await {
            Err(_) => dropped += 1,
            Ok(answer) if answer.status == StatusCode::INTERNAL_SERVER_ERROR => {
                broken += 1;
                if answer.header("content-type") == "text/html" {
                    html += 1;
                } else {
                    assert_eq!(answer.json()["error"]["type"], "server_error");
                }
            }
            Ok(answer) => assert_eq!(answer.status, StatusCode::OK),
        }
    }
    let report = server.shutdown().await;
    assert_eq!((report.dropped, report.status[&500]), (dropped, broken));
    assert!(
        (30..=90).contains(&dropped) && (45..=100).contains(&broken),
        "{dropped} {broken}"
    );
    assert!(html > 0 && html < broken);
    // A call that met a fault is in flight no longer.
    assert_eq!(
        (report.accepted, report.in_flight, report.in_flight_max),
        (300, 0, 1)
    );
}

#[tokio::test]
async fn in_an_outage_nothing_is_served() {
    let ever = Outage {
        from: Duration::ZERO,
        until: Duration::from_secs(3_600),
    };
    let config = MockConfig {
        outages: vec![ever],
        ..instant()
    };
    let (server, caller) = start(config.clone()).await;
    let answer = caller.post(CHAT, chat("x")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("retry-after")),
        (503, "1")
    );
    assert_eq!(answer.json()["error"]["code"], "server_is_overloaded");
    let answer = caller.post("/v1/messages", message("x")).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["type"]),
        (529, &json!("overloaded_error"))
    );
    assert_eq!(server.shutdown().await.in_outage, 2);

    let config = MockConfig {
        outage_style: OutageStyle::Refused,
        ..config
    };
    let (server, caller) = start(config).await;
    assert!(caller.try_post(CHAT, "{}").await.is_err());
    assert_eq!(server.shutdown().await.accepted, 0);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_and_pays_for_nothing_more() {
    let config = MockConfig {
        latency: Duration::from_secs(600),
        jitter: 0.0,
        ..instant()
    };
    let (server, caller) = start(config).await;
    let mut calls = JoinSet::new();
    let call = caller.clone();
    calls.spawn(async move { call.try_post(CHAT, &chat("x").to_string()).await.is_ok() });
    let seen = |wanted: fn(&Report) -> bool| {
        let server = &server;
        async move {
            while !wanted(&server.report()) {
                tokio::task::yield_now().await;
            }
        }
    };
    seen(|report| report.in_flight == 1).await;
    calls.shutdown().await;
    drop(caller);
    seen(|report| report.in_flight == 0).await;
    let report = server.shutdown().await;
    assert_eq!(
        (
            report.abandoned,
            report.answers.distinct,
            report.output_tokens
        ),
        (1, 0, 0)
    );
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
async fn others_on_the_account_use_up_what_they_take() {
    let config = MockConfig {
        limits: limits(&["requests=20/1h"]),
        foreign: vec!["requests=1000/s".parse().unwrap()],
        ..instant()
    };
    let (server, caller) = start(config).await;
    while server.report().limits[0].remaining > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        caller.post(CHAT, chat("x")).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );
    let report = server.shutdown().await;
    assert_eq!((report.limits[0].foreign, report.limits[0].used), (20, 20));
}

fn recordings(directory: &Path) -> Vec<String> {
    let read = std::fs::read_dir(directory).expect("a directory");
    read.map(|entry| {
        let path = entry.expect("an entry").path();
        std::fs::read_to_string(path).expect("a recording")
    })
    .collect()
}

#[tokio::test]
async fn what_is_recorded_is_replayed_and_holds_no_key() {
    let directory = tempfile::tempdir().unwrap();
    let config = MockConfig {
        record: Some(directory.path().to_owned()),
        ..instant()
    };
    let (server, mut caller) = start(config).await;
    caller.key = "sk-very-private";
    let mut stream = chat("tell me of rivers");
    stream["stream"] = json!(true);
    let prompts = [
        chat("tell me of houses"),
        stream,
        chat("my key is sk-very-private, keep it"),
    ];
    let mut recorded = Vec::new();
    for prompt in &prompts {
        recorded.push(caller.post(CHAT, prompt.clone()).await);
    }
    server.shutdown().await;
    let files = recordings(directory.path());
    assert_eq!(files.len(), 3);
    for file in &files {
        assert!(
            !file.contains("sk-very-private") && !file.to_lowercase().contains("authorization"),
            "{file}"
        );
    }
    assert!(
        files.iter().any(|file| file.contains("tell me of houses")),
        "the files are readable"
    );

    let config = MockConfig {
        replay: Some(directory.path().to_owned()),
        seed: 99,
        ..instant()
    };
    let (server, mut caller) = start(config).await;
    caller.key = "another";
    for (prompt, recorded) in prompts.iter().zip(&recorded) {
        let replayed = caller.post(CHAT, prompt.clone()).await;
        assert_eq!(
            replayed.header("content-type"),
            recorded.header("content-type")
        );
        if recorded.header("content-type") == "application/json" {
            assert_eq!(replayed.json(), recorded.json());
        } else {
            assert_eq!(replayed.text, recorded.text);
        }
    }
    let answer = caller.post(CHAT, chat("something else")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let text = answer.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        text.contains("Nothing is recorded for this call") && text.contains("v1-chat-completions-"),
        "{text}"
    );
    server.shutdown().await;

    let config = MockConfig {
        replay: Some(directory.path().join("missing")),
        ..instant()
    };
    assert!(MockServer::start(config).await.is_err());
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
