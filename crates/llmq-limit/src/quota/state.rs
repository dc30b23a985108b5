use llmq_core::WallTime;
use serde::{Deserialize, Serialize};

use super::event::{AlertLevel, PauseReason};

/// What of a monitor outlives the process. Limits and thresholds are not in it: the
/// configuration wins over the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuotaState {
    /// The day that is counted, such as `2026-11-22`, in the configured zone.
    pub day: String,
    /// Requests of that day.
    pub used: u64,
    /// Requests that may have been used since it was written; see [`Portion`](super::Portion).
    #[serde(default)]
    pub reserved: u64,
    /// The highest alert of that day.
    #[serde(default)]
    pub alerted: Option<AlertLevel>,
    /// A limit of requests a day that a header told of.
    #[serde(default)]
    pub learned_daily_limit: Option<u64>,
    /// The pause that lasted when it was written.
    #[serde(default)]
    pub pause: Option<SavedPause>,
}

/// A pause as it is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedPause {
    /// Why.
    pub reason: PauseReason,
    /// Since when.
    pub since: WallTime,
    /// Until when.
    pub resume_at: WallTime,
}

impl QuotaState {
    /// From JSON; the message of the error says what is wrong.
    ///
    /// # Errors
    ///
    /// When the text is not the JSON of a state.
    pub fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// As one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("its keys are strings and its numbers finite")
    }
}
