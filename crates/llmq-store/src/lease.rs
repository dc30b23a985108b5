use std::time::Duration;

use bytes::Bytes;
use llmq_core::{Status, Timestamp, WallTime};
use serde::{Deserialize, Serialize};

use crate::{Job, JobId, StoreError};

/// Who holds a lease: one life of one process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Worker {
    /// The process's place, the same after a restart: a host, or a configured name.
    pub node: String,
    /// This life of it. No two lives have the same, so that what an earlier one held can be told
    /// from what this one holds.
    pub incarnation: uuid::Uuid,
}

impl Worker {
    /// A new life of `node`.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            incarnation: uuid::Uuid::new_v4(),
        }
    }
}

/// Fences an attempt off from those before it: the next lease of the same job has a higher one,
/// and a report counts only with the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseToken(pub u64);

/// The right to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// What tells this attempt from others.
    pub token: LeaseToken,
}

/// A wish to start a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The job.
    pub job: JobId,
    /// Who will hold it.
    pub worker: Worker,
    /// How long the lease lasts without a sign of life.
    pub lease: Duration,
    /// Which upstream it will be sent to, for those who look; known to whoever decides.
    pub upstream: Option<String>,
}

/// An attempt that was recorded and may be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    /// The right to it. Keep it alive with [`extend`](crate::Jobs::extend), end it with
    /// [`report`](crate::Jobs::report).
    pub lease: Lease,
    /// The job as it is now, this attempt counted.
    pub job: Job,
    /// What is to be sent; its checksum was verified.
    pub body: Bytes,
}

/// Why a job was not started.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is no such job.
    #[error("there is no job {job}")]
    NotFound {
        /// The id that was asked for.
        job: JobId,
    },
    /// It is not waiting: somebody else has it, or it has ended.
    #[error("job {job} is {status}")]
    NotQueued {
        /// The job.
        job: JobId,
        /// Where it stands.
        status: Status,
    },
    /// Its time to start has passed. It was recorded as expired by this very call.
    #[error("the time of job {job} to start has passed")]
    Expired {
        /// The job.
        job: JobId,
    },
    /// It is not to be started yet.
    #[error("job {job} is not due yet")]
    NotDue {
        /// The job.
        job: JobId,
        /// When it will be.
        due_at: Timestamp,
    },
    /// What was stored of it is not what was accepted. It was recorded as failed by this very
    /// call, with [`JobError::DAMAGED`](crate::JobError::DAMAGED).
    #[error("what was stored of job {job} is damaged")]
    Damaged {
        /// The job.
        job: JobId,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Report {
    /// It brought a result: the job is completed.
    Completed {
        /// What the caller gets.
        answer: crate::StoredAnswer,
        /// What it used, if the provider said so.
        usage: Option<llmq_core::Usage>,
        /// What it cost, if that is known.
        cost_nano_usd: Option<u64>,
    },
    /// It failed, and another attempt may cure it: the job waits again. Whether it has an attempt
    /// left is the reporter's to know; a store never refuses one.
    Retry {
        /// Why.
        error: crate::JobError,
        /// How long it waits before the next, at least.
        after: Duration,
        /// Whether the provider may have served it all the same.
        may_have_been_sent: bool,
    },
    /// It failed for good: the job has failed.
    Failed {
        /// Why.
        error: crate::JobError,
        /// The provider's answer, if there was one.
        answer: Option<crate::StoredAnswer>,
        /// What it cost, if that is known.
        cost_nano_usd: Option<u64>,
    },
    /// It is given back: the attempt does not count, and the job waits again in its place.
    GivenBack {
        /// Why.
        why: GiveBack,
        /// What the attempt met, if the job is to tell it while it waits, and when its time to
        /// start passes. Without one the job keeps the error that it had.
        error: Option<crate::JobError>,
        /// How long it waits before the next attempt, at least.
        after: Duration,
    },
}

/// Why an attempt is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GiveBack {
    /// The provider had no room. Counted apart ([`Job::throttles`](crate::Job::throttles)), until
    /// an attempt ends in another way.
    Throttled,
    /// The provider was known to be down, or the account to be empty, and still is. Not counted:
    /// neither of any length ends a job.
    FoundDown,
    /// It was not sent: its process stops, or what it was to be sent through is gone.
    NotSent,
}

/// Why a report was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The reporter holds the job no longer: its lease ran out and somebody else may have it, it
    /// was cancelled, or it was reported before.
    #[error("job {job} is no longer leased by this worker")]
    LeaseLost {
        /// The job.
        job: JobId,
    },
    /// The store could not record it. The lease stands, and the report can be made again.
    #[error("could not record the end of an attempt of job {job}")]
    Store {
        /// The job.
        job: JobId,
        /// Why.
        source: StoreError,
    },
}

/// A job that somebody asked to end.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancelled {
    /// It is cancelled now. An attempt that ran has lost its lease, and is worth stopping.
    Now(Job),
    /// It had ended before: nothing changed.
    Ended(Job),
    /// There is no such job.
    NotFound,
}

/// A job that left or came back to its line without a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// The job.
    pub job: JobId,
    /// Where it stands now.
    pub status: Status,
    /// When.
    pub at: WallTime,
}
