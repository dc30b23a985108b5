//! Callers without a key, with the wrong one, or with a request that is none.

use std::pin::pin;
use std::time::Duration;

use http::Request;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::world::{Act, Mode, Upstream, World};

async fn world() -> (Upstream, World) {
    let one = Upstream::start("one", |_| Act::Answer).await;
    let world = World::new(&[&one], "", "").await;
    (one, world)
}

/// Makes a key with these scopes, by the key of `by` if there is one, and gives its header.
pub(crate) async fn key(world: &World, by: Option<&str>, body: Value) -> String {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(by.map(|key| ("authorization", key)));
    let request = Request::post("/api/keys");
    let seen = world.send(request, &headers, body.to_string()).await;
    assert_eq!(seen.status, 201, "{seen:?}");
    let made: Value = serde_json::from_str(&seen.body).unwrap();
    format!("Bearer {}", made["key"].as_str().unwrap())
}

#[tokio::test]
async fn once_a_key_exists_nothing_but_health_is_told_without_one() {
    let (one, world) = world().await;
    world.ask(Mode::Whole).await.is_from(&one);
    key(&world, None, json!({"name": "admin", "scopes": ["manage"]})).await;
    for path in [
        "/v1/models",
        "/v1/models/m",
        "/metrics",
        "/api/queues",
        "/api/keys",
        "/",
    ] {
        let seen = world.send(Request::get(path), &[], String::new()).await;
        assert_eq!(seen.status, 401, "{path}: {seen:?}");
    }
    for path in ["/health", "/health/live", "/health/ready", "/openapi.json"] {
        let seen = world.send(Request::get(path), &[], String::new()).await;
        assert_eq!(seen.status, 200, "{path}: {seen:?}");
    }
    world.ask(Mode::Whole).await.failed(401, "unauthenticated");
    let wrong = [("x-api-key", "llmq_wrong")];
    world
        .ask_with(Mode::Whole, &wrong)
        .await
        .failed(401, "unauthenticated");
    assert_eq!(
        one.calls(),
        1,
        "nothing was sent for a caller without a key"
    );
}

#[tokio::test]
async fn a_key_may_do_what_its_scopes_and_models_say() {
    let (one, world) = world().await;
    let admin = key(&world, None, json!({"name": "admin", "scopes": ["manage"]})).await;
    world
        .ask_with(Mode::Whole, &[("authorization", &admin)])
        .await
        .failed(403, "forbidden");
    let app = json!({"name": "app", "scopes": ["call"]});
    let app = key(&world, Some(&admin), app).await;
    let other = json!({"name": "other", "scopes": ["call"], "models": ["n"]});
    let other = key(&world, Some(&admin), other).await;
    let with = |key: &str| key.to_owned();
    let seen = world
        .ask_with(Mode::Stream, &[("authorization", &with(&app))])
        .await;
    seen.is_from(&one);
    world
        .ask_with(Mode::Whole, &[("authorization", &with(&other))])
        .await
        .failed(403, "forbidden");
    let figures = Request::get("/metrics");
    let seen = world
        .send(figures, &[("authorization", &app)], String::new())
        .await;
    assert_eq!(seen.status, 403, "{seen:?}");
}

#[tokio::test]
async fn what_is_no_call_is_refused_by_its_place_and_sent_nowhere() {
    let (one, world) = world().await;
    let chat = "/v1/chat/completions";
    let table = [
        (Request::post(chat), "nope", 400, "column 2"),
        (Request::post(chat), "[]", 400, "JSON object"),
        (Request::post(chat), r#"{"messages":[]}"#, 400, "`model`"),
        (
            Request::post(chat),
            r#"{"model":"m","model":"n"}"#,
            400,
            "more than once",
        ),
        (Request::post(chat), r#"{"mod\u0065l":"m"}"#, 400, "escapes"),
        (
            Request::post(chat),
            r#"{"model":"x"}"#,
            404,
            "known models: m",
        ),
        (Request::get(chat), "", 405, "takes POST"),
        (Request::post("/v1/nothing"), "", 404, "/v1/nothing"),
        (Request::get("/api/nothing"), "", 404, "/openapi.json"),
        (
            Request::post("/v1/messages/count_tokens"),
            r#"{"model":"m"}"#,
            400,
            "counterpart",
        ),
    ];
    for (request, body, status, text) in table {
        let seen = world.send(request, &[], body.to_owned()).await;
        assert_eq!(seen.status, status, "{body}: {seen:?}");
        assert!(seen.body.contains(text), "{body}: {seen:?}");
    }
    assert_eq!(one.calls(), 0);
}

/// A caller that left in line had waited 0 s, and the gateway itself had added all its time; one
/// that left while an upstream worked was in no count of attempts.
#[tokio::test]
async fn who_leaves_is_counted_where_the_time_went() {
    let hour = Upstream::start("one", |call| match call {
        0 => Act::Answer,
        _ => Act::Hang(String::new()),
    })
    .await;
    let text = format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\nadaptive = {{ max = 0 }}\n\
         [models.m]\nupstreams = [{{ upstream = \"one\", \
         limits = {{ custom = [\"requests=1/1h\"] }} }}]\n\
         [models.n]\nupstreams = [{{ upstream = \"one\" }}]\n",
        hour.url
    );
    let world = World::with(&text).await;
    world.ask(Mode::Whole).await.is_from(&hour);
    let patience = Duration::from_millis(600);
    let leaves = async |body: Value| {
        let request = Request::post("/v1/chat/completions");
        let asked = pin!(world.send(request, &[], body.to_string()));
        assert!(timeout(patience, asked).await.is_err(), "nothing comes");
    };
    let messages = json!([{"role": "user", "content": "hello"}]);
    leaves(json!({"model": "m", "messages": messages})).await;
    leaves(json!({"model": "n", "messages": messages})).await;
    let figure = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.map_or(0.0, |value| value.parse::<f64>().unwrap())
    };
    let figures = async {
        loop {
            let seen = world
                .send(Request::get("/metrics"), &[], String::new())
                .await;
            let calls = seen.body.lines().filter(|line| {
                line.starts_with("llmq_calls_total{") && line.contains("status=\"499\"")
            });
            if calls.count() == 2 {
                return seen.body;
            }
            tokio::task::yield_now().await;
        }
    };
    let figures = timeout(llmq_testkit::PATIENCE, figures).await.unwrap();
    let waited = figure(&figures, "llmq_queue_wait_seconds_sum{model=\"m\"");
    assert!(waited >= 0.5, "{waited}\n{figures}");
    let added = figure(&figures, "llmq_added_seconds_sum{stream=\"false\"}");
    assert!(added < 0.5, "{added}\n{figures}");
    let attempts = "llmq_attempts_total{outcome=\"cancelled\",upstream=\"one/n\"}";
    let cancelled = figure(&figures, attempts);
    assert!((cancelled - 1.0).abs() < 1e-9, "{cancelled}\n{figures}");
}
