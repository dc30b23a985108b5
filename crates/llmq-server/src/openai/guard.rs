//! Who may hand in files and batches, and how they are told what is wrong.

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use llmq_provider::Dialect;
use llmq_store::StoreError;

use crate::Problem;
use crate::dialect::Refusal;
use crate::jobs::{as_refusal, unavailable};
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
        let mut response = Response::new(Body::from(self.0.body(Dialect::OpenAi, None)));
        *response.status_mut() = self.0.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.0.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
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
