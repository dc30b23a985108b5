//! Pages in a browser: none may call unless it is allowed, and none passes for one of ours.

use crate::world::{SHORT, World, get, is};

const ALLOWED: &str = "cors = [\"https://app.example\"]";

fn preflight(path: &str, origin: &str) -> String {
    format!(
        "OPTIONS {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\norigin: {origin}\r\n\
         access-control-request-method: POST\r\n\
         access-control-request-headers: authorization,content-type\r\n\r\n"
    )
}

#[tokio::test]
async fn without_the_setting_no_page_of_another_origin_may_call() {
    let world = World::new("", SHORT).await;
    let answer = world
        .exchange(preflight("/v1/chat/completions", "https://app.example"))
        .await;
    is(&answer, 405, "takes POST");
    let answer = world
        .exchange(get("/health", "origin: https://app.example\r\n"))
        .await;
    is(&answer, 200, "");
    assert!(!answer.contains("access-control"), "{answer}");
}

#[tokio::test]
async fn an_allowed_origin_may_ask_call_and_read_and_no_other_may() {
    let world = World::new(ALLOWED, SHORT).await;
    for path in ["/v1/chat/completions", "/api/queues", "/v1/models"] {
        let answer = world.exchange(preflight(path, "https://app.example")).await;
        is(
            &answer,
            204,
            "access-control-allow-origin: https://app.example\r\n",
        );
        is(
            &answer,
            204,
            "access-control-allow-headers: authorization,content-type\r\n",
        );
        let other = world
            .exchange(preflight(path, "https://app.example.evil"))
            .await;
        assert!(!other.contains("access-control"), "{other}");
    }
    for path in ["/v1/models", "/health", "/nothing"] {
        let answer = world
            .exchange(get(path, "origin: https://app.example\r\n"))
            .await;
        assert!(
            answer.contains("access-control-allow-origin: https://app.example"),
            "{answer}"
        );
        assert!(answer.contains("vary: origin"), "{answer}");
        let none = world.exchange(get(path, "")).await;
        assert!(!none.contains("access-control"), "{none}");
    }
}

#[tokio::test]
async fn an_allowed_origin_may_also_steer_queues() {
    let pause = |origin: &str| {
        format!(
            "POST /api/queues/m/pause HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             origin: {origin}\r\nsec-fetch-site: cross-site\r\ncontent-length: 0\r\n\r\n"
        )
    };
    let world = World::new(ALLOWED, SHORT).await;
    is(
        &world.exchange(pause("https://evil.example")).await,
        403,
        "other sites",
    );
    is(
        &world.exchange(pause("https://app.example")).await,
        200,
        "\"paused\"",
    );
}

#[tokio::test]
async fn a_server_that_asks_for_no_key_answers_to_no_name_that_a_stranger_may_own() {
    let world = World::new("", SHORT).await;
    let with = |host: &str| {
        format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
    };
    is(
        &world.exchange(with("evil.example:8080")).await,
        421,
        "misdirected_request",
    );
    for host in ["localhost:8080", "127.0.0.1:8080", "gateway"] {
        is(&world.exchange(with(host)).await, 200, "\"m\"");
    }
    // One that asks for keys may have any name: a page of a stranger has no key.
    let asking = World::new("auth = \"keys\"", SHORT).await;
    is(
        &asking.exchange(with("llm.example.com")).await,
        401,
        "unauthenticated",
    );
}
