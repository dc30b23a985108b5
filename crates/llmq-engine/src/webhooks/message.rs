//! What a message says.

use bytes::Bytes;
use llmq_core::WallTime;
use llmq_store::{BatchId, Job, StoredEvent, Subject};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// The `webhook-id` of an event: the same in every try, at every endpoint, and that of no other
/// event of any store.
#[must_use]
pub fn message_id(store: Uuid, event: &StoredEvent) -> String {
    format!("evt_{}_{}", store.simple(), event.id.0)
}

/// The body: `type`, `timestamp` and `data`, as the specification advises. `job` is the job that
/// it is about, as long as it is kept.
pub(super) fn body(event: &StoredEvent, job: Option<&Job>) -> Bytes {
    let mut data = subject(event, job);
    if let Value::Object(more) = &event.event.data {
        data.extend(more.clone());
    }
    let message = json!({
        "type": event.event.kind,
        "timestamp": instant(event.at),
        "data": data,
    });
    message.to_string().into()
}

/// The name of a batch in OpenAI's API, by which it can be asked for.
#[must_use]
pub fn batch_name(id: BatchId) -> String {
    format!("batch_{}", id.as_uuid().simple())
}

fn subject(event: &StoredEvent, job: Option<&Job>) -> Map<String, Value> {
    let mut data = Map::new();
    let mut set = |name: &str, value: Value| data.insert(name.to_owned(), value);
    match &event.event.subject {
        Subject::Job {
            id,
            queue,
            status,
            attempts,
        } => {
            set("queue_id", json!(id));
            set("status", json!(status));
            set("model", json!(queue));
            set("attempts", json!(attempts));
            set("status_url", json!(format!("/api/requests/{id}")));
            set("result_url", json!(format!("/api/requests/{id}/result")));
        }
        Subject::Batch(id) => {
            set("batch_id", json!(batch_name(*id)));
        }
        Subject::Queue(name) => {
            set("queue", json!(name));
        }
        Subject::Other(name) => {
            set("subject", json!(name));
        }
    }
    if let Some(tenant) = &event.event.tenant {
        set("tenant", json!(tenant));
    }
    if let Some(job) = job {
        set("metadata", Value::Object(job.details.metadata.clone()));
        set("created_at", json!(instant(job.created_at)));
        set("finished_at", json!(job.finished_at.map(instant)));
        let usage = job.usage.map(|usage| {
            json!({"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens})
        });
        set("usage", json!(usage));
        let error = job.error.as_ref();
        let error = error.filter(|_| job.status == llmq_core::Status::Failed);
        let error = error.map(|error| json!({"code": error.code, "message": error.message}));
        set("error", json!(error));
    }
    data
}

fn instant(at: WallTime) -> String {
    // Every instant that a clock shows has a date.
    let at = jiff::Timestamp::from_microsecond(at.as_micros()).unwrap_or_default();
    at.to_string()
}
