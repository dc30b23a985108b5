//! What the runner of jobs must know of the models.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Clock, Usage};
use llmq_dispatch::{QueueId, TenantId, UpstreamId};
use llmq_engine::jobs::{Directory, Told};
use llmq_engine::{AssembledRoute, Hub, SystemClock};
use llmq_provider::Operation;
use llmq_store::Job;
use uuid::Uuid;

use crate::keys::KeyRing;
use crate::models::Models;
use crate::observe::{CallRecord, Observed, Traces};
use crate::openai::batches::Touched;
use crate::tenants::Tenants;

/// The gateway's models, tenants and figures.
pub(crate) struct Catalog {
    pub(crate) models: Arc<Models>,
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: SystemClock,
    pub(crate) observed: Arc<Observed>,
    pub(crate) traces: Option<Arc<Traces>>,
    pub(crate) batches: Arc<Touched>,
}

impl Directory for Catalog {
    fn queue(&self, name: &str) -> Option<QueueId> {
        let made = || self.observed.refresh();
        let model = self.models.find(name, &self.hub, self.clock.now(), made)?;
        Some(model.queue)
    }

    fn tenant(&self, name: &str) -> TenantId {
        self.tenants
            .named(name, &self.keys, &self.hub, self.clock.now())
    }

    fn route(&self, upstream: UpstreamId) -> Option<Arc<AssembledRoute>> {
        self.models.route(upstream)
    }

    fn nano_usd(&self, model: &str, usage: &Usage) -> Option<u64> {
        let model = self.models.known(model)?;
        model.settings.price.map(|_| model.nano_usd(usage))
    }

    fn told(&self, told: Told<'_>) {
        match told {
            Told::Attempt { upstream, failure } => {
                self.observed.metrics.attempt(upstream, failure);
            }
            Told::Ended { job, took } => self.ended(job, took),
            _ => {}
        }
    }
}

impl Catalog {
    /// A job is over: it is counted, and its key charged.
    fn ended(&self, job: &Job, took: Option<Duration>) {
        if let Some(member) = &job.member {
            self.batches.touch(member.batch);
        }
        let key = job.details.extra.get("key");
        let key = key.and_then(serde_json::Value::as_str);
        if let (Some(key), Some(usage)) = (key.and_then(|key| Uuid::parse_str(key).ok()), job.usage)
        {
            self.keys
                .charge(key, &usage, job.cost_nano_usd.unwrap_or(0));
        }
        if let Some(traces) = &self.traces {
            traces.job(job);
        }
        let operation = Operation::from_path(&job.details.endpoint);
        let took = took.unwrap_or_default();
        let lived = job.finished_at.map(|at| at.since(job.created_at));
        let lived = lived.unwrap_or_default().max(took);
        let error = job.error.as_ref().filter(|_| job.usage.is_none());
        self.observed.metrics.call(&CallRecord {
            id: job.id.as_uuid(),
            tenant: &job.tenant,
            model: &job.queue,
            upstream: job.upstream.as_deref(),
            operation: operation.unwrap_or(Operation::ChatCompletions),
            priority: job.priority,
            stream: false,
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
        });
    }
}
