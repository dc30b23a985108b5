// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

//! Typed queues that keep every limit of an LLM account, for embedding in a program.
//!
//! Read [`QueueManager`] first: it holds a [`Queue`] for each model. A [`ModelConfig`] says what
//! limits a model has, a processor of yours makes one call, and a [`QueueRequest`] with
//! parameters of your own type becomes a [`QueueResponse`] with a result of your own type.
//! [`QueueError`] is why there is none, [`ProcessorError`] how a processor says what is worth
//! another attempt, and [`Hooks`] hear what happens.
//!
//! ```
#![doc = include_str!("../snippets/readme.rs")]
//! ```
//!
//! A request whose limits have room costs a few microseconds. One that waits costs its own
//! memory and no task: its place is kept by the future that its submitter holds, and where
//! nobody waits a task is started when its turn comes.
//!
//! [`RateLimiter`] keeps limits without queues, [`QuotaMonitor`] watches a day's quota, and
//! [`parse_rate_limit_headers`] reads what providers say of their limits. `examples/` has
//! programs to copy.

mod error;
mod processor;

mod request;
mod response;

mod config;
mod hooks;
mod info;
mod metrics;

mod manager;

mod global;

mod queue;

mod drive;
mod live;
mod registry;

mod engine;

mod quota;
mod quota_files;
mod rate_limiter;
mod tenant;

pub mod logging;

pub use config::ModelConfig;
pub use error::{QueueError, SharedCause};
pub use hooks::{HookEvent, Hooks};
pub use info::{LimitInfo, QueueInfo};
pub use manager::{QueueManager, QueueManagerBuilder, ShutdownReport};
pub use metrics::QueueMetrics;
pub use processor::{ProcessorError, ProcessorPanic};
pub use queue::Queue;
pub use quota::{QuotaMonitor, SaveQuotaError};
pub use rate_limiter::{Permit, RateLimiter};
pub use request::QueueRequest;
pub use response::QueueResponse;
pub use tenant::TenantConfig;

pub use llmq_core::{
    Algorithm, Backoff, Backoffs, CallSize, FailureClass, Host, LimitKind, LimitSpec, Now,
    ParseLimitError, Priority, Status, Usage, WallTime,
};
pub use llmq_dispatch::{Blocker, Why};
pub use llmq_limit::{
    AlertShares, BreakerConfig, Observation, PauseAdvice, PauseReason, PauseScope, QuotaConfig,
    QuotaMetrics, QuotaStatus, RateLimitHeaders, parse_rate_limit_headers,
};
pub use uuid::Uuid;

/// The guide's examples are compiled with the crate's own.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../../docs/src/getting-started.md")]
    mod getting_started {}
    #[doc = include_str!("../../../docs/src/library.md")]
    mod library {}
    #[doc = include_str!("../../../docs/src/from-llm-queue.md")]
    mod from_llm_queue {}
}
