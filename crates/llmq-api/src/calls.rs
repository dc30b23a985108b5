use serde::{Deserialize, Serialize};

/// The answer of `GET /api/calls`: calls that wait for their turn, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallList {
    /// The oldest of them, as many as were asked for.
    pub calls: Vec<CallState>,
    /// How many wait in all, as far as the caller may see them.
    pub total: u64,
    /// Always null: what waits now is another list a moment later.
    pub next_cursor: Option<String>,
}

/// The answer of `GET /api/calls/{id}`: what a call waits for whose caller holds the line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallState {
    /// Its number, as `X-LLMQ-Request-Id` says it.
    pub id: String,
    /// Whether it has been sent.
    pub status: CallStatus,
    /// The model that it asks for.
    pub model: String,
    /// 0 to 100, higher goes first.
    pub priority: u8,
    /// How long it has waited.
    pub waited_ms: u64,
    /// Its place among all that wait for the same, 1 for the next one; null once it has been sent,
    /// or before it may be.
    pub position: Option<u64>,
    /// When it may be its turn, as RFC 3339 says it, if that can be known.
    pub estimated_start: Option<String>,
    /// What stands in its way, such as `tpm openai/gpt-4o-mini`.
    pub waiting_for: Option<String>,
}

/// Whether a call has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CallStatus {
    /// It waits.
    Queued,
    /// It is being sent, or its answer is under way.
    Processing,
}
