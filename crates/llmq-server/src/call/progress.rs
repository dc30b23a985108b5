//! How far a call has come, and what is recorded of it when it is over.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::HeaderMap;
use llmq_core::{Clock, FailureClass, Timestamp, Usage};
use llmq_provider::{AnswerFacts, Provider};
use uuid::Uuid;

use super::incoming::Incoming;
use crate::Gateway;
use crate::keys::Booking;
use crate::models::Model;
use crate::observe::{Begun, CallRecord, CallSpan};

/// What a server says of a caller that left before its answer (nginx's status).
const CALLER_LEFT: u16 = 499;

/// A call under way. Dropped, it is over: it is counted and logged then, with what was told of
/// it until then, or as one whose caller has left.
pub(crate) struct Progress {
    gateway: Arc<Gateway>,
    model: Arc<Model>,
    /// Whose price is paid: what serves it may be another model.
    served_by: Arc<Model>,
    pub(crate) id: Uuid,
    tenant: Box<str>,
    operation: llmq_provider::Operation,
    priority: llmq_core::Priority,
    stream: bool,
    arrived: Timestamp,
    /// In line, over all attempts.
    pub(crate) queued: Duration,
    /// Since when it waits; none: it does not.
    pub(crate) waits_since: Option<Timestamp>,
    /// At upstreams, over all attempts.
    pub(crate) upstream_time: Duration,
    /// Since when an upstream is asked; none: it is not.
    asked_since: Option<Timestamp>,
    pub(crate) attempts: u32,
    /// The upstream asked last.
    pub(crate) upstream: Option<Arc<str>>,
    /// What it waited for last.
    pub(crate) waited_for: Option<String>,
    pub(crate) first_token: Option<Timestamp>,
    booking: Option<Booking>,
    end: Option<(u16, Option<FailureClass>)>,
    usage: Option<Usage>,
    /// None: calls are not traced.
    span: Option<Box<CallSpan>>,
}

impl Progress {
    pub(crate) fn new(gateway: &Arc<Gateway>, incoming: &Incoming, model: &Arc<Model>) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            model: Arc::clone(model),
            served_by: Arc::clone(model),
            id: incoming.id,
            tenant: incoming.tenant_name.as_str().into(),
            operation: incoming.operation,
            priority: incoming.priority,
            stream: incoming.stream,
            arrived: incoming.arrived.mono,
            queued: Duration::ZERO,
            waits_since: None,
            upstream_time: Duration::ZERO,
            asked_since: None,
            attempts: 0,
            upstream: None,
            waited_for: None,
            first_token: None,
            booking: None,
            end: None,
            usage: None,
            span: gateway.traces.as_ref().map(|traces| {
                let begun = Begun {
                    operation: incoming.operation,
                    model: &model.name,
                    size: incoming.size,
                    stream: incoming.stream,
                    at: incoming.arrived.wall,
                };
                Box::new(traces.begin(begun, &incoming.headers))
            }),
        }
    }

    /// Whether somebody is told what its answer says of itself.
    pub(crate) fn is_traced(&self) -> bool {
        self.span.is_some()
    }

    /// Has the provider know below which span its work belongs.
    pub(crate) fn mark(&mut self, provider: &Provider, headers: &mut HeaderMap) {
        if let Some(span) = &mut self.span {
            span.asks(provider, headers);
        }
    }

    /// What its answer says of itself.
    pub(crate) fn answered(&mut self, facts: AnswerFacts) {
        if let Some(span) = &mut self.span {
            span.answered(facts);
        }
    }

    /// What is held of its caller's budget, from here on.
    pub(crate) fn books(&mut self, booking: Booking) {
        self.booking = Some(booking);
    }

    /// Nothing is held any more but for what may have been billed.
    pub(crate) fn gives_back(&mut self) {
        self.booking = None;
    }

    /// An attempt at an upstream begins, and may cost something once `has_left` is true.
    pub(crate) fn begins(
        &mut self,
        upstream: Arc<str>,
        served_by: Arc<Model>,
        has_left: Arc<AtomicBool>,
        now: Timestamp,
    ) {
        self.served_by = served_by;
        self.attempts += 1;
        self.upstream = Some(upstream);
        self.asked_since = Some(now);
        if let Some(booking) = &mut self.booking {
            booking.begins(has_left);
        }
    }

    /// The attempt is over: with an answer, or with this failure.
    pub(crate) fn asked(&mut self, failure: Option<FailureClass>, now: Timestamp) {
        self.upstream_time += self
            .asked_since
            .take()
            .map_or(Duration::ZERO, |at| now - at);
        if let Some(upstream) = &self.upstream {
            let metrics = &self.gateway.observed.metrics;
            metrics.attempt(upstream, failure);
        }
    }

    /// The wait is over.
    pub(crate) fn waited(&mut self, now: Timestamp) {
        self.queued += self
            .waits_since
            .take()
            .map_or(Duration::ZERO, |at| now - at);
    }

    /// The attempt that began last has cost nothing.
    pub(crate) fn was_free(&mut self) {
        if let Some(booking) = &mut self.booking {
            booking.was_free();
        }
    }

    /// What the caller gets; `class`: how the last attempt failed.
    pub(crate) fn ends(&mut self, status: u16, class: Option<FailureClass>) {
        self.end = Some((status, class));
    }

    /// What it used: the caller's budget is charged for it.
    pub(crate) fn used(&mut self, usage: Option<Usage>) {
        self.usage = usage;
        if let (Some(usage), Some(booking)) = (usage, self.booking.take()) {
            booking.settle(&usage, self.served_by.nano_usd(&usage));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let now = self.gateway.clock.now();
        // A caller that leaves ends whatever was under way.
        self.waited(now.mono);
        if let (Some(since), Some(upstream)) = (self.asked_since.take(), &self.upstream) {
            self.upstream_time += now.mono - since;
            let metrics = &self.gateway.observed.metrics;
            metrics.attempt_cancelled(upstream);
        }
        let took = now.mono - self.arrived;
        let span = self.span.take();
        let (status, outcome) = self.end.unwrap_or((CALLER_LEFT, None));
        let record = CallRecord {
            id: self.id,
            tenant: &self.tenant,
            model: &self.model.name,
            upstream: self.upstream.as_deref(),
            operation: self.operation,
            priority: self.priority,
            stream: self.stream,
            status,
            outcome,
            attempts: self.attempts,
            queued: self.queued,
            took,
            added: took.saturating_sub(self.queued + self.upstream_time),
            first_token: self.first_token.map(|at| at - self.arrived),
            usage: self.usage,
        };
        self.gateway.observed.metrics.call(&record);
        if !self.gateway.log.call(&record) {
            self.gateway.observed.metrics.not_logged();
        }
        if let Some(span) = span {
            span.end(&record, now.wall);
        }
    }
}
