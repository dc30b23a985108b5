use std::fmt;
use std::time::Duration;

use llmq_core::WallTime;
use serde::{Deserialize, Serialize};

/// How far a day's limit is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertLevel {
    /// At 60 % unless set.
    Warning,
    /// At 80 % unless set.
    Critical,
    /// At 95 % unless set.
    Emergency,
}

impl AlertLevel {
    /// The word used in logs and events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Emergency => "emergency",
        }
    }
}

impl fmt::Display for AlertLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why work pauses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PauseReason {
    /// The daily limit of requests is used to the threshold.
    DailyLimit {
        /// Used, in per cent of the limit.
        used_percent: f64,
        /// The threshold in per cent.
        threshold_percent: f64,
    },
    /// Someone else demanded it: the provider, or a person. Holds its words.
    Told(String),
}

impl PauseReason {
    /// Which work it pauses: at the threshold `high` work goes on to the limit itself.
    pub(super) fn scope(&self) -> PauseScope {
        match self {
            Self::DailyLimit { used_percent, .. } if *used_percent < 100.0 => PauseScope::BelowHigh,
            Self::DailyLimit { .. } | Self::Told(_) => PauseScope::All,
        }
    }
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DailyLimit {
                used_percent,
                threshold_percent,
            } => write!(
                f,
                "{used_percent:.1} % of the daily limit used, threshold {threshold_percent:.1} %"
            ),
            Self::Told(words) => f.write_str(words),
        }
    }
}

/// What work pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PauseScope {
    /// Work below the priority `high`; the rest goes on to the limit itself.
    BelowHigh,
    /// All work.
    All,
}

/// That work should pause.
#[derive(Debug, Clone, PartialEq)]
pub struct PauseAdvice {
    /// Why.
    pub reason: PauseReason,
    /// When it may go on.
    pub resume_at: WallTime,
    /// Which work.
    pub scope: PauseScope,
}

/// The state of the day, for logs and the API.
#[derive(Debug, Clone, PartialEq)]
pub struct QuotaMetrics {
    /// Requests of ours since the day turned.
    pub requests_used_today: u64,
    /// The limit of requests a day, configured or, failing that, learned from headers.
    pub daily_limit: Option<u64>,
    /// The used share of the day's limits in per cent, above 100 too; of several the highest.
    pub usage_percentage: Option<f64>,
    /// Whether work should pause now.
    pub should_pause: bool,
    /// Why.
    pub pause_reason: Option<String>,
}

/// Something to log, one structured event each.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum QuotaEvent {
    /// Every so many requests (`log_interval`).
    Metrics(QuotaMetrics),
    /// A level was reached for the first time today. Of several at once only the highest.
    Alert {
        /// Which.
        level: AlertLevel,
        /// Used, in per cent.
        used_percent: f64,
    },
    /// Work pauses, or more of it does than was said, or for longer.
    Paused(PauseAdvice),
    /// Work goes on.
    Resumed {
        /// How long it paused, by the wall clock, since a pause outlives a restart.
        paused_for: Duration,
    },
    /// The saved state could not be used, and counting starts from nothing.
    StateLost {
        /// What was wrong with it.
        reason: String,
    },
}
