use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// `POST /api/requests`: a call to be accepted, kept and finished.
///
/// ```
/// use llmq_api::CreateRequest;
/// let text = r#"{"endpoint":"/v1/chat/completions","body":{"model":"m","messages":[]}}"#;
/// let wanted: CreateRequest = serde_json::from_str(text).unwrap();
/// assert_eq!(wanted.body.get(), r#"{"model":"m","messages":[]}"#);
/// assert!(serde_json::from_str::<CreateRequest>(r#"{"boddy":{}}"#).is_err());
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateRequest {
    /// The public model name; may be left out where `body` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The path of the API that `body` is for, such as `/v1/chat/completions`.
    #[serde(default = "usual_endpoint")]
    pub endpoint: String,
    /// What the provider gets, byte for byte where nothing in it must be changed.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub body: Box<RawValue>,
    /// `low`, `normal`, `high`, `critical` or 0 to 100, higher goes first; `normal` unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<NameOrNumber>))]
    pub priority: Option<llmq_core::Priority>,
    /// The time in which it must start, such as `4h`; the server's default unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Not to be started before this (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// Your own notes, which come back with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The same key and request are accepted once in 24 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Whether the answer is to wait for the end of it. Not beside other requests.
    #[serde(default)]
    pub wait_for_completion: bool,
    /// Where its end is told, beside the webhooks that ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
}

/// How a priority is written, in the OpenAPI document.
#[cfg(feature = "openapi")]
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it is a type for the document only")]
enum NameOrNumber {
    /// `low`, `normal`, `high` or `critical`.
    Name(String),
    /// 0 to 100.
    Number(u8),
}

/// Where calls go that do not say it.
fn usual_endpoint() -> String {
    "/v1/chat/completions".to_owned()
}

/// `POST /api/requests` for many: all of them are accepted, or none.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateRequests {
    /// At most 10,000.
    pub requests: Vec<CreateRequest>,
}

/// What `POST /api/requests` takes.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HandedIn {
    /// One request.
    One(Box<CreateRequest>),
    /// Many at once.
    Many(CreateRequests),
}

/// What `POST /api/requests` answers: in the form of what was handed in.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Accepted {
    /// One request.
    One(Box<RequestState>),
    /// Many at once.
    Many(AcceptedRequests),
}

/// An accepted request, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RequestState {
    /// Its id.
    pub queue_id: String,
    /// `queued`, `processing`, `completed`, `failed`, `expired` or `cancelled`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub status: llmq_core::Status,
    /// The public model name.
    pub model: String,
    /// 0 to 100, higher goes first.
    pub priority: u8,
    /// Who is charged.
    pub tenant: String,
    /// Its place in its queue, 1 for the next one; null when it does not wait, or above 10,000.
    pub position: Option<u64>,
    /// Where the place is not counted: it is at least this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_at_least: Option<u64>,
    /// When it may be its turn (RFC 3339), if that can be known.
    pub estimated_start: Option<String>,
    /// When it was accepted.
    pub created_at: String,
    /// It is not started before this.
    pub not_before: Option<String>,
    /// It must have started by then; moves on while its queue stands still.
    pub expires_at: Option<String>,
    /// When its newest attempt started.
    pub started_at: Option<String>,
    /// When it came to its final status.
    pub finished_at: Option<String>,
    /// Attempts that count.
    pub attempts: u32,
    /// Whether an attempt ended without an answer, so that the provider may have billed it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_have_been_sent: bool,
    /// What it waits for, such as `tpm openai/gpt-4o-mini`.
    pub waiting_for: Option<String>,
    /// Its caller's notes.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// What it used, once it is completed.
    pub usage: Option<RequestUsage>,
    /// Why it failed, or why its newest attempt did.
    pub error: Option<RequestError>,
    /// The request that this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<String>,
    /// Where this can be asked again.
    pub status_url: String,
    /// Where its result is.
    pub result_url: String,
}

/// What a request used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RequestUsage {
    /// Input tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// What it cost in US dollars, where a price is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RequestError {
    /// A stable word for programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A page of requests, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RequestList {
    /// They may be fewer than were asked for while there are more.
    pub requests: Vec<RequestState>,
    /// What asks for the next page; null after the last one.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// The answer to `POST /api/requests` for many: in the order in which they were handed in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AcceptedRequests {
    /// All of them.
    pub requests: Vec<RequestState>,
}
