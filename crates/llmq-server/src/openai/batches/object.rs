use llmq_core::{Usage, WallTime};
use llmq_store::{Batch, StoreError};
use serde_json::{Value, json};

use super::super::files::seconds;
use super::super::ids;
use super::notes::Notes;

/// OpenAI's batch object (API reference, "The batch object", 2026).
///
/// # Errors
///
/// What is kept of it is damaged.
pub(super) fn object(batch: &Batch) -> Result<Value, StoreError> {
    let notes = Notes::of(batch)?;
    let at = notes.at;
    let when = |at: Option<WallTime>| at.map(seconds);
    let errors =
        (!notes.errors.is_empty()).then(|| json!({"object": "list", "data": notes.errors}));
    let counts = batch.counts;
    let mut object = json!({
        "id": ids::batch(batch.id),
        "object": "batch",
        "endpoint": notes.endpoint,
        "errors": errors,
        "input_file_id": ids::file(notes.input),
        "completion_window": notes.window,
        "status": batch.status,
        "output_file_id": notes.output.map(ids::file),
        "error_file_id": notes.error_output.map(ids::file),
        "created_at": seconds(batch.created_at),
        "in_progress_at": when(at.in_progress),
        "expires_at": when(at.expires),
        "finalizing_at": when(at.finalizing),
        "completed_at": when(at.completed),
        "failed_at": when(at.failed),
        "expired_at": when(at.expired),
        "cancelling_at": when(at.cancelling),
        "cancelled_at": when(at.cancelled),
        "request_counts": {
            "total": counts.total,
            "completed": counts.completed,
            // Every line that has ended without an answer; at the end also those that are damaged.
            "failed": if notes.output.is_some() || notes.error_output.is_some() {
                counts.total.saturating_sub(counts.completed)
            } else {
                counts.failed + counts.expired + counts.cancelled
            },
        },
        "metadata": notes.metadata,
    });
    if let Some(model) = notes.model {
        object["model"] = model.into();
    }
    if let Some(usage) = notes.usage {
        object["usage"] = used(&usage);
    }
    Ok(object)
}

fn used(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "output_tokens": usage.output_tokens,
        // How many of the output were thoughts is not kept.
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total(),
    })
}
