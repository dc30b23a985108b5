//! Calls that go wrong: failures, lost connections, outages, and clients that leave.

use std::time::Duration;

use http::StatusCode;
use llmq_provider::mock::{MockConfig, Outage, OutageStyle, Report};
use serde_json::json;
use tokio::task::JoinSet;

use crate::caller::{CHAT, chat, instant, limits, message, start};

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
