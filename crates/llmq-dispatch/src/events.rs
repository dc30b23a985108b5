use std::time::Duration;

use llmq_core::{CallSize, FailureClass, Pause, Priority, Timestamp, Usage};
use llmq_limit::{ConcurrencyChange, LimitText, QuotaEvent, QuotaState, RateLimitHeaders};

use crate::ids::{LimitId, QueueId, TenantId, TicketId, UpstreamId};

/// A call that wants to be sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// Its queue.
    pub queue: QueueId,
    /// Who it is charged to.
    pub tenant: TenantId,
    /// How urgent it is.
    pub priority: Priority,
    /// How large it is.
    pub size: CallSize,
    /// How many bytes it occupies while it waits.
    pub bytes: u64,
    /// Whether somebody holds a connection open for it, or it is kept for later.
    pub kind: CallKind,
    /// It must have started by then, whatever stands in the way.
    pub start_by: Option<Timestamp>,
    /// What `start_by` leaves time for.
    pub bounded: Bounded,
    /// It must start within this time, which stands still while its queue does.
    pub ttl: Option<Duration>,
    /// It must not start earlier.
    pub not_before: Option<Timestamp>,
    /// Attempts it has used up already, in an earlier life.
    pub attempts: u32,
    /// Refusals in a row that it met in an earlier life and that were no fault of its own.
    pub throttles: u32,
    /// It was accepted before, by a store: its queue takes it even when full or draining.
    pub accepted: bool,
    /// What its prompt begins with, as a number: calls with the same one go to the same upstream
    /// of several while that has room, since its cache knows them. 0: it does not matter.
    pub affinity: u64,
}

impl Call {
    /// A plain call of normal priority without a deadline.
    #[must_use]
    pub fn new(queue: QueueId, tenant: TenantId) -> Self {
        Self {
            queue,
            tenant,
            priority: Priority::NORMAL,
            size: CallSize::default(),
            bytes: 0,
            kind: CallKind::Plain,
            start_by: None,
            bounded: Bounded::Total,
            ttl: None,
            not_before: None,
            attempts: 0,
            throttles: 0,
            accepted: false,
            affinity: 0,
        }
    }
}

/// What the time of a call that has to start by an instant counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounded {
    /// All of it: attempts that failed have used it up as waiting has.
    Total,
    /// Its waiting: an attempt that fails moves the instant on by the time that it took.
    Wait,
}

/// Who waits for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// A caller with an open connection: it meets few throttles before it hears of them.
    Plain,
    /// Nobody right now: it can wait long.
    Stored,
}

/// What happened to a call that was started.
#[derive(Debug, Clone)]
pub enum Event {
    /// Its bytes were written, the last of them at this instant or soon after: an instant that was
    /// read before the write, not after it, when the answer may be there already.
    Sent(TicketId, Timestamp),
    /// The first byte of its answer came, after this much processing by the provider's word.
    FirstByte(TicketId, Option<Duration>),
    /// Its answer has this many output tokens so far.
    Produced(TicketId, u64),
    /// It ended.
    Ended(TicketId, Box<Ended>),
    /// It was not sent, since its upstream cannot take it: it goes elsewhere and never there.
    Declined(TicketId),
    /// Its caller has gone. Never sent: everything it held is free. Sent: it stays charged.
    Dropped(TicketId),
    /// A queue starts nothing more.
    Pause(QueueId),
    /// A paused queue goes on.
    Resume(QueueId),
    /// What [`Notice::SaveQuota`] asked for is on disk.
    QuotaSaved(UpstreamId),
    /// A person has mended what stopped an upstream.
    Reopen(UpstreamId),
    /// Time has passed; what is due happens. Every other event does this too.
    Tick,
}

/// How a started call ended.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    /// With what.
    pub outcome: Outcome,
    /// What it used, where the provider said.
    pub usage: Option<Usage>,
    /// The provider's rate-limit headers.
    pub headers: Option<RateLimitHeaders>,
    /// From the send to the answer's end.
    pub latency: Option<Duration>,
    /// What stands still after a failure, where the answer told more than its class does: a
    /// refused model closes its upstream and leaves others of the same credential alone. None:
    /// by the class's row of the retry table.
    pub pause: Option<Pause>,
    /// Whether a refusal may concern this call alone, as that of a firewall or of a path that the
    /// server lacks may. Then it closes nothing that has answered another call.
    pub may_be_the_calls: bool,
    /// Whether it was the upstream's silence that ended it: a plain call is not sent there again.
    pub was_silent: bool,
    /// Whether somebody waits for the answer though the call is kept by a store: then it is not
    /// sent again to an upstream that was silent either.
    pub is_awaited: bool,
}

/// With what a call ended.
#[derive(Debug, Clone, Default)]
pub enum Outcome {
    /// An answer.
    #[default]
    Completed,
    /// A failure.
    Failed {
        /// Its class.
        class: FailureClass,
        /// How long to wait, by the provider's word.
        told: Option<Duration>,
        /// What the text of a 429 said.
        text: Option<LimitText>,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send this call there.
    Start(Start),
    /// This call goes back in line after a failure; it starts no earlier than `not_before`.
    Requeued {
        /// The call.
        ticket: TicketId,
        /// The failure's class.
        class: FailureClass,
        /// Not earlier.
        not_before: Timestamp,
    },
    /// This call has failed for good and is out of the dispatcher's books.
    Failed {
        /// The call.
        ticket: TicketId,
        /// The failure's class.
        class: FailureClass,
        /// Attempts used up.
        attempts: u32,
    },
    /// This call has its answer and is out of the dispatcher's books.
    Completed {
        /// The call.
        ticket: TicketId,
        /// Attempts it took.
        attempts: u32,
    },
    /// This call was not started in time and is out of the dispatcher's books.
    Expired {
        /// The call.
        ticket: TicketId,
        /// When it might have started, if that is known.
        could_start: Option<Timestamp>,
    },
    /// This call is above the whole of a limit and is out of the dispatcher's books.
    TooLarge {
        /// The call.
        ticket: TicketId,
        /// The limit's name and count.
        limit: String,
        /// Its count.
        count: u64,
    },
    /// None of the upstreams that are left could take this call, and it is out of the dispatcher's
    /// books. So it is when another configuration takes away the only one that could.
    NoUpstream {
        /// The call.
        ticket: TicketId,
    },
    /// Something that people want to know.
    Notice(Notice),
}

/// Leave to send a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The call.
    pub ticket: TicketId,
    /// Where to.
    pub upstream: UpstreamId,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Whether it finds out if the upstream is back.
    pub probe: bool,
    /// Whether a limit on its way counts output as it is produced, and wants to be told of it
    /// ([`Event::Produced`]).
    pub counts_output: bool,
}

/// Something that people want to know.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// An upstream takes nothing until then (never, when `until` is none).
    UpstreamPaused {
        /// Which.
        upstream: UpstreamId,
        /// Why.
        class: FailureClass,
        /// Until when.
        until: Option<Timestamp>,
    },
    /// An upstream that took nothing is open again, at least for one call.
    UpstreamReopened {
        /// Which.
        upstream: UpstreamId,
        /// What had closed it.
        class: FailureClass,
        /// For how long it took nothing.
        closed_for: Duration,
    },
    /// A rate-limit header could not be read, and counts as unknown. Told once a minute at most.
    HeaderGarbled {
        /// Whose.
        upstream: UpstreamId,
        /// The header as it came, cut where it is long.
        header: String,
    },
    /// A 429 came.
    RateLimited {
        /// From where.
        upstream: UpstreamId,
        /// Whether our own books should have foreseen it.
        ours: bool,
    },
    /// An upstream is taken as down.
    BreakerOpened(UpstreamId),
    /// An upstream is back.
    BreakerClosed(UpstreamId),
    /// Concurrency was adapted.
    Concurrency(UpstreamId, ConcurrencyChange),
    /// The daily quota has news.
    Quota(UpstreamId, QuotaEvent),
    /// This much of the daily quota must be on disk as used before more is started.
    SaveQuota(UpstreamId, QuotaState),
    /// A limit that may only be used as far as is on disk has little left of that: see
    /// [`Dispatcher::allow`](crate::Dispatcher::allow).
    PortionLow(LimitId),
    /// A limit nobody had configured was learned, or a stated count corrected.
    LimitLearned(UpstreamId, LimitId),
    /// A limit that an earlier process had learned holds no more: the provider states others.
    LimitForgotten(UpstreamId, LimitId),
}

/// Why a call was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The queue is above its high watermark, or was and is not yet below the low one.
    #[error("the queue is full: {jobs} calls and {bytes} bytes wait")]
    Full {
        /// Calls that wait.
        jobs: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// The queue takes no new calls while it is emptied.
    #[error("the queue is draining and takes no new calls")]
    Draining,
}
