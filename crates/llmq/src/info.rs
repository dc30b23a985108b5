use std::sync::Arc;

use llmq_core::{FailureClass, LimitSpec};
use llmq_dispatch::{LimitView, QueueView, UpstreamView};
use llmq_limit::BreakerState;
use serde::{Serialize, Serializer};

use crate::metrics::QueueMetrics;

/// A queue as people see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QueueInfo {
    /// Its model.
    #[serde(serialize_with = "as_written")]
    pub model_id: Arc<str>,
    /// Requests that wait, for their turn or for another attempt.
    pub queue_size: u64,
    /// Requests that are being processed.
    pub processing: u64,
    /// Whether somebody paused it.
    pub is_paused: bool,
    /// Whether it accepts nothing more.
    pub is_closed: bool,
    /// Whether the model is taken as down.
    pub is_down: bool,
    /// What the provider closed the model for, until it says otherwise.
    pub closed_for: Option<FailureClass>,
    /// Every limit its calls must meet.
    pub limits: Vec<LimitInfo>,
    /// What it has done so far.
    pub metrics: QueueMetrics,
}

/// A limit as people see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LimitInfo {
    /// Its name, such as `rpm gpt-4o-mini`.
    pub name: String,
    /// The limit; serialized as it is written, such as `requests=500/1m`.
    #[serde(serialize_with = "as_written")]
    pub limit: LimitSpec,
    /// The share in use, 0 to 1; above 1 in debt.
    pub in_use: f64,
}

pub(crate) fn as_written<S: Serializer>(
    value: &impl std::fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl LimitInfo {
    /// What may be taken from it now, in its own unit.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a count, from 0 to the count"
    )]
    pub fn available(&self) -> u64 {
        let count = self.limit.count as f64;
        (count * (1.0 - self.in_use.clamp(0.0, 1.0))).round() as u64
    }
}

impl From<LimitView> for LimitInfo {
    fn from(view: LimitView) -> Self {
        Self {
            name: view.name,
            limit: view.spec,
            in_use: view.in_use,
        }
    }
}

impl QueueInfo {
    pub(crate) fn new(
        model_id: Arc<str>,
        queue: QueueView,
        upstream: &UpstreamView,
        limits: Vec<LimitInfo>,
        is_closed: bool,
        metrics: QueueMetrics,
    ) -> Self {
        Self {
            model_id,
            queue_size: queue.jobs.saturating_sub(queue.running),
            processing: queue.running,
            is_paused: queue.paused,
            is_closed,
            is_down: !matches!(upstream.breaker, BreakerState::Closed),
            closed_for: upstream.closed.map(|(class, _)| class),
            limits,
            metrics,
        }
    }
}
