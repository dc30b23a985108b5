//! How the stand-in keeps its limits, and what its headers and refusals tell of them.

use http::StatusCode;
use llmq_provider::mock::{Hints, MockConfig, Report};
use llmq_strict::Charge;
use serde_json::json;
use tokio::task::JoinSet;

use crate::caller::{CHAT, chat, instant, limits, message, start};

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
