use serde::{Deserialize, Serialize};

/// The answer of `GET /health` and its two relatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// How it is.
    pub status: HealthWord,
    /// The version of llmq.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: f64,
}

/// How a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HealthWord {
    /// It takes calls and can send them.
    Ok,
    /// It finishes the calls it has and takes no new ones.
    Draining,
    /// It takes calls, and no upstream can serve them now.
    Unavailable,
}

/// The answer of `GET /api/stats`: sums since the server started, and what is so now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stats {
    /// The version of llmq.
    pub version: String,
    /// When it started, as RFC 3339 says it.
    pub started_at: String,
    /// Seconds since then.
    pub uptime_s: f64,
    /// Calls that are over.
    pub calls: u64,
    /// Those of them that ended with an error.
    pub failed: u64,
    /// How often calls were sent.
    pub attempts: u64,
    /// 429s received from upstreams.
    pub rate_limited: u64,
    /// Input tokens, as upstreams counted them.
    pub input_tokens: u64,
    /// Output tokens, as upstreams counted them.
    pub output_tokens: u64,
    /// Calls that stand in line; of accepted requests only the first 1,024 of each queue (see
    /// `requests`).
    pub waiting: u64,
    /// Calls that run.
    pub running: u64,
    /// Queues.
    pub queues: u64,
    /// Upstreams.
    pub upstreams: u64,
    /// Those of them that take calls now.
    pub upstreams_usable: u64,
    /// Accepted requests in the store, by status; none while the store cannot be read.
    #[serde(default)]
    pub requests: Option<RequestCounts>,
}

/// How many accepted requests a store holds in each status. Those that have ended are counted until
/// they are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RequestCounts {
    /// Waiting, delayed ones included.
    pub queued: u64,
    /// Running.
    pub processing: u64,
    /// Completed.
    pub completed: u64,
    /// Failed.
    pub failed: u64,
    /// Expired.
    pub expired: u64,
    /// Cancelled.
    pub cancelled: u64,
}
