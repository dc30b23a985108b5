//! Who may hand in files and batches, and how they are told what is wrong.

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use llmq_provider::Dialect;
use llmq_store::StoreError;
use uuid::Uuid;

use crate::Problem;
use crate::call;
use crate::dialect::Refusal;
use crate::jobs::{COME_AGAIN, as_refusal, unavailable};
use crate::keys::{Caller, Denied};

/// Why a request is refused, in OpenAI's form.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        Self(denied.into())
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(as_refusal(&problem))
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        unavailable(&error).into()
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        Self(Refusal::invalid(rejection.body_text()))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut refusal = self.0;
        if refusal.status == StatusCode::SERVICE_UNAVAILABLE {
            refusal.retry_after = refusal.retry_after.or(Some(COME_AGAIN));
        }
        call::own_words(&refusal, Dialect::OpenAi, Uuid::now_v7()).map(Body::from)
    }
}

/// Of which tenant a caller sees all; none: of every one.
pub(super) fn sees_of(caller: &Caller) -> Option<&str> {
    (!caller.sees_all()).then(|| caller.tenant())
}

/// What is not there, or another tenant's.
pub(super) fn not_found(kind: &str, name: &str) -> Refused {
    let shown: String = name.chars().take(100).collect();
    let message = format!("there is no {kind} `{shown}`");
    Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
        .about("id")
        .into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A spent budget was told without its time, though the page on keys promised one.
    #[test]
    fn a_refusal_has_the_headers_that_calls_have() {
        let refusal = |status| Refusal::new(status, "code", "words");
        let spent = refusal(StatusCode::TOO_MANY_REQUESTS).after(Some(Duration::from_secs(3_600)));
        let busy = refusal(StatusCode::SERVICE_UNAVAILABLE);
        let wrong = Refusal::invalid("words");
        for (refusal, again, wait) in [
            (spent, "false", Some("3600")),
            (busy, "true", Some("10")),
            (wrong, "false", None),
        ] {
            let response = Refused(refusal).into_response();
            let headers = response.headers();
            let told = headers
                .get("retry-after")
                .map(|wait| wait.to_str().unwrap());
            assert_eq!(told, wait);
            assert_eq!(headers["x-should-retry"], again);
            assert!(headers.contains_key("x-request-id"), "{headers:?}");
        }
    }
}
