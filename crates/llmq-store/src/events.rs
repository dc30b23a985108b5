use async_trait::async_trait;
use llmq_core::{Now, Status, WallTime};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{BatchId, JobId, StoreError};

/// An event's number: each one is higher than all before it in its store.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct EventId(pub u64);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Its number.
    pub id: EventId,
    /// When it was recorded.
    pub at: WallTime,
    /// What happened.
    #[serde(flatten)]
    pub event: NewEvent,
}

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// Its name, such as `request.completed`.
    pub kind: String,
    /// Whose it is; `None`: everybody's who may look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// What it is about.
    pub subject: Subject,
    /// What there is to know beside that.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub data: serde_json::Value,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A job of a queue.
    Job {
        /// The job.
        id: JobId,
        /// Its queue.
        queue: String,
        /// Where it stands since then.
        status: Status,
        /// Attempts so far that count.
        attempts: u32,
    },
    /// A batch.
    Batch(BatchId),
    /// A queue.
    Queue(String),
    /// Something else by its name, such as an upstream.
    Other(String),
}

impl NewEvent {
    /// Whether it is only for those who see all tenants: what is said of a webhook that is nobody's
    /// names its URL, which may be a secret.
    #[must_use]
    pub fn is_for_operators(&self) -> bool {
        self.tenant.is_none() && self.kind.starts_with("webhook.")
    }
}

/// The names of the events that stores derive.
///
/// Those of jobs are `request.` and what happened; webhooks are offered the four that end a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventKind;

impl EventKind {
    /// A job was accepted.
    pub const QUEUED: &'static str = "request.queued";
    /// An attempt started.
    pub const STARTED: &'static str = "request.started";
    /// An attempt ended and the job waits again.
    pub const REQUEUED: &'static str = "request.requeued";
    /// A job's batch has no member left that has not ended: its output can be written.
    pub const BATCH_WORK_DONE: &'static str = "batch.work_done";
    /// A queue was paused.
    pub const PAUSED: &'static str = "queue.paused";
    /// A queue goes on.
    pub const RESUMED: &'static str = "queue.resumed";

    /// The event of a job that came to a final status; `None` for the others.
    #[must_use]
    pub fn of_end(status: Status) -> Option<&'static str> {
        match status {
            Status::Completed => Some("request.completed"),
            Status::Failed => Some("request.failed"),
            Status::Expired => Some("request.expired"),
            Status::Cancelled => Some("request.cancelled"),
            Status::Queued | Status::Processing => None,
        }
    }
}

/// Events from behind a number on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventPage {
    /// The next ones, oldest first; none when nothing has happened since.
    Events(Vec<StoredEvent>),
    /// Some that were asked for are not kept any more. The oldest that is left is this one.
    Gap {
        /// The oldest that is left, or the next that will come.
        oldest: EventId,
    },
}

/// The log of what happened, each entry recorded with the change it tells of.
#[async_trait]
pub trait Events {
    /// Records something that no transition tells of, with a delivery for each endpoint that asks
    /// for it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: none was recorded.
    async fn publish(&self, events: Vec<NewEvent>, now: Now) -> Result<(), StoreError>;

    /// The first `max` events behind `after`.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn events(&self, after: EventId, max: usize) -> Result<EventPage, StoreError>;

    /// The newest event's number; it changes when there are new ones to read.
    fn newest_event(&self) -> watch::Receiver<EventId>;
}
