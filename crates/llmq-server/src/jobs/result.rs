//! What came of a job: the provider's own answer, or why there is none.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode};
use llmq_core::{FailureClass, Status};
use llmq_store::{Job, JobId, StoredAnswer};
use serde_json::json;

use super::Desk;
use super::catalog::BUDGET_EXHAUSTED;
use super::desk::unavailable;
use crate::Problem;

/// A job that has not ended is worth asking again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The code of a job whose answer was larger than is kept, which is no fault of its caller.
const ANSWER_TOO_LARGE: &str = "answer_too_large";

impl Desk {
    /// The answer to `GET /api/requests/{id}/result`.
    pub(crate) async fn result(&self, job: Job) -> Result<Response, Problem> {
        let id = job.id;
        match job.status {
            Status::Queued | Status::Processing => {
                let state = self.show(job).await;
                let mut response = (StatusCode::ACCEPTED, Json(state)).into_response();
                let seconds = HeaderValue::from(ASK_AGAIN.as_secs());
                response
                    .headers_mut()
                    .insert(http::header::RETRY_AFTER, seconds);
                Ok(response)
            }
            Status::Completed | Status::Failed => match self.answer(id).await? {
                Some(answer) => Ok(passed_on(answer, id).map(Body::from)),
                None => Err(failure(&job)),
            },
            Status::Expired => {
                let message = format!("request {id} did not start in time: it is expired");
                Err(Problem::new(StatusCode::GONE, "expired", message))
            }
            Status::Cancelled => {
                let message = format!("request {id} was cancelled");
                Err(Problem::new(StatusCode::CONFLICT, "cancelled", message))
            }
        }
    }

    pub(crate) async fn answer(&self, id: JobId) -> Result<Option<StoredAnswer>, Problem> {
        let answer = self.store().answer(id).await;
        answer.map_err(|error| unavailable(&error))
    }
}

/// A provider's answer, as it was.
pub(super) fn passed_on(answer: StoredAnswer, id: JobId) -> http::Response<Bytes> {
    let mut response = http::Response::new(answer.body);
    // What a provider answered was a status.
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    for (name, value) in answer.headers {
        let name = HeaderName::try_from(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    if let Ok(id) = HeaderValue::try_from(id.to_string()) {
        headers.insert("x-llmq-request-id", id);
    }
    response
}

/// A job that failed without an answer of a provider.
pub(super) fn failure(job: &Job) -> Problem {
    let class = job.error.as_ref().and_then(|error| error.class);
    let code_of_job = job.error.as_ref().map(|error| error.code.as_str());
    let (status, code) = match class {
        _ if code_of_job == Some(BUDGET_EXHAUSTED) => {
            (StatusCode::TOO_MANY_REQUESTS, BUDGET_EXHAUSTED)
        }
        _ if code_of_job == Some(ANSWER_TOO_LARGE) => (StatusCode::BAD_GATEWAY, ANSWER_TOO_LARGE),
        Some(FailureClass::TooLarge) => (StatusCode::BAD_REQUEST, "too_large"),
        Some(FailureClass::RowFault) => (StatusCode::BAD_REQUEST, "invalid_request"),
        _ => (StatusCode::BAD_GATEWAY, "upstream_failed"),
    };
    let message = match &job.error {
        Some(error) => error.message.clone(),
        None => format!("request {} failed", job.id),
    };
    Problem::new(status, code, message).with_details(json!({"code": code_of_job}))
}
