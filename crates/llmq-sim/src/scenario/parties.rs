use std::time::Duration;

use llmq_core::LimitSpec;

/// A tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantPlan {
    /// Its share among those that wait for the same limit, above 0.
    pub weight: f64,
    /// Limits of its own, beside those of the providers.
    pub limits: Vec<LimitSpec>,
}

impl Default for TenantPlan {
    fn default() -> Self {
        Self::of_weight(1.0)
    }
}

impl TenantPlan {
    /// A tenant without limits of its own.
    #[must_use]
    pub fn of_weight(weight: f64) -> Self {
        Self {
            weight,
            limits: Vec::new(),
        }
    }
}

/// A queue: a model with the providers that serve it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QueuePlan {
    /// Providers by position, each with its weight.
    pub routes: Vec<(usize, f64)>,
    /// Queues whose providers may serve it when its own cannot, by position, in order. They
    /// must have none of its own providers.
    pub fallback: Vec<usize>,
    /// Limits of the model itself.
    pub limits: Vec<LimitSpec>,
}

impl QueuePlan {
    /// A queue to these providers, without limits of its own or a fallback.
    #[must_use]
    pub fn to(routes: impl IntoIterator<Item = (usize, f64)>) -> Self {
        Self {
            routes: routes.into_iter().collect(),
            ..Self::default()
        }
    }
}

/// Our own wall clock is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallJump {
    /// From the start of the run.
    pub after: Duration,
    /// By how many milliseconds, forwards or back.
    pub by_ms: i64,
}
