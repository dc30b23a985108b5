//! How the gateway itself speaks when no provider did: errors in the shape that the caller's SDK
//! knows.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use llmq_provider::Dialect;
use serde::Serialize;

use crate::keys::Denied;

/// Something the gateway has to tell a caller instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// A stable word for programs.
    pub(crate) code: &'static str,
    /// The member of the request that is at fault.
    pub(crate) param: Option<String>,
    /// For people: what is wrong, where, and what helps.
    pub(crate) message: String,
    /// When another try makes sense, where one does.
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            param: None,
            message: message.into(),
            retry_after: None,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub(crate) fn about(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    pub(crate) fn after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// The body in the caller's dialect: OpenAI's error object ("Error codes", platform docs,
    /// 2026), Anthropic's ("Errors", docs.anthropic.com, 2026).
    /// `id` names the request where the dialect has a place for that.
    pub(crate) fn body(&self, dialect: Dialect, id: Option<&str>) -> Bytes {
        let kind = kind(dialect, self.status);
        let text = match dialect {
            Dialect::OpenAi => serde_json::to_vec(&OpenAi {
                error: OpenAiError {
                    message: &self.message,
                    kind,
                    param: self.param.as_deref(),
                    code: self.code,
                },
            }),
            Dialect::Anthropic => serde_json::to_vec(&Anthropic {
                kind: "error",
                error: AnthropicError {
                    kind,
                    message: &self.message,
                },
                request_id: id,
            }),
        };
        // Texts always serialize.
        Bytes::from(text.unwrap_or_default())
    }

    /// The same as the last event of a stream.
    pub(crate) fn event(&self, dialect: Dialect) -> Bytes {
        let body = self.body(dialect, None);
        let mut event = Vec::with_capacity(body.len() + 32);
        if dialect == Dialect::Anthropic {
            event.extend_from_slice(b"event: error\n");
        }
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(&body);
        event.extend_from_slice(b"\n\n");
        event.into()
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let message = denied.to_string();
        match denied {
            Denied::Unauthenticated(_) => {
                Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", message)
            }
            Denied::Forbidden(_) => Self::new(StatusCode::FORBIDDEN, "forbidden", message),
            Denied::NoTenant => Self::invalid(message).about("X-LLMQ-Tenant"),
        }
    }
}

/// The type of error that SDKs expect with a status.
fn kind(dialect: Dialect, status: StatusCode) -> &'static str {
    match (dialect, status.as_u16()) {
        (_, 401) => "authentication_error",
        (_, 403) => "permission_error",
        (Dialect::Anthropic, 404) => "not_found_error",
        (Dialect::Anthropic, 413) => "request_too_large",
        (Dialect::Anthropic, 429) => "rate_limit_error",
        (Dialect::OpenAi, 429) => "rate_limit_exceeded",
        (Dialect::Anthropic, 503 | 529) => "overloaded_error",
        (_, 400..=499) => "invalid_request_error",
        (Dialect::Anthropic, _) => "api_error",
        (Dialect::OpenAi, _) => "server_error",
    }
}

#[derive(Serialize)]
struct OpenAi<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

#[derive(Serialize)]
struct Anthropic<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicError<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sdk_gets_the_shape_it_knows() {
        let refusal = Refusal::invalid("no `model`").about("model");
        let text = |dialect| String::from_utf8(refusal.body(dialect, None).to_vec()).unwrap();
        assert_eq!(
            text(Dialect::OpenAi),
            r#"{"error":{"message":"no `model`","type":"invalid_request_error","param":"model","code":"invalid_request"}}"#
        );
        assert_eq!(
            text(Dialect::Anthropic),
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"no `model`"}}"#
        );
    }

    #[test]
    fn the_end_of_a_broken_stream_is_an_event() {
        let refusal = Refusal::new(StatusCode::BAD_GATEWAY, "upstream_broken", "cut off");
        let event = refusal.event(Dialect::Anthropic);
        assert!(event.starts_with(b"event: error\ndata: {") && event.ends_with(b"}\n\n"));
    }
}
