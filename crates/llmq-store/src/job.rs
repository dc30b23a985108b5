use std::time::Duration;

use bytes::Bytes;
use llmq_core::{CallSize, FailureClass, Priority, Status, Usage, WallTime};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{BatchId, JobId, Lane};

/// A job as it is handed in.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Its id, drawn by whoever accepts it.
    pub id: JobId,
    /// The line it stands in: the public name of its model.
    pub queue: String,
    /// How urgent it is.
    pub priority: Priority,
    /// Who is charged.
    pub tenant: String,
    /// The request as it will be sent. Stored as it is.
    pub body: Bytes,
    /// How large the call is, for the limits.
    pub size: CallSize,
    /// The time in which it must start; it stands still while its queue does
    /// ([`QueueState::stands`](crate::QueueState::stands)). `None`: for ever.
    pub ttl: Option<Duration>,
    /// Not to be started before this instant of the calendar.
    pub not_before: Option<WallTime>,
    /// How many attempts that count it has, at least 1.
    pub max_attempts: u32,
    /// The caller's key for saying the same thing twice.
    pub idempotency: Option<Idempotency>,
    /// The batch it belongs to, if any.
    pub member: Option<Member>,
    /// What no store looks at.
    pub details: Details,
}

impl NewJob {
    /// A call of normal priority with a new id, 5 attempts, no time limit and nothing beside it.
    pub fn new(
        queue: impl Into<String>,
        tenant: impl Into<String>,
        body: impl Into<Bytes>,
    ) -> Self {
        Self {
            id: JobId::new(),
            queue: queue.into(),
            priority: Priority::NORMAL,
            tenant: tenant.into(),
            body: body.into(),
            size: CallSize::default(),
            ttl: None,
            not_before: None,
            max_attempts: 5,
            idempotency: None,
            member: None,
            details: Details::default(),
        }
    }

    /// The lane it stands in.
    #[must_use]
    pub fn lane(&self) -> Lane {
        Lane {
            queue: self.queue.clone(),
            priority: self.priority,
            tenant: self.tenant.clone(),
            key: self.details.key,
        }
    }

    /// The job that it becomes when it is accepted at `at`.
    #[must_use]
    pub fn accepted(&self, at: WallTime) -> Job {
        Job {
            id: self.id,
            queue: self.queue.clone(),
            priority: self.priority,
            tenant: self.tenant.clone(),
            status: Status::Queued,
            size: self.size,
            attempts: 0,
            max_attempts: self.max_attempts,
            throttles: 0,
            may_have_been_sent: false,
            created_at: at,
            not_before: self.not_before,
            expires_at: self.ttl.map(|ttl| at + ttl),
            started_at: None,
            finished_at: None,
            usage: None,
            cost_nano_usd: None,
            upstream: None,
            error: None,
            member: self.member.clone(),
            details: self.details.clone(),
        }
    }
}

/// A caller's word that a second request is the first one again. Its scope is the job's tenant.
///
/// It is remembered for 24 hours ([`Settings::keep_idempotency`](crate::Settings)), but no longer
/// than its job is of use: what expired, or failed with a class that another attempt may cure,
/// may be asked for again. What was sent and may not be sent again
/// ([`Settings::lost_attempt`](crate::Settings)) may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The caller's `Idempotency-Key`.
    pub key: String,
    /// A hash of all that makes the request what it is. The same key with another hash is a
    /// conflict.
    pub request_hash: [u8; 32],
}

/// A job's place in a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The batch.
    pub batch: BatchId,
    /// The line of the batch's input that it came from, from 1 on.
    pub line: u32,
    /// The caller's name for it, unique in its batch.
    pub custom_id: String,
}

/// What is kept with a job for its callers, and what no store looks at, but for the key, which
/// is of its [lane](Lane), and the callback: a job that has one gets a delivery to it when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// The API's path, such as `/v1/chat/completions`.
    pub endpoint: String,
    /// The key that it came with: its limits and its budget hold for the job too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Uuid>,
    /// The caller's notes.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Where the end of this job is told, beside the endpoints that ask for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
    /// The job whose request this one repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
    /// The caller's trace (W3C Trace Context).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What else its acceptor wants back, such as the form in which it was asked for.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub extra: serde_json::Value,
}

/// A URL that is told when one job ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Callback {
    /// Where.
    pub url: String,
    /// Whose secret signs it: the id of a key, or `None` for the server's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
}

/// A job as the store has it, without its bodies.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The line it stands in.
    pub queue: String,
    /// How urgent it is.
    pub priority: Priority,
    /// Who is charged.
    pub tenant: String,
    /// Where it stands.
    pub status: Status,
    /// How large the call is.
    pub size: CallSize,
    /// Attempts that were started and count.
    pub attempts: u32,
    /// How many it has.
    pub max_attempts: u32,
    /// Attempts in a row that the provider had no room for.
    pub throttles: u32,
    /// Whether an attempt ended without our knowing what became of it (its process died, its
    /// lease ran out), so that the provider may have served and billed it.
    pub may_have_been_sent: bool,
    /// When it was accepted.
    pub created_at: WallTime,
    /// It is not started before this: the caller's wish, or the wait before the next attempt.
    pub not_before: Option<WallTime>,
    /// When its time to start ends, as things stand now. Moves on while its queue stands.
    pub expires_at: Option<WallTime>,
    /// When its newest attempt started.
    pub started_at: Option<WallTime>,
    /// When it came to its final status.
    pub finished_at: Option<WallTime>,
    /// What it used, once it is completed and the provider said so.
    pub usage: Option<Usage>,
    /// What it cost in billionths of a US dollar, as far as it is known.
    pub cost_nano_usd: Option<u64>,
    /// Who served its newest attempt.
    pub upstream: Option<String>,
    /// Why it failed, or why its newest attempt did.
    pub error: Option<JobError>,
    /// The batch it belongs to, if any.
    pub member: Option<Member>,
    /// What its acceptor noted.
    pub details: Details,
}

/// Why an attempt or a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// Its class, if an attempt met it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    /// A stable word for programs.
    pub code: String,
    /// For people. Never a prompt or a key.
    pub message: String,
}

impl Job {
    /// The lane it stands in when it waits.
    #[must_use]
    pub fn lane(&self) -> Lane {
        Lane {
            queue: self.queue.clone(),
            priority: self.priority,
            tenant: self.tenant.clone(),
            key: self.details.key,
        }
    }
}

impl JobError {
    /// The lease ran out, or its process ended, and the job has no attempt left.
    pub const LEASE_EXPIRED: &'static str = "lease_expired";
    /// What was stored of the job is damaged, so it cannot be sent.
    pub const DAMAGED: &'static str = "stored_request_damaged";

    /// An error that no attempt met.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            class: None,
            code: code.into(),
            message: message.into(),
        }
    }
}

/// An answer, as its caller gets it: the provider's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The headers that pass, in order.
    pub headers: Vec<(String, String)>,
    /// The body; of a stream, all of its bytes.
    pub body: Bytes,
}
