//! What callers do: they come, and some give up.

use llmq_core::Usage;
use llmq_dispatch::{Call, CallKind, Event};

use super::{Next, World};
use crate::books::Place;

impl World<'_> {
    pub(super) fn submit(&mut self, index: usize) {
        let plan = self.calls[index].plan;
        let source = self.scenario.sources[plan.source];
        let call = Call {
            priority: source.priority,
            size: plan.size,
            kind: CallKind::Stored,
            ttl: source.ttl,
            ..Call::new(self.queues[source.queue], self.tenants[source.tenant])
        };
        self.report.calls += 1;
        self.books.submitted(index, self.now);
        // The ticket must be known before its effects are looked at; they wait in `effects`.
        match self
            .dispatcher
            .submit(call, self.clock.at(self.now), &mut self.effects)
        {
            Ok(ticket) => {
                self.calls[index].ticket = Some(ticket);
                self.by_ticket.insert(ticket, index);
            }
            Err(refusal) => self.books.fault(self.now, &refusal.to_string()),
        }
        if let Some(after) = plan.leaves_after {
            self.agenda.add(self.now + after, Next::Leave(index));
        }
    }

    pub(super) fn leave(&mut self, index: usize) {
        let Some(ticket) = self.calls[index].ticket else {
            return;
        };
        let running = match self.books.place(index) {
            Place::Outside | Place::Over => return,
            Place::Running => true,
            Place::Waiting | Place::Delayed(_) => false,
        };
        // Who gives up has told before that it was written.
        self.written(index, self.calls[index].attempt);
        self.tell(Event::Dropped(ticket));
        self.over(index);
        self.report.dropped += 1;
        if running {
            let call = &mut self.calls[index];
            // The connection is closed, and the provider stops when it sees that.
            let usage = Usage {
                output_tokens: call.produced,
                ..call.plan.usage
            };
            let attempt = call.attempt;
            if let Some(ideal) = call.ideal.take() {
                self.ideals.ended(&ideal, usage, self.now);
            }
            if call.admitted.is_some() {
                self.agenda
                    .add(self.now, Next::Finish(index, attempt, usage));
            } else {
                // Not yet sent or on its way: what is on its way arrives all the same.
                call.ticket = None;
            }
        }
    }

    pub(super) fn over(&mut self, index: usize) {
        self.books.end(index, self.now);
        self.left -= 1;
        if let Some(ticket) = self.calls[index].ticket {
            self.by_ticket.remove(&ticket);
        }
    }

    pub(super) fn pause(&mut self, pause: bool) {
        let queue = self.queues[0];
        if pause {
            self.tell(Event::Pause(queue));
            self.books.pause(0, self.now);
        } else {
            self.books.resume(0, self.now);
            self.tell(Event::Resume(queue));
        }
    }
}
