use llmq_core::Timestamp;

use crate::bucket::Mark;

/// What one call costs one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Charged when it arrives.
    pub arrival: u64,
    /// Held until it ends.
    pub later: u64,
    /// The whole, as stated, before any learned factor: what is compared with the whole limit.
    pub(super) stated: u64,
}

impl Cost {
    /// Both parts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.arrival.saturating_add(self.later)
    }
}

/// A call's place in one limit, from its grant to its end.
///
/// It must be given back to the limit it came from: dropped, it holds its place for ever.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a place that is not settled or given back is held for ever"]
pub struct Entry {
    pub(super) cost: Cost,
    /// The whole cost when it was granted.
    pub(super) granted: u64,
    pub(super) state: EntryState,
}

impl Entry {
    /// The count that the limit had when the call was sent; none before it is. What a provider has
    /// left is compared with the books of that moment: by another count, it is to be brought to
    /// this one first ([`Limit::observe`](crate::Limit::observe)).
    #[must_use]
    pub fn sent_by(&self) -> Option<u64> {
        match self.state {
            EntryState::Granted => None,
            EntryState::Sent { expect, .. } => Some(expect.count),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum EntryState {
    Granted,
    Sent { expect: Expect, produced: u64 },
}

/// What a call that has ended was charged, for when somebody tells only later what it used:
/// [`Limit::correct`](crate::Limit::correct).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    pub(super) stated: u64,
    /// When it arrived.
    pub(super) arrival: u64,
    /// For its answer.
    pub(super) output: u64,
    /// What words had returned of the limit by its end: what they return later may be of it.
    pub(super) returned: u64,
    pub(super) when: When,
    /// Whether its usage has been told.
    pub(super) is_told: bool,
}

/// What says how much of a charge is still in the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// In windows: when the call arrived, and when it ended.
    Dated(Timestamp, Timestamp),
    /// In a bucket: where that stood at the call's end.
    Drawn(Mark),
}

/// What we expected the provider to have left when it saw a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Expect {
    /// Its last bytes were written then at the earliest …
    pub(super) sent_at: Timestamp,
    /// … and all were by then: when we were told.
    pub(super) told_at: Timestamp,
    /// The latest instant at which the call can have arrived.
    pub(super) dated: Timestamp,
    /// The count that the limit had then: by another one, as much use leaves another rest.
    pub(super) count: u64,
    /// What our books had left, this call charged.
    pub(super) remaining: i64,
    pub(super) own: u64,
    pub(super) total: u64,
    pub(super) stated: f64,
    pub(super) squares: f64,
    pub(super) corrected: u64,
    pub(super) returned: u64,
    /// Which of the survey's groups it was sent with; none where its word teaches nothing.
    pub(super) group: Option<u64>,
    /// The word that the limit began with is newer than any on this call.
    pub(super) is_outdated: bool,
    /// Which tail it was part of.
    pub(super) tail: u64,
    /// What was held for answers: the provider may have counted any part of it.
    pub(super) unknown: u64,
}

/// What a provider's `remaining` says against our books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As expected, whatever the order in which calls arrived.
    Inside,
    /// This much is gone that we had not charged; it has been taken now.
    Below(u64),
    /// The provider has this much more than we thought.
    Above(u64),
    /// An older word than one already heard, with nothing to take away.
    Stale,
}
