use std::collections::VecDeque;

use llmq_core::{Priority, Timestamp};
use smallvec::SmallVec;

use crate::ids::{QueueId, TenantId, TicketId, UpstreamId};
use crate::order::{Rank, Spot};
use crate::setup::Scope;

/// Which calls stand in one lane: a queue, a priority, a tenant, and in order the upstreams that they
/// may not go to. What may go to few stands apart, and holds up nothing that may go elsewhere.
pub(crate) type LaneKey = (QueueId, Priority, TenantId, Box<[UpstreamId]>);

/// One queue, one priority, one tenant, one choice of upstreams: first come, first served.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) queue: QueueId,
    pub(crate) tenant: TenantId,
    /// The priority its calls were submitted with.
    pub(crate) base: Priority,
    /// The upstreams that its calls may not go to.
    left_out: Box<[UpstreamId]>,
    /// Its priority now: risen when it has waited long.
    pub(crate) priority: Priority,
    /// Waiting calls by sequence number, oldest first.
    tickets: VecDeque<(u64, TicketId)>,
    /// Where its head waits.
    pub(crate) parked: SmallVec<[(Spot, Rank); 4]>,
    /// Whose limits those spots are.
    pub(crate) parked_scope: Option<Scope>,
    /// Since when its head waits.
    pub(crate) parked_at: Timestamp,
    /// How often its head was moved between spots of one scope.
    pub(crate) moves: u32,
    /// When it rises, if nothing starts before.
    pub(crate) rises_at: Option<Timestamp>,
    /// Starts so far: how a throttled call knows that others passed it.
    pub(crate) starts: u64,
    /// Whether it stands among the lanes to be tried.
    pub(crate) ready: Option<u64>,
}

impl Lane {
    pub(crate) fn new((queue, priority, tenant, left_out): LaneKey) -> Self {
        Self {
            queue,
            tenant,
            base: priority,
            left_out,
            priority,
            tickets: VecDeque::new(),
            parked: SmallVec::new(),
            parked_scope: None,
            parked_at: Timestamp::ZERO,
            moves: 0,
            rises_at: None,
            starts: 0,
            ready: None,
        }
    }

    pub(crate) fn key(&self) -> LaneKey {
        (self.queue, self.base, self.tenant, self.left_out.clone())
    }

    pub(crate) fn head(&self) -> Option<(u64, TicketId)> {
        self.tickets.front().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    pub(crate) fn len(&self) -> u64 {
        u64::try_from(self.tickets.len()).unwrap_or(u64::MAX)
    }

    /// Puts a ticket in its place; newcomers go to the end in constant time, and a ticket that
    /// comes back goes near the front, where insertion is cheap.
    pub(crate) fn insert(&mut self, seq: u64, ticket: TicketId) {
        let position = self.tickets.partition_point(|(other, _)| *other < seq);
        self.tickets.insert(position, (seq, ticket));
    }

    pub(crate) fn remove(&mut self, seq: u64) {
        let position = self.tickets.partition_point(|(other, _)| *other < seq);
        if self
            .tickets
            .get(position)
            .is_some_and(|(other, _)| *other == seq)
        {
            self.tickets.remove(position);
        }
        if self.tickets.capacity() > 64 && self.tickets.len() * 4 < self.tickets.capacity() {
            self.tickets.shrink_to(self.tickets.len() * 2);
        }
    }

    pub(crate) fn remove_head(&mut self) {
        self.tickets.pop_front();
    }

    /// How many stand before the ticket with this sequence number.
    pub(crate) fn ahead_of(&self, seq: u64) -> usize {
        self.tickets.partition_point(|(other, _)| *other < seq)
    }
}
