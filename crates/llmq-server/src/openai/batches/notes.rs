use llmq_core::{Usage, WallTime};
use llmq_store::{Batch, FileId, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// What is kept with a batch beside its state and its counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Notes {
    pub(super) input: FileId,
    pub(super) endpoint: String,
    /// The time in which its calls must start, as it was said and in seconds.
    pub(super) window: String,
    pub(super) window_s: u64,
    #[serde(default)]
    pub(super) metadata: Map<String, Value>,
    /// For how many seconds what came of it is kept.
    pub(super) output_kept_s: u64,
    /// Whose key is charged.
    #[serde(default)]
    pub(super) key: Option<Uuid>,
    /// What its maker calls the making, so that it can be asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) idempotency_key: Option<String>,
    /// The models that its maker may use; none: every one.
    #[serde(default)]
    pub(super) models: Option<Vec<String>>,
    /// The one model of its lines, once they are read.
    #[serde(default)]
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) errors: Vec<Fault>,
    #[serde(default)]
    pub(super) at: Instants,
    #[serde(default)]
    pub(super) output: Option<FileId>,
    #[serde(default)]
    pub(super) error_output: Option<FileId>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
}

/// When a batch came to its states.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Instants {
    pub(super) in_progress: Option<WallTime>,
    pub(super) expires: Option<WallTime>,
    pub(super) finalizing: Option<WallTime>,
    pub(super) completed: Option<WallTime>,
    pub(super) failed: Option<WallTime>,
    pub(super) expired: Option<WallTime>,
    pub(super) cancelling: Option<WallTime>,
    pub(super) cancelled: Option<WallTime>,
}

/// What is wrong with a batch's input, as OpenAI's batch object tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fault {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) param: Option<String>,
    /// From 1 on; none where it is not about one line.
    pub(super) line: Option<u32>,
}

impl Fault {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            param: None,
            line: None,
        }
    }

    pub(super) fn about(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    pub(super) fn at(mut self, line: u32) -> Self {
        self.line = Some(line);
        self
    }
}

impl Notes {
    /// Whether a batch with these notes is what the maker of `other` wants.
    pub(super) fn is_for(&self, other: &Self) -> bool {
        let wanted = |notes: &Self| {
            let Notes {
                endpoint,
                window_s,
                metadata,
                output_kept_s,
                ..
            } = notes;
            (
                endpoint.clone(),
                *window_s,
                metadata.clone(),
                *output_kept_s,
            )
        };
        wanted(self) == wanted(other)
    }

    /// Those of a batch.
    ///
    /// # Errors
    ///
    /// They are not what was written.
    pub(super) fn of(batch: &Batch) -> Result<Self, StoreError> {
        serde_json::from_value(batch.details.clone()).map_err(|error| {
            StoreError::damaged(format!("the notes of batch {}: {error}", batch.id))
        })
    }

    /// As they are kept.
    pub(super) fn kept(&self) -> Value {
        // Texts, numbers and maps of texts always serialize.
        serde_json::to_value(self).unwrap_or_default()
    }
}
