use std::sync::Arc;
use std::sync::atomic::Ordering;

use llmq_core::{Status, Usage};
use llmq_dispatch::{Event, TicketId};
use llmq_limit::parse_rate_limit_headers;
use uuid::Uuid;

use super::inner::Inner;
use crate::registry::Found;

impl<P, T> Inner<P, T> {
    /// Takes what a request really used; false when it is unknown.
    pub(super) fn tell_usage(&self, id: Uuid, usage: Usage) -> bool {
        let ticket = match self.registry().find(id) {
            None => return false,
            Some(Found::Live(live)) => {
                live.tell_usage(usage);
                if live.status() == Status::Processing {
                    // Its attempt is settled to it.
                    return true;
                }
                live.ticket
            }
            Some(Found::Finished(finished)) => {
                finished.response.usage = Some(usage);
                finished.ticket
            }
        };
        self.correct(ticket, &usage);
        true
    }

    /// Corrects what the last attempt was charged, if that has ended.
    pub(crate) fn correct(&self, ticket: TicketId, usage: &Usage) {
        self.engine.hub.change(|dispatcher, now, effects| {
            dispatcher.correct(self.place.queue, ticket, usage, now, effects);
        });
    }

    /// Takes what an answer's headers say of limits; false when no attempt of this request runs.
    pub(super) fn tell_headers<'a>(
        &self,
        id: Uuid,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> bool {
        let live = match self.registry().find(id) {
            Some(Found::Live(live)) if live.status() == Status::Processing => Arc::clone(live),
            Some(Found::Live(_) | Found::Finished(_)) | None => return false,
        };
        let headers = parse_rate_limit_headers(self.place.host, headers, self.engine.now());
        self.hears.store(true, Ordering::Relaxed);
        let first_byte = Event::FirstByte(live.ticket, headers.processing);
        live.tell_headers(headers);
        self.engine.hub.handle(first_byte);
        true
    }
}
