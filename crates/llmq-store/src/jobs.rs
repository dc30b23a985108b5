use async_trait::async_trait;
use llmq_core::Now;

use crate::{
    Cancelled, EnqueueError, Enqueued, Job, JobId, Lease, Moved, NewJob, Report, ReportError,
    Start, StartError, Started, StoreError, Worker,
};

/// The most jobs that one call of [`Jobs::enqueue`] takes.
pub const ENQUEUE_MAX: usize = 10_000;

/// The life of jobs, in transitions ([`llmq_core::transition`] says which are legal).
///
/// Each method is atomic: all of it is recorded, or nothing. What it has recorded when it returns
/// `Ok` survives a killed process and a power cut, in a store that outlives its process at all.
/// With the change itself, in the same transaction, a store records
///
/// - the event that tells of it ([`EventKind`](crate::EventKind) names them),
/// - one delivery of that event for each webhook endpoint that asks for it, and for the job's own
///   callback; members of a batch have neither, their batch has,
/// - the counts of its batch, and the end of that batch's work when it was the last one.
///
/// The store derives these itself, since some changes (an expiry, a lost lease) begin inside it,
/// and since only it sees the endpoints as they are in that transaction.
///
/// `now` is read once by the caller from its clock. Waits and leases follow its monotonic half;
/// a store that several machines share has one clock of its own, and heeds `now` in tests only.
///
/// # Cancel safety
///
/// A method that was polled once may be carried out even if its future is dropped.
#[async_trait]
pub trait Jobs {
    /// Accepts jobs: all, or none. Answers in their order.
    ///
    /// A job whose idempotency key its tenant used in the last 24 hours for the same request is
    /// not accepted again: the answer names the first. A member of a batch is accepted with
    /// [`stage`](crate::Batches::stage) and not here.
    ///
    /// # Errors
    ///
    /// [`EnqueueError`]; no job was accepted then.
    async fn enqueue(&self, jobs: Vec<NewJob>, now: Now) -> Result<Vec<Enqueued>, EnqueueError>;

    /// Accepts a job and starts it in one transaction, for one that finds room when it comes.
    /// `start.job` is its id. When the key was used before, nothing starts.
    ///
    /// # Errors
    ///
    /// [`EnqueueError`]; it was not accepted then.
    async fn enqueue_started(
        &self,
        job: NewJob,
        start: Start,
        now: Now,
    ) -> Result<(Enqueued, Option<Started>), EnqueueError>;

    /// Starts attempts, each for itself: the job is `processing`, the attempt is counted and the
    /// lease begins. Nothing may be sent before this has returned.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: none was started. For one job, [`StartError`].
    async fn start(
        &self,
        starts: Vec<Start>,
        now: Now,
    ) -> Result<Vec<Result<Started, StartError>>, StoreError>;

    /// A sign of life: each lease lasts for its whole length again, from now. Answers those that
    /// are lost, whose work is worth nothing any more. Where one process owns the store, this is
    /// kept in memory and costs no write.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing was extended.
    async fn extend(&self, leases: Vec<Lease>, now: Now) -> Result<Vec<Lease>, StoreError>;

    /// Records how an attempt ended: its result, its events and deliveries and the job's new
    /// status in one transaction. Answers the job as it is then.
    ///
    /// # Errors
    ///
    /// [`ReportError::LeaseLost`] for a late or repeated report: nothing was recorded.
    async fn report(&self, lease: Lease, report: Report, now: Now) -> Result<Job, ReportError>;

    /// Ends a job that somebody does not want any more; it can be waiting or running.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn cancel(&self, job: JobId, now: Now) -> Result<Cancelled, StoreError>;

    /// Takes back all that earlier lives of `worker`'s node held: `queued` again (or `failed`,
    /// when no attempt is left), the attempt counted, marked as perhaps sent. To be called once,
    /// when a process begins and before it starts anything.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; what was taken back by then stands.
    async fn recover(&self, worker: &Worker, now: Now) -> Result<Vec<Moved>, StoreError>;

    /// Housekeeping, one slice of it, short enough to stand between other work: jobs whose time to
    /// start has passed expire, leases without a sign of life for their length end (as with
    /// [`recover`](Self::recover)), and what has been kept long enough is removed: ended jobs,
    /// idempotency keys, events, deliveries, files.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing of the slice was recorded.
    async fn tend(&self, now: Now) -> Result<Tended, StoreError>;
}

/// What a slice of housekeeping did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tended {
    /// Jobs that expired, and jobs whose lease ended: they are waiting again, or have failed.
    pub moved: Vec<Moved>,
    /// How many ended jobs were removed.
    pub purged: usize,
    /// Whether more is due at once.
    pub more: bool,
}
