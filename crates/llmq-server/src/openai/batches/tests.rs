//! What becomes of a batch whose store fails for a moment.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::Clock;
use llmq_engine::config::Config;
use llmq_engine::{SystemClock, Tasks};
use llmq_store::{
    Batch, BatchId, BatchStatus, Batches as _, FileId, Files as _, MemoryStore, StoredFile,
};
use llmq_testkit::{FaultyStore, PATIENCE};
use serde_json::json;

use super::notes::{Instants, Notes};
use crate::{Gateway, GatewayOptions, store_settings};

/// Nobody listens there, and nothing of a batch is lost by that.
const CONFIG: &str = "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\n\
                      [models.m]\nupstreams = [{ upstream = \"one\" }]\n";

/// A gateway over a store that fails, with a batch of these lines.
async fn with_batch(lines: &str, tasks: &Tasks) -> (Arc<FaultyStore>, Arc<Gateway>, BatchId) {
    let settings = Config::parse("test.toml", CONFIG).unwrap().check().unwrap();
    let clock = SystemClock::new();
    let now = clock.now().wall;
    let store = FaultyStore::new(Arc::new(MemoryStore::new(store_settings(&settings))));
    let file = StoredFile {
        id: FileId::new(),
        tenant: "t".to_owned(),
        filename: "in.jsonl".to_owned(),
        purpose: "batch".to_owned(),
        bytes: 0,
        created_at: now,
        expires_at: None,
    };
    let input = file.id;
    store.create_file(file).await.unwrap();
    store
        .append_file(input, lines.to_owned().into())
        .await
        .unwrap();
    store.publish_file(input).await.unwrap();
    let notes = Notes {
        idempotency_key: None,
        input,
        endpoint: "/v1/responses".to_owned(),
        window: "1h".to_owned(),
        window_s: 3_600,
        metadata: serde_json::Map::new(),
        output_kept_s: 3_600,
        key: None,
        models: None,
        model: None,
        errors: Vec::new(),
        at: Instants::default(),
        output: None,
        error_output: None,
        usage: None,
    };
    let batch = Batch::new("t", notes.kept(), now);
    let id = batch.id;
    store.create_batch(batch).await.unwrap();
    let options = GatewayOptions::in_memory(&clock).unwrap();
    let jobs = Arc::clone(&store);
    let gateway = Gateway::over(jobs, &settings, options, clock, tasks).await;
    (store, gateway.unwrap(), id)
}

/// One read that failed was final for all of its batch, though everything else waits for the store.
#[tokio::test]
async fn a_line_whose_place_cannot_be_looked_up_now_is_looked_up_again() {
    let tasks = Tasks::new();
    let before = |id: &str| {
        let body = json!({"model": "m", "input": "x", "previous_response_id": id});
        json!({"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body})
    };
    let line = before("resp_0192aaaabbbbccccddddeeeeffff0000");
    let (store, _gateway, id) = with_batch(&format!("{line}\n"), &tasks).await;
    // The task that reads it has had no turn yet.
    store.fails("job", 1);
    let read = async {
        loop {
            let batch = store.batch(id).await.unwrap().unwrap();
            if batch.status != BatchStatus::Validating {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let batch = tokio::time::timeout(PATIENCE, read).await.unwrap();
    assert_eq!(batch.status, BatchStatus::InProgress, "{:?}", batch.details);
    assert_eq!(store.fails_left("job"), 0);
    tasks.cancel();
}
