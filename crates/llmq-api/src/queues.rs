use serde::{Deserialize, Serialize};

/// The answer of `GET /api/queues`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QueueList {
    /// Every queue, by name.
    pub queues: Vec<QueueState>,
    /// Where the next page begins; null when there is none, which is always so.
    pub next_cursor: Option<String>,
}

/// A queue: the line in which calls for one public model name wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QueueState {
    /// The public model name.
    pub name: String,
    /// Whether it moves.
    pub state: QueueMotion,
    /// Calls that stand in line; of accepted requests only the first 1,024 (see `accepted`).
    pub waiting: u64,
    /// Calls that run.
    pub running: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// What waits in line, by priority, lowest first. Of accepted requests only the first few
    /// thousand stand in line; `accepted` counts all.
    pub depths: Vec<Depth>,
    /// Accepted requests that have not ended; null while the store cannot tell.
    pub accepted: Option<AcceptedCounts>,
    /// What the whole queue waits for, while nothing of it runs and the time is known.
    pub waiting_for: Option<String>,
    /// When it may go on then, as RFC 3339 says it.
    pub stands_until: Option<String>,
    /// Where its calls go.
    pub upstreams: Vec<UpstreamState>,
}

/// Accepted requests of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AcceptedCounts {
    /// Those that wait, delayed ones included.
    pub queued: u64,
    /// Those that run.
    pub processing: u64,
}

/// Whether a queue moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum QueueMotion {
    /// It takes calls and starts them.
    Running,
    /// A person paused it: it takes calls and starts none.
    Paused,
    /// It takes no new calls and finishes those it has.
    Draining,
    /// It takes calls and starts none: all its upstreams are closed until a day turns or a
    /// person acts.
    Parked,
}

/// Calls of one priority that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Depth {
    /// 0 to 100, higher goes first.
    pub priority: u8,
    /// How many wait in line.
    pub waiting: u64,
}

/// An upstream: one provider account with one of its models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpstreamState {
    /// Account and model, such as `openai/gpt-4o-mini`.
    pub name: String,
    /// Such as `openai`; null where it is not known.
    pub provider: Option<String>,
    /// Whether it takes calls now, as far as its limits have room.
    pub usable: bool,
    /// Calls in flight.
    pub in_flight: u64,
    /// Its breaker.
    pub breaker: BreakerWord,
    /// When an open breaker lets a call try whether the upstream is back.
    pub breaker_until: Option<String>,
    /// The class of the failure that closed it, such as `money`.
    pub closed_by: Option<String>,
    /// Until when that closed it; null beside a class: until a person acts.
    pub closed_until: Option<String>,
    /// Its limits: configured ones and learned ones.
    pub limits: Vec<LimitState>,
    /// Its day.
    pub quota: Option<QuotaState>,
}

/// What a breaker does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum BreakerWord {
    /// Calls flow.
    Closed,
    /// None does: the upstream is down.
    Open,
    /// One call tries whether it is back.
    HalfOpen,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LimitState {
    /// Such as `tpm openai/gpt-4o-mini`.
    pub name: String,
    /// As a configuration writes it, such as `tokens=4M/1m`.
    pub limit: String,
    /// The share in use: 0 to 1, above 1 in debt.
    pub in_use: f64,
    /// Whether it was learned from the provider's headers and not configured.
    pub learned: bool,
    /// What the provider charges for each token of ours, as learned; 1 where it counts as we do.
    pub charge_factor: f64,
    /// Lines that wait for it.
    pub waiting_lines: u64,
}

/// An upstream's day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QuotaState {
    /// Calls since the day turned.
    pub used_today: u64,
    /// The most calls a day, configured or learned; null: not known.
    pub daily_limit: Option<u64>,
    /// The used share of the day's limits in per cent; of several the highest.
    pub used_percent: Option<f64>,
    /// Why work pauses, if it does.
    pub paused: Option<String>,
}
