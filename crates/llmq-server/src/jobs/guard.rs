//! Who may hand in requests and ask for them.

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue, StatusCode};
use llmq_store::{Job, JobId};

use crate::keys::{Caller, KeyRing, KeyScope};
use crate::{Gateway, Problem};

/// Why a request to these routes is refused.
pub(crate) enum Refused {
    Unauthenticated(String),
    Problem(Problem),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => problem.into_response(),
            Self::Unauthenticated(message) => {
                let mut response = Problem::unauthenticated(message).into_response();
                // A 401 must say how to authenticate (RFC 9110 section 15.5.2).
                let challenge = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                response
            }
        }
    }
}

/// The caller, who has at least one of these scopes.
pub(super) fn caller(
    keys: &KeyRing,
    headers: &HeaderMap,
    scopes: &[KeyScope],
) -> Result<Caller, Refused> {
    let caller = keys
        .authenticate(headers)
        .map_err(|error| Refused::Unauthenticated(error.to_string()))?;
    let mut refused = None;
    for scope in scopes {
        match caller.may(*scope) {
            Ok(()) => return Ok(caller),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(match refused {
        Some(error) => Problem::forbidden(error.to_string()).into(),
        None => Problem::forbidden("nobody may do that").into(),
    })
}

/// Whether a caller may see what belongs to a tenant.
pub(crate) fn sees(caller: &Caller, tenant: &str) -> bool {
    caller.tenant_for(Some(tenant)).is_ok()
}

/// A job that the caller may see. One of another tenant is told like one that is not there.
pub(super) async fn job(gateway: &Gateway, caller: &Caller, id: &str) -> Result<Job, Refused> {
    let unknown = || {
        let shown: String = id.chars().take(100).collect();
        Problem::not_found(
            "request_not_found",
            format!("there is no request `{shown}`"),
        )
    };
    let id: JobId = id.parse().map_err(|_| unknown())?;
    let job = gateway.desk.job(id).await?;
    let job = job.filter(|job| sees(caller, &job.tenant));
    Ok(job.ok_or_else(unknown)?)
}

pub(super) fn bad_query(rejection: &QueryRejection) -> Problem {
    Problem::invalid(rejection.body_text())
}

pub(super) fn bad_body(rejection: &JsonRejection) -> Problem {
    let message = rejection.body_text();
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(message),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            message,
        ),
        _ => Problem::invalid(message),
    }
}
