//! What a key may do and spend holds for its accepted requests too.

use http::Method;
use llmq_testkit::PATIENCE;
use serde_json::{Value, json};

use crate::events::Ear;
use crate::webhooks;
use crate::world::{Got, World, chat, request};

const CHAT: &str = "/v1/chat/completions";

/// A gateway with a key that may do everything, and the keys of its callers.
struct Keyed {
    world: World,
    admin: String,
}

/// A key, with its id.
struct Key {
    shown: String,
    id: String,
}

impl Keyed {
    async fn new(limits: &[&str]) -> Self {
        Self::of(World::with(limits, "").await).await
    }

    async fn of(world: World) -> Self {
        let all = json!({"name": "admin", "scopes": ["call", "read", "manage"],
            "any_tenant": true});
        let admin = world.post("/api/keys", &all).await.json()["key"].clone();
        let admin = format!("Bearer {}", admin.as_str().unwrap());
        Self { world, admin }
    }

    async fn ask(&self, key: &str, method: Method, path: &str, body: &Value) -> Got {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let headers = [("authorization", key)];
        self.world.ask(method, path, &headers, body).await
    }

    async fn key(&self, wanted: Value) -> Key {
        let got = self
            .ask(&self.admin, Method::POST, "/api/keys", &wanted)
            .await;
        assert_eq!(got.status, 201, "{got:?}");
        let key = got.json();
        Key {
            shown: format!("Bearer {}", key["key"].as_str().unwrap()),
            id: key["id"].as_str().unwrap().to_owned(),
        }
    }

    /// Hands one in as a tenant, and tells its id.
    async fn hand_in(&self, key: &Key, tenant: Option<&str>) -> String {
        let mut headers = vec![("authorization", key.shown.as_str())];
        headers.extend(tenant.map(|tenant| ("x-llmq-tenant", tenant)));
        let body = request().to_string();
        let got = self
            .world
            .ask(Method::POST, "/api/requests", &headers, body)
            .await;
        assert_eq!(got.status, 202, "{got:?}");
        got.json()["queue_id"].as_str().unwrap().to_owned()
    }

    /// A request at its end, or after these seconds.
    async fn after(&self, id: &str, wait: u32) -> Value {
        let path = format!("/api/requests/{id}?wait={wait}");
        self.ask(&self.admin, Method::GET, &path, &Value::Null)
            .await
            .json()
    }

    async fn completes(&self, id: &str) {
        let state = self.after(id, 20).await;
        assert_eq!(state["status"], "completed", "{state}");
    }

    /// It waits for its key's own limit.
    async fn waits_for_its_key(&self, id: &str) {
        let state = self.after(id, 1).await;
        assert_eq!(state["status"], "queued", "{state}");
        let why = state["waiting_for"].as_str().unwrap_or_default();
        assert!(why.contains("key"), "{state}");
    }

    /// The tokens that a key has used today.
    async fn used(&self, key: &Key) -> u64 {
        let path = format!("/api/keys/{}", key.id);
        let info = self
            .ask(&self.admin, Method::GET, &path, &Value::Null)
            .await
            .json();
        let day = &info["usage"]["day"];
        day["input_tokens"].as_u64().unwrap() + day["output_tokens"].as_u64().unwrap()
    }
}

/// A call that costs 100 output tokens at most, and some of input.
fn capped() -> Value {
    let mut body = chat();
    body["max_tokens"] = json!(100);
    body
}

/// Once a job was known by its tenant's name alone: a name that no key has was without limits.
#[tokio::test]
async fn a_keys_limits_hold_whatever_tenant_it_names() {
    let keyed = Keyed::new(&[]).await;
    let key = json!({"name": "k", "any_tenant": true, "limits": ["requests=1/1h"]});
    let key = keyed.key(key).await;
    let first = keyed.hand_in(&key, Some("x")).await;
    keyed.completes(&first).await;
    for tenant in [Some("x"), Some("y"), None] {
        let next = keyed.hand_in(&key, tenant).await;
        keyed.waits_for_its_key(&next).await;
    }
}

#[tokio::test]
async fn two_keys_of_one_tenant_have_each_its_own_limits() {
    let keyed = Keyed::new(&[]).await;
    let limited = json!({"name": "a", "tenant": "team", "limits": ["requests=1/1h"]});
    let limited = keyed.key(limited).await;
    let free = keyed.key(json!({"name": "b", "tenant": "team"})).await;
    keyed.completes(&keyed.hand_in(&limited, None).await).await;
    let waits = keyed.hand_in(&limited, None).await;
    keyed.waits_for_its_key(&waits).await;
    for _ in 0..3 {
        keyed.completes(&keyed.hand_in(&free, None).await).await;
    }
    let path = format!("/api/keys/{}", limited.id);
    keyed
        .ask(&keyed.admin, Method::DELETE, &path, &Value::Null)
        .await;
    let state = keyed.after(&waits, 1).await;
    assert_eq!(
        state["status"], "queued",
        "a revoked key's limits hold: {state}"
    );
}

/// Once only a plain call asked the budget: a key of a dollar a day handed in work for thousands.
#[tokio::test]
async fn a_spent_budget_is_spent_in_every_way_of_calling() {
    let keyed = Keyed::new(&[]).await;
    let key = json!({"name": "k", "budget": {"tokens_per_day": 130}});
    let key = keyed.key(key).await;
    let first = keyed.ask(&key.shown, Method::POST, CHAT, &capped()).await;
    assert_eq!(first.status, 200, "{first:?}");
    let before = keyed.world.calls();
    let key_header = ("authorization", key.shown.as_str());
    let body = capped().to_string();
    for more in [
        ("x-none", "1"),
        ("idempotency-key", "a"),
        ("prefer", "respond-async"),
    ] {
        let got = keyed
            .world
            .ask(Method::POST, CHAT, &[key_header, more], body.clone())
            .await;
        assert_eq!(got.status, 429, "{more:?}: {got:?}");
        assert_eq!(got.json()["error"]["code"], "budget_exhausted");
        let wait: u64 = got.header("retry-after").parse().unwrap();
        assert!((1..=86_400).contains(&wait), "until the day turns: {wait}");
        // Anthropic's SDK would sleep through all of it.
        let soon = if wait <= 120 { "true" } else { "false" };
        assert_eq!(got.header("x-should-retry"), soon, "{more:?}: {wait}");
    }
    let background = json!({"model": "gpt", "input": "x", "background": true,
        "max_output_tokens": 100});
    let got = keyed
        .ask(&key.shown, Method::POST, "/v1/responses", &background)
        .await;
    assert_eq!(got.json()["error"]["code"], "budget_exhausted", "{got:?}");
    let one = json!({"endpoint": CHAT, "body": capped()});
    let got = keyed
        .ask(&key.shown, Method::POST, "/api/requests", &one)
        .await;
    assert_eq!(got.problem(), (429, "budget_exhausted".to_owned()));
    assert_eq!(keyed.world.calls(), before);

    let key = json!({"name": "many", "budget": {"tokens_per_day": 300}});
    let key = keyed.key(key).await;
    let many = json!({"requests": vec![one; 10]});
    let got = keyed
        .ask(&key.shown, Method::POST, "/api/requests", &many)
        .await;
    // They are taken all or none, and no day has room for all.
    assert_eq!(got.problem(), (400, "too_large".to_owned()));
}

/// It was told to come back at midnight, each day.
#[tokio::test]
async fn a_call_above_a_whole_budget_is_not_told_to_come_back() {
    let keyed = Keyed::new(&[]).await;
    let key = json!({"name": "k", "budget": {"tokens_per_day": 2_000}});
    let key = keyed.key(key).await;
    let before = keyed.world.calls();
    let key_header = ("authorization", key.shown.as_str());
    for more in [("x-none", "1"), ("idempotency-key", "a")] {
        let got = keyed
            .world
            .ask(Method::POST, CHAT, &[key_header, more], chat().to_string())
            .await;
        assert_eq!(got.status, 400, "{more:?}: {got:?}");
        assert_eq!(got.json()["error"]["code"], "too_large", "{more:?}");
        assert_eq!(got.header("retry-after"), "", "{more:?}");
        assert_eq!(got.header("x-should-retry"), "false", "{more:?}");
    }
    assert_eq!(keyed.world.calls(), before);
}

/// A name that is not there had the gateway name all models.
#[tokio::test]
async fn a_key_for_some_models_is_told_of_no_others() {
    let keyed = Keyed::new(&[]).await;
    let key = keyed.key(json!({"name": "k", "models": ["other"]})).await;
    let got = keyed
        .ask(&key.shown, Method::GET, "/v1/models/none", &Value::Null)
        .await;
    assert_eq!(got.status, 404, "{got:?}");
    let message = got.json()["error"]["message"].clone();
    assert!(!message.as_str().unwrap().contains("gpt"), "{got:?}");
    let got = keyed
        .ask(&keyed.admin, Method::GET, "/v1/models/none", &Value::Null)
        .await;
    let message = got.json()["error"]["message"].clone();
    assert!(message.as_str().unwrap().contains("gpt"), "{got:?}");
}

/// For a moment the store cannot record what may be spent: the request failed for good, though
/// nothing of it had been sent.
#[tokio::test]
async fn a_request_whose_budget_cannot_be_recorded_for_a_moment_is_finished_later() {
    let (world, file) = World::in_file(&[]).await;
    let keyed = Keyed::of(world).await;
    let key = json!({"name": "k", "budget": {"tokens_per_day": 1_000}});
    let key = keyed.key(key).await;
    let breaks = "CREATE TRIGGER breaks BEFORE INSERT ON key_usage
        BEGIN SELECT RAISE(ABORT, 'the test breaks it'); END";
    file.database.execute_batch(breaks).unwrap();
    // One with an idempotency key is asked for its part when it starts.
    let one = json!({"endpoint": CHAT, "body": capped(), "idempotency_key": "k"});
    let got = keyed.ask(&key.shown, Method::POST, "/api/requests", &one);
    let got = got.await.json();
    let id = got["queue_id"].as_str().unwrap();
    let given_back = async {
        loop {
            let state = keyed.after(id, 0).await;
            assert_ne!(state["status"], "failed", "{state}");
            if state["status"] == "queued" && state["started_at"].is_string() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, given_back).await.unwrap();
    assert_eq!(keyed.world.calls(), 0);
    file.database.execute_batch("DROP TRIGGER breaks").unwrap();
    keyed.completes(id).await;
    assert_eq!(keyed.world.calls(), 1);
}

/// No later try would find the row whole: the request would be started and given back until its
/// time is over.
#[tokio::test]
async fn a_request_whose_budget_is_damaged_fails_at_once_and_is_not_sent() {
    let (world, file) = World::in_file(&[]).await;
    let keyed = Keyed::of(world).await;
    let key = json!({"name": "k", "budget": {"tokens_per_day": 1_000}});
    let key = keyed.key(key).await;
    // One with an idempotency key is asked for its part when it starts.
    let ask = async |word: &str| {
        let one = json!({"endpoint": CHAT, "body": capped(), "idempotency_key": word});
        let got = keyed.ask(&key.shown, Method::POST, "/api/requests", &one);
        let got = got.await.json();
        got["queue_id"].as_str().unwrap().to_owned()
    };
    keyed.completes(&ask("a").await).await;
    let damage = "UPDATE key_usage SET drawn_tokens = drawn_tokens + 1";
    assert!(file.database.execute(damage, []).unwrap() > 0);
    let state = keyed.after(&ask("b").await, 20).await;
    assert_eq!(state["status"], "failed", "{state}");
    assert_eq!(state["error"]["code"], "store_unavailable", "{state}");
    assert_eq!(keyed.world.calls(), 1);
}

/// What was answered costs nothing, whoever asks again with its key.
#[tokio::test]
async fn a_call_that_was_answered_is_answered_again_when_the_budget_is_spent() {
    let keyed = Keyed::new(&[]).await;
    let key = json!({"name": "k", "budget": {"tokens_per_day": 130}});
    let key = keyed.key(key).await;
    let ask = |word: &'static str| {
        let headers = [
            ("authorization", key.shown.as_str()),
            ("idempotency-key", word),
        ];
        let body = capped().to_string();
        let world = &keyed.world;
        async move { world.ask(Method::POST, CHAT, &headers, body).await }
    };
    let first = ask("a").await;
    assert_eq!(first.status, 200, "{first:?}");
    let other = ask("b").await;
    assert_eq!(other.json()["error"]["code"], "budget_exhausted");
    let again = ask("a").await;
    assert_eq!((again.status, again.body), (first.status, first.body));
}

#[tokio::test]
async fn what_was_accepted_holds_its_part_of_the_budget_while_it_runs() {
    let keyed = Keyed::new(&[]).await;
    let key = json!({"name": "k", "budget": {"tokens_per_day": 250}});
    let key = keyed.key(key).await;
    let steer = |word: &str| format!("/api/queues/gpt/{word}");
    keyed
        .ask(&keyed.admin, Method::POST, &steer("pause"), &Value::Null)
        .await;
    let one = json!({"endpoint": CHAT, "body": capped()});
    let mut ids = Vec::new();
    for _ in 0..8 {
        let got = keyed
            .ask(&key.shown, Method::POST, "/api/requests", &one)
            .await;
        assert_eq!(got.status, 202, "nothing is held for what waits: {got:?}");
        ids.push(got.json()["queue_id"].as_str().unwrap().to_owned());
    }
    keyed
        .ask(&keyed.admin, Method::POST, &steer("resume"), &Value::Null)
        .await;
    let mut completed = 0;
    for id in &ids {
        let state = keyed.after(id, 20).await;
        if state["status"] == "completed" {
            completed += 1;
            continue;
        }
        assert_eq!(state["error"]["code"], "budget_exhausted", "{state}");
        let path = format!("/api/requests/{id}/result");
        let got = keyed
            .ask(&keyed.admin, Method::GET, &path, &Value::Null)
            .await;
        assert_eq!(got.problem(), (429, "budget_exhausted".to_owned()));
    }
    let used = keyed.used(&key).await;
    assert!(
        completed > 0 && completed < 8 && used <= 250,
        "{completed}: {used}"
    );
}

/// Nobody knew the price of a model any more that a reload had taken away: what waited for it was
/// sent whatever its key had left, and cost nothing.
#[tokio::test]
async fn what_waits_for_a_model_that_is_taken_away_is_counted_all_the_same() {
    let keyed = Keyed::new(&[]).await;
    let steer = async |word: &str| {
        let path = format!("/api/queues/gpt/{word}");
        let got = keyed.ask(&keyed.admin, Method::POST, &path, &Value::Null);
        assert_eq!(got.await.status, 200, "{word}");
    };
    let waits = async |key: &Key| {
        // One with an idempotency key is asked for its part when it starts.
        let one = json!({"endpoint": CHAT, "body": capped(), "idempotency_key": key.id});
        let got = keyed.ask(&key.shown, Method::POST, "/api/requests", &one);
        let got = got.await.json();
        let id = got["queue_id"].as_str().unwrap().to_owned();
        while keyed.after(&id, 0).await["waiting_for"] != "paused" {}
        id
    };
    let rich = json!({"name": "rich", "budget": {"usd_per_day": 1}});
    let rich = keyed.key(rich).await;
    let poor = json!({"name": "poor", "budget": {"tokens_per_day": 1}});
    let poor = keyed.key(poor).await;
    steer("pause").await;
    let both = async { (waits(&rich).await, waits(&poor).await) };
    let (paid, refused) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    let other = "[models.other]\nupstreams = [ { upstream = \"one\" } ]\n";
    keyed.world.reload(other);
    steer("resume").await;

    let state = keyed.after(&refused, 20).await;
    assert_eq!(state["error"]["code"], "budget_exhausted", "{state}");
    let state = keyed.after(&paid, 20).await;
    assert_eq!(state["status"], "completed", "{state}");
    let cost = state["usage"]["cost_usd"].as_f64().unwrap();
    assert!(cost > 0.0, "{state}");
    let path = format!("/api/keys/{}", rich.id);
    let info = keyed.ask(&keyed.admin, Method::GET, &path, &Value::Null);
    assert_eq!(info.await.json()["usage"]["day"]["usd"], cost);
    assert_eq!(keyed.world.calls(), 1);
}

/// Once a keyed stream was never asked for its usage, and so cost a budget nothing, for ever.
#[tokio::test]
async fn a_keyed_stream_is_counted_and_its_caller_sees_nothing_of_that() {
    let keyed = Keyed::new(&[]).await;
    let key = json!({"name": "k", "budget": {"tokens_per_day": 10_000}});
    let key = keyed.key(key).await;
    let mut body = capped();
    body["stream"] = json!(true);
    let headers = [
        ("authorization", key.shown.as_str()),
        ("idempotency-key", "s"),
    ];
    let got = keyed
        .world
        .ask(Method::POST, CHAT, &headers, body.to_string())
        .await;
    let text = String::from_utf8(got.body.to_vec()).unwrap();
    assert!(
        got.status == 200 && text.ends_with("data: [DONE]\n\n"),
        "{text}"
    );
    assert!(!text.contains("\"usage\":{"), "{text}");
    let used = keyed.used(&key).await;
    assert!(used > 0 && used < 120, "{used}");
}

/// A batch is made by a key whose budget is spent, or its lines find it spent.
#[tokio::test]
async fn a_batch_is_refused_when_nothing_is_left() {
    let keyed = Keyed::new(&[]).await;
    let key = json!({"name": "k", "budget": {"tokens_per_day": 1}});
    let key = keyed.key(key).await;
    let line = json!({"custom_id": "a", "method": "POST", "url": CHAT, "body": capped()});
    let form = format!(
        "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--B\r\n\
         Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n{line}\r\n--B--\r\n"
    );
    let headers = [
        ("authorization", key.shown.as_str()),
        ("content-type", "multipart/form-data; boundary=B"),
    ];
    let file = keyed
        .world
        .ask(Method::POST, "/v1/files", &headers, form)
        .await
        .json();
    let listens = format!("authorization: {}\r\n", keyed.admin);
    let mut ear = Ear::with(&keyed.world, &listens).await;
    let batch = json!({"input_file_id": file["id"], "endpoint": CHAT,
        "completion_window": "24h"});
    let got = keyed
        .ask(&key.shown, Method::POST, "/v1/batches", &batch)
        .await;
    assert_eq!(got.status, 200, "{got:?}");
    let id = got.json()["id"].as_str().unwrap().to_owned();
    ear.until("event: batch.completed\n").await;
    let path = format!("/v1/batches/{id}");
    let ended = keyed
        .ask(&key.shown, Method::GET, &path, &Value::Null)
        .await
        .json();
    assert_eq!(ended["request_counts"]["failed"], 1, "{ended}");
    assert_eq!(keyed.world.calls(), 0);
}

#[tokio::test]
async fn nobody_repeats_a_request_for_a_model_that_its_key_may_not_use() {
    let keyed = Keyed::new(&[]).await;
    let first = keyed.key(json!({"name": "a", "tenant": "t"})).await;
    let other = json!({"name": "b", "tenant": "t", "models": ["another"]});
    let other = keyed.key(other).await;
    keyed
        .ask(
            &keyed.admin,
            Method::POST,
            "/api/queues/gpt/pause",
            &Value::Null,
        )
        .await;
    let id = keyed.hand_in(&first, None).await;
    let path = format!("/api/requests/{id}");
    keyed
        .ask(&first.shown, Method::DELETE, &path, &Value::Null)
        .await;
    let path = format!("{path}/retry");
    let got = keyed
        .ask(&other.shown, Method::POST, &path, &Value::Null)
        .await;
    assert_eq!(got.problem(), (403, "forbidden".to_owned()));
    let got = keyed
        .ask(&first.shown, Method::POST, &path, &Value::Null)
        .await;
    assert_eq!(got.status, 202, "{got:?}");
}

/// Once whoever knew a name read, continued and removed what another tenant had made.
#[tokio::test]
async fn a_response_is_its_tenants_alone() {
    let keyed = Keyed::new(&[]).await;
    let one = keyed.key(json!({"name": "one"})).await;
    let two = keyed.key(json!({"name": "two"})).await;
    let ask = json!({"model": "gpt", "input": "x"});
    let made = keyed
        .ask(&one.shown, Method::POST, "/v1/responses", &ask)
        .await;
    assert_eq!(made.status, 200, "{made:?}");
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let after = json!({"model": "gpt", "input": "x", "previous_response_id": id});
    let before = keyed.world.calls();
    let got = keyed
        .ask(&two.shown, Method::POST, "/v1/responses", &after)
        .await;
    assert_eq!(got.status, 400, "{got:?}");
    assert_eq!(got.json()["error"]["code"], "previous_response_not_found");
    for (method, below) in [
        (Method::GET, ""),
        (Method::GET, "/input_items"),
        (Method::POST, "/cancel"),
        (Method::DELETE, ""),
    ] {
        let path = format!("/v1/responses/{id}{below}");
        let got = keyed.ask(&two.shown, method, &path, &Value::Null).await;
        assert_eq!(got.status, 404, "{path}: {got:?}");
    }
    assert_eq!(keyed.world.calls(), before);
    let got = keyed
        .ask(&one.shown, Method::POST, "/v1/responses", &after)
        .await;
    assert_eq!(got.status, 200, "{got:?}");
}

#[tokio::test]
async fn a_waiting_call_is_shown_to_its_tenant_and_to_who_may_call_for_any() {
    let keyed = Keyed::new(&[]).await;
    let one = keyed.key(json!({"name": "one"})).await;
    let two = keyed.key(json!({"name": "two"})).await;
    let get = async |key: &str, path: &str| keyed.ask(key, Method::GET, path, &Value::Null).await;
    let path = "/api/queues/gpt/pause";
    let paused = keyed
        .ask(&keyed.admin, Method::POST, path, &Value::Null)
        .await;
    assert_eq!(paused.status, 200, "{paused:?}");
    let body = chat();
    let waiting = keyed.ask(&one.shown, Method::POST, CHAT, &body);
    let looks = async {
        let list = loop {
            let list = get(&one.shown, "/api/calls").await.json();
            if list["total"] == 1 {
                break list;
            }
        };
        let id = list["calls"][0]["id"].as_str().unwrap();
        let call = format!("/api/calls/{id}");
        for (key, total, status) in [
            (&one.shown, 1, 200),
            (&two.shown, 0, 404),
            (&keyed.admin, 1, 200),
        ] {
            assert_eq!(get(key, "/api/calls").await.json()["total"], total);
            assert_eq!(get(key, &call).await.status, status);
        }
    };
    tokio::select! {
        got = waiting => panic!("it waits: {got:?}"),
        () = looks => {}
    }
}

/// A tenant saw the operator's receiver, what it had answered, and could have it told again.
#[tokio::test]
async fn what_an_operators_webhook_was_told_is_not_a_tenants_to_see() {
    let keyed = Keyed::new(&[]).await;
    let ear = webhooks::Ear::start(0).await;
    let wanted = json!({"url": ear.url, "secret": ear.secret});
    let added = keyed.ask(&keyed.admin, Method::POST, "/api/webhooks", &wanted);
    assert_eq!(added.await.status, 201);
    let tenant = json!({"name": "t", "scopes": ["call", "read", "manage"]});
    let tenant = keyed.key(tenant).await;
    let id = keyed.hand_in(&tenant, None).await;
    keyed.completes(&id).await;
    ear.hears(1).await;
    let list = async |key: &str| {
        let path = "/api/webhooks/deliveries";
        let page = keyed.ask(key, Method::GET, path, &Value::Null).await;
        page.json()["deliveries"].as_array().unwrap().clone()
    };
    let told = list(&keyed.admin).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(list(&tenant.shown).await, Vec::<Value>::new());
    let path = format!("/api/webhooks/deliveries/{}/redeliver", told[0]["id"]);
    let again = keyed.ask(&tenant.shown, Method::POST, &path, &Value::Null);
    assert_eq!(again.await.status, 404);
    // Its own are.
    let own = keyed.ask(&tenant.shown, Method::POST, "/api/webhooks", &wanted);
    assert_eq!(own.await.status, 201);
    let id = keyed.hand_in(&tenant, None).await;
    keyed.completes(&id).await;
    ear.hears(3).await;
    assert_eq!(list(&tenant.shown).await.len(), 1);
}
