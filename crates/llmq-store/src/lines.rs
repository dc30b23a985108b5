use async_trait::async_trait;
use llmq_core::{CallSize, Now, Priority, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{JobId, StoreError};

/// One line of waiting jobs: first come, first served inside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lane {
    /// The queue.
    pub queue: String,
    /// The priority.
    pub priority: Priority,
    /// The tenant.
    pub tenant: String,
    /// The key that its jobs came with ([`Details::key`](crate::Details)).
    pub key: Option<Uuid>,
}

/// Where a job stands in its lane: a smaller place goes first. Given on acceptance, in that
/// order, and kept through retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Place(pub u64);

/// A waiting job, as far as it must be known to decide when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The job.
    pub job: JobId,
    /// Where it stands in its lane.
    pub place: Place,
    /// How large the call is.
    pub size: CallSize,
    /// Attempts so far that count.
    pub attempts: u32,
    /// How many it has.
    pub max_attempts: u32,
    /// Attempts in a row that the provider had no room for.
    pub throttles: u32,
    /// When its time to start ends if its queue does not stand meanwhile.
    pub expires_at: Option<Timestamp>,
}

/// The best waiting jobs of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// In the order in which they are to start. All of them are due.
    pub jobs: Vec<Waiting>,
    /// When the next job of the lane comes due that is not yet: after an announced instant, or
    /// the wait before another attempt. It may belong before those in `jobs`.
    pub due_at: Option<Timestamp>,
}

/// How many wait in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneDepth {
    /// The lane.
    pub lane: Lane,
    /// Jobs that are due.
    pub due: u64,
    /// Jobs that are not due yet.
    pub delayed: u64,
    /// When the first of those comes due.
    pub due_at: Option<Timestamp>,
}

/// What people and quotas have decided about a queue. Kept in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueState {
    /// Somebody paused it: nothing starts. Recorded, so a restart does not end the pause.
    pub paused: bool,
    /// It waits for a quota that is used up. Not recorded: a restart begins with `false`.
    pub parked: bool,
    /// It takes no new jobs and finishes those that wait. Recorded.
    pub drains: bool,
}

impl QueueState {
    /// Whether it stands: then time to live does not pass for the jobs in it.
    #[must_use]
    pub fn stands(self) -> bool {
        self.paused || self.parked
    }
}

/// How many jobs of a queue or of a whole store are in each status, kept as counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Waiting, delayed ones included.
    pub queued: u64,
    /// Running.
    pub processing: u64,
    /// Completed and not yet removed.
    pub completed: u64,
    /// Failed and not yet removed.
    pub failed: u64,
    /// Expired and not yet removed.
    pub expired: u64,
    /// Cancelled and not yet removed.
    pub cancelled: u64,
    /// Bytes of the jobs that have not ended, as capacity counts them.
    pub bytes: u64,
}

/// A queue that has, or had, jobs or a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// What was decided about it.
    pub state: QueueState,
    /// What is in it.
    pub counts: Counts,
}

/// How many jobs go before one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// It is this one in its queue, from 1 on.
    Exactly(u64),
    /// More go before it than are counted: it is at least this one.
    AtLeast(u64),
}

/// Up to which [`Position`] is counted.
pub const POSITION_MAX: u64 = 10_000;

/// The lines of waiting jobs, which a dispatcher looks at through bounded windows.
///
/// A job comes into its lane by `enqueue`, by the end of its wait, and by coming back from an
/// attempt; it leaves by `start`, by `cancel` and by expiry. A window is a look, and takes
/// nothing out: only [`start`](crate::Jobs::start) does.
#[async_trait]
pub trait Lines {
    /// The lanes in which somebody waits.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn lanes(&self, now: Now) -> Result<Vec<LaneDepth>, StoreError>;

    /// The first `n` due jobs of `lane` that stand behind `after`, or from its head.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn next(
        &self,
        lane: &Lane,
        after: Option<Place>,
        n: usize,
        now: Now,
    ) -> Result<Window, StoreError>;

    /// Where waiting jobs stand in their queues, in one look: each behind those of a higher
    /// priority, and behind those of the same priority that have an earlier place, whosever they
    /// are. `None` for one that does not wait. Exact up to [`POSITION_MAX`].
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn positions(&self, jobs: Vec<JobId>) -> Result<Vec<Option<Position>>, StoreError>;

    /// Records what was decided about a queue, with the event that tells of it. Answers the state
    /// before.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn set_queue(
        &self,
        queue: &str,
        state: QueueState,
        now: Now,
    ) -> Result<QueueState, StoreError>;

    /// All queues, by name.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn queues(&self) -> Result<Vec<Queue>, StoreError>;
}
