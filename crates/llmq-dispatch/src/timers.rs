//! What is due when: deadlines, delays, lanes that rise, spots that may have room.

use std::time::Duration;

use llmq_core::{Now, Timestamp};

use crate::dispatcher::{Dispatcher, Timer};
use crate::events::{CallKind, Effect};
use crate::ids::{LaneId, QueueId, TicketId, UpstreamId};
use crate::order::Spot;
use crate::ticket::State;

/// The least time between two looks at what shuts an upstream. Who waits there looks at its very
/// end, so it is as short as time can be.
const MOMENT: Duration = Duration::from_nanos(1);

impl Dispatcher {
    /// Does what is due by `now`.
    pub(crate) fn due(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while let Some((at, timer)) = self
            .timers
            .first()
            .copied()
            .filter(|(at, _)| *at <= now.mono)
        {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Gate(upstream) => {
                    self.upstreams[upstream.index()].gate_timer = None;
                    self.gate_due(upstream, now, effects);
                }
                Timer::Spot(spot) => {
                    self.waiters_mut(spot).wake = None;
                    self.opened.push(spot);
                }
                Timer::Delayed(ticket) => {
                    self.enter(ticket, now);
                    self.watch_deadlines(ticket, now);
                }
                Timer::StartBy(ticket) => self.expire(ticket, now, effects),
                Timer::Deadline(queue) => self.deadlines_due(queue, now, effects),
                Timer::Rise(lane) => self.rise(lane, now),
            }
        }
    }

    /// Aims an upstream's timer at the end of what shuts it.
    pub(crate) fn retime_gate(&mut self, id: UpstreamId, now: Now) {
        let upstream = &mut self.upstreams[id.index()];
        // Later than now, whatever a clock says: what is due is looked at until nothing is.
        let next = upstream.looks_again_at(now);
        let next = next.map(|at| at.max(now.mono + MOMENT));
        let old = upstream.gate_timer;
        // A look that comes too early does no harm; one that is put off by each call would.
        let stays = old.zip(next).is_some_and(|(old, next)| old <= next);
        if old == next || stays {
            return;
        }
        upstream.gate_timer = next;
        if let Some(old) = old {
            self.timers.remove(&(old, Timer::Gate(id)));
        }
        if let Some(next) = next {
            self.timers.insert((next, Timer::Gate(id)));
        }
    }

    /// Sets when a spot's best lane may pass.
    pub(crate) fn set_wake(&mut self, spot: Spot, wake: Option<Timestamp>) {
        let list = self.waiters_mut(spot);
        let old = std::mem::replace(&mut list.wake, wake);
        if old == wake {
            return;
        }
        if let Some(old) = old {
            self.timers.remove(&(old, Timer::Spot(spot)));
        }
        if let Some(wake) = wake.filter(|wake| *wake < Timestamp::FAR_FUTURE) {
            self.timers.insert((wake, Timer::Spot(spot)));
        }
    }

    /// Keeps a ticket out of its lane until `at`.
    pub(crate) fn delay(&mut self, id: TicketId, at: Timestamp) {
        if let Some(ticket) = self.ticket_mut(id) {
            ticket.state = State::Delayed(at);
            self.timers.insert((at, Timer::Delayed(id)));
        }
    }

    /// Watches the deadlines of a ticket that was not started at once.
    pub(crate) fn watch_deadlines(&mut self, id: TicketId, now: Now) {
        let Some(ticket) = self.ticket(id) else {
            return;
        };
        if matches!(ticket.state, State::Running(_)) {
            return;
        }
        let (queue, start_by, ttl_at) = (ticket.call.queue, ticket.call.start_by, ticket.ttl_at);
        if let Some(at) = start_by {
            self.timers.insert((at, Timer::StartBy(id)));
        }
        if let Some(at) = ttl_at {
            self.queues[queue.index()].deadlines.insert((at, id));
            self.retime_deadline(queue, now);
        }
    }

    pub(crate) fn unwatch_deadlines(&mut self, id: TicketId) {
        let Some(ticket) = self.ticket(id) else {
            return;
        };
        let (queue, start_by, ttl_at) = (ticket.call.queue, ticket.call.start_by, ticket.ttl_at);
        if let State::Delayed(at) = ticket.state {
            self.timers.remove(&(at, Timer::Delayed(id)));
        }
        if let Some(at) = start_by {
            self.timers.remove(&(at, Timer::StartBy(id)));
        }
        if let Some(at) = ttl_at {
            self.queues[queue.index()].deadlines.remove(&(at, id));
        }
    }

    /// Aims the queue's timer at its next deadline.
    pub(crate) fn retime_deadline(&mut self, id: QueueId, now: Now) {
        let queue = &mut self.queues[id.index()];
        let next = queue.next_deadline(now.mono);
        if queue.deadline_timer == next {
            return;
        }
        if let Some(old) = std::mem::replace(&mut queue.deadline_timer, next) {
            self.timers.remove(&(old, Timer::Deadline(id)));
        }
        if let Some(next) = next {
            self.timers.insert((next, Timer::Deadline(id)));
        }
    }

    fn deadlines_due(&mut self, id: QueueId, now: Now, effects: &mut Vec<Effect>) {
        self.queues[id.index()].deadline_timer = None;
        let clock = self.queues[id.index()].clock(now.mono);
        while let Some((at, ticket)) = self.queues[id.index()].deadlines.first().copied() {
            if at > clock {
                break;
            }
            self.queues[id.index()].deadlines.remove(&(at, ticket));
            self.expire(ticket, now, effects);
        }
        self.retime_deadline(id, now);
    }

    /// A ticket has not been started in time.
    fn expire(&mut self, id: TicketId, now: Now, effects: &mut Vec<Effect>) {
        let Some(ticket) = self.ticket(id) else {
            return;
        };
        if matches!(ticket.state, State::Running(_)) {
            return;
        }
        // Who waits for the call is told when to come again; nobody waits for a stored one.
        let is_heard = ticket.call.kind == CallKind::Plain;
        let could_start = match is_heard {
            true => self.outlook(id, now).and_then(|outlook| outlook.start),
            false => None,
        };
        self.leave(id);
        self.forget(id);
        effects.push(Effect::Expired {
            ticket: id,
            could_start,
        });
    }

    /// When a waiting ticket's line may move next, as far as that is known.
    #[must_use]
    pub fn could_start(&self, id: TicketId) -> Option<Timestamp> {
        match self.ticket(id)?.state {
            State::Delayed(at) => Some(at),
            State::Waiting(lane) => {
                let parked = &self.lanes[lane.index()].parked;
                parked
                    .iter()
                    .filter_map(|(spot, _)| self.opens_at(*spot))
                    .min()
            }
            State::Running(_) => None,
        }
    }

    /// When a spot's best lane may pass, as far as that is known: a day's end is looked for
    /// oftener than it comes.
    pub(crate) fn opens_at(&self, spot: Spot) -> Option<Timestamp> {
        let wake = self.waiters(spot).wake?;
        let day_ends = match spot {
            Spot::Gate(upstream) => self.upstreams[upstream.index()].quota_closed,
            Spot::LowGate(upstream) => self.upstreams[upstream.index()].low_closed,
            Spot::Limit(_) => None,
        };
        Some(day_ends.map_or(wake, |ends| ends.max(wake)))
    }

    /// A lane that holds something begins to wait.
    pub(crate) fn start_aging(&mut self, id: LaneId, now: Now) {
        let aging = self.rules.aging;
        self.stop_aging(id);
        let lane = &mut self.lanes[id.index()];
        if lane.priority.raised() > lane.priority {
            let at = now.mono + aging;
            lane.rises_at = Some(at);
            self.timers.insert((at, Timer::Rise(id)));
        }
    }

    pub(crate) fn stop_aging(&mut self, id: LaneId) {
        if let Some(at) = self.lanes[id.index()].rises_at.take() {
            self.timers.remove(&(at, Timer::Rise(id)));
        }
    }

    fn rise(&mut self, id: LaneId, now: Now) {
        let Some(lane) = self.lanes.get_mut(id.index()) else {
            return;
        };
        lane.rises_at = None;
        if lane.is_empty() {
            return;
        }
        lane.priority = lane.priority.raised();
        self.start_aging(id, now);
        self.head_changed(id);
    }

    /// How many throttles in a row a call of this kind meets before it fails.
    pub(crate) fn throttles_max(&self, kind: CallKind) -> u32 {
        match kind {
            CallKind::Plain => self.rules.throttles_plain,
            CallKind::Stored => self.rules.throttles_stored,
        }
    }
}
