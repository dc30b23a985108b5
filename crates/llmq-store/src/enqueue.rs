use std::time::Duration;

use llmq_core::{FailureClass, Verdict};

use crate::{JobId, Place, Position, StoreError};

/// What became of a job that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The job, or the one that its idempotency key made before of the same request.
    pub job: JobId,
    /// Whether it was accepted now.
    pub is_new: bool,
    /// Its place in its lane; `None` for one that was there before.
    pub place: Option<Place>,
    /// Where a new one stood in its queue as it came; `None` for one that was there before.
    pub position: Option<Position>,
}

impl Enqueued {
    /// A job that is accepted; it has no place yet.
    #[must_use]
    pub fn new(job: JobId) -> Self {
        Self {
            job,
            is_new: true,
            place: None,
            position: None,
        }
    }

    /// A job that was there before.
    #[must_use]
    pub fn existing(job: JobId) -> Self {
        Self {
            job,
            is_new: false,
            place: None,
            position: None,
        }
    }
}

/// Notes where new jobs stand, given in their order.
pub fn note_positions(
    enqueued: &mut [Enqueued],
    stands: impl IntoIterator<Item = (Place, Option<Position>)>,
) {
    let new = enqueued.iter_mut().filter(|enqueued| enqueued.is_new);
    for (enqueued, (place, position)) in new.zip(stands) {
        enqueued.place = Some(place);
        enqueued.position = position;
    }
}

/// Why jobs were not accepted. None of the call was.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// So much waits that no more is accepted, until it is below the low watermark again.
    #[error("the queue is full: {waiting} {what} wait")]
    Full {
        /// What there is too much of.
        what: FullOf,
        /// How much waits.
        waiting: u64,
    },
    /// The tenant used this idempotency key for another request.
    #[error("the idempotency key of job {index} was used for another request")]
    Conflict {
        /// Which of the jobs handed in, from 0.
        index: usize,
        /// The job that the key made.
        existing: JobId,
    },
    /// A job with this id was accepted before.
    #[error("there is a job {job} already")]
    DuplicateId {
        /// The id.
        job: JobId,
    },
    /// More jobs in one call than [`ENQUEUE_MAX`](crate::ENQUEUE_MAX).
    #[error("{count} jobs at once are too many: at most {}", crate::ENQUEUE_MAX)]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The queue takes no new jobs ([`QueueState::drains`](crate::QueueState::drains)).
    #[error("the queue {queue} takes no new jobs: it is being drained")]
    Draining {
        /// The queue.
        queue: String,
    },
    /// The store could not record them.
    #[error("the jobs could not be recorded")]
    Store(#[from] StoreError),
}

/// What a store can be full of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FullOf {
    /// Jobs.
    Jobs,
    /// Bytes.
    Bytes,
}

impl std::fmt::Display for FullOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jobs => "jobs",
            Self::Bytes => "bytes",
        })
    }
}

/// How much a store takes and how long it keeps things.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Jobs that have not ended, over all queues.
    pub max_jobs: u64,
    /// Bytes of jobs that have not ended: what memory and file grow by.
    pub max_bytes: u64,
    /// The share of either above which new jobs are refused …
    pub high_watermark: f64,
    /// … until it is below this share again.
    pub low_watermark: f64,
    /// How long an ended job and its answer are kept.
    pub keep_results: Duration,
    /// How long an idempotency key is remembered.
    pub keep_idempotency: Duration,
    /// How long an event is kept …
    pub keep_events: Duration,
    /// … and how many at most.
    pub max_events: u64,
    /// Deliveries that wait for one addressee of webhooks: for each above it the oldest is given up.
    pub max_deliveries: u64,
    /// What follows when nobody knows how an attempt ended (`[retry] ambiguous`): another one, as
    /// long as there are any, or the end of the job.
    pub lost_attempt: Verdict,
}

impl Settings {
    /// Whether what failed with this class may be asked for again with its idempotency key:
    /// another attempt may cure it, and may be made.
    #[must_use]
    pub fn frees_key(&self, class: FailureClass) -> bool {
        let may_repeat = class != FailureClass::Ambiguous || self.lost_attempt == Verdict::Retry;
        class.rule().retry && may_repeat
    }
}

impl Default for Settings {
    /// The defaults of `[store]`.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            max_jobs: 1_000_000,
            max_bytes: 4_000_000_000,
            high_watermark: 0.8,
            low_watermark: 0.6,
            keep_results: 7 * DAY,
            keep_idempotency: DAY,
            keep_events: DAY,
            max_events: 100_000,
            max_deliveries: 100_000,
            lost_attempt: Verdict::Retry,
        }
    }
}
