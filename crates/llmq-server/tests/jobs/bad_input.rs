//! What cannot be accepted is refused by its name, and nothing of it is kept.

use http::Method;
use llmq_store::Reads as _;
use serde_json::{Value, json};

use crate::files::upload;
use crate::world::{World, chat, request};

#[tokio::test]
async fn each_mistake_is_told_by_its_field_and_nothing_is_accepted() {
    let world = World::start().await;
    let with = |name: &str, value: Value| {
        let mut wanted = request();
        wanted[name] = value;
        wanted
    };
    let body_with = |name: &str, value: Value| {
        let mut body = chat();
        body[name] = value;
        with("body", body)
    };
    let cases = [
        ("unknown field `prio`", with("prio", json!(1))),
        ("`endpoint`", with("endpoint", json!("/v1/images"))),
        ("`endpoint`", with("endpoint", json!("/v1/models"))),
        ("`body`", with("body", json!([1]))),
        ("`body`", body_with("stream", json!(true))),
        (
            "`background`",
            json!({"endpoint": "/v1/responses",
                "body": {"model": "gpt", "input": "hello", "background": true}}),
        ),
        ("`model`", with("model", json!("other"))),
        ("`model`", with("body", json!({"messages": []}))),
        ("priority", with("priority", json!("urgent"))),
        ("priority", with("priority", json!(101))),
        ("`ttl`", with("ttl", json!("0s"))),
        ("`ttl`", with("ttl", json!("36500d"))),
        ("`ttl`", with("ttl", json!("soon"))),
        ("`not_before`", with("not_before", json!("tomorrow"))),
        (
            "`not_before`",
            with("not_before", json!("2999-01-01T00:00:00Z")),
        ),
        (
            "`metadata`",
            with("metadata", json!({"x": "y".repeat(2_000)})),
        ),
        ("invalid type", with("metadata", json!({"x": 1}))),
        ("`idempotency_key`", with("idempotency_key", json!(""))),
        (
            "`callback_url`",
            with("callback_url", json!("ftp://example.com/")),
        ),
        (
            "`callback_url`",
            with("callback_url", json!("http://10.1.2.3/")),
        ),
        (
            "`callback_url`",
            with("callback_url", json!("http://[fd00::1]/")),
        ),
        (
            "`callback_url`",
            with("callback_url", json!("http://169.254.169.254/latest")),
        ),
        (
            "`callback_url`",
            with("callback_url", json!("http://user:pw@example.com/")),
        ),
        ("`callback_url`", with("callback_url", json!("/relative"))),
        ("missing field `body`", json!({"model": "gpt"})),
        (
            "unknown field `more`",
            json!({"requests": [request()], "more": 1}),
        ),
        ("`requests` has 0 entries", json!({"requests": []})),
        (
            "requests[1]",
            json!({"requests": [request(), with("ttl", json!("0s"))]}),
        ),
        (
            "requests[0]",
            json!({"requests": [with("wait_for_completion", json!(true))]}),
        ),
    ];
    for (expected, wanted) in cases {
        let got = world.post("/api/requests", &wanted).await;
        assert_eq!(
            got.problem(),
            (400, "invalid_request".to_owned()),
            "{wanted}"
        );
        let message = got.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(expected), "{message} for {wanted}");
    }
    let not_json = world
        .ask(Method::POST, "/api/requests", &[], "{\"a\": secret")
        .await;
    assert_eq!(not_json.status, 400);
    let list = world.get("/api/requests").await.json();
    assert_eq!(list["requests"], json!([]));
    assert_eq!(world.calls(), 0);
}

#[tokio::test]
async fn an_unknown_model_is_told_with_those_that_are_known() {
    let world = World::start().await;
    let mut wanted = request();
    wanted["body"]["model"] = json!("nope");
    let got = world.post("/api/requests", &wanted).await;
    assert_eq!(got.problem(), (404, "model_not_found".to_owned()));
    assert!(got.json()["message"].as_str().unwrap().contains("gpt"));
}

/// Of ten thousand nobody was told which one names an unknown model, or a file that is kept here.
#[tokio::test]
async fn of_many_it_is_told_which_one_names_what_is_not_there() {
    let world = World::start().await;
    let kept = upload(&world, &[("purpose", "user_data"), ("file", "x")]).await;
    let part = json!({"type": "file", "file": {"file_id": kept.json()["id"]}});
    let message = json!({"role": "user", "content": [part]});
    for (name, value, status, code, field) in [
        ("model", json!("nope"), 404, "model_not_found", "model"),
        ("messages", json!([message]), 400, "file_not_found", "body"),
    ] {
        let mut wanted = request();
        wanted["body"][name] = value;
        let many = json!({"requests": [request(), wanted]});
        let got = world.post("/api/requests", &many).await;
        assert_eq!(got.problem(), (status, code.to_owned()));
        let at = format!("requests[1].{field}");
        assert_eq!(got.json()["details"]["field"], at);
    }
}

#[tokio::test]
async fn ten_thousand_and_one_are_too_many_and_none_is_taken() {
    let world = World::start().await;
    let many: Vec<Value> = (0..10_001).map(|_| request()).collect();
    let got = world
        .post("/api/requests", &json!({ "requests": many }))
        .await;
    assert_eq!(got.problem(), (400, "invalid_request".to_owned()));
    assert!(got.json()["message"].as_str().unwrap().contains("10001"));
    assert_eq!(world.store.counts().await.unwrap().queued, 0);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let world = World::with(&[], "[server]\nmax_body = \"1MB\"").await;
    let mut wanted = request();
    wanted["body"]["messages"][0]["content"] = json!("x".repeat(2 << 20));
    let got = world.post("/api/requests", &wanted).await;
    assert_eq!(got.problem(), (413, "too_large".to_owned()));
}

#[tokio::test]
async fn unknown_ids_and_questions_are_told() {
    let world = World::start().await;
    for id in ["nonsense", "0192f0c1-6a5e-7cc3-98c4-dc0c0c07398f"] {
        let path = format!("/api/requests/{id}");
        assert_eq!(
            world.get(&path).await.problem(),
            (404, "request_not_found".to_owned())
        );
        let cancelled = world.ask(Method::DELETE, &path, &[], "").await;
        assert_eq!(cancelled.status, 404);
        let retried = world.post(&format!("{path}/retry"), &json!({})).await;
        assert_eq!(retried.status, 404);
    }
    // Made long ago, by its own word: what it was is not kept any more.
    let old = world
        .get("/api/requests/0192f0c1-6a5e-7cc3-98c4-dc0c0c07398f/result")
        .await;
    assert_eq!(old.problem(), (410, "expired".to_owned()));
    for query in [
        "status=done",
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=elsewhere",
        "created_after=yesterday",
        "priority=urgent",
        "colour=red",
    ] {
        let got = world.get(&format!("/api/requests?{query}")).await;
        assert_eq!(
            got.problem(),
            (400, "invalid_request".to_owned()),
            "{query}"
        );
    }
    let id = world.submit().await;
    for query in ["wait=-1", "wait=1000", "wait=x", "weight=3"] {
        let got = world.get(&format!("/api/requests/{id}?{query}")).await;
        assert_eq!(got.status, 400, "{query}");
    }
}

#[tokio::test]
async fn what_belongs_to_another_tenant_is_not_there() {
    let world = World::start().await;
    let key = async |name: &str, scopes: Value, with: Option<&str>| {
        let bearer = with.map(|key| format!("Bearer {key}"));
        let headers: Vec<(&str, &str)> = bearer
            .iter()
            .map(|bearer| ("authorization", bearer.as_str()))
            .collect();
        let wanted = json!({"name": name, "scopes": scopes}).to_string();
        let got = world.ask(Method::POST, "/api/keys", &headers, wanted).await;
        assert_eq!(got.status, 201, "{:?}", got.body);
        got.json()["key"].as_str().unwrap().to_owned()
    };
    let boss = key("boss", json!(["manage"]), None).await;
    let a = key("a", json!(["call", "read"]), Some(&boss)).await;
    let b = key("b", json!(["call", "read"]), Some(&boss)).await;
    let ask = async |key: &str, method: Method, path: &str, body: String| {
        let bearer = format!("Bearer {key}");
        world
            .ask(method, path, &[("authorization", bearer.as_str())], body)
            .await
    };
    let unasked = world.post("/api/requests", &request()).await;
    assert_eq!(unasked.problem(), (401, "unauthenticated".to_owned()));
    let no_scope = ask(&boss, Method::POST, "/api/requests", request().to_string()).await;
    assert_eq!(no_scope.problem(), (403, "forbidden".to_owned()));
    let got = ask(&a, Method::POST, "/api/requests", request().to_string()).await;
    let id = got.json()["queue_id"].as_str().unwrap().to_owned();
    assert_eq!(got.json()["tenant"], "a");
    let path = format!("/api/requests/{id}");
    assert_eq!(ask(&a, Method::GET, &path, String::new()).await.status, 200);
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::GET, format!("{path}/result")),
        (Method::DELETE, path.clone()),
        (Method::POST, format!("{path}/retry")),
    ] {
        let got = ask(&b, method, &path, String::new()).await;
        assert_eq!(
            got.problem(),
            (404, "request_not_found".to_owned()),
            "{path}"
        );
    }
    for query in ["", "?tenant=a"] {
        let list = ask(
            &b,
            Method::GET,
            &format!("/api/requests{query}"),
            String::new(),
        )
        .await;
        assert_eq!(list.json()["requests"], json!([]), "{query}");
    }
    // Nor may it name that tenant as its own.
    let bearer = format!("Bearer {b}");
    let headers = [("authorization", bearer.as_str()), ("x-llmq-tenant", "a")];
    let got = world
        .ask(
            Method::POST,
            "/api/requests",
            &headers,
            request().to_string(),
        )
        .await;
    assert_eq!(got.status, 403);
}

/// Once it was dropped without a word, and whoever asked again was billed twice.
#[tokio::test]
async fn one_key_is_not_for_many_requests() {
    let world = World::start().await;
    let headers = [
        ("idempotency-key", "k"),
        ("content-type", "application/json"),
    ];
    let many = json!({"requests": [request(), request()]}).to_string();
    let got = world
        .ask(Method::POST, "/api/requests", &headers, many)
        .await;
    assert_eq!(got.problem(), (400, "invalid_request".to_owned()));
    assert!(got.json()["detail"].to_string().contains("idempotency_key"));
}
