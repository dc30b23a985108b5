use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use llmq_core::{FailureClass, Usage};
use llmq_dispatch::{QueueId, TenantId, UpstreamId};
use llmq_provider::translate::Untranslatable;
use llmq_provider::{AnswerFacts, Operation};
use llmq_store::{Job, JobError, StoreError};
use uuid::Uuid;

use crate::{AssembledRoute, Outgoing};

/// What a runner must know of the models, and whom it tells of its work.
pub trait Directory: Send + Sync + 'static {
    /// The line of a public model name; none when nothing serves it. When that changes, the runner
    /// is told ([`Runner::models_changed`](super::Runner::models_changed)).
    fn queue(&self, name: &str) -> Option<QueueId>;

    /// The lines of the models that may take a call of this one whose prompt is too long for it
    /// (`context_fallback`), in the order in which they are asked.
    fn larger_contexts(&self, name: &str) -> Vec<QueueId>;

    /// Who a job is charged to, as the dispatcher knows them: a tenant, with the limits of the key
    /// that the job came with.
    fn tenant(&self, name: &str, key: Option<Uuid>) -> TenantId;

    /// Holds the most that a job can cost of the budget of its key, from before its first byte is
    /// sent to its end; none where nobody counts.
    ///
    /// # Errors
    ///
    /// [`NotHeld`]: whether the job fails or waits.
    fn hold<'a>(&'a self, job: &'a Job) -> Holding<'a> {
        let _ = job;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// What a route's provider is to get of a job, whose body this is.
    ///
    /// # Errors
    ///
    /// The provider's dialect has no words for it.
    fn say(
        &self,
        job: &Job,
        operation: Operation,
        body: &Bytes,
        route: &AssembledRoute,
    ) -> Result<Outgoing, Untranslatable>;

    /// Where a grant leads.
    fn route(&self, upstream: UpstreamId) -> Option<Arc<AssembledRoute>>;

    /// What a call of a model cost that an upstream served, of the model's own or of one that stands
    /// in for it, in billionths of a dollar; none where no price is known.
    fn nano_usd(&self, model: &str, upstream: UpstreamId, usage: &Usage) -> Option<u64>;

    /// Whether anybody reads what streamed answers say of themselves, which takes a look at each
    /// event.
    fn reads_facts(&self) -> bool {
        false
    }

    /// Something happened to a job. Must not block.
    fn told(&self, told: Told<'_>);
}

/// What [`Directory::hold`] answers when it is known.
pub type Holding<'a> =
    Pin<Box<dyn Future<Output = Result<Option<Box<dyn Hold>>, NotHeld>> + Send + 'a>>;

/// Why nothing is held of the budget of a job.
#[derive(Debug)]
pub enum NotHeld {
    /// There is no room in it: so the job fails.
    Refused(JobError),
    /// It cannot be recorded now. The job is given back to the store and asked for again.
    Later(StoreError),
}

/// What is held of a budget for one job that runs. Dropped, it counts what may have been billed.
pub trait Hold: Send + Sync {
    /// An attempt begins: once `has_left` is true it may cost something.
    fn begins(&mut self, has_left: Arc<AtomicBool>);

    /// The attempt that began last has cost nothing.
    fn was_free(&mut self);

    /// The attempt that began last was answered, and used this; `nano_usd` in billionths of a US
    /// dollar. What earlier ones may have cost is counted beside it.
    fn settle(self: Box<Self>, usage: &Usage, nano_usd: u64);
}

/// What a runner tells of its work.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Told<'a> {
    /// An attempt ended.
    Attempt {
        /// Where.
        upstream: &'a str,
        /// How it failed, if it did.
        failure: Option<FailureClass>,
    },
    /// An attempt was answered.
    Answered {
        /// The job.
        job: &'a Job,
        /// Who answered.
        upstream: UpstreamId,
        /// What its caller will get.
        body: &'a Bytes,
    },
    /// A job came to its end.
    Ended {
        /// The job as it is now.
        job: &'a Job,
        /// How long its last attempt took; none where there was none.
        took: Option<Duration>,
        /// What its answer says of itself, where it ends with one.
        answer: Option<&'a AnswerFacts>,
    },
}
