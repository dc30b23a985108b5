use std::borrow::Cow;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use llmq_api::ProblemBody;
use serde_json::Value;

use crate::dialect::Refusal;
use crate::keys::Denied;

/// An error outside the providers' dialects, as problem JSON (RFC 9457).
///
/// ```
/// use http::StatusCode;
/// use llmq_server::Problem;
/// let problem = Problem::new(StatusCode::NOT_FOUND, "queue_not_found", "there is no queue `x`");
/// assert_eq!(problem.body().status, 404);
/// assert_eq!(problem.body().error, "there is no queue `x`");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    details: Value,
    retry_after: Option<Duration>,
}

impl Problem {
    /// A problem: its status, its stable code and what to tell people. The message must not
    /// hold secrets, prompts or answers.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            details: Value::Null,
            retry_after: None,
        }
    }

    /// 400 `invalid_request`: the message says where.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// 401 `unauthenticated`.
    pub fn unauthenticated(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", message)
    }

    /// 403 `forbidden`.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404 with the code of what is missing, such as `queue_not_found`.
    pub fn not_found(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 409 `conflict`.
    pub fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 413 `too_large`.
    pub fn too_large(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 503 with a code such as `queue_full`.
    pub fn unavailable(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// Adds what else is known.
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    /// Says when to come again: `Retry-After` in whole seconds, rounded up (RFC 9110 §10.2.3).
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// When to come again, if that was said.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// What goes over the wire.
    #[must_use]
    pub fn body(&self) -> ProblemBody {
        let message = self.message.clone().into_owned();
        ProblemBody {
            kind: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: message.clone(),
            error: message.clone(),
            code: self.code.to_owned(),
            message,
            details: self.details.clone(),
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let message = denied.to_string();
        match denied {
            Denied::Unauthenticated(_) => Self::unauthenticated(message),
            Denied::Forbidden(_) => Self::forbidden(message),
            Denied::NoTenant => Self::invalid(message),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let problem = Self::new(refusal.status, refusal.code, refusal.message);
        match refusal.retry_after {
            Some(after) => problem.with_retry_after(after),
            None => problem,
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let message = rejection.body_text();
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Self::too_large(message),
            status @ StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Self::new(status, "unsupported_media_type", message)
            }
            _ => Self::invalid(message),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // A tree of strings and numbers has a JSON form.
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            // It must say how to authenticate (RFC 9110 section 15.5.2).
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_rounded_up_so_that_nobody_comes_too_early() {
        let problem = Problem::unavailable("queue_full", "the queue is full")
            .with_retry_after(Duration::from_millis(1_200));
        let response = problem.into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn programs_find_the_code_and_people_the_message() {
        let body = Problem::invalid("`model` is missing").body();
        assert_eq!(body.code, "invalid_request");
        assert_eq!(body.title, "Bad Request");
        assert_eq!(body.message, "`model` is missing");
        assert_eq!(body.detail, body.error);
    }
}
