//! Calls that are refused for what they are: their key, their body, the money behind them.

use http::StatusCode;
use llmq_provider::Secret;
use llmq_provider::mock::MockConfig;
use serde_json::json;

use crate::caller::{CHAT, chat, instant, message, start};

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
