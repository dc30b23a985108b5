//! What the runner of jobs must know of the models.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use llmq_core::{Clock, FailureClass, Usage};
use llmq_dispatch::{QueueId, TenantId, UpstreamId};
use llmq_engine::jobs::{Directory, Hold, Holding, NotHeld, Told};
use llmq_engine::{AssembledRoute, Hub, Outgoing, Saying, StreamOf, SystemClock};
use llmq_provider::translate::Untranslatable;
use llmq_provider::{AnswerFacts, Operation};
use llmq_store::{Job, JobError, StoreError};
use uuid::Uuid;

use super::plain::STREAM;
use crate::call;
use crate::keys::{Booking, BudgetError, Caller, KeyRing, Spend};
use crate::made::{Made, Maker};
use crate::models::{Models, unnamed};
use crate::observe::{CallLog, CallRecord, Observed, Traces};
use crate::openai::batches::Touched;
use crate::tenants::Tenants;

/// The word for a job that its key's budget had no room for.
pub(super) const BUDGET_EXHAUSTED: &str = "budget_exhausted";

/// The gateway's models, tenants and figures.
pub(crate) struct Catalog {
    pub(crate) models: Arc<Models>,
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: SystemClock,
    pub(crate) observed: Arc<Observed>,
    pub(crate) traces: Option<Arc<Traces>>,
    pub(crate) log: Arc<CallLog>,
    pub(crate) made: Arc<Made>,
    pub(crate) batches: Arc<Touched>,
}

impl Directory for Catalog {
    fn queue(&self, name: &str) -> Option<QueueId> {
        let made = || self.observed.refresh();
        let model = self.models.find(name, &self.hub, made)?;
        Some(model.queue)
    }

    fn larger_contexts(&self, name: &str) -> Vec<QueueId> {
        let Some(model) = self.models.known(name) else {
            return Vec::new();
        };
        let names = model.settings.context_fallback.iter();
        let models = names.filter_map(|name| self.models.known(name));
        models.map(|model| model.queue).collect()
    }

    fn tenant(&self, name: &str, key: Option<Uuid>) -> TenantId {
        let caller = key.and_then(|key| self.keys.by_id(key));
        let caller = caller.unwrap_or_else(Caller::anonymous);
        let now = self.clock.now();
        self.tenants.of(&caller, name, &self.hub, now)
    }

    fn hold<'a>(&'a self, job: &'a Job) -> Holding<'a> {
        Box::pin(async {
            let caller = job.details.key.and_then(|key| self.keys.by_id(key));
            let Some(caller) = caller.filter(Caller::has_budget) else {
                return Ok(None);
            };
            let most = self.most(job);
            let booking = self.keys.reserve(&caller, most).await;
            booking
                .map(|booking| Some(Box::new(booking) as _))
                .map_err(over_budget)
        })
    }

    fn say(
        &self,
        job: &Job,
        operation: Operation,
        body: &Bytes,
        route: &AssembledRoute,
    ) -> Result<Outgoing, Untranslatable> {
        let stream = match job.details.extra.get(STREAM) {
            None => StreamOf::Nothing,
            Some(stream) => {
                let caller = job.details.key.and_then(|key| self.keys.by_id(key));
                let caller = caller.unwrap_or_else(Caller::anonymous);
                let include_usage = stream["include_usage"].as_bool();
                call::stream_of(true, include_usage, &caller)
            }
        };
        match self.models.known_or_gone(&job.queue) {
            Some(model) => Outgoing::of(&model.saying(operation, body, stream), route),
            // Nobody had configured it, and it made room for another name.
            None => {
                let saying = Saying {
                    operation,
                    model: &job.queue,
                    settings: &unnamed(String::new()),
                    body,
                    stream,
                };
                Outgoing::of(&saying, route)
            }
        }
    }

    fn route(&self, upstream: UpstreamId) -> Option<Arc<AssembledRoute>> {
        self.models.route(upstream)
    }

    fn nano_usd(&self, model: &str, upstream: UpstreamId, usage: &Usage) -> Option<u64> {
        let model = self.models.known_or_gone(model)?;
        let model = self.models.serving(&model, upstream);
        model.settings.price.map(|_| model.nano_usd(usage))
    }

    fn reads_facts(&self) -> bool {
        self.traces.is_some()
    }

    fn told(&self, told: Told<'_>) {
        match told {
            Told::Attempt { upstream, failure } => {
                self.observed.metrics.attempt(upstream, failure);
            }
            Told::Answered {
                job,
                upstream,
                body,
            } => self.answered(job, upstream, body),
            Told::Ended { job, took, answer } => self.ended(job, took, answer),
            _ => {}
        }
    }
}

/// What becomes of a job of whose key's budget nothing could be held.
fn over_budget(error: BudgetError) -> NotHeld {
    let (class, code) = match &error {
        BudgetError::Overspent { .. } => (FailureClass::Money, BUDGET_EXHAUSTED),
        // No later try finds it whole.
        BudgetError::Store(StoreError::Damaged { .. }) => {
            (FailureClass::Transient, "store_unavailable")
        }
        BudgetError::Store(error) => return NotHeld::Later(error.clone()),
    };
    NotHeld::Refused(JobError {
        class: Some(class),
        ..JobError::new(code, error.to_string())
    })
}

impl Hold for Booking {
    fn begins(&mut self, has_left: Arc<AtomicBool>) {
        Self::begins(self, has_left);
    }

    fn was_free(&mut self) {
        Self::was_free(self);
    }

    fn settle(self: Box<Self>, usage: &Usage, nano_usd: u64) {
        Self::settle(*self, usage, nano_usd);
    }
}

impl Catalog {
    /// The most that a job can cost.
    fn most(&self, job: &Job) -> Spend {
        let operation = Operation::from_path(&job.details.endpoint);
        let model = self.models.known_or_gone(&job.queue);
        let most = operation
            .zip(model)
            .map(|(operation, model)| call::most(&self.models, operation, job.size, &model));
        most.unwrap_or_default()
    }

    /// A response that is continued later is continued where it was made.
    fn answered(&self, job: &Job, upstream: UpstreamId, body: &Bytes) {
        if Operation::from_path(&job.details.endpoint) != Some(Operation::Responses) {
            return;
        }
        let by = Maker::new(upstream, &job.tenant);
        match job.details.extra.get(STREAM) {
            None => self.made.note_whole(body, by),
            Some(_) => self.made.note_stream(body, by),
        }
    }

    /// A job is over: it is counted and logged.
    fn ended(&self, job: &Job, took: Option<Duration>, answer: Option<&AnswerFacts>) {
        if let Some(member) = &job.member {
            self.batches.touch(member.batch);
        }
        let stream = job.details.extra.get(STREAM).is_some();
        if let Some(traces) = &self.traces {
            let upstream = job.upstream.as_deref();
            let provider = upstream.and_then(|name| self.models.provider(name));
            traces.job(job, provider, stream, answer);
        }
        let operation = Operation::from_path(&job.details.endpoint);
        let took = took.unwrap_or_default();
        let lived = job.finished_at.map(|at| at.since(job.created_at));
        let lived = lived.unwrap_or_default().max(took);
        let error = job.error.as_ref().filter(|_| job.usage.is_none());
        let record = CallRecord {
            id: job.id.as_uuid(),
            tenant: &job.tenant,
            model: &job.queue,
            upstream: job.upstream.as_deref(),
            operation: operation.unwrap_or(Operation::ChatCompletions),
            priority: job.priority,
            stream,
            status: match job.status {
                llmq_core::Status::Completed => 200,
                llmq_core::Status::Cancelled => 499,
                llmq_core::Status::Expired => 429,
                _ => 502,
            },
            outcome: error.and_then(|error| error.class),
            attempts: job.attempts,
            queued: lived.saturating_sub(took),
            took: lived,
            added: Duration::ZERO,
            first_token: None,
            usage: job.usage,
        };
        self.observed.metrics.call(&record);
        if !self.log.call(&record) {
            self.observed.metrics.not_logged();
        }
    }
}
