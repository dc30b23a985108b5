//! The handlers that answer with JSON, text or the page.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{Html, IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use llmq_api::{
    CallList, CallState, Health, HealthWord, ProblemBody, QueueList, QueueMotion, QueueState,
    RequestCounts, Stats,
};
use llmq_dispatch::{Event, QueueId};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::look::counted;
use super::metrics::{self, Page, write_gauges};
use super::observed::Observed;
use super::page;
use crate::keys::Caller;
use crate::problem::Problem;
use crate::shown;

type Shared = State<Arc<Observed>>;

/// So many waiting calls are listed unless another number is asked for, and at most.
const CALLS: usize = 100;
const CALLS_MAX: usize = 1_000;

/// How the server is. Always 200 while it runs.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, description = "How it is.", body = Health)))]
pub(crate) async fn health(State(observed): Shared) -> Json<Health> {
    Json(observed.health())
}

/// Whether the process lives: 200.
#[utoipa::path(get, path = "/health/live", tag = "health", responses((status = 200, description = "How it is.", body = Health)))]
pub(crate) async fn live(State(observed): Shared) -> Json<Health> {
    Json(observed.health())
}

/// Whether calls may be sent here: 503 while the server ends, or when no upstream can be used.
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "health",
    responses((status = 200, description = "How it is.", body = Health), (status = 503, description = "No calls, please.", body = Health)),
)]
pub(crate) async fn ready(State(observed): Shared) -> (StatusCode, Json<Health>) {
    let health = observed.health();
    let status = match health.status {
        HealthWord::Ok => StatusCode::OK,
        HealthWord::Draining | HealthWord::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(health))
}

/// Figures in Prometheus' text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "watching",
    responses((status = 200, description = "The figures.", content_type = "text/plain", body = String)),
)]
pub(crate) async fn metrics(State(observed): Shared) -> Response {
    let mut page = Page::default();
    observed.metrics.write(&mut page);
    let (parts, now) = (observed.parts(), observed.now());
    write_gauges(&mut page, &observed.queues().await, &parts.upstreams(now));
    page.about(env!("CARGO_PKG_VERSION"), observed.started.wall);
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], page.finish()).into_response()
}

/// Every queue: what waits, its upstreams, their limits and how far these are used.
#[utoipa::path(get, path = "/api/queues", tag = "queues", responses((status = 200, description = "Every queue.", body = QueueList)))]
pub(crate) async fn list_queues(State(observed): Shared) -> Json<QueueList> {
    Json(QueueList {
        queues: observed.queues().await,
        next_cursor: None,
    })
}

/// One queue. A slash in its name is written as `%2F`.
#[utoipa::path(
    get,
    path = "/api/queues/{name}",
    tag = "queues",
    params(("name" = String, Path, description = "The public model name.")),
    responses(
        (status = 200, description = "The queue, as it is now.", body = QueueState),
        (status = 404, description = "There is none of that name.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get_queue(
    State(observed): Shared,
    Path(name): Path<String>,
) -> Result<Json<QueueState>, Problem> {
    let id = observed.queue_named(&name)?;
    Ok(Json(observed.queue(id).await))
}

/// Lets a queue stand still: it takes calls and starts none. Those that run go on.
#[utoipa::path(
    post,
    path = "/api/queues/{name}/pause",
    tag = "queues",
    params(("name" = String, Path, description = "The public model name.")),
    responses(
        (status = 200, description = "The queue, as it is now.", body = QueueState),
        (status = 404, description = "There is none of that name.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn pause(
    State(observed): Shared,
    Path(name): Path<String>,
) -> Result<Json<QueueState>, Problem> {
    observed.steer(&name, Steer::Pause).await.map(Json)
}

/// Lets a queue go on that was paused or drained, and opens its upstreams where they wait for a
/// person or for the end of a provider's pause.
#[utoipa::path(
    post,
    path = "/api/queues/{name}/resume",
    tag = "queues",
    params(("name" = String, Path, description = "The public model name.")),
    responses(
        (status = 200, description = "The queue, as it is now.", body = QueueState),
        (status = 404, description = "There is none of that name.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn resume(
    State(observed): Shared,
    Path(name): Path<String>,
) -> Result<Json<QueueState>, Problem> {
    observed.steer(&name, Steer::Resume).await.map(Json)
}

/// Empties a queue: it refuses new calls and finishes those that wait.
#[utoipa::path(
    post,
    path = "/api/queues/{name}/drain",
    tag = "queues",
    params(("name" = String, Path, description = "The public model name.")),
    responses(
        (status = 200, description = "The queue, as it is now.", body = QueueState),
        (status = 404, description = "There is none of that name.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn drain(
    State(observed): Shared,
    Path(name): Path<String>,
) -> Result<Json<QueueState>, Problem> {
    observed.steer(&name, Steer::Drain).await.map(Json)
}

/// Sums since the start, and what is so now.
#[utoipa::path(get, path = "/api/stats", tag = "watching", responses((status = 200, description = "The sums.", body = Stats)))]
pub(crate) async fn stats(State(observed): Shared) -> Json<Stats> {
    Json(observed.stats().await)
}

/// Which waiting calls are asked for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AskedCalls {
    /// At most so many, 1 to 1000; 100 unless said.
    limit: Option<usize>,
}

/// The plain calls that wait for their turn, oldest first: those of the caller's tenant, or of
/// all where the key may call for any.
#[utoipa::path(
    get,
    path = "/api/calls",
    tag = "watching",
    params(AskedCalls),
    responses(
        (status = 200, description = "Calls that wait, and what each waits for.", body = CallList),
        (status = 400, description = "What is wrong.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_calls(
    State(observed): Shared,
    caller: Option<Extension<Caller>>,
    asked: Result<Query<AskedCalls>, QueryRejection>,
) -> Result<Json<CallList>, Problem> {
    let Query(asked) = asked.map_err(|rejection| Problem::invalid(rejection.body_text()))?;
    let limit = asked.limit.unwrap_or(CALLS);
    if !(1..=CALLS_MAX).contains(&limit) {
        return Err(Problem::invalid(format!(
            "`limit` must be 1 to {CALLS_MAX}"
        )));
    }
    Ok(Json(observed.calls(limit, &who(caller))))
}

/// What a waiting call waits for, by its `X-LLMQ-Request-Id`.
#[utoipa::path(
    get,
    path = "/api/calls/{id}",
    tag = "watching",
    params(("id" = String, Path, description = "The call's X-LLMQ-Request-Id.")),
    responses(
        (status = 200, description = "What it waits for.", body = CallState),
        (status = 400, description = "That is no id.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No call of that id waits.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get_call(
    State(observed): Shared,
    caller: Option<Extension<Caller>>,
    Path(id): Path<String>,
) -> Result<Json<CallState>, Problem> {
    let uuid: Uuid = id
        .parse()
        .map_err(|_| Problem::invalid("`id` is not the number of a call: it is a UUID"))?;
    observed.call(uuid, &who(caller)).map(Json).ok_or_else(|| {
        let message = format!("no call {uuid} waits: it was sent at once, is over, or never came");
        Problem::not_found("call_not_found", message)
    })
}

/// Where nobody was asked for a key, everybody may see everything.
fn who(caller: Option<Extension<Caller>>) -> Caller {
    caller.map_or_else(Caller::anonymous, |Extension(caller)| caller)
}

/// A page for people: the state of the queues, and links.
#[utoipa::path(
    get,
    path = "/",
    tag = "watching",
    responses((status = 200, description = "The page.", content_type = "text/html", body = String)),
)]
pub(crate) async fn index(State(observed): Shared) -> Response {
    let queues = observed.parts().queues(observed.now());
    let html = page::html(&observed.sums(&queues), &queues);
    ([(CACHE_CONTROL, "no-store")], Html(html)).into_response()
}

/// What is done to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Steer {
    Pause,
    Resume,
    Drain,
}

impl Observed {
    pub(crate) fn health(&self) -> Health {
        let now = self.now();
        let status = match (self.is_draining(), self.parts().any_in_service(now)) {
            (true, _) => HealthWord::Draining,
            (false, true) => HealthWord::Ok,
            (false, false) => HealthWord::Unavailable,
        };
        Health {
            status,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: (now.mono - self.started.mono).as_secs_f64(),
        }
    }

    pub(crate) async fn stats(&self) -> Stats {
        let counts = counted(self.journal.store.counts()).await;
        let requests = counts.map(|counts| RequestCounts {
            queued: counts.queued,
            processing: counts.processing,
            completed: counts.completed,
            failed: counts.failed,
            expired: counts.expired,
            cancelled: counts.cancelled,
        });
        let queues = self.parts().queues(self.now());
        Stats {
            requests,
            ..self.sums(&queues)
        }
    }

    /// The same without the requests of the store.
    fn sums(&self, queues: &[QueueState]) -> Stats {
        let now = self.now();
        let upstreams = self.parts().upstreams(now);
        let totals = self.metrics.totals();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: shown::instant(self.started.wall),
            uptime_s: (now.mono - self.started.mono).as_secs_f64(),
            calls: totals.calls,
            failed: totals.failed,
            attempts: totals.attempts,
            rate_limited: totals.rate_limited,
            input_tokens: totals.input_tokens,
            output_tokens: totals.output_tokens,
            waiting: queues.iter().map(|queue| queue.waiting).sum(),
            running: queues.iter().map(|queue| queue.running).sum(),
            queues: count(queues.len()),
            upstreams: count(upstreams.len()),
            upstreams_usable: count(upstreams.iter().filter(|upstream| upstream.usable).count()),
            requests: None,
        }
    }

    fn queue_named(&self, name: &str) -> Result<QueueId, Problem> {
        self.parts().find_queue(name).ok_or_else(|| {
            Problem::not_found("queue_not_found", format!("there is no queue `{name}`"))
        })
    }

    async fn steer(&self, name: &str, steer: Steer) -> Result<QueueState, Problem> {
        let id = self.queue_named(name)?;
        let (parts, now) = (self.parts(), self.now());
        let before = parts.queue(id, now).state;
        let (kind, wanted) = match steer {
            Steer::Pause => {
                parts.hub.handle(Event::Pause(id));
                ("queue.paused", QueueMotion::Paused)
            }
            Steer::Resume => {
                let upstreams = parts.hub.with(|dispatcher| {
                    dispatcher.drain(id, false);
                    dispatcher.upstreams_of(id)
                });
                // Whoever resumes may have mended what only a person can.
                for upstream in upstreams {
                    parts.hub.handle(Event::Reopen(upstream));
                }
                parts.hub.handle(Event::Resume(id));
                ("queue.resumed", QueueMotion::Running)
            }
            Steer::Drain => {
                parts.hub.with(|dispatcher| dispatcher.drain(id, true));
                ("queue.draining", QueueMotion::Draining)
            }
        };
        // To ask for what is so already is no news.
        if before != wanted {
            self.publish(kind, json!({"queue": name}));
        }
        Ok(self.queue(id).await)
    }
}
