use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use llmq_core::Priority;
use uuid::Uuid;

use crate::error::QueueError;
use crate::processor::ProcessorError;

/// A request at one moment of its life, as hooks see it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HookEvent<'a> {
    /// The request.
    pub request_id: Uuid,
    /// Its model.
    pub model_id: &'a str,
    /// Its urgency.
    pub priority: Priority,
    /// Attempts so far, the running one included.
    pub attempt: u32,
    /// From its submission until now.
    pub age: Duration,
    /// How long the attempt took that has just ended.
    pub processing_time: Option<Duration>,
    /// Its own words.
    pub metadata: &'a BTreeMap<String, String>,
}

/// Who hears what happens to requests.
///
/// Every accepted request is `queued` once, and ends with exactly one of `completed` and
/// `failed`; in between it is `started` for each attempt and `retried` when it goes back in
/// line. Hooks are called by whoever drives the request, in this order, and must not block.
/// One that panics is logged and changes nothing.
pub trait Hooks: Send + Sync + 'static {
    /// It was accepted.
    fn queued(&self, _event: &HookEvent<'_>) {}

    /// An attempt begins.
    fn started(&self, _event: &HookEvent<'_>) {}

    /// The attempt failed and there will be another.
    fn retried(&self, _event: &HookEvent<'_>, _error: &ProcessorError) {}

    /// It has its result.
    fn completed(&self, _event: &HookEvent<'_>) {}

    /// It will never have one: failed, timed out or cancelled.
    fn failed(&self, _event: &HookEvent<'_>, _error: &QueueError) {}
}

/// Calls a hook, if there is one.
pub(crate) fn tell(hooks: Option<&Arc<dyn Hooks>>, call: impl FnOnce(&dyn Hooks)) {
    let Some(hooks) = hooks else { return };
    // A hook sees only shared data of ours, which nothing in it can tear.
    if catch_unwind(AssertUnwindSafe(|| call(&**hooks))).is_err() {
        tracing::error!("a hook panicked");
    }
}
