//! A server whose disk fills.

use std::path::Path;
use std::time::Duration;

use http::Method;
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_store_sqlite::{Options, Place};
use llmq_testkit::PATIENCE;
use llmq_testkit::disk::Disk;
use serde_json::json;

use crate::batches::{create, line, lines};
use crate::files::{upload, uploaded};
use crate::world::{World, chat, request};

/// Room beside what the empty store takes.
const ROOM: u64 = 400 << 10;
const BALLAST: u64 = 512 << 10;

async fn on(disk: &Disk, path: &Path) -> World {
    let config = MockConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        latency: Duration::from_millis(200),
        jitter: 0.0,
        ..MockConfig::default()
    };
    let mock = MockServer::start(config).await.unwrap();
    let options = Options {
        ballast_bytes: BALLAST,
        log_bytes: 64 << 10,
        vfs: Some(disk.name().to_owned()),
        ..Options::default()
    };
    let place = Place::File(path.to_owned());
    // So few at once that more are accepted than end, on a slow machine too.
    World::over(&place, options, mock, &["concurrency=3"], "").await
}

/// How many requests are in a status.
async fn count(world: &World, status: &str) -> usize {
    let path = format!("/api/requests?status={status}&limit=1000");
    let list = world.get(&path).await.json();
    list["requests"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_starts_nothing_and_loses_nothing() {
    let (disk, directory) = (Disk::new(), tempfile::tempdir().unwrap());
    let path = directory.path().join("llmq.db");
    let world = on(&disk, &path).await;
    let calls_file = uploaded(&world, &lines(&[line("a")])).await;
    let length = |name: &str| {
        directory
            .path()
            .join(name)
            .metadata()
            .map_or(0, |it| it.len())
    };
    let used = length("llmq.db") + length("llmq.db-wal");
    let ballast = directory.path().join("llmq.db.ballast");
    disk.has_room(used + ROOM + BALLAST, vec![ballast.clone()]);

    let keyed = async |key| {
        let headers = [("idempotency-key", key)];
        let path = "/v1/chat/completions";
        world
            .ask(Method::POST, path, &headers, chat().to_string())
            .await
    };
    let before = keyed("k").await;
    assert_eq!(before.status, 200, "{before:?}");
    let mut known = request();
    known["idempotency_key"] = "many".into();
    let many = json!({"requests": [known]});
    let of_many = async || world.post("/api/requests", &many).await;
    let got = of_many().await;
    let known = got.json()["requests"][0]["queue_id"].clone();
    world.end(known.as_str().unwrap()).await;

    // Until it is full, with some that run all the time.
    let mut large = request();
    large["body"]["messages"][0]["content"] = "x".repeat(4_000).into();
    let mut accepted = Vec::new();
    let refused = loop {
        let got = world.post("/api/requests", &large).await;
        if got.status != 202 {
            break got;
        }
        accepted.push(got.json()["queue_id"].as_str().unwrap().to_owned());
    };
    assert_eq!(refused.problem(), (503, "store_unavailable".to_owned()));
    let why = refused.json()["detail"].to_string();
    assert!(why.contains("the disk is full"), "{why}");
    assert_eq!(length("llmq.db.ballast"), 0, "its room is for what runs");
    // The disk under ours is not full, so it must not be laid by again there.
    std::fs::remove_file(&ballast).unwrap();
    std::fs::create_dir(&ballast).unwrap();
    assert!(accepted.len() > 20, "{} accepted", accepted.len());

    // What runs comes to its end, and what waits is not started.
    let settled = async {
        while count(&world, "processing").await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    let (waiting, calls) = (count(&world, "queued").await, world.calls());
    assert!(waiting > 0, "something is to be started");
    // Those with a key are two of them.
    let ended = count(&world, "completed").await - 2;
    assert_eq!(ended + waiting, accepted.len());
    // Calls that need no store are served, and so much passes that a stored one would have begun.
    for plain in 1..=5 {
        let got = world.post("/v1/chat/completions", &chat()).await;
        assert_eq!(got.status, 200);
        assert_eq!(world.calls(), calls + plain, "a stored request was started");
    }
    let refused = world.post("/api/requests", &large).await;
    assert_eq!(refused.problem(), (503, "store_unavailable".to_owned()));
    // What was answered is there, for whoever lost the answer on its way.
    let again = keyed("k").await;
    assert_eq!((again.status, again.body), (before.status, before.body));
    assert_eq!(keyed("j").await.status, 503);
    let again = of_many().await;
    assert_eq!(again.status, 202, "{again:?}");
    assert_eq!(again.json()["requests"][0]["queue_id"], known);
    // What room there is belongs to the results of what runs: an upload took it once.
    for refused in [
        upload(&world, &[("purpose", "batch"), ("file", "{}\n")]).await,
        create(&world, &calls_file).await,
    ] {
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(refused.json()["error"]["code"], "store_unavailable");
    }
    assert_eq!(count(&world, "queued").await, waiting);

    // Somebody makes room: it goes on by itself.
    disk.mend();
    std::fs::remove_dir(&ballast).unwrap();
    for id in &accepted {
        assert_eq!(world.end(id).await["status"], "completed");
    }
    let got = world.post("/api/requests", &large).await;
    assert_eq!(got.status, 202, "{:?}", got.json());
    let id = got.json()["queue_id"].as_str().unwrap().to_owned();
    assert_eq!(world.end(&id).await["status"], json!("completed"));
}
