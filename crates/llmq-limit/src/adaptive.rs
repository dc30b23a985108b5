mod latency;
mod plain;

use std::time::Duration;

use llmq_core::Now;

use latency::Latency;
use plain::Plain;

/// How the number of calls in flight to an upstream is found, where no limit is published
/// (`[upstreams.*] adaptive`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdaptiveConfig {
    /// By the latency of an output token and by overload answers.
    Latency(LatencyPolicy),
    /// By the share of errors and the use of the daily quota.
    Plain(PlainPolicy),
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        Self::Latency(LatencyPolicy::default())
    }
}

impl AdaptiveConfig {
    /// The most calls in flight that the policy ever allows.
    #[must_use]
    pub fn max(&self) -> u64 {
        match self {
            Self::Latency(policy) => policy.max,
            Self::Plain(policy) => policy.max,
        }
    }
}

/// Bounds of the policy `latency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyPolicy {
    /// Where it starts, at least 1.
    pub initial: u64,
    /// It never grows above this.
    pub max: u64,
}

impl Default for LatencyPolicy {
    fn default() -> Self {
        Self {
            initial: 16,
            max: 2_048,
        }
    }
}

/// Bounds and thresholds of the policy `plain`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlainPolicy {
    /// Where it starts, at least 1.
    pub initial: u64,
    /// It never grows above this.
    pub max: u64,
    /// A share of errors above it takes a quarter away.
    pub error_down: f64,
    /// A use of the daily quota above it takes a quarter away.
    pub use_down: f64,
    /// A share of successes above it allows one more …
    pub success_up: f64,
    /// … while the use of the daily quota is below this.
    pub use_up: f64,
}

impl Default for PlainPolicy {
    fn default() -> Self {
        Self {
            initial: 4,
            max: 16,
            error_down: 0.2,
            use_down: 0.9,
            success_up: 0.95,
            use_up: 0.5,
        }
    }
}

/// How a call ended, as far as concurrency is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerOutcome {
    /// With an answer.
    Success,
    /// The provider said that it lacks capacity (503, 529, 498).
    Overload,
    /// In any other way that is the provider's or the network's fault.
    Error,
}

/// One finished call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// From sending to the end of the answer.
    pub latency: Duration,
    /// Output tokens; 0 when unknown or when there are none (embeddings).
    pub output_tokens: u64,
    /// How it ended.
    pub outcome: AnswerOutcome,
    /// Calls in flight just before it ended, itself included.
    pub in_flight: u64,
}

/// Why the concurrency changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeReason {
    /// The provider said that it is overloaded.
    Overload,
    /// Output tokens take much longer than they used to.
    Slower,
    /// The limit was used and nothing spoke against more.
    Room,
    /// Too many errors.
    Errors,
    /// The daily quota is nearly used.
    QuotaUse,
}

/// A change of the concurrency, for one structured log event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyChange {
    /// The limit before.
    pub old: u64,
    /// The limit now.
    pub new: u64,
    /// Why.
    pub reason: ChangeReason,
}

/// A concurrency limit that follows what the upstream can take.
///
/// ```
/// use llmq_core::Now;
/// use llmq_limit::{Adaptive, AdaptiveConfig, Answer, AnswerOutcome};
/// use std::time::Duration;
/// let mut adaptive = Adaptive::new(AdaptiveConfig::default());
/// let overloaded = Answer {
///     latency: Duration::from_secs(1),
///     output_tokens: 0,
///     outcome: AnswerOutcome::Overload,
///     in_flight: 16,
/// };
/// let change = adaptive.on_answer(overloaded, None, Now::default()).unwrap();
/// assert_eq!((change.old, change.new), (16, 11));
/// ```
#[derive(Debug, Clone)]
pub struct Adaptive {
    limit: u64,
    max: u64,
    policy: Policy,
}

#[derive(Debug, Clone)]
enum Policy {
    Latency(Latency),
    Plain(Plain),
}

impl Adaptive {
    /// Starts at the configured initial limit. A maximum or initial of 0 is read as 1: a limit
    /// of none would never find out anything.
    #[must_use]
    pub fn new(config: AdaptiveConfig) -> Self {
        let (initial, max, policy) = match config {
            AdaptiveConfig::Latency(policy) => {
                (policy.initial, policy.max, Policy::Latency(Latency::new()))
            }
            AdaptiveConfig::Plain(policy) => (
                policy.initial,
                policy.max,
                Policy::Plain(Plain::new(policy)),
            ),
        };
        let max = max.max(1);
        Self {
            limit: initial.clamp(1, max),
            max,
            policy,
        }
    }

    /// How many calls may be in flight, from 1 to the configured maximum.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Learns from one answer. `quota_use` is the used share of the daily quota, 0 to 1, where
    /// one is known; an unknown one speaks neither for nor against.
    pub fn on_answer(
        &mut self,
        answer: Answer,
        quota_use: Option<f64>,
        now: Now,
    ) -> Option<ConcurrencyChange> {
        let old = self.limit;
        let (wanted, reason) = match &mut self.policy {
            Policy::Latency(latency) => latency.on_answer(old, answer, now)?,
            Policy::Plain(plain) => plain.on_answer(old, answer, quota_use)?,
        };
        self.limit = wanted.clamp(1, self.max);
        (self.limit != old).then_some(ConcurrencyChange {
            old,
            new: self.limit,
            reason,
        })
    }
}

#[cfg(test)]
mod tests;
