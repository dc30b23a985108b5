use std::time::Duration;

use llmq_core::{Now, Timestamp, WallTime};
use llmq_limit::{Entry, FirstWord, Observation};
use smallvec::SmallVec;

use crate::events::{Bounded, Call};
use crate::ids::{LaneId, LimitId, TicketId, UpstreamId};
use crate::lane::LaneKey;

/// One call in the dispatcher's books: what decisions need, never its payload.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) id: TicketId,
    pub(crate) call: Call,
    pub(crate) seq: u64,
    pub(crate) attempts: u32,
    /// Throttles in a row.
    pub(crate) throttles: u32,
    /// Failures in a row, for the backoff.
    pub(crate) failures: u32,
    /// Its lane's starts when it was first throttled.
    pub(crate) starts_at_throttle: u64,
    /// Upstreams that failed it, to be asked last.
    pub(crate) avoid: SmallVec<[UpstreamId; 2]>,
    /// Upstreams that cannot take it, or were silent.
    pub(crate) barred: SmallVec<[UpstreamId; 2]>,
    /// Its attempts are used up at all of those that failed it: it may only go elsewhere.
    pub(crate) exhausted: bool,
    /// Its deadline on its queue's own clock, in ns.
    pub(crate) ttl_at: Option<u64>,
    pub(crate) state: State,
}

#[derive(Debug)]
pub(crate) enum State {
    /// In its lane.
    Waiting(LaneId),
    /// Out of its lane until then.
    Delayed(Timestamp),
    /// Started.
    Running(Box<Running>),
}

/// A started attempt with all that it holds.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) upstream: UpstreamId,
    /// The credential that it is sent with: its upstream may have another by the time it ends.
    pub(crate) credential: Option<u32>,
    pub(crate) entries: SmallVec<[(LimitId, Entry); 4]>,
    /// When it had leave to be sent.
    pub(crate) granted_at: Timestamp,
    pub(crate) sent: Option<Sent>,
    /// When it was counted against the day's quota.
    pub(crate) counted_at: WallTime,
    pub(crate) probe: bool,
}

/// When a call's bytes were written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// Not before …
    pub(crate) at: Timestamp,
    /// … and all of them by then: when it was told.
    pub(crate) told_at: Timestamp,
}

impl Running {
    /// Whether a limit has an entry of it.
    pub(crate) fn holds(&self, id: LimitId) -> bool {
        self.entries.iter().any(|(limit, _)| *limit == id)
    }

    /// What its answer states to be used of a limit.
    pub(crate) fn word(&self, seen: &Observation, now: Now) -> Option<FirstWord> {
        Some(FirstWord {
            used: seen.limit?.saturating_sub(seen.remaining?),
            rounding: seen.rounding,
            sent_at: self.as_of(),
            told_at: self.sent.map_or(now.mono, |sent| sent.told_at),
        })
    }

    /// Not before then was it written, as far as that is known.
    pub(crate) fn as_of(&self) -> Timestamp {
        self.sent.map_or(self.granted_at, |sent| sent.at)
    }
}

impl Ticket {
    pub(crate) fn new(id: TicketId, call: Call, seq: u64, ttl_at: Option<u64>) -> Self {
        Self {
            id,
            call,
            seq,
            attempts: call.attempts,
            throttles: call.throttles,
            failures: 0,
            starts_at_throttle: 0,
            avoid: SmallVec::new(),
            barred: SmallVec::new(),
            exhausted: false,
            ttl_at,
            state: State::Delayed(Timestamp::FAR_FUTURE),
        }
    }

    /// The lane in which it stands when it waits.
    pub(crate) fn lane_key(&self) -> LaneKey {
        let mut left_out = self.barred.to_vec();
        if self.exhausted {
            left_out.extend(&self.avoid);
        }
        left_out.sort_unstable();
        left_out.dedup();
        let call = &self.call;
        (call.queue, call.priority, call.tenant, left_out.into())
    }

    /// It waits again, after an attempt that took so long.
    pub(crate) fn was_away(&mut self, took: Duration) {
        if let (Bounded::Wait, Some(start_by)) = (self.call.bounded, &mut self.call.start_by) {
            *start_by = *start_by + took;
        }
    }
}
