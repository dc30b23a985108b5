//! Accepting a response for the background, and answering those who come back for it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Query;
use bytes::Bytes;
use futures_util::stream;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use llmq_provider::Dialect;
use llmq_store::{Job, JobId};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::super::ids;
use super::Background;
use super::events::Events;
use super::object::response;
use crate::call::{self, Incoming, Reply, ReplyBody};
use crate::dialect::Refusal;
use crate::jobs::{self, sees};
use crate::keys::{self, HandIn, Need as _};
use crate::models::Model;
use crate::{Gateway, Problem};

/// A stream that has nothing to tell says so before anybody takes it for dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// What marks a job as such a response, in what is noted with it.
const MARK: &str = "background";

/// Accepts a response: it is on disk when this answers.
///
/// # Errors
///
/// It becomes no job, or none is accepted.
pub(crate) async fn accepted(
    gateway: &Arc<Gateway>,
    incoming: &Incoming,
    background: &Background,
    model: &Model,
) -> Result<Reply, Refusal> {
    let mut job = jobs::of_call(gateway, incoming, model).await?;
    jobs::note(&mut job.details, MARK, true.into());
    let accepted = gateway.desk.accept(job).await;
    let accepted = accepted.map_err(|problem| jobs::as_refusal(&problem))?;
    Ok(told(gateway, accepted.job, background.stream, None).await)
}

/// How somebody who comes back wants it told.
#[derive(Debug, Default, Deserialize)]
struct Asked {
    stream: Option<bool>,
    starting_after: Option<u64>,
}

/// Answers `/v1/responses/{id}` and `…/cancel` for a response of ours; none for others, such as
/// one that a provider keeps.
pub(crate) async fn kept(
    gateway: &Arc<Gateway>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Option<Reply> {
    let rest = uri.path().strip_prefix("/v1/responses/")?;
    let (name, below) = rest.split_once('/').unwrap_or((rest, ""));
    let id = ids::job_of(name)?;
    let caller = match keys::caller(&gateway.keys, headers, HandIn::SCOPES) {
        Ok(caller) => caller,
        Err(denied) => return Some(refused(&denied.into())),
    };
    let job = match gateway.desk.job(id).await {
        Ok(job) => job.filter(|job| is_response(job) && sees(&caller, &job.tenant))?,
        Err(problem) => return Some(refused(&jobs::as_refusal(&problem))),
    };
    Some(match (method, below) {
        (&Method::GET, "") => match Query::<Asked>::try_from_uri(uri) {
            Ok(Query(asked)) => {
                let stream = asked.stream.unwrap_or(false);
                told(gateway, job, stream, asked.starting_after).await
            }
            Err(rejection) => refused(&Refusal::invalid(rejection.body_text())),
        },
        (&Method::POST, "cancel") => cancel(gateway, job.id).await,
        (_, "") => wrong_method("GET"),
        (_, "cancel") => wrong_method("POST"),
        (_, "input_items") => refused(&Refusal::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "the input items of a response in the background are not kept",
        )),
        _ => refused(&unknown(rest)),
    })
}

pub(super) fn is_response(job: &Job) -> bool {
    job.details.extra.get(MARK).is_some()
}

/// One that has ended stays as it is, and is told.
async fn cancel(gateway: &Arc<Gateway>, id: JobId) -> Reply {
    let cancelled = async {
        let cancelled = gateway.desk.runner.cancel(id).await;
        cancelled.map_err(|error| jobs::unavailable(&error))?;
        gateway.desk.job(id).await
    };
    match cancelled.await {
        Ok(Some(job)) => told(gateway, job, false, None).await,
        Ok(None) => refused(&unknown(&ids::response(id))),
        Err(problem) => refused(&jobs::as_refusal(&problem)),
    }
}

async fn told(gateway: &Arc<Gateway>, job: Job, stream: bool, after: Option<u64>) -> Reply {
    if stream {
        return streamed(Arc::clone(gateway), job, after);
    }
    match response(&gateway.desk, &job).await {
        Ok(object) => reply(ReplyBody::whole(object), "application/json", job.id),
        Err(problem) => refused(&jobs::as_refusal(&problem)),
    }
}

/// The events of a response, with its end when it has come.
fn streamed(gateway: Arc<Gateway>, job: Job, after: Option<u64>) -> Reply {
    enum At {
        Opening(Box<Job>),
        Waiting,
        End,
    }
    let id = job.id;
    let begin = (gateway, Events::new(after), At::Opening(Box::new(job)));
    let pieces = stream::try_unfold(begin, move |(gateway, mut events, at)| async move {
        let (piece, at) = match at {
            At::Opening(job) => {
                events.opens(&value(&gateway, &job).await?);
                match job.status.is_final() {
                    true => {
                        events.ends(&value(&gateway, &job).await?);
                        (events.take(), At::End)
                    }
                    false => (events.take(), At::Waiting),
                }
            }
            At::Waiting => {
                let asked_at = Instant::now();
                let job = gateway.desk.ended(id, SIGN_OF_LIFE).await.map_err(broken)?;
                match job {
                    Some(job) if job.status.is_final() => {
                        events.ends(&value(&gateway, &job).await?);
                        (events.take(), At::End)
                    }
                    // The server ends: the response is made in the next one.
                    Some(_) if asked_at.elapsed() < SIGN_OF_LIFE => {
                        let message = "the server ends: ask again with starting_after";
                        return Err(std::io::Error::other(message));
                    }
                    Some(_) => (Bytes::from_static(b": waiting\n\n"), At::Waiting),
                    None => return Err(std::io::Error::other("the response was removed")),
                }
            }
            At::End => return Ok(None),
        };
        Ok::<_, std::io::Error>(Some((piece, (gateway, events, at))))
    });
    let body = ReplyBody::Other(Body::from_stream(pieces));
    let mut reply = reply(body, "text/event-stream", id);
    let no_cache = HeaderValue::from_static("no-cache");
    reply.headers_mut().insert(CACHE_CONTROL, no_cache);
    reply
}

async fn value(gateway: &Gateway, job: &Job) -> Result<Value, std::io::Error> {
    let object = response(&gateway.desk, job).await.map_err(broken)?;
    serde_json::from_slice(&object).map_err(std::io::Error::other)
}

/// The stream breaks off, so that nobody takes it for whole.
fn broken(problem: Problem) -> std::io::Error {
    std::io::Error::other(problem.body().message)
}

fn reply(body: ReplyBody, kind: &'static str, id: JobId) -> Reply {
    let mut reply = Response::new(body);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(id) = HeaderValue::try_from(id.to_string()) {
        headers.insert("x-llmq-request-id", id);
    }
    reply
}

fn unknown(name: &str) -> Refusal {
    let shown: String = name.chars().take(100).collect();
    let message = format!("no response `{shown}` is known here");
    Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
}

fn refused(refusal: &Refusal) -> Reply {
    call::refused(refusal, Dialect::OpenAi)
}

fn wrong_method(allowed: &'static str) -> Reply {
    let message = format!("a response in the background takes {allowed} here");
    let mut reply = refused(&Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    ));
    let headers = reply.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}
