//! Webhooks, received by a program that verifies them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use llmq_client::webhooks::{Handling, Receiver, Verifier, WebhookSecret};
use llmq_testkit::PATIENCE;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::world::{World, chat, request};

/// A receiver, and what it took.
pub(crate) struct Ear {
    pub(crate) url: String,
    pub(crate) secret: String,
    heard: Arc<Mutex<Vec<(String, Value)>>>,
    came: Arc<Notify>,
    _serving: JoinSet<()>,
}

impl Ear {
    /// It turns the first `later` messages away.
    pub(crate) async fn start(later: usize) -> Self {
        let secret = WebhookSecret::generate().unwrap().expose();
        Self::with(&secret, later).await
    }

    async fn with(secret: &str, later: usize) -> Self {
        let verifier = Verifier::new([secret]).unwrap();
        let receiver = Receiver::bind("127.0.0.1:0".parse().unwrap(), verifier);
        let receiver = receiver.await.unwrap();
        let url = format!("http://{}/hook", receiver.addr());
        let (heard, came) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let (log, told) = (Arc::clone(&heard), Arc::clone(&came));
        let left = Mutex::new(later);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            receiver
                .serve(move |message, body| {
                    let message = message.expect("every message is signed");
                    let mut left = left.lock().unwrap();
                    let entry = (message.id.to_owned(), serde_json::from_slice(body).unwrap());
                    log.lock().unwrap().push(entry);
                    told.notify_waiters();
                    if *left > 0 {
                        *left -= 1;
                        return Handling::Later;
                    }
                    Handling::Done
                })
                .await;
        });
        Self {
            url,
            secret: secret.to_owned(),
            heard,
            came,
            _serving: serving,
        }
    }

    /// Waits for so many messages.
    pub(crate) async fn hears(&self, count: usize) -> Vec<(String, Value)> {
        let wait = async {
            loop {
                let came = self.came.notified();
                tokio::pin!(came);
                came.as_mut().enable();
                let heard = self.heard.lock().unwrap().clone();
                if heard.len() >= count {
                    return heard;
                }
                came.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the message comes")
    }
}

pub(crate) async fn add(world: &World, ear: &Ear, events: Value) -> String {
    let wanted = json!({"url": ear.url, "events": events, "secret": ear.secret});
    let got = world.post("/api/webhooks", &wanted).await;
    assert_eq!(got.status, 201, "{:?}", got.body);
    assert_eq!(got.json()["secret"], ear.secret.as_str());
    got.json()["id"].as_str().unwrap().to_owned()
}

/// The deliveries of a webhook, when all are over.
async fn over(world: &World, id: &str) -> Vec<Value> {
    let wait = async {
        loop {
            let page = world
                .get(&format!("/api/webhooks/{id}/deliveries"))
                .await
                .json();
            let all = page["deliveries"].as_array().unwrap().clone();
            if !all.is_empty() && all.iter().all(|one| one["status"] != "pending") {
                return all;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

#[tokio::test]
async fn an_end_is_told_once_to_each_who_asked_for_it() {
    let world = World::start().await;
    let (all, ends, batches) = (
        Ear::start(0).await,
        Ear::start(0).await,
        Ear::start(0).await,
    );
    add(&world, &all, json!([])).await;
    let id = add(&world, &ends, json!(["request.completed"])).await;
    add(&world, &batches, json!(["batch.*"])).await;
    let mut wanted = request();
    wanted["metadata"] = json!({"order": "7"});
    let got = world.post("/api/requests", &wanted).await;
    let queue_id = got.json()["queue_id"].clone();
    let heard = ends.hears(1).await;
    let (message, body) = &heard[0];
    assert_eq!(body["type"], "request.completed");
    assert_eq!(body["data"]["queue_id"], queue_id);
    assert_eq!(body["data"]["status"], "completed");
    assert_eq!(body["data"]["metadata"]["order"], "7");
    assert!(body["data"]["usage"]["output_tokens"].is_u64(), "{body}");
    assert_eq!(all.hears(1).await[0].0, *message, "one event has one id");
    let deliveries = over(&world, &id).await;
    assert_eq!(deliveries.len(), 1);
    assert_eq!(deliveries[0]["message_id"], message.as_str());
    assert_eq!(deliveries[0]["status"], "delivered");
    assert_eq!(deliveries[0]["attempts"], 1);
    assert!(batches.heard.lock().unwrap().is_empty());
    // Sent again by hand, it has the same id.
    let number = deliveries[0]["id"].as_u64().unwrap();
    let again = world
        .post(
            &format!("/api/webhooks/deliveries/{number}/redeliver"),
            &json!({}),
        )
        .await;
    assert_eq!(again.status, 202);
    let heard = ends.hears(2).await;
    assert_eq!(heard[1].0, *message);
}

#[tokio::test]
async fn what_was_not_taken_comes_again_with_the_same_id() {
    let world = World::start().await;
    let ear = Ear::start(1).await;
    let id = add(&world, &ear, json!(["request.*"])).await;
    let begun = tokio::time::Instant::now();
    world.submit().await;
    let heard = ear.hears(2).await;
    assert_eq!(heard[0], heard[1]);
    assert!(
        begun.elapsed() >= Duration::from_secs(4),
        "five seconds, a fifth less at most"
    );
    let delivery = &over(&world, &id).await[0];
    assert_eq!(
        (delivery["status"].as_str(), delivery["attempts"].as_u64()),
        (Some("delivered"), Some(2))
    );
}

#[tokio::test]
async fn a_single_requests_callback_is_signed_with_its_callers_secret() {
    let world = World::start().await;
    let secret = world.get("/api/webhooks/secret").await.json();
    let secret = secret["secret"].as_str().unwrap();
    let same = world.get("/api/webhooks/secret").await.json();
    assert_eq!(same["secret"], secret);
    let ear = Ear::with(secret, 0).await;
    let mut wanted = request();
    wanted["callback_url"] = json!(ear.url);
    world.post("/api/requests", &wanted).await;
    assert_eq!(ear.hears(1).await[0].1["type"], "request.completed");
    let all = world.get("/api/webhooks/deliveries").await.json();
    assert_eq!(all["deliveries"][0]["callback_url"], ear.url.as_str());
    assert_eq!(
        world.get("/api/webhooks").await.json()["webhooks"],
        json!([])
    );
}

#[tokio::test]
async fn a_webhook_is_shown_changed_rotated_tested_and_removed() {
    let world = World::start().await;
    let ear = Ear::start(0).await;
    let id = add(&world, &ear, json!([])).await;
    let path = format!("/api/webhooks/{id}");
    let info = world.get(&path).await.json();
    assert!(
        info["secret"].is_null() && info["enabled"] == true,
        "{info}"
    );
    let test = world.post(&format!("{path}/test"), &json!({})).await.json();
    assert_eq!(
        (test["delivered"].as_bool(), test["status"].as_u64()),
        (Some(true), Some(204))
    );
    assert_eq!(ear.hears(1).await[0].1["type"], "webhook.test");
    // The old secret signs as well for a day: who knows only that one still believes.
    let rotated = world
        .post(&format!("{path}/rotate"), &json!({}))
        .await
        .json();
    assert_ne!(rotated["secret"], ear.secret.as_str());
    assert_eq!(rotated["secrets"], 2);
    world.post(&format!("{path}/test"), &json!({})).await;
    ear.hears(2).await;
    let change = json!({"enabled": false, "description": "mine", "events": ["batch.*"]});
    let changed = world
        .ask(Method::PATCH, &path, &[], change.to_string())
        .await
        .json();
    assert_eq!(
        (
            changed["enabled"].as_bool(),
            changed["description"].as_str()
        ),
        (Some(false), Some("mine"))
    );
    let deleted = world.ask(Method::DELETE, &path, &[], "").await;
    assert_eq!(deleted.status, 200);
    assert_eq!(
        world.get(&path).await.problem(),
        (404, "webhook_not_found".to_owned())
    );
    for (field, wanted) in [
        ("url", json!({"url": "http://10.0.0.1/"})),
        ("url", json!({"url": "gopher://x/"})),
        (
            "events",
            json!({"url": ear.url, "events": ["request.done"]}),
        ),
        // There are no tasks: who asked for them would wait for ever.
        ("events", json!({"url": ear.url, "events": ["task.*"]})),
        ("secret", json!({"url": ear.url, "secret": "whsec_short"})),
        ("colour", json!({"url": ear.url, "colour": "red"})),
    ] {
        let got = world.post("/api/webhooks", &wanted).await;
        assert!(got.status == 400 || got.status == 422, "{wanted}");
        assert!(
            got.json()["message"].as_str().unwrap().contains(field),
            "{wanted}"
        );
    }
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_disabled_and_a_redirect_is_not_followed() {
    let world = World::start().await;
    let gone = answers("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n").await;
    let got = world.post("/api/webhooks", &json!({"url": gone.0})).await;
    let id = got.json()["id"].as_str().unwrap().to_owned();
    world.submit().await;
    let deliveries = over(&world, &id).await;
    assert_eq!(deliveries[0]["status"], "failed");
    let info = async || world.get(&format!("/api/webhooks/{id}")).await.json();
    let disabled = async {
        while info().await["enabled"] == true {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, disabled).await.unwrap();
    assert!(
        info().await["disabled_because"]
            .as_str()
            .unwrap()
            .contains("410")
    );

    let ear = Ear::start(0).await;
    let away = format!(
        "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
        ear.url
    );
    let away = answers(&away).await;
    let got = world.post("/api/webhooks", &json!({"url": away.0})).await;
    let id = got.json()["id"].as_str().unwrap().to_owned();
    let test = world
        .post(&format!("/api/webhooks/{id}/test"), &json!({}))
        .await
        .json();
    assert_eq!(
        (test["delivered"].as_bool(), test["status"].as_u64()),
        (Some(false), Some(302))
    );
    assert!(ear.heard.lock().unwrap().is_empty());
}

/// What messages are about.
fn told(heard: &[(String, Value)]) -> Vec<(&str, &str)> {
    let about = heard.iter().map(|(_, body)| {
        let upstream = body["data"]["upstream"].as_str();
        (body["type"].as_str().unwrap(), upstream.unwrap_or_default())
    });
    about.collect()
}

#[tokio::test]
async fn who_asked_for_it_is_told_that_an_upstream_is_down_and_that_it_is_back() {
    let provider = llmq_testkit::ScriptedServer::start().await;
    let world = World::before(provider.addr(), "").await;
    let broken = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}";
    let good = json!({"id": "c", "object": "chat.completion", "model": "gpt", "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}]})
    .to_string();
    let good = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{good}",
        good.len()
    );
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut serving = JoinSet::new();
    serving.spawn(provider.serve_each(move |mut guest| {
        // All attempts of one request fail, which is as many as open the breaker.
        let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let answer = if call < 5 {
            broken.to_owned()
        } else {
            good.clone()
        };
        async move {
            guest.read_call().await;
            guest.say(&answer).await;
        }
    }));
    let (ear, other) = (Ear::start(0).await, Ear::start(0).await);
    add(&world, &ear, json!(["breaker.*"])).await;
    add(&world, &other, json!(["quota.*"])).await;
    let down = world.submit().await;
    assert_eq!(told(&ear.hears(1).await), [("breaker.opened", "one/gpt")]);
    assert_eq!(world.end(&down).await["status"], "failed");
    let back = world.submit().await;
    assert_eq!(world.end(&back).await["status"], "completed");
    let heard = ear.hears(2).await;
    assert_eq!(
        told(&heard),
        [("breaker.opened", "one/gpt"), ("breaker.closed", "one/gpt")]
    );
    assert!(other.heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_asked_for_it_is_told_how_far_the_day_of_an_upstream_is_used_up() {
    let world = World::with_quota("daily_request_limit = 20").await;
    let (ear, other) = (Ear::start(0).await, Ear::start(0).await);
    add(&world, &ear, json!(["quota.*"])).await;
    add(&world, &other, json!(["breaker.*", "quota.emergency"])).await;
    // Below `high` nothing is sent beyond four fifths of the day.
    let high = [("x-llmq-priority", "high")];
    let ask = async || {
        let body = chat().to_string();
        let got = world.ask(Method::POST, "/v1/chat/completions", &high, body);
        assert_eq!(got.await.status, 200);
    };
    for _ in 0..19 {
        ask().await;
    }
    let heard = ear.hears(3).await;
    let wanted = ["quota.warning", "quota.critical", "quota.emergency"];
    assert_eq!(told(&heard), wanted.map(|kind| (kind, "one/gpt")));
    let used = heard
        .iter()
        .map(|(_, body)| body["data"]["used_percent"].as_f64());
    let used: Vec<f64> = used.map(Option::unwrap).collect();
    assert_eq!(used, [60.0, 80.0, 95.0]);
    let heard = other.hears(1).await;
    assert_eq!(told(&heard), [("quota.emergency", "one/gpt")]);
    // Each once a day, and whoever asked for one of them is told of that alone.
    ask().await;
    assert_eq!(ear.heard.lock().unwrap().len(), 3);
    assert_eq!(other.heard.lock().unwrap().len(), 1);
}

/// A server that says the same to everybody.
pub(crate) async fn answers(text: &str) -> (String, JoinSet<()>) {
    let server = llmq_testkit::ScriptedServer::start().await;
    let url = server.url();
    let text = text.to_owned();
    let mut serving = JoinSet::new();
    serving.spawn(server.serve_each(move |mut guest| {
        let text = text.clone();
        async move {
            guest.read_call().await;
            guest.say(&text).await;
        }
    }));
    (url, serving)
}
