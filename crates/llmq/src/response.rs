use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Status, Usage, WallTime};
use serde::Serialize;
use uuid::Uuid;

use crate::error::QueueError;

/// Where a request stands, and what came of it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct QueueResponse<T> {
    /// The request that ran. For one that was joined to another by its key: that other.
    pub request_id: Uuid,
    /// Its model.
    #[serde(serialize_with = "crate::info::as_written")]
    pub model_id: Arc<str>,
    /// Where it stands.
    pub status: Status,
    /// The result, once it is `completed`. A result that was handed to a waiting caller is not
    /// kept, so asking for the status afterwards gives none.
    pub result: Option<T>,
    /// Why it has none, once it is `failed`, `expired` or `cancelled`; serialized as words.
    #[serde(serialize_with = "as_words")]
    pub error: Option<QueueError>,
    /// How long its last attempt took.
    pub processing_time: Option<Duration>,
    /// How long it waited before its first attempt.
    pub queued_time: Option<Duration>,
    /// Attempts so far.
    pub attempts: u32,
    /// The tokens it used, where somebody told.
    pub usage: Option<Usage>,
    /// When it was submitted, by the wall clock.
    pub created_at: WallTime,
}

#[expect(
    clippy::ref_option,
    reason = "serde calls it with a reference to the field"
)]
fn as_words<S: serde::Serializer>(
    error: &Option<QueueError>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_some(&error.as_ref().map(ToString::to_string))
}

impl<T> QueueResponse<T> {
    /// The result, or why there is none.
    ///
    /// # Errors
    ///
    /// The request's error; [`QueueError::UnknownRequest`] while it has not finished, or when
    /// its result has been handed out already.
    pub fn into_result(self) -> Result<T, QueueError> {
        match (self.result, self.error) {
            (Some(result), _) => Ok(result),
            (None, Some(error)) => Err(error),
            (None, None) => Err(QueueError::UnknownRequest {
                model: self.model_id,
                request: self.request_id,
            }),
        }
    }
}
