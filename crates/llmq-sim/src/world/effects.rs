//! What the dispatcher wants done is done, and counted.

use llmq_core::FailureClass;
use llmq_dispatch::{Effect, Notice, TicketId};

use super::{Next, World};
use crate::report::Report;

impl World<'_> {
    pub(super) fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.carry_out_one(effect);
        }
        self.effects = effects;
    }

    fn carry_out_one(&mut self, effect: Effect) {
        let (ticket, counter): (TicketId, fn(&mut Report) -> &mut u64) = match effect {
            Effect::Start(start) => return self.start(start.ticket, start.upstream),
            Effect::Notice(notice) => {
                if let Notice::UpstreamPaused {
                    class: FailureClass::QuotaDay | FailureClass::Money,
                    ..
                } = notice
                {
                    self.books.quota_closed();
                }
                return;
            }
            Effect::Requeued {
                ticket, not_before, ..
            } => {
                let not_before = self.clock.instant(not_before);
                if let Some(index) = self.by_ticket.get(&ticket).copied() {
                    self.check_patience(index, not_before);
                    self.books.requeue(index, not_before, self.now);
                    self.agenda.add(not_before, Next::Due(index));
                }
                return;
            }
            Effect::Failed { ticket, .. } | Effect::NoUpstream { ticket } => {
                (ticket, |report| &mut report.failed)
            }
            Effect::Completed { ticket, .. } => (ticket, |report| &mut report.completed),
            Effect::Expired { ticket, .. } => (ticket, |report| &mut report.expired),
            Effect::TooLarge { ticket, .. } => (ticket, |report| &mut report.too_large),
        };
        match self.by_ticket.get(&ticket).copied() {
            Some(index) => {
                *counter(&mut self.report) += 1;
                self.over(index);
            }
            None => self.books.fault(self.now, "an unknown ticket ended"),
        }
    }

    pub(super) fn check_counts(&mut self) {
        for index in 0..self.queues.len() {
            let view = self.dispatcher.queue_view(self.queues[index]);
            let (jobs, running) = self.books.counts(index);
            if (view.jobs, view.running) != (jobs, running) {
                let text = format!(
                    "{} jobs, {} running are told, {jobs} and {running} are right",
                    view.jobs, view.running
                );
                self.books.fault(self.now, &text);
            }
        }
    }
}
