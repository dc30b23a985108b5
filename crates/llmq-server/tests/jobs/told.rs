//! Each end of a request and of a batch, as webhooks hear of it.

use http::Method;
use serde_json::{Value, json};

use crate::batches::{comes_to, created, created_for, line, lines};
use crate::webhooks::{Ear, add, answers};
use crate::world::{World, request};

async fn submitted(world: &World, wanted: &Value) -> String {
    let got = world.post("/api/requests", wanted).await;
    assert_eq!(got.status, 202, "{:?}", got.json());
    got.json()["queue_id"].as_str().unwrap().to_owned()
}

/// What was heard of the one whose `member` says this.
fn of<'a>(heard: &'a [(String, Value)], member: &str, name: &str) -> &'a Value {
    let mut heard = heard.iter().map(|(_, body)| body);
    let found = heard.find(|body| body["data"][member] == name);
    found.unwrap_or_else(|| panic!("nothing was heard of {name}"))
}

#[tokio::test]
async fn every_end_of_a_request_is_told_by_its_name() {
    let world = World::with(&["requests=2/1d"], "").await;
    let ear = Ear::start(0).await;
    add(&world, &ear, json!(["request.*"])).await;
    let mut bad = request();
    bad["body"]["n"] = 0.into();
    let (completed, failed) = (world.submit().await, submitted(&world, &bad).await);
    for id in [&completed, &failed] {
        world.end(id).await;
    }
    // No more may start today.
    let mut brief = request();
    brief["ttl"] = "100ms".into();
    let expired = submitted(&world, &brief).await;
    let cancelled = submitted(&world, &request()).await;
    let path = format!("/api/requests/{cancelled}");
    let got = world.ask(Method::DELETE, &path, &[], "").await;
    assert_eq!(got.status, 200, "{got:?}");
    let heard = ear.hears(4).await;
    for (id, status) in [
        (&completed, "completed"),
        (&failed, "failed"),
        (&expired, "expired"),
        (&cancelled, "cancelled"),
    ] {
        let told = of(&heard, "queue_id", id);
        assert_eq!(told["type"], format!("request.{status}"));
        let data = &told["data"];
        assert_eq!(data["status"], status);
        assert_eq!(data["model"], "gpt");
        let state = world.get(&format!("/api/requests/{id}")).await.json();
        assert_eq!(
            data["finished_at"].is_string(),
            state["finished_at"].is_string()
        );
        assert_eq!(data["error"].is_object(), status == "failed", "{told}");
        assert_eq!(data["usage"].is_object(), status == "completed", "{told}");
    }
}

#[tokio::test]
async fn every_end_of_a_batch_is_told_by_its_name_and_found_by_what_was_told() {
    let world = World::with(&["requests=1/1d"], "").await;
    let ear = Ear::start(0).await;
    add(&world, &ear, json!(["batch.*"])).await;
    let completed = created(&world, &lines(&[line("a")])).await;
    comes_to(&world, &completed, &["completed"]).await;
    let failed = created(&world, "nonsense").await;
    // No more may start today.
    let cancelled = created(&world, &lines(&[line("b")])).await;
    comes_to(&world, &cancelled, &["in_progress"]).await;
    let got = world
        .post(&format!("/v1/batches/{cancelled}/cancel"), &json!({}))
        .await;
    assert_eq!(got.status, 200, "{got:?}");
    let expired = created_for(&world, &lines(&[line("c")]), "1s").await;
    let heard = ear.hears(4).await;
    for (id, status) in [
        (&completed, "completed"),
        (&failed, "failed"),
        (&cancelled, "cancelled"),
        (&expired, "expired"),
    ] {
        let told = of(&heard, "batch_id", id);
        assert_eq!(told["type"], format!("batch.{status}"));
        let batch = world.get(&format!("/v1/batches/{id}")).await.json();
        assert_eq!(batch["status"], status, "it was told when it was so");
    }
}

#[tokio::test]
async fn what_becomes_of_queues_and_of_other_webhooks_is_told_too() {
    let world = World::start().await;
    let ear = Ear::start(0).await;
    add(&world, &ear, json!(["queue.*", "webhook.*"])).await;
    for what in ["pause", "resume"] {
        let path = format!("/api/queues/gpt/{what}");
        assert_eq!(world.post(&path, &json!({})).await.status, 200);
    }
    let gone = answers("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n").await;
    let got = world.post("/api/webhooks", &json!({"url": gone.0})).await;
    let id = got.json()["id"].clone();
    world.submit().await;
    let heard = ear.hears(3).await;
    let told: Vec<&str> = heard
        .iter()
        .map(|(_, body)| body["type"].as_str().unwrap())
        .collect();
    assert_eq!(told, ["queue.paused", "queue.resumed", "webhook.disabled"]);
    assert_eq!(heard[0].1["data"]["queue"], "gpt");
    assert!(
        heard[2].1["data"]
            .to_string()
            .contains(id.as_str().unwrap()),
        "{heard:?}"
    );
}
