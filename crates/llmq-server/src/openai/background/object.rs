//! A response as it stands.

use bytes::Bytes;
use llmq_core::{FailureClass, Status};
use llmq_provider::with_member;
use llmq_store::{Job, StoredAnswer};
use serde_json::{Map, Value, json};

use super::super::ids;
use crate::Problem;
use crate::jobs::{Desk, unavailable};

/// The response object of a job (OpenAI's API reference, "The response object", 2026): the
/// provider's own where it made one, under the name that its caller knows.
///
/// # Errors
///
/// The store cannot be read.
pub(super) async fn response(desk: &Desk, job: &Job) -> Result<Bytes, Problem> {
    if matches!(job.status, Status::Completed | Status::Failed)
        && let Some(answer) = desk.answer(job.id).await?
    {
        if let Some(own) = providers_own(job, &answer) {
            return Ok(own);
        }
        let error = failure(job, said(&answer.body));
        return made(desk, job, error).await;
    }
    let error = match job.status {
        Status::Queued | Status::Processing | Status::Cancelled => Value::Null,
        Status::Completed => json!({
            "code": "server_error",
            "message": "its answer is not kept any more",
        }),
        Status::Failed => failure(job, None),
        Status::Expired => json!({
            "code": "server_error",
            "message": "it did not start in time (X-LLMQ-TTL): the limits had no room for it, or \
                        nobody could serve it",
        }),
    };
    made(desk, job, error).await
}

/// The provider's words, if they are a response.
fn providers_own(job: &Job, answer: &StoredAnswer) -> Option<Bytes> {
    #[derive(serde::Deserialize)]
    struct Is<'a> {
        #[serde(borrow)]
        object: std::borrow::Cow<'a, str>,
    }
    let is: Is<'_> = serde_json::from_slice(&answer.body).ok()?;
    if is.object != "response" {
        return None;
    }
    let id = Value::from(ids::response(job.id)).to_string();
    let named = with_member(&answer.body, "id", &id).ok()?;
    with_member(&named, "background", "true").ok()
}

/// The text of a provider's error.
fn said(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some(body.pointer("/error/message")?.as_str()?.to_owned())
}

/// Why a job failed, in the words that OpenAI has for that.
fn failure(job: &Job, said: Option<String>) -> Value {
    let error = job.error.as_ref();
    let code = match error.and_then(|error| error.class) {
        Some(FailureClass::QuotaWindow | FailureClass::QuotaDay | FailureClass::Ramp) => {
            "rate_limit_exceeded"
        }
        Some(FailureClass::RowFault | FailureClass::TooLarge) => "invalid_prompt",
        _ => "server_error",
    };
    let message = said.or_else(|| error.map(|error| error.message.clone()));
    json!({"code": code, "message": message.unwrap_or_else(|| "it failed".to_owned())})
}

/// A response that no provider has made, or not yet.
async fn made(desk: &Desk, job: &Job, error: Value) -> Result<Bytes, Problem> {
    let body = desk.store().body(job.id).await;
    let body = body.map_err(|error| unavailable(&error))?;
    let asked: Map<String, Value> = body
        .and_then(|body| serde_json::from_slice(&body).ok())
        .unwrap_or_default();
    let status = match job.status {
        Status::Queued => "queued",
        Status::Processing => "in_progress",
        Status::Cancelled => "cancelled",
        Status::Completed | Status::Failed | Status::Expired => "failed",
    };
    Ok(Bytes::from(object(job, status, &error, &asked).to_string()))
}

/// What was asked for is repeated, with OpenAI's defaults where nothing was said.
fn object(job: &Job, status: &str, error: &Value, asked: &Map<String, Value>) -> Value {
    let or = |name: &str, default: Value| match asked.get(name) {
        None | Some(Value::Null) => default,
        Some(value) => value.clone(),
    };
    json!({
        "id": ids::response(job.id),
        "object": "response",
        "created_at": job.created_at.as_micros() / 1_000_000,
        "status": status,
        "background": true,
        "error": error,
        "incomplete_details": null,
        "instructions": or("instructions", Value::Null),
        "max_output_tokens": or("max_output_tokens", Value::Null),
        "metadata": or("metadata", json!({})),
        "model": job.queue,
        "output": [],
        "parallel_tool_calls": or("parallel_tool_calls", json!(true)),
        "previous_response_id": or("previous_response_id", Value::Null),
        "reasoning": or("reasoning", json!({"effort": null, "summary": null})),
        "store": true,
        "temperature": or("temperature", json!(1.0)),
        "text": or("text", json!({"format": {"type": "text"}})),
        "tool_choice": or("tool_choice", json!("auto")),
        "tools": or("tools", json!([])),
        "top_p": or("top_p", json!(1.0)),
        "truncation": or("truncation", json!("disabled")),
        "usage": null,
    })
}
