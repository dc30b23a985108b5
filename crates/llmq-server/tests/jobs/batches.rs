//! The lives of batches.

use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::files::{upload, uploaded};
use crate::world::{Got, World, chat};

pub(crate) fn line(id: &str) -> Value {
    json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": chat()})
}

pub(crate) fn lines(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

pub(crate) async fn create(world: &World, file: &str) -> Got {
    create_for(world, file, "/v1/chat/completions", "24h").await
}

/// A batch of a file for this endpoint, whose calls must start in this time.
pub(crate) async fn create_for(world: &World, file: &str, endpoint: &str, window: &str) -> Got {
    let body = json!({"input_file_id": file, "endpoint": endpoint,
        "completion_window": window, "metadata": {"what": "a test"}});
    world.post("/v1/batches", &body).await
}

/// The same of lines for chat completions; its id.
pub(crate) async fn created_for(world: &World, content: &str, window: &str) -> String {
    let file = uploaded(world, content).await;
    let got = create_for(world, &file, "/v1/chat/completions", window).await;
    assert_eq!(got.status, 200, "{got:?}");
    got.json()["id"].as_str().unwrap().to_owned()
}

pub(crate) async fn created(world: &World, content: &str) -> String {
    let file = uploaded(world, content).await;
    let got = create(world, &file).await;
    assert_eq!(got.status, 200, "{got:?}");
    let batch = got.json();
    assert_eq!(
        (&batch["object"], &batch["status"], &batch["input_file_id"]),
        (&json!("batch"), &json!("validating"), &json!(file))
    );
    batch["id"].as_str().unwrap().to_owned()
}

/// The batch, as soon as it is in one of these states.
pub(crate) async fn comes_to(world: &World, id: &str, states: &[&str]) -> Value {
    let polled = async {
        loop {
            let batch = world.get(&format!("/v1/batches/{id}")).await.json();
            if states.contains(&batch["status"].as_str().unwrap()) {
                return batch;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(llmq_testkit::PATIENCE, polled).await;
    in_time.unwrap_or_else(|_| panic!("batch {id} did not come to {states:?}"))
}

/// The lines of an output, by their names.
async fn output(world: &World, batch: &Value, file: &str) -> Vec<Value> {
    let Some(id) = batch[file].as_str() else {
        return Vec::new();
    };
    let got = world.get(&format!("/v1/files/{id}/content")).await;
    assert_eq!(got.status, 200);
    let text = String::from_utf8(got.body.to_vec()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn a_batch_is_read_finished_and_its_answers_are_fetched() {
    let world = World::start().await;
    let content = lines(
        &(0..50)
            .map(|n| line(&format!("row-{n}")))
            .collect::<Vec<_>>(),
    );
    let id = created(&world, &content).await;
    let batch = comes_to(&world, &id, &["completed"]).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 50, "completed": 50, "failed": 0})
    );
    assert_eq!(
        (&batch["model"], &batch["metadata"], &batch["errors"]),
        (&json!("gpt"), &json!({"what": "a test"}), &Value::Null)
    );
    for at in [
        "created_at",
        "in_progress_at",
        "finalizing_at",
        "completed_at",
        "expires_at",
    ] {
        assert!(batch[at].is_i64(), "{at}: {batch}");
    }
    assert!(batch["usage"]["total_tokens"].as_u64().unwrap() > 0);
    assert_eq!(batch["error_file_id"], Value::Null);
    let answers = output(&world, &batch, "output_file_id").await;
    let names: Vec<&str> = answers
        .iter()
        .map(|line| line["custom_id"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        (0..50).map(|n| format!("row-{n}")).collect::<Vec<_>>()
    );
    for line in &answers {
        assert_eq!(line["response"]["status_code"], 200);
        assert_eq!(line["response"]["body"]["object"], "chat.completion");
        assert_eq!(line["error"], Value::Null);
    }
    assert_eq!(world.calls(), 50);
    // Batches stand behind live traffic.
    let members = world.get("/api/requests?limit=1").await.json();
    assert_eq!(members["requests"][0]["priority"], 30);
    let listed = world.get("/v1/batches").await.json();
    assert_eq!(
        (&listed["data"], &listed["has_more"]),
        (&json!([batch]), &json!(false))
    );
}

/// Once a batch whose caller had left as it was made was never read, until the next start.
#[tokio::test]
async fn a_batch_whose_caller_leaves_at_once_is_finished_all_the_same() {
    let world = World::start().await;
    let file = uploaded(&world, &lines(&[line("a")])).await;
    let body = json!({"input_file_id": file, "endpoint": "/v1/chat/completions",
        "completion_window": "24h"})
    .to_string();
    let request = format!(
        "POST /v1/batches HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    for _ in 0..50 {
        let mut stream = TcpStream::connect(world.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    // It is the last that the server hears of, so those before it are made or never will be.
    let last = create(&world, &file).await.json();
    comes_to(&world, last["id"].as_str().unwrap(), &["completed"]).await;
    let listed = world.get("/v1/batches?limit=100").await.json();
    for batch in listed["data"].as_array().unwrap() {
        comes_to(&world, batch["id"].as_str().unwrap(), &["completed"]).await;
    }
}

#[tokio::test]
async fn what_failed_is_in_a_file_of_its_own() {
    let world = World::start().await;
    let mut bad = line("bad");
    bad["body"]["n"] = 0.into();
    let id = created(&world, &lines(&[line("good"), bad])).await;
    let batch = comes_to(&world, &id, &["completed"]).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 2, "completed": 1, "failed": 1})
    );
    assert_eq!(
        output(&world, &batch, "output_file_id").await[0]["custom_id"],
        "good"
    );
    let failed = output(&world, &batch, "error_file_id").await;
    assert_eq!(failed[0]["custom_id"], "bad");
    assert_eq!(failed[0]["response"]["status_code"], 400);
    assert!(failed[0]["response"]["body"]["error"]["message"].is_string());
}

/// Once only requests were refused; a file and a batch were taken in until the very end.
#[tokio::test]
async fn a_server_that_ends_takes_no_file_and_no_batch() {
    let world = World::start().await;
    let file = uploaded(&world, &lines(&[line("a")])).await;
    world.gateway.stop_requests(llmq_testkit::PATIENCE).await;
    let refused = [
        upload(&world, &[("purpose", "batch"), ("file", "{}")]).await,
        create(&world, &file).await,
    ];
    for got in refused {
        assert_eq!(got.status, 503, "{got:?}");
        assert_eq!(got.json()["error"]["code"], "store_unavailable");
        assert!(!got.header("retry-after").is_empty());
    }
    assert_eq!(world.get("/v1/batches").await.json()["data"], json!([]));
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_is_done() {
    let world = World::with(&["requests=3/1d"], "").await;
    let content = lines(&(0..10).map(|n| line(&n.to_string())).collect::<Vec<_>>());
    let id = created(&world, &content).await;
    let polled = async {
        loop {
            let batch = world.get(&format!("/v1/batches/{id}")).await.json();
            if batch["request_counts"]["completed"] == 3 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(llmq_testkit::PATIENCE, polled)
        .await
        .unwrap();
    let got = world
        .post(&format!("/v1/batches/{id}/cancel"), &json!({}))
        .await;
    assert_eq!(
        (got.status.as_u16(), &got.json()["status"]),
        (200, &json!("cancelling"))
    );
    let batch = comes_to(&world, &id, &["cancelled"]).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 10, "completed": 3, "failed": 7})
    );
    assert_eq!(output(&world, &batch, "output_file_id").await.len(), 3);
    let rest = output(&world, &batch, "error_file_id").await;
    assert_eq!(rest.len(), 7);
    for line in rest {
        assert_eq!(
            (&line["response"], &line["error"]["code"]),
            (&Value::Null, &json!("batch_cancelled"))
        );
    }
    let again = world
        .post(&format!("/v1/batches/{id}/cancel"), &json!({}))
        .await;
    assert_eq!(
        (again.status.as_u16(), &again.json()["status"]),
        (200, &json!("cancelled"))
    );
}

#[tokio::test]
async fn a_batch_whose_time_is_over_keeps_what_is_done_and_says_what_is_not() {
    let world = World::with(&["requests=2/1d"], "").await;
    let content = lines(&(0..5).map(|n| line(&n.to_string())).collect::<Vec<_>>());
    let id = created_for(&world, &content, "2s").await;
    let batch = comes_to(&world, &id, &["expired"]).await;
    assert!(batch["expired_at"].is_i64());
    let rest = output(&world, &batch, "error_file_id").await;
    let done = output(&world, &batch, "output_file_id").await;
    assert_eq!((done.len(), rest.len()), (2, 3));
    assert!(
        rest.iter()
            .all(|line| line["error"]["code"] == "batch_expired")
    );
    let got = world
        .post(&format!("/v1/batches/{id}/cancel"), &json!({}))
        .await;
    assert_eq!(got.status, 400);
}

#[tokio::test]
async fn a_line_that_is_damaged_in_the_store_keeps_its_batch_open_no_longer_than_its_time() {
    let (world, file) = World::in_file(&["requests=2/1d"]).await;
    let content = lines(&(0..5).map(|n| line(&n.to_string())).collect::<Vec<_>>());
    let id = created_for(&world, &content, "2s").await;
    comes_to(&world, &id, &["in_progress"]).await;
    let damaged = file
        .database
        .execute("UPDATE jobs SET bytes = bytes + 1 WHERE line = 5", []);
    assert_eq!(damaged.unwrap(), 1);
    let batch = comes_to(&world, &id, &["expired"]).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 5, "completed": 2, "failed": 3})
    );
    let done = output(&world, &batch, "output_file_id").await;
    let rest = output(&world, &batch, "error_file_id").await;
    assert_eq!((done.len(), rest.len()), (2, 3));
    let lost = rest.iter().find(|line| line["custom_id"] == "4").unwrap();
    assert_eq!(lost["error"]["code"], "stored_request_damaged");
}

/// It held back the others of its batch until that batch's time was over, which may be a year.
#[tokio::test]
async fn a_line_that_is_damaged_keeps_its_batch_open_no_longer_than_the_others_do() {
    let (world, file) = World::in_file(&["requests=7/3s"]).await;
    let content = lines(&(0..8).map(|n| line(&n.to_string())).collect::<Vec<_>>());
    let id = created(&world, &content).await;
    comes_to(&world, &id, &["in_progress"]).await;
    let damaged = file
        .database
        .execute("UPDATE jobs SET bytes = bytes + 1 WHERE line = 8", []);
    assert_eq!(damaged.unwrap(), 1);
    let batch = comes_to(&world, &id, &["completed"]).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 8, "completed": 7, "failed": 1})
    );
    let rest = output(&world, &batch, "error_file_id").await;
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0]["custom_id"], "7");
    assert_eq!(rest[0]["error"]["code"], "stored_request_damaged");
}

/// Whoever had asked once more, after an answer that was lost, had each call carried out twice.
#[tokio::test]
async fn for_one_file_and_key_one_batch_is_made() {
    let world = World::start().await;
    let file = uploaded(&world, &lines(&[line("a")])).await;
    let wanted = |window: &str| {
        json!({"input_file_id": file, "endpoint": "/v1/chat/completions",
            "completion_window": window})
    };
    let make = async |key: &str, window: &str| {
        let headers = [("idempotency-key", key)];
        let body = wanted(window).to_string();
        world.ask(Method::POST, "/v1/batches", &headers, body).await
    };
    let (one, two, three) = tokio::join!(make("k", "24h"), make("k", "24h"), make("k", "24h"));
    let id = |got: &Got| got.json()["id"].as_str().unwrap().to_owned();
    assert_eq!([id(&one), id(&two)], [id(&three), id(&three)]);
    comes_to(&world, &id(&one), &["completed"]).await;
    assert_eq!(
        id(&make("k", "24h").await),
        id(&one),
        "it has ended meanwhile"
    );
    assert_eq!(world.calls(), 1);
    let other = make("k", "48h").await;
    assert_eq!(other.status, 409, "{other:?}");
    assert_ne!(id(&make("another", "24h").await), id(&one));
    let long = make(&"k".repeat(300), "24h").await;
    assert_eq!(long.status, 400, "{long:?}");

    let bad = uploaded(&world, "no json\n").await;
    let body = json!({"input_file_id": bad, "endpoint": "/v1/chat/completions",
        "completion_window": "24h"});
    let make = async || {
        let headers = [("idempotency-key", "k")];
        world
            .ask(Method::POST, "/v1/batches", &headers, body.to_string())
            .await
    };
    let first = id(&make().await);
    comes_to(&world, &first, &["failed"]).await;
    assert_ne!(id(&make().await), first, "nothing came of it");
}
