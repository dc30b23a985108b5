use std::sync::Arc;
use std::time::Duration;

use llmq_core::{FailureClass, Usage};
use llmq_dispatch::{QueueId, TenantId, UpstreamId};
use llmq_store::Job;

use crate::AssembledRoute;

/// What a runner must know of the models, and whom it tells of its work.
pub trait Directory: Send + Sync + 'static {
    /// The line of a public model name; none when nothing serves it.
    fn queue(&self, name: &str) -> Option<QueueId>;

    /// Who a job is charged to, as the dispatcher knows them.
    fn tenant(&self, name: &str) -> TenantId;

    /// Where a grant leads.
    fn route(&self, upstream: UpstreamId) -> Option<Arc<AssembledRoute>>;

    /// What a call of a model cost, in billionths of a dollar; none where no price is known.
    fn nano_usd(&self, model: &str, usage: &Usage) -> Option<u64>;

    /// Something happened to a job. Must not block.
    fn told(&self, told: Told<'_>);
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
    /// A job came to its end.
    Ended {
        /// The job as it is now.
        job: &'a Job,
        /// How long its last attempt took; none where there was none.
        took: Option<Duration>,
    },
}
