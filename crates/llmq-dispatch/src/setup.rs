use std::time::Duration;

use llmq_core::{Backoffs, Host, LimitSpec, Priority};
use llmq_limit::{AdaptiveConfig, BreakerConfig, ChargeRule, QuotaMonitor};

use crate::ids::{LimitId, QueueId, UpstreamId};

/// Whose limit it is. A call blocked by the narrower one is out of the order of the wider ones
/// and delays nobody there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// One tenant's (an llmq key's).
    Tenant,
    /// One public model's.
    Model,
    /// One upstream's.
    Upstream,
    /// Shared by several upstreams of one account.
    Account,
}

/// A limit to keep.
#[derive(Debug, Clone)]
pub struct LimitSetup {
    /// How it is named to people, such as `tpm openai/gpt-4o-mini`.
    pub name: String,
    /// The limit.
    pub spec: LimitSpec,
    /// How its provider charges.
    pub rule: ChargeRule,
    /// Whose it is.
    pub scope: Scope,
}

/// An upstream to send to.
#[derive(Debug, Clone, Default)]
pub struct UpstreamSetup {
    /// How it is named to people, such as `openai/gpt-4o-mini`.
    pub name: String,
    /// The limits every call through it must meet: its own and those it shares.
    pub limits: Vec<LimitId>,
    /// When it counts as down.
    pub breaker: BreakerConfig,
    /// How its concurrency adapts; none: it does not.
    pub adaptive: Option<AdaptiveConfig>,
    /// Its daily quota; none: not watched.
    pub quota: Option<QuotaMonitor>,
    /// Whether the quota's count must be on disk before it is used: then
    /// [`Notice::SaveQuota`](crate::Notice::SaveQuota) says what to write, and nothing more is
    /// started until [`Event::QuotaSaved`](crate::Event::QuotaSaved).
    pub quota_is_saved: bool,
    /// Upstreams with the same number share a credential: money or access refused to one is
    /// refused to all.
    pub credential: Option<u32>,
    /// Whether to hold back until its charges are known (providers that count tokens their own
    /// way); servers of one's own need not be asked.
    pub ask_before_betting: bool,
    /// Whose rules hold for limits that its headers tell of; none: only stated limits count.
    pub learn_as: Option<Host>,
}

/// One way for a queue's calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Route {
    /// Where it leads.
    pub upstream: UpstreamId,
    /// Its share among routes with equal headroom, above 0.
    pub weight: f64,
}

/// A queue.
#[derive(Debug, Clone)]
pub struct QueueSetup {
    /// The public model name.
    pub name: String,
    /// The upstreams that serve it.
    pub routes: Vec<Route>,
    /// Queues whose upstreams may serve it when its own cannot, in order.
    pub fallback: Vec<QueueId>,
    /// Limits of the model itself.
    pub limits: Vec<LimitId>,
    /// How much may wait.
    pub capacity: Capacity,
    /// Shares of every limit that are kept for calls of at least a priority.
    pub reserve: Vec<Reserve>,
    /// Attempts before a call fails, at least 1. Throttles are counted apart.
    pub max_attempts: u32,
    /// Whether an attempt whose fate is unknown is repeated.
    pub retry_ambiguous: bool,
}

impl QueueSetup {
    /// A queue with one route, no limits of its own and the default bounds.
    #[must_use]
    pub fn to(name: impl Into<String>, upstream: UpstreamId) -> Self {
        Self {
            name: name.into(),
            routes: vec![Route {
                upstream,
                weight: 1.0,
            }],
            fallback: Vec::new(),
            limits: Vec::new(),
            capacity: Capacity::default(),
            reserve: Vec::new(),
            max_attempts: 5,
            retry_ambiguous: true,
        }
    }
}

/// How much may wait, and when more is refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    /// Calls.
    pub jobs: u64,
    /// Bytes, as told at submission.
    pub bytes: u64,
    /// Above this share of either it refuses …
    pub high_watermark: f64,
    /// … until both are below this one.
    pub low_watermark: f64,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            jobs: 1_000_000,
            bytes: 4_000_000_000,
            high_watermark: 0.8,
            low_watermark: 0.6,
        }
    }
}

impl Capacity {
    /// No bound: for callers that bound what they submit themselves.
    #[must_use]
    pub fn unbounded() -> Self {
        Self {
            jobs: u64::MAX,
            bytes: u64::MAX,
            high_watermark: 1.0,
            low_watermark: 1.0,
        }
    }
}

/// A share of every limit kept for urgent calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reserve {
    /// Calls of at least this priority may use it.
    pub priority: Priority,
    /// The share, 0 to 0.5.
    pub share: f64,
}

/// What holds for the whole dispatcher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// How much may wait in all queues together, beside what each of them holds for itself.
    pub capacity: Capacity,
    /// How long to wait after failures.
    pub backoffs: Backoffs,
    /// A lane that waited this long without a start rises one named priority.
    pub aging: Duration,
    /// Throttles in a row before a plain call fails.
    pub throttles_plain: u32,
    /// Throttles in a row before a stored call fails.
    pub throttles_stored: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            capacity: Capacity::unbounded(),
            backoffs: Backoffs::default(),
            aging: Duration::from_secs(600),
            throttles_plain: 6,
            throttles_stored: 20,
        }
    }
}
