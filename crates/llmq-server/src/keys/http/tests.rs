use axum::body::Body;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use jiff::tz::TimeZone;
use llmq_core::WallTime;
use llmq_engine::Tasks;
use llmq_store_sqlite::{Place, Store};
use llmq_testkit::FakeClock;
use serde_json::Value;
use tower_service::Service;

use super::super::{AuthPolicy, KeyRingOptions};
use super::*;

struct World {
    router: Router,
    key: Option<String>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl World {
    async fn new(auth: AuthPolicy) -> Self {
        let store = Store::open(&Place::Memory, WallTime::default()).unwrap();
        let options = KeyRingOptions {
            auth,
            time_zone: TimeZone::UTC,
        };
        let tasks = Tasks::new();
        let ring = KeyRing::open(store, Arc::new(FakeClock::new()), options, &tasks);
        Self {
            router: router(ring.await.unwrap()),
            key: None,
        }
    }

    /// A server with a key that manages; requests come with it.
    async fn managed() -> Self {
        let mut world = Self::new(AuthPolicy::OpenUntilKeys).await;
        let body = r#"{"name":"admin","scopes":["manage"]}"#;
        let answer = world.send("POST", "/api/keys", body).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        world.key = answer.body["key"].as_str().map(str::to_owned);
        world
    }

    async fn send(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.send_as(method, path, "application/json", body).await
    }

    async fn send_as(&mut self, method: &str, path: &str, kind: &str, body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("content-type", kind);
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let (head, body) = self.router.call(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        }
    }
}

#[tokio::test]
async fn a_key_is_shown_once() {
    let mut world = World::managed().await;
    let body = r#"{"name":"app","tenant":"team","limits":["rpm=60"],
        "budget":{"tokens_per_day":1000000,"usd_per_month":12.5}}"#;
    let made = world.send("POST", "/api/keys", body).await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.headers["cache-control"], "no-store");
    let key = made.body["key"].as_str().unwrap().to_owned();
    let path = made.headers["location"].to_str().unwrap().to_owned();
    assert_eq!(
        path,
        format!("/api/keys/{}", made.body["id"].as_str().unwrap())
    );

    let shown = world.send("GET", &path, "").await.body;
    assert_eq!(shown["prefix"], key[..13]);
    assert_eq!(shown["scopes"], json!(["call", "read"]));
    assert_eq!(shown["tenant"], "team");
    assert_eq!(shown["budget"]["usd_per_month"], 12.5);
    assert_eq!(shown["usage"]["day"]["input_tokens"], 0);
    let list = world.send("GET", "/api/keys", "").await.body;
    assert_eq!(list["keys"][0], shown, "newest first");
    for body in [shown, list] {
        assert!(!body.to_string().contains(&key[13..]), "{body}");
    }
}

#[tokio::test]
async fn a_revoked_key_is_out_at_once_and_still_listed() {
    let mut world = World::managed().await;
    let made = world.send("POST", "/api/keys", r#"{"name":"app","scopes":["manage"]}"#);
    let made = made.await.body;
    let path = format!("/api/keys/{}", made["id"].as_str().unwrap());
    let revoked = world.send("DELETE", &path, "").await;
    assert_eq!(revoked.status, 200);
    assert!(revoked.body["revoked_at"].is_string());
    let list = world.send("GET", "/api/keys", "").await.body;
    assert_eq!(list["keys"][0]["revoked_at"], revoked.body["revoked_at"]);
    world.key = made["key"].as_str().map(str::to_owned);
    let refused = world.send("GET", "/api/keys", "").await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.headers["www-authenticate"], "Bearer");
    assert_eq!(refused.body["code"], "unauthenticated");
}

#[tokio::test]
async fn keys_are_for_those_who_may_manage() {
    let mut world = World::managed().await;
    let made = world
        .send("POST", "/api/keys", r#"{"name":"app"}"#)
        .await
        .body;
    world.key = made["key"].as_str().map(str::to_owned);
    let own = format!("/api/keys/{}", made["id"].as_str().unwrap());
    for (method, path) in [
        ("GET", "/api/keys"),
        ("POST", "/api/keys"),
        ("GET", own.as_str()),
        ("DELETE", own.as_str()),
    ] {
        let refused = world.send(method, path, r#"{"name":"more"}"#).await;
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (403, &json!("forbidden"))
        );
    }
    world.key = None;
    let refused = world.send("POST", "/api/keys", "not even JSON").await;
    assert_eq!(refused.status, 401, "who calls is asked first");
}

#[tokio::test]
async fn pages_hold_every_key_once() {
    let mut world = World::managed().await;
    for number in 0..6 {
        let body = format!(r#"{{"name":"{number}"}}"#);
        assert_eq!(world.send("POST", "/api/keys", &body).await.status, 201);
    }
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/keys?limit=3{cursor}");
        let page = world.send("GET", &path, "").await.body;
        let keys = page["keys"].as_array().unwrap();
        names.extend(
            keys.iter()
                .map(|key| key["name"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(names, ["5", "4", "3", "2", "1", "0", "admin"]);
}

#[tokio::test]
async fn bad_requests_are_told_where_they_are_wrong() {
    let mut world = World::managed().await;
    let mut check = async |method, path, body: &str, status, code: &str, part: &str| {
        let answer = world.send(method, path, body).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(answer.body["code"], code);
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    };
    let keys = "/api/keys";
    let invalid = "invalid_request";
    check("POST", keys, "{", 400, invalid, "line 1").await;
    check("POST", keys, "{}", 400, invalid, "name").await;
    let wrong = r#"{"name":"a","limits":["rpm=x"]}"#;
    check(
        "POST",
        keys,
        wrong,
        400,
        invalid,
        "limits[0]: `x` is not a count",
    )
    .await;
    let wrong = r#"{"name":"a","budget":{"usd_per_day":"5"}}"#;
    check("POST", keys, wrong, 400, invalid, "budget.usd_per_day").await;
    let taken = r#"{"name":"admin"}"#;
    check("POST", keys, taken, 409, "conflict", "`admin`").await;
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(BODY_MAX));
    check("POST", keys, &large, 413, "too_large", "").await;
    check("GET", "/api/keys?limit=0", "", 400, invalid, "1 to 1000").await;
    check("GET", "/api/keys?limit=x", "", 400, invalid, "limit").await;
    check("GET", "/api/keys?cursor=x", "", 400, invalid, "cursor").await;
    check("DELETE", "/api/keys/7", "", 404, "key_not_found", "7").await;
    let nobody = "/api/keys/00000000-0000-0000-0000-000000000000";
    check("GET", nobody, "", 404, "key_not_found", "0000").await;
    check("DELETE", nobody, "", 404, "key_not_found", "0000").await;
    let plain = world.send_as("POST", keys, "text/plain", r#"{"name":"a"}"#);
    assert_eq!(
        plain.await.status,
        415,
        "a web page cannot send JSON unasked"
    );
}
