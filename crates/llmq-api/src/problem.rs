use serde::{Deserialize, Serialize};

/// An error of llmq's own routes: problem details (RFC 9457 §3) that also carry the members
/// which JSON clients commonly look for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProblemBody {
    /// Always `about:blank`: the status and the code say what kind of problem it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words, such as `Not Found`.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, for people.
    pub detail: String,
    /// The same as `detail`.
    pub error: String,
    /// What is wrong, for programs, such as `queue_not_found`. Never changes its meaning.
    pub code: String,
    /// The same as `detail`.
    pub message: String,
    /// What else is known, such as the field that is wrong; null when nothing is.
    pub details: serde_json::Value,
}
