use std::sync::Arc;
use std::sync::atomic::Ordering;

use llmq_core::{LimitKind, Status, Timestamp, Usage};
use llmq_dispatch::Event;
use llmq_limit::{Refund, charge_rule, parse_rate_limit_headers};
use uuid::Uuid;

use super::inner::Inner;
use crate::registry::Found;

impl<P, T> Inner<P, T> {
    /// Takes what a request really used; false when it is unknown.
    pub(super) fn tell_usage(&self, id: Uuid, usage: Usage) -> bool {
        let mut registry = self.registry();
        let (before, size, sent_at) = match registry.find(id) {
            None => return false,
            Some(Found::Live(live)) => {
                live.tell_usage(usage);
                return true;
            }
            Some(Found::Finished(finished)) => (
                finished.response.usage.replace(usage),
                finished.size,
                finished.sent_at,
            ),
        };
        drop(registry);
        let before = before.unwrap_or(Usage {
            input_tokens: u64::from(size.input_tokens),
            // Where no cap was known, the mean answer was charged, which is near enough.
            output_tokens: size
                .max_output_tokens
                .map_or(usage.output_tokens, |_| size.output_cap(0)),
            ..Usage::default()
        });
        self.resettle(&before, &usage, sent_at);
        true
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

    /// Corrects limits for a call that was settled to `before` and had used `after`.
    fn resettle(&self, before: &Usage, after: &Usage, sent_at: Timestamp) {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let input = signed(after.input_tokens) - signed(before.input_tokens);
        let output = signed(after.output_tokens) - signed(before.output_tokens);
        self.engine.hub.change(|dispatcher, now, effects| {
            for (id, spec) in &self.place.limits {
                let amount = match spec.kind {
                    LimitKind::Tokens => input + output,
                    LimitKind::InputTokens => input,
                    LimitKind::OutputTokens => output,
                    LimitKind::Requests | LimitKind::Concurrency => continue,
                };
                // A provider that gives nothing back is not corrected either.
                if charge_rule(self.place.host, spec.kind).refund != Refund::ToUsage {
                    continue;
                }
                let books = dispatcher.limit_mut(*id);
                books.correct(amount, sent_at, now.mono);
                let allowed = books.allowed();
                dispatcher.allow(*id, allowed, now, effects);
            }
        });
    }
}
