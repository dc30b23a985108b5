//! Failures' bodies, and their events in the middle of a stream.

use bytes::Bytes;
use serde::Serialize;

use super::written;
use crate::Dialect;
use crate::codes::implied_status;
use crate::error_body::ErrorBody;

/// A failure's body told in the dialect `to`; the status stays as it is.
///
/// `body` may have any of the shapes that upstreams send, a page of HTML included. The message
/// is the upstream's, at most 1,000 characters of it.
///
/// ```
/// use llmq_provider::Dialect;
/// use llmq_provider::translate::error;
/// let busy = br#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
/// assert_eq!(
///     error(Dialect::OpenAi, 529, busy),
///     r#"{"error":{"message":"Overloaded","type":"service_unavailable_error","param":null,"code":"server_is_overloaded"}}"#,
/// );
/// ```
#[must_use]
pub fn error(to: Dialect, status: u16, body: &[u8]) -> Bytes {
    body_of(to, status, &read(body))
}

/// The same as an event of a stream in the dialect `to`, after which the stream must not end as
/// if it were whole.
#[must_use]
pub fn error_event(to: Dialect, status: u16, body: &[u8]) -> Bytes {
    event_of(to, status, &read(body))
}

/// An upstream's event that tells of a failure: the status it stands for, its message, and the
/// event in the dialect `to`.
pub(super) fn failed_event(to: Dialect, data: &[u8]) -> (u16, String, Bytes) {
    let error = read(data);
    let status = implied_status(&error);
    let event = event_of(to, status, &error);
    (status, error.message, event)
}

fn read(body: &[u8]) -> ErrorBody {
    ErrorBody::read(body).unwrap_or_else(|| ErrorBody::of_page(body))
}

fn event_of(to: Dialect, status: u16, error: &ErrorBody) -> Bytes {
    let start: &[u8] = match to {
        Dialect::OpenAi => b"data: ",
        Dialect::Anthropic => b"event: error\ndata: ",
    };
    let body = body_of(to, status, error);
    Bytes::from([start, &body, b"\n\n"].concat())
}

fn body_of(to: Dialect, status: u16, error: &ErrorBody) -> Bytes {
    let message = if error.message.is_empty() {
        "the upstream did not say why it failed"
    } else {
        &error.message
    };
    match to {
        Dialect::OpenAi => written(&OpenAi {
            error: openai_error(status, error, message),
        }),
        Dialect::Anthropic => written(&Anthropic {
            kind: "error",
            error: AnthropicError {
                kind: anthropic_type(status, error),
                message,
            },
        }),
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
    param: Option<()>,
    code: Option<&'a str>,
}

#[derive(Serialize)]
struct Anthropic<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

/// OpenAI's type and code for Anthropic's type, else for the status. Anthropic's own finer code
/// stays as it is, where there is one.
fn openai_error<'a>(status: u16, error: &'a ErrorBody, message: &'a str) -> OpenAiError<'a> {
    let by_type = error.kind.as_deref().and_then(of_anthropic_type);
    let (kind, code) = by_type.unwrap_or_else(|| of_status(status));
    OpenAiError {
        message,
        kind,
        param: None,
        code: error.details.error_code.as_deref().or(code),
    }
}

/// OpenAI's type and code.
type Words = (&'static str, Option<&'static str>);

/// Anthropic's types as its page "Errors" names them, autumn 2026.
fn of_anthropic_type(kind: &str) -> Option<Words> {
    Some(match kind {
        "authentication_error" => of_status(401),
        "billing_error" => of_status(402),
        "permission_error" => of_status(403),
        "not_found_error" => of_status(404),
        "timeout_error" => of_status(408),
        "request_too_large" => of_status(413),
        "rate_limit_error" => of_status(429),
        "overloaded_error" => of_status(529),
        _ => return None,
    })
}

fn of_status(status: u16) -> Words {
    match status {
        401 => ("authentication_error", Some("invalid_api_key")),
        402 => ("insufficient_quota", Some("insufficient_quota")),
        403 => ("permission_error", None),
        404 => ("invalid_request_error", Some("model_not_found")),
        408 | 504 => ("server_error", Some("timeout")),
        413 => ("invalid_request_error", Some("request_too_large")),
        429 => ("rate_limit_error", Some("rate_limit_exceeded")),
        503 | 529 => ("service_unavailable_error", Some("server_is_overloaded")),
        500.. => ("server_error", None),
        _ => ("invalid_request_error", None),
    }
}

/// Anthropic's type for the status; what OpenAI calls a quota that is used up is a bill there.
fn anthropic_type(status: u16, error: &ErrorBody) -> &'static str {
    let is_money = |word: &Option<String>| word.as_deref() == Some("insufficient_quota");
    if is_money(&error.kind) || is_money(&error.code) {
        return "billing_error";
    }
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(to: Dialect, status: u16, body: &Value) -> Value {
        serde_json::from_slice(&error(to, status, body.to_string().as_bytes())).unwrap()
    }

    #[test]
    fn anthropics_failures_are_told_in_openais_words() {
        let table = [
            (
                400,
                "invalid_request_error",
                "invalid_request_error",
                Value::Null,
            ),
            (
                401,
                "authentication_error",
                "authentication_error",
                json!("invalid_api_key"),
            ),
            (
                402,
                "billing_error",
                "insufficient_quota",
                json!("insufficient_quota"),
            ),
            (403, "permission_error", "permission_error", Value::Null),
            (
                404,
                "not_found_error",
                "invalid_request_error",
                json!("model_not_found"),
            ),
            (
                413,
                "request_too_large",
                "invalid_request_error",
                json!("request_too_large"),
            ),
            (
                429,
                "rate_limit_error",
                "rate_limit_error",
                json!("rate_limit_exceeded"),
            ),
            (500, "api_error", "server_error", Value::Null),
            (504, "timeout_error", "server_error", json!("timeout")),
            (
                529,
                "overloaded_error",
                "service_unavailable_error",
                json!("server_is_overloaded"),
            ),
        ];
        for (status, kind, expected, code) in table {
            let body = json!({"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "r"});
            let error = json!({"message": "m", "type": expected, "param": null, "code": code});
            assert_eq!(
                told(Dialect::OpenAi, status, &body),
                json!({"error": error})
            );
        }
    }

    #[test]
    fn a_finer_code_stays() {
        let body = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "m",
            "details": {"error_code": "enforced_spend_limit_reached"}}});
        let told = told(Dialect::OpenAi, 429, &body);
        assert_eq!(told["error"]["code"], "enforced_spend_limit_reached");
    }

    #[test]
    fn openais_failures_are_told_in_anthropics_words() {
        let table = [
            (
                400,
                "invalid_request_error",
                "context_length_exceeded",
                "invalid_request_error",
            ),
            (
                401,
                "invalid_request_error",
                "invalid_api_key",
                "authentication_error",
            ),
            (
                404,
                "invalid_request_error",
                "model_not_found",
                "not_found_error",
            ),
            (409, "conflict", "conflict", "invalid_request_error"),
            (422, "invalid_request_error", "x", "invalid_request_error"),
            (429, "tokens", "rate_limit_exceeded", "rate_limit_error"),
            (
                429,
                "insufficient_quota",
                "insufficient_quota",
                "billing_error",
            ),
            (500, "server_error", "x", "api_error"),
            (502, "server_error", "x", "api_error"),
            (
                503,
                "service_unavailable_error",
                "server_is_overloaded",
                "overloaded_error",
            ),
        ];
        for (status, kind, code, expected) in table {
            let body =
                json!({"error": {"message": "m", "type": kind, "param": null, "code": code}});
            let error = json!({"type": expected, "message": "m"});
            assert_eq!(
                told(Dialect::Anthropic, status, &body),
                json!({"type": "error", "error": error}),
                "{status} {code}",
            );
        }
    }

    #[test]
    fn a_page_and_nothing_are_told_as_well() {
        let page = error(Dialect::OpenAi, 502, b"<html>bad gateway</html>");
        let page: Value = serde_json::from_slice(&page).unwrap();
        assert_eq!(page["error"]["message"], "<html>bad gateway</html>");
        let nothing = error(Dialect::Anthropic, 500, b"");
        let nothing: Value = serde_json::from_slice(&nothing).unwrap();
        assert_ne!(nothing["error"]["message"], "");
    }
}
