use std::cmp::Reverse;
use std::collections::BTreeSet;

use llmq_core::{Now, Priority, Timestamp};
use llmq_limit::{Adaptive, Limit};
use rustc_hash::FxHashMap;
use slab::Slab;

use crate::events::{Call, Effect, Event, Refusal};
use crate::ids::{LaneId, LimitId, QueueId, TenantId, TicketId, UpstreamId};
use crate::lane::{Lane, LaneKey};
use crate::learned::Learned;
use crate::order::{Fair, Spot, WaitList};
use crate::queue::{Content, Queue};
use crate::setup::{LimitSetup, QueueSetup, Rules, Scope, UpstreamSetup};
use crate::ticket::{State, Ticket};
use crate::upstream::Upstream;

/// Decides which waiting call goes next, and where.
///
/// It holds the lines of tickets and, for each upstream, its limits, breaker, concurrency and
/// quota. It is told what happened ([`Dispatcher::submit`], [`Dispatcher::handle`]) and says
/// what to do, in [`Effect`]s; it does nothing itself, reads no clock and keeps no payload.
/// [`Dispatcher::next_wake`] says when it wants to be told that time has passed.
///
/// Every decision takes time logarithmic in the number of lanes, whatever waits in them.
#[derive(Debug)]
pub struct Dispatcher {
    pub(crate) rules: Rules,
    /// Of all queues together.
    content: Content,
    pub(crate) queues: Vec<Queue>,
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) limits: Vec<LimitSlot>,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) lanes: Slab<Lane>,
    pub(crate) lane_of: FxHashMap<LaneKey, LaneId>,
    pub(crate) tickets: Slab<Ticket>,
    seq: u64,
    /// Lanes whose head has not been tried yet, in the order in which they are tried.
    pub(crate) ready: BTreeSet<(Reverse<Priority>, u64, LaneId)>,
    /// Spots whose best lane may pass now.
    pub(crate) opened: Vec<Spot>,
    /// Lanes whose last head has gone, to be tidied when nothing refers to them any more.
    pub(crate) emptied: Vec<LaneId>,
    /// Lanes that wait at a limit and might pass it now, found while a worse one was assessed.
    pub(crate) overtaken: Vec<LaneId>,
    /// Limits whose books must be written before what waits for them may start.
    pub(crate) short: Vec<LimitId>,
    pub(crate) timers: BTreeSet<(Timestamp, Timer)>,
    pub(crate) random: fastrand::Rng,
}

/// A limit with the lanes that wait for it.
#[derive(Debug)]
pub(crate) struct LimitSlot {
    pub(crate) name: String,
    pub(crate) scope: Scope,
    pub(crate) limit: Limit,
    pub(crate) waiters: WaitList,
    pub(crate) fair: Fair,
    /// The count as a person stated it, which no header raises it above.
    pub(crate) configured: Option<u64>,
    /// Set where answers told of it and nobody configured it.
    pub(crate) learned: Option<Learned>,
}

#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) weight: f64,
    pub(crate) limits: Vec<LimitId>,
}

/// What is due at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// What shuts an upstream may be over. Before calls that would have to start at that instant.
    Gate(UpstreamId),
    /// A spot may have room.
    Spot(Spot),
    /// A ticket may go back in line.
    Delayed(TicketId),
    /// A ticket must have started.
    StartBy(TicketId),
    /// A queue's next time to live ends.
    Deadline(QueueId),
    /// A lane has waited long.
    Rise(LaneId),
}

/// Empty lanes are kept for the next call up to this number, so that a steady trickle does not
/// make and drop one each time.
const EMPTY_LANES_KEPT: usize = 1_024;

impl Dispatcher {
    /// A dispatcher without queues. `seed` feeds the jitter of backoffs and nothing else.
    #[must_use]
    pub fn new(rules: Rules, seed: u64) -> Self {
        Self {
            rules,
            content: Content::default(),
            queues: Vec::new(),
            upstreams: Vec::new(),
            limits: Vec::new(),
            tenants: Vec::new(),
            lanes: Slab::new(),
            lane_of: FxHashMap::default(),
            tickets: Slab::new(),
            seq: 0,
            ready: BTreeSet::new(),
            opened: Vec::new(),
            emptied: Vec::new(),
            overtaken: Vec::new(),
            short: Vec::new(),
            timers: BTreeSet::new(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Adds a limit, unused so far.
    pub fn add_limit(&mut self, setup: LimitSetup, now: Now) -> LimitId {
        let id = LimitId::at(self.limits.len());
        self.limits.push(LimitSlot {
            name: setup.name,
            scope: setup.scope,
            limit: Limit::new(setup.spec, setup.rule, now),
            waiters: WaitList::default(),
            fair: Fair::default(),
            configured: Some(setup.spec.count),
            learned: None,
        });
        id
    }

    /// Adds an upstream.
    pub fn add_upstream(&mut self, setup: UpstreamSetup, now: Now) -> UpstreamId {
        let id = UpstreamId::at(self.upstreams.len());
        let adaptive_limit = setup.adaptive.as_ref().map(|config| {
            let name = format!("concurrency {}", setup.name);
            (
                LimitSetup::places(name, Adaptive::new(*config).limit()),
                *config,
            )
        });
        let adaptive = adaptive_limit.map(|(limit, config)| (self.add_limit(limit, now), config));
        let mut upstream = Upstream::new(setup, adaptive, now);
        // A quota that was restored may be used up already.
        upstream.heed_quota(now);
        self.upstreams.push(upstream);
        self.retime_gate(id, now);
        id
    }

    /// Adds a queue.
    pub fn add_queue(&mut self, setup: QueueSetup) -> QueueId {
        let id = QueueId::at(self.queues.len());
        self.queues.push(Queue::new(setup));
        id
    }

    /// Adds a tenant with a weight above 0 and limits of its own.
    pub fn add_tenant(&mut self, weight: f64, limits: Vec<LimitId>) -> TenantId {
        let id = TenantId::at(self.tenants.len());
        self.tenants.push(Tenant {
            weight: weight.max(1e-6),
            limits,
        });
        id
    }

    /// Takes a call into its line and starts whatever can start.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when its queue is full or draining; what was accepted is never dropped, and
    /// what a store accepted ([`Call::accepted`]) is never refused.
    pub fn submit(
        &mut self,
        call: Call,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<TicketId, Refusal> {
        let queue = &mut self.queues[call.queue.index()];
        if !call.accepted {
            self.content.accepts(call.bytes, &self.rules.capacity)?;
            queue.accepts(call.bytes)?;
        }
        self.content.add(call.bytes);
        queue.content.add(call.bytes);
        let ttl_at = call.ttl.map(|ttl| {
            let ttl = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
            queue.clock(now.mono).saturating_add(ttl)
        });
        self.seq += 1;
        let seq = self.seq;
        let entry = self.tickets.vacant_entry();
        let id = TicketId::new(entry.key(), seq);
        entry.insert(Ticket::new(id, call, seq, ttl_at));
        self.due(now, effects);
        match call.not_before.filter(|at| *at > now.mono) {
            Some(at) => self.delay(id, at),
            None => self.enter(id, now),
        }
        self.pump(now, effects);
        self.watch_deadlines(id, now);
        Ok(id)
    }

    /// Takes note of what happened and says what follows from it.
    pub fn handle(&mut self, event: Event, now: Now, effects: &mut Vec<Effect>) {
        self.due(now, effects);
        match event {
            Event::Sent(ticket, at) => self.sent(ticket, at, now),
            Event::FirstByte(ticket, processing) => self.first_byte(ticket, processing, now),
            Event::Produced(ticket, tokens) => self.produced(ticket, tokens, now),
            Event::Ended(ticket, ended) => self.ended(ticket, &ended, now, effects),
            Event::Declined(ticket) => self.declined(ticket, now, effects),
            Event::Dropped(ticket) => self.dropped(ticket, now, effects),
            Event::Pause(queue) => self.pause(queue, now),
            Event::Resume(queue) => self.resume(queue, now),
            Event::Reopen(upstream) => self.reopen(upstream, now, effects),
            Event::QuotaSaved(upstream) => self.quota_saved(upstream),
            Event::Tick => {}
        }
        // What the event put back in line, or a queue that moves again, may be out of time.
        self.due(now, effects);
        self.pump(now, effects);
    }

    /// When to call [`Dispatcher::handle`] with [`Event::Tick`] at the latest; none: only other
    /// events can change anything.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Names the queues whose upstreams serve a queue's calls when none of its own can.
    pub fn set_fallback(&mut self, queue: QueueId, fallback: Vec<QueueId>) {
        self.queues[queue.index()].setup.fallback = fallback;
    }

    /// Drains a queue: it refuses what is new and finishes what waits; or takes that back.
    pub fn drain(&mut self, queue: QueueId, draining: bool) {
        self.queues[queue.index()].draining = draining;
    }

    pub(crate) fn ticket(&self, id: TicketId) -> Option<&Ticket> {
        self.tickets.get(id.slot()).filter(|ticket| ticket.id == id)
    }

    pub(crate) fn ticket_mut(&mut self, id: TicketId) -> Option<&mut Ticket> {
        self.tickets
            .get_mut(id.slot())
            .filter(|ticket| ticket.id == id)
    }

    /// Puts a ticket into its lane, in its place by sequence number.
    pub(crate) fn enter(&mut self, id: TicketId, now: Now) {
        let Some(ticket) = self.ticket(id) else {
            return;
        };
        let (key, seq) = (ticket.lane_key(), ticket.seq);
        let lane_id = self.lane_for(key);
        let lane = &mut self.lanes[lane_id.index()];
        let was_empty = lane.is_empty();
        lane.insert(seq, id);
        let is_head = lane.head() == Some((seq, id));
        if was_empty {
            self.start_aging(lane_id, now);
        }
        if let Some(ticket) = self.ticket_mut(id) {
            ticket.state = State::Waiting(lane_id);
        }
        if is_head {
            self.head_changed(lane_id);
        }
    }

    pub(crate) fn lane_for(&mut self, key: LaneKey) -> LaneId {
        if let Some(lane) = self.lane_of.get(&key) {
            return *lane;
        }
        let id = LaneId::at(self.lanes.insert(Lane::new(key.clone())));
        self.queues[key.0.index()].lanes.insert(id);
        self.lane_of.insert(key, id);
        id
    }

    /// Drops a lane that is empty, if there are many.
    pub(crate) fn tidy(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get(id.index()).filter(|lane| lane.is_empty()) else {
            return;
        };
        if self.lanes.len() <= EMPTY_LANES_KEPT {
            return;
        }
        self.lane_of.remove(&lane.key());
        self.queues[lane.queue.index()].lanes.remove(&id);
        self.lanes.remove(id.index());
    }

    /// Takes a waiting ticket out of its lane.
    pub(crate) fn leave(&mut self, id: TicketId) {
        let Some(ticket) = self.ticket(id) else {
            return;
        };
        let seq = ticket.seq;
        let State::Waiting(lane_id) = ticket.state else {
            return;
        };
        let lane = &mut self.lanes[lane_id.index()];
        let was_head = lane.head() == Some((seq, id));
        lane.remove(seq);
        if was_head {
            self.head_changed(lane_id);
        }
        if self.lanes[lane_id.index()].is_empty() {
            self.stop_aging(lane_id);
            self.tidy(lane_id);
        }
    }

    /// Forgets a ticket that has left its lane and holds nothing any more.
    pub(crate) fn forget(&mut self, id: TicketId) {
        let Some(ticket) = self.ticket(id) else {
            return;
        };
        let (call, ttl_at) = (ticket.call, ticket.ttl_at);
        self.unwatch_deadlines(id);
        let queue = &mut self.queues[call.queue.index()];
        if let Some(at) = ttl_at {
            queue.deadlines.remove(&(at, id));
        }
        queue.content.remove(call.bytes);
        self.content.remove(call.bytes);
        self.tickets.remove(id.slot());
    }

    /// A ticket waits again after it had been started: in its place, or at the end.
    pub(crate) fn requeue(&mut self, id: TicketId, to_the_end: bool, now: Now) {
        if to_the_end {
            self.seq += 1;
            let seq = self.seq;
            if let Some(ticket) = self.ticket_mut(id) {
                ticket.seq = seq;
            }
        }
        self.enter(id, now);
    }

    fn pause(&mut self, id: QueueId, now: Now) {
        let queue = &mut self.queues[id.index()];
        queue.paused = true;
        queue.update_clock(now.mono);
        self.retime_deadline(id, now);
        let lanes: Vec<LaneId> = self.queues[id.index()].lanes.iter().copied().collect();
        for lane in lanes {
            self.unpark(lane);
            self.unready(lane);
            self.stop_aging(lane);
        }
        self.fallback_changed(id);
    }

    fn resume(&mut self, id: QueueId, now: Now) {
        let queue = &mut self.queues[id.index()];
        queue.paused = false;
        queue.update_clock(now.mono);
        self.retime_deadline(id, now);
        let lanes: Vec<LaneId> = self.queues[id.index()].lanes.iter().copied().collect();
        for lane in lanes {
            if !self.lanes[lane.index()].is_empty() {
                self.start_aging(lane, now);
                self.head_changed(lane);
            }
        }
        self.fallback_changed(id);
    }

    /// Calls of other models may go by this queue now, or may no more.
    fn fallback_changed(&mut self, id: QueueId) {
        let served: Vec<LaneId> = self
            .queues
            .iter()
            .filter(|queue| !queue.paused && queue.setup.fallback.contains(&id))
            .flat_map(|queue| queue.lanes.iter().copied())
            .collect();
        for lane in served {
            self.head_changed(lane);
        }
    }

    pub(crate) fn many_tenants(&self) -> bool {
        self.tenants.len() > 1
    }
}

impl LimitSetup {
    /// A limit of calls in flight to one upstream.
    pub(crate) fn places(name: String, count: u64) -> Self {
        let spec = llmq_core::LimitSpec::concurrency(count);
        let rule = llmq_limit::charge_rule(llmq_core::Host::Unknown, spec.kind);
        Self {
            name,
            spec,
            rule,
            scope: Scope::Upstream,
        }
    }
}
