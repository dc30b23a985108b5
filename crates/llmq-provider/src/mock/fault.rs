use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use llmq_core::{LimitKind, LimitSpec};
use llmq_strict::Refusal;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::{BadBody, Dialect};
use super::time_text::{go_wait, retry_after_seconds};

/// Anthropic's status for a lack of capacity.
const OVERLOADED: u16 = 529;

/// How long the stand-in asks to wait where nothing tells it: in an outage, and while too many
/// calls are in flight.
const UNKNOWN_WAIT: Duration = Duration::from_secs(1);

/// Why a call gets no answer of its own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault<'a> {
    /// A limit refuses the call.
    Limited {
        spec: LimitSpec,
        refusal: Refusal,
        model: &'a str,
    },
    /// The money is gone.
    NoMoney,
    /// Nothing is served for now.
    Outage,
    /// The server failed, and says so in JSON.
    Broken,
    /// The server failed, and something before it says so in HTML.
    BrokenHtml,
    /// The key is wrong.
    BadKey,
    /// The body is wrong.
    BadBody(&'a BadBody),
    /// The body is above the size that is read.
    TooMuchBody,
    /// There is nothing of that name, or not for that method.
    NotFound { method: &'a str, path: &'a str },
    /// Nothing was recorded for the call.
    NotRecorded { wanted: &'a str },
}

impl Fault<'_> {
    /// How long the answer asks to wait; `None` when waiting is in vain.
    pub(super) fn wait(&self) -> Option<Duration> {
        match self {
            Self::Limited { refusal, .. } if refusal.is_too_large() => None,
            Self::Limited { refusal, .. } => Some(refusal.retry_after.unwrap_or(UNKNOWN_WAIT)),
            Self::Outage => Some(UNKNOWN_WAIT),
            _ => None,
        }
    }

    pub(super) fn answer(&self, dialect: Dialect, request_id: &str) -> Answer {
        if let Self::BrokenHtml = self {
            let page = "<html><head><title>500 Internal Server Error</title></head><body><h1>500 Internal Server Error</h1></body></html>";
            return Answer::html(StatusCode::INTERNAL_SERVER_ERROR, page.to_owned());
        }
        match dialect {
            Dialect::OpenAi => self.openai(),
            Dialect::Anthropic => self.anthropic(request_id),
        }
    }

    fn openai(&self) -> Answer {
        let (status, kind, code, param) = self.openai_kind();
        let body = json!({"error": {
            "message": self.message(), "type": kind, "param": param, "code": code,
        }});
        Answer::json(status, body.to_string())
    }

    fn openai_kind(
        &self,
    ) -> (
        StatusCode,
        &'static str,
        Option<&'static str>,
        Option<&'static str>,
    ) {
        let invalid = "invalid_request_error";
        match self {
            Self::Limited { spec, .. } => {
                let kind = match spec.kind {
                    LimitKind::Requests | LimitKind::Concurrency => "requests",
                    LimitKind::Tokens | LimitKind::InputTokens | LimitKind::OutputTokens => {
                        "tokens"
                    }
                };
                (
                    StatusCode::TOO_MANY_REQUESTS,
                    kind,
                    Some("rate_limit_exceeded"),
                    None,
                )
            }
            Self::NoMoney => {
                let kind = "insufficient_quota";
                (StatusCode::TOO_MANY_REQUESTS, kind, Some(kind), None)
            }
            Self::Outage => (
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable_error",
                Some("server_is_overloaded"),
                None,
            ),
            Self::Broken | Self::BrokenHtml => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                None,
                None,
            ),
            Self::BadKey => (
                StatusCode::UNAUTHORIZED,
                invalid,
                Some("invalid_api_key"),
                None,
            ),
            Self::BadBody(bad) => (StatusCode::BAD_REQUEST, invalid, None, bad.param),
            Self::TooMuchBody => (StatusCode::PAYLOAD_TOO_LARGE, invalid, None, None),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, invalid, Some("unknown_url"), None),
            Self::NotRecorded { .. } => {
                (StatusCode::NOT_FOUND, invalid, Some("not_recorded"), None)
            }
        }
    }

    fn anthropic(&self, request_id: &str) -> Answer {
        let (status, kind) = match self {
            Self::Limited { .. } | Self::NoMoney => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error")
            }
            Self::Outage => (
                StatusCode::from_u16(OVERLOADED).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
                "overloaded_error",
            ),
            Self::Broken | Self::BrokenHtml => (StatusCode::INTERNAL_SERVER_ERROR, "api_error"),
            Self::BadKey => (StatusCode::UNAUTHORIZED, "authentication_error"),
            Self::BadBody(_) => (StatusCode::BAD_REQUEST, "invalid_request_error"),
            Self::TooMuchBody => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::NotFound { .. } | Self::NotRecorded { .. } => {
                (StatusCode::NOT_FOUND, "not_found_error")
            }
        };
        let mut error = json!({"type": kind, "message": self.anthropic_message()});
        if let Self::NoMoney = self {
            error["details"] = json!({"error_code": "enforced_spend_limit_reached"});
        }
        let body: Value = json!({"type": "error", "error": error, "request_id": request_id});
        Answer::json(status, body.to_string())
    }

    fn message(&self) -> String {
        match self {
            Self::Limited { spec, refusal, model } => limit_message(spec, refusal, model),
            Self::NoMoney => "You exceeded your current quota, please check your plan and billing details. For more information on this error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.".to_owned(),
            Self::Outage => "The server is currently overloaded with other requests. Sorry about that! You can retry your request.".to_owned(),
            Self::Broken | Self::BrokenHtml => "The server had an error while processing your request. Sorry about that!".to_owned(),
            Self::BadKey => "Incorrect API key provided. You can find your API key at https://platform.openai.com/account/api-keys.".to_owned(),
            Self::BadBody(bad) => bad.message.clone(),
            Self::TooMuchBody => "The request body is above 32 MB.".to_owned(),
            Self::NotFound { method, path } => format!("Invalid URL ({method} {path})"),
            Self::NotRecorded { wanted } => format!("Nothing is recorded for this call: there is no {wanted} in the replay directory."),
        }
    }

    fn anthropic_message(&self) -> String {
        match self {
            Self::Limited { spec, refusal, .. } if refusal.is_too_large() => format!(
                "Request too large: {} {} asked of your organization's limit of {} {}.",
                refusal.requested,
                unit(spec),
                refusal.count,
                window(spec).0,
            ),
            Self::Limited {
                spec,
                refusal,
                model,
            } => format!(
                "This request would exceed your organization's rate limit of {} {} (org: org-mock, model: {model}). For details, refer to: https://docs.claude.com/en/api/rate-limits.",
                refusal.count,
                window(spec).0.replace(" per min", " per minute"),
            ),
            Self::NoMoney => "Your organization has reached its monthly spend limit.".to_owned(),
            Self::Outage => "Overloaded".to_owned(),
            Self::Broken | Self::BrokenHtml => "Internal server error".to_owned(),
            Self::BadKey => "invalid x-api-key".to_owned(),
            _ => self.message(),
        }
    }
}

/// Adds `Retry-After` in whole seconds, rounded up, at least 1.
pub(super) fn add_retry_after(headers: &mut HeaderMap, wait: Duration) {
    headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_seconds(wait)));
}

/// OpenAI's words, as seen in many published copies.
fn limit_message(spec: &LimitSpec, refusal: &Refusal, model: &str) -> String {
    let (name, short) = window(spec);
    let name = match short {
        Some(short) => format!("{name} ({short})"),
        None => name,
    };
    let Refusal {
        requested,
        used,
        count,
        ..
    } = refusal;
    let place = format!("for {model} in organization org-mock on {name}: Limit {count}");
    let more = "Visit https://platform.openai.com/account/rate-limits to learn more.";
    match refusal.retry_after {
        None if refusal.is_too_large() => {
            format!(
                "Request too large {place}, Requested {requested}. The input or output tokens must be reduced in order to run successfully. {more}"
            )
        }
        None => format!("Rate limit reached {place}, Used {used}, Requested {requested}. {more}"),
        Some(wait) => format!(
            "Rate limit reached {place}, Used {used}, Requested {requested}. Please try again in {}. {more}",
            go_wait(wait)
        ),
    }
}

fn unit(spec: &LimitSpec) -> &'static str {
    match spec.kind {
        LimitKind::Requests => "requests",
        LimitKind::Tokens => "tokens",
        LimitKind::InputTokens => "input tokens",
        LimitKind::OutputTokens => "output tokens",
        LimitKind::Concurrency => "concurrent requests",
    }
}

/// The limit's window in words, `tokens per min`, and its short name, `TPM`, if it has one.
fn window(spec: &LimitSpec) -> (String, Option<String>) {
    let unit = unit(spec);
    if spec.kind == LimitKind::Concurrency {
        return (unit.to_owned(), None);
    }
    let name = spec.name();
    match name.split_once('/') {
        Some((_, period)) => (format!("{unit} per {period}"), None),
        None if name.ends_with('d') => (format!("{unit} per day"), Some(name.to_uppercase())),
        None => (format!("{unit} per min"), Some(name.to_uppercase())),
    }
}
