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

/// A page needs nobody's leave to send a POST with a plain body, and a server on this machine asks
/// for no key: once such a call was sent, and paid.
#[tokio::test]
async fn a_page_of_another_site_spends_nothing_and_hands_nothing_in() {
    let world = World::new("", SHORT).await;
    let body = r#"{"model":"nothing here","messages":[]}"#;
    let post = |path: &str, headers: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: localhost:8080\r\nconnection: close\r\n{headers}\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for path in [
        "/v1/chat/completions",
        "/v1/messages",
        "/api/requests",
        "/v1/batches",
        "/api/keys",
    ] {
        for headers in [
            "sec-fetch-site: cross-site\r\n",
            "sec-fetch-site: same-site\r\n",
            "origin: https://evil.example\r\n",
            "origin: null\r\n",
            "origin: http://localhost:3000\r\n",
        ] {
            is(
                &world.exchange(post(path, headers)).await,
                403,
                "other sites",
            );
        }
    }
    // Programs, this server's own pages, and what a user typed.
    for headers in [
        "",
        "sec-fetch-site: none\r\n",
        "sec-fetch-site: same-origin\r\norigin: http://localhost:5173\r\n",
        "origin: http://localhost:8080\r\n",
    ] {
        let answer = world.exchange(post("/v1/chat/completions", headers)).await;
        is(&answer, 404, "model_not_found");
    }
    // A page has no key of ours: where one is asked for, it gets no further.
    let asking = World::new("auth = \"keys\"", SHORT).await;
    let answer = asking.exchange(post(
        "/v1/chat/completions",
        "sec-fetch-site: cross-site\r\n",
    ));
    is(&answer.await, 401, "unauthenticated");
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
