//! Where else a call may go: after a failure, or since an upstream cannot take it at all.

use llmq_core::{FailureClass, Now};

use crate::dispatcher::Dispatcher;
use crate::events::{CallKind, Effect};
use crate::ids::{TicketId, UpstreamId};
use crate::setup::QueueSetup;
use crate::ticket::Ticket;

impl Dispatcher {
    /// The call was not sent, since its upstream cannot take it.
    pub(crate) fn declined(&mut self, id: TicketId, now: Now, effects: &mut Vec<Effect>) {
        let Some(running) = self.take_running(id) else {
            return;
        };
        if running.probe {
            let breaker = &mut self.upstreams[running.upstream.index()].breaker;
            breaker.probe_lost(now);
        }
        self.release(id, &running, None, now, effects);
        let Some(ticket) = self.ticket_mut(id) else {
            return;
        };
        ticket.attempts = ticket.attempts.saturating_sub(1);
        if !ticket.barred.contains(&running.upstream) {
            ticket.barred.push(running.upstream);
        }
        let attempts = ticket.attempts;
        let class = FailureClass::RowFault;
        if !self.has_any_way(id) {
            self.forget(id);
            effects.push(Effect::Failed {
                ticket: id,
                class,
                attempts,
            });
            return;
        }
        effects.push(Effect::Requeued {
            ticket: id,
            class,
            not_before: now.mono,
        });
        self.requeue(id, false, now);
        self.watch_deadlines(id, now);
    }

    /// An upstream took the call and said nothing. Whoever waits for the answer has no time to
    /// find it silent again, and it may bill each time; what nobody waits for can be patient.
    pub(crate) fn bar_silent(&mut self, id: TicketId, upstream: UpstreamId, is_awaited: bool) {
        if let Some(ticket) = self.ticket_mut(id)
            && (is_awaited || ticket.call.kind == CallKind::Plain)
            && !ticket.barred.contains(&upstream)
        {
            ticket.barred.push(upstream);
        }
    }

    pub(crate) fn is_barred(&self, ticket: TicketId, upstream: UpstreamId) -> bool {
        self.ticket(ticket)
            .is_some_and(|ticket| ticket.barred.contains(&upstream))
    }

    /// Whether an upstream that has not failed this call yet could take it. A fallback's could
    /// only if none of its own model is up: else the call would come back at once to the one
    /// that has just failed it.
    pub(crate) fn has_other_way(&self, id: TicketId, now: Now) -> bool {
        let Some(ticket) = self.ticket(id) else {
            return false;
        };
        let (own, mut fallbacks) = self.ways(ticket);
        let untried = |setup: &QueueSetup| any(setup, |upstream| is_untried(ticket, upstream));
        untried(own) || self.all_down(id, now) && fallbacks.any(untried)
    }

    /// Whether an upstream of its own or of a fallback has not been asked yet.
    pub(crate) fn has_untried_way(&self, id: TicketId) -> bool {
        self.ticket(id)
            .is_some_and(|ticket| self.any_way(ticket, |upstream| is_untried(ticket, upstream)))
    }

    /// Whether an upstream of its own or of a fallback is left to it at all.
    pub(crate) fn has_any_way(&self, id: TicketId) -> bool {
        self.ticket(id)
            .is_some_and(|ticket| self.any_way(ticket, |upstream| is_left(ticket, upstream)))
    }

    /// Whether another upstream of its own model is left to it, than this one, that does not refuse
    /// its key. It may be full or broken: that passes.
    pub(crate) fn has_willing_way(&self, id: TicketId, than: UpstreamId) -> bool {
        let Some(ticket) = self.ticket(id) else {
            return false;
        };
        any(self.ways(ticket).0, |upstream| {
            let closed = self.upstreams[upstream.index()].closed;
            let refuses = closed.is_some_and(|closed| closed.class == FailureClass::NoAccess);
            upstream != than && is_left(ticket, upstream) && !refuses
        })
    }

    /// Whether every upstream of the call's own model is broken, refuses us or cannot take it.
    pub(crate) fn all_down(&self, id: TicketId, now: Now) -> bool {
        let Some(ticket) = self.ticket(id) else {
            return false;
        };
        let own = &self.queues[ticket.call.queue.index()].setup;
        !any(own, |upstream| {
            let gate = self.upstreams[upstream.index()].gate_state(now);
            let is_down = gate.is_some_and(|gate| gate.down);
            !is_down && !ticket.barred.contains(&upstream)
        })
    }

    fn any_way(&self, ticket: &Ticket, is_one: impl Fn(UpstreamId) -> bool) -> bool {
        let (own, fallbacks) = self.ways(ticket);
        std::iter::once(own)
            .chain(fallbacks)
            .any(|setup| any(setup, &is_one))
    }

    /// The ways of a call's own model, and those of its fallbacks that are not paused.
    fn ways(&self, ticket: &Ticket) -> (&QueueSetup, impl Iterator<Item = &QueueSetup>) {
        let own = &self.queues[ticket.call.queue.index()].setup;
        let fallbacks = own.fallback.iter().map(|id| &self.queues[id.index()]);
        let fallbacks = fallbacks.filter(|queue| !queue.paused);
        (own, fallbacks.map(|queue| &queue.setup))
    }
}

fn any(setup: &QueueSetup, mut is_one: impl FnMut(UpstreamId) -> bool) -> bool {
    setup.routes.iter().any(|route| is_one(route.upstream))
}

fn is_left(ticket: &Ticket, upstream: UpstreamId) -> bool {
    let spent = ticket.exhausted && ticket.avoid.contains(&upstream);
    !spent && !ticket.barred.contains(&upstream)
}

fn is_untried(ticket: &Ticket, upstream: UpstreamId) -> bool {
    !ticket.avoid.contains(&upstream) && !ticket.barred.contains(&upstream)
}
