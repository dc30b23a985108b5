//! `/api/requests`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use llmq_api::{
    Accepted, AcceptedRequests, CreateRequest, HandedIn, ProblemBody, RequestList, RequestState,
};
use llmq_engine::jobs::AWAITED;
use llmq_provider::Operation;
use llmq_store::{Cancelled, Job, JobId, NewJob};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::desk::{Standing, can_be_retried, gone, unavailable};
use super::guard::job;
use super::listing::Asked;
use super::wanted::{self, Wanted};
use crate::call;
use crate::keys::{self, Caller, Denied, HandIn, Look, May, Spend};
use crate::{Gateway, Problem};

/// Nobody holds a connection for longer than this for the state of a request.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// A request whose answer waits for its end waits so long.
const COMPLETION_WAIT_MAX: Duration = Duration::from_secs(24 * 3_600);

type Shared = State<Arc<Gateway>>;

/// The routes of requests and webhooks, with their description.
pub(crate) type Routes = OpenApiRouter<Arc<Gateway>>;

/// All of them.
pub(crate) fn routes() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, cancel))
        .routes(routes!(result))
        .routes(routes!(retry))
        .merge(super::webhooks::routes())
}

impl Gateway {
    /// The routes, for a router.
    pub(crate) fn job_routes(self: &Arc<Self>) -> Router {
        let (router, _) = routes().split_for_parts();
        router.with_state(Arc::clone(self))
    }
}

/// Hands in one request, or up to 10,000 at once: all of them are accepted, or none. It is on disk
/// when this is answered, and is finished whenever that becomes possible. The header
/// `Idempotency-Key` is for one alone; each of many has its own `idempotency_key`.
#[utoipa::path(
    post,
    path = "/api/requests",
    tag = "requests",
    operation_id = "create_request",
    request_body = HandedIn,
    responses(
        (status = 202, description = "Accepted: one state, or `requests` in order.", body = Accepted),
        (status = 200, description = "With `wait_for_completion`: the request at its end.", body = RequestState),
        (status = 400, description = "What is wrong, and where.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "A key is needed.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "The key may not do that, or not use that model or tenant.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "There is no such model.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The idempotency key was used for another request.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is larger than `server.max_body`.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The key's budget has no room for it.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The queue is full or draining, or the store cannot record.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn create(
    State(gateway): Shared,
    May(caller, _): May<HandIn>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let tenant = keys::tenant(&caller, &headers)?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(format!(
            "the body is larger than {} bytes (server.max_body)",
            gateway.max_body_bytes()
        )),
        _ => Problem::invalid(rejection.body_text()),
    })?;
    match wanted::read(&body)? {
        Wanted::One(one) => create_one(&gateway, &caller, tenant, &headers, *one).await,
        Wanted::Many(_) if headers.contains_key("idempotency-key") => Err(Problem::invalid(
            "Idempotency-Key is for one request: give each of many its own `idempotency_key`",
        )),
        Wanted::Many(many) => create_many(&gateway, &caller, tenant, many).await,
    }
}

async fn create_one(
    gateway: &Gateway,
    caller: &Caller,
    tenant: &str,
    headers: &HeaderMap,
    mut one: CreateRequest,
) -> Result<Response, Problem> {
    let wait = one.wait_for_completion;
    if let (None, Some(key)) = (&one.idempotency_key, headers.get("idempotency-key")) {
        let key = key
            .to_str()
            .map_err(|_| Problem::invalid("Idempotency-Key is no text"))?;
        one.idempotency_key = Some(key.to_owned());
    }
    let mut job = wanted::job(gateway, caller, tenant, one, "").await?;
    job.details.traceparent = trace(headers);
    has_room(gateway, caller, std::slice::from_ref(&job)).await?;
    let accepted = gateway.desk.accept(job).await?;
    if !wait {
        return Ok(told(gateway, &accepted, StatusCode::ACCEPTED));
    }
    let id = accepted.job.id;
    let job = gateway.desk.ended(id, COMPLETION_WAIT_MAX).await?;
    let job = job.ok_or_else(|| gone(id))?;
    let status = if job.status.is_final() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let standing = gateway.desk.placed(vec![job]).await.remove(0);
    Ok(told(gateway, &standing, status))
}

async fn create_many(
    gateway: &Gateway,
    caller: &Caller,
    tenant: &str,
    many: Vec<&RawValue>,
) -> Result<Response, Problem> {
    let mut jobs = Vec::with_capacity(many.len());
    for (at, raw) in many.into_iter().enumerate() {
        let one = wanted::one_of_many(at, raw)?;
        if one.wait_for_completion {
            let message = format!(
                "`requests[{at}].wait_for_completion`: it is for one request alone; ask for each \
                 with ?wait="
            );
            return Err(Problem::invalid(message));
        }
        let place = format!("requests[{at}].");
        jobs.push(wanted::job(gateway, caller, tenant, one, &place).await?);
        // Ten thousand bodies are read in turns with other work.
        if at % 64 == 63 {
            tokio::task::yield_now().await;
        }
    }
    has_room(gateway, caller, &jobs).await?;
    let accepted = gateway.desk.accept_many(jobs).await?;
    let requests = accepted.iter().map(|one| gateway.desk.state(one));
    let requests = requests.collect();
    let all = Accepted::Many(AcceptedRequests { requests });
    Ok((StatusCode::ACCEPTED, Json(all)).into_response())
}

/// The caller's trace, which goes on to the provider.
fn trace(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    Some(value.to_owned()).filter(|trace| trace.len() <= 256)
}

/// Whether the caller's budget has room for what it hands in, as far as that may start now. Each
/// job holds its own part when it does.
async fn has_room(gateway: &Gateway, caller: &Caller, jobs: &[NewJob]) -> Result<(), Problem> {
    if !caller.has_budget() {
        return Ok(());
    }
    let mut all = Spend::default();
    // One with a key may have been accepted before: it is asked when it starts.
    let asks = |job: &&NewJob| job.not_before.is_none() && job.idempotency.is_none();
    for job in jobs.iter().filter(asks) {
        let operation = Operation::from_path(&job.details.endpoint);
        let model = gateway.models.known(&job.queue);
        let Some((operation, model)) = operation.zip(model) else {
            continue;
        };
        let most = call::most(&gateway.models, operation, job.size, &model);
        all.tokens = all.tokens.saturating_add(most.tokens);
        all.nano_usd = all.nano_usd.saturating_add(most.nano_usd);
    }
    let room = call::has_room(gateway, caller, all).await;
    room.map_err(Problem::from)
}

fn told(gateway: &Gateway, standing: &Standing, status: StatusCode) -> Response {
    let location = format!("/api/requests/{}", standing.job.id);
    let one = Accepted::One(Box::new(gateway.desk.state(standing)));
    let mut response = (status, Json(one)).into_response();
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// Requests, newest first.
#[utoipa::path(
    get,
    path = "/api/requests",
    tag = "requests",
    operation_id = "list_requests",
    params(Asked),
    responses(
        (status = 200, description = "One page.", body = RequestList),
        (status = 400, description = "What is wrong with the question.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn list(
    State(gateway): Shared,
    May(caller, _): May<Look>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<RequestList>, Problem> {
    let Query(asked) = asked?;
    let mut list = RequestList {
        requests: Vec::new(),
        next_cursor: None,
    };
    let Some(listing) = asked.check(&caller)? else {
        return Ok(Json(list));
    };
    let store = gateway.desk.store();
    let page = store.list(&listing.filter, listing.after, listing.limit);
    let page = page.await.map_err(|error| unavailable(&error))?;
    list.next_cursor = page.next.map(|next| next.to_string());
    let standing = gateway.desk.placed(page.items).await;
    let requests = standing.iter().map(|one| gateway.desk.state(one));
    list.requests = requests.collect();
    Ok(Json(list))
}

/// How long an answer may wait for an end.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Patience {
    /// Seconds for which the answer waits for the end of the request, at most 300.
    wait: Option<f64>,
}

impl Patience {
    fn wait(&self) -> Result<Duration, Problem> {
        let wait = Duration::try_from_secs_f64(self.wait.unwrap_or(0.0));
        match wait {
            Ok(wait) if wait <= WAIT_MAX => Ok(wait),
            _ => Err(Problem::invalid(format!(
                "`wait` must be 0 to {} seconds",
                WAIT_MAX.as_secs()
            ))),
        }
    }
}

/// One request; with `wait`, at its end or after that time.
#[utoipa::path(
    get,
    path = "/api/requests/{id}",
    tag = "requests",
    operation_id = "get_request",
    params(("id" = String, Path, description = "Its `queue_id`."), Patience),
    responses(
        (status = 200, description = "The request as it is now.", body = RequestState),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn show(
    State(gateway): Shared,
    May(caller, _): May<Look>,
    Path(id): Path<String>,
    patience: Result<Query<Patience>, QueryRejection>,
) -> Result<Json<RequestState>, Problem> {
    let Query(patience) = patience?;
    let wait = patience.wait()?;
    let mut job = job(&gateway, &caller, &id).await?;
    if !wait.is_zero() && !job.status.is_final() {
        let id = job.id;
        let later = gateway.desk.ended(id, wait).await?;
        job = later.ok_or_else(|| gone(id))?;
    }
    Ok(Json(gateway.desk.show(job).await))
}

/// What came of a request: the provider's own status and body.
#[utoipa::path(
    get,
    path = "/api/requests/{id}/result",
    tag = "requests",
    operation_id = "get_result",
    params(("id" = String, Path, description = "Its `queue_id`.")),
    responses(
        (status = 200, description = "The provider's answer."),
        (status = "default", description = "It failed: the provider's own status and body, or a problem document where no provider answered; or it cannot be told."),
        (status = 202, description = "It has not ended.", body = RequestState),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It was cancelled.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 410, description = "It expired, or its result was removed.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn result(
    State(gateway): Shared,
    May(caller, _): May<Look>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    match job(&gateway, &caller, &id).await {
        Ok(job) => Ok(gateway.desk.result(job).await?),
        Err(refused) if refused.status() == StatusCode::NOT_FOUND => {
            Err(purged(&gateway, &id).unwrap_or(refused))
        }
        // One that cannot be read may be there.
        Err(refused) => Err(refused),
    }
}

/// An id tells when its request was made: what is older than results are kept was removed.
fn purged(gateway: &Gateway, id: &str) -> Option<Problem> {
    let id: JobId = id.parse().ok()?;
    let (seconds, nanos) = id.as_uuid().get_timestamp()?.to_unix();
    let made = i64::try_from(seconds).ok()?.checked_mul(1_000_000)? + i64::from(nanos / 1_000);
    let made = llmq_core::WallTime::from_micros(made);
    let age = gateway.desk.wall().since(made);
    (age > gateway.desk.settings.keep_results).then(|| {
        let message = format!("the result of request {id} is not kept any more");
        Problem::new(StatusCode::GONE, "expired", message)
    })
}

/// Ends a request that is not wanted any more. One that has ended stays as it is: 409.
#[utoipa::path(
    delete,
    path = "/api/requests/{id}",
    tag = "requests",
    operation_id = "cancel_request",
    params(("id" = String, Path, description = "Its `queue_id`.")),
    responses(
        (status = 200, description = "The request, cancelled.", body = RequestState),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It had ended.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn cancel(
    State(gateway): Shared,
    May(caller, _): May<HandIn>,
    Path(id): Path<String>,
) -> Result<Json<RequestState>, Problem> {
    let found = job(&gateway, &caller, &id).await?;
    let cancelled = gateway.desk.runner.cancel(found.id).await;
    match cancelled.map_err(|error| unavailable(&error))? {
        Cancelled::Now(job) => Ok(Json(gateway.desk.show(job).await)),
        Cancelled::Ended(job) => Err(has_ended(&job)),
        Cancelled::NotFound => Err(gone(found.id)),
    }
}

fn has_ended(job: &Job) -> Problem {
    Problem::conflict(format!("request {} is {} already", job.id, job.status))
        .with_details(json!({"status": job.status}))
}

/// Hands in the same request again, as a new one. For requests that failed, expired or were
/// cancelled.
#[utoipa::path(
    post,
    path = "/api/requests/{id}/retry",
    tag = "requests",
    operation_id = "retry_request",
    params(("id" = String, Path, description = "The `queue_id` of the first.")),
    responses(
        (status = 202, description = "The new request.", body = RequestState),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "The key is not for this model.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It has not ended, is completed, or is a line of a batch.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The key's budget is spent.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The queue is full or draining, or the store cannot record.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn retry(
    State(gateway): Shared,
    May(caller, _): May<HandIn>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let first = job(&gateway, &caller, &id).await?;
    if first.member.is_some() {
        return Err(Problem::conflict(format!(
            "request {} is a line of a batch: make a new batch of the lines to be tried again",
            first.id
        )));
    }
    if !can_be_retried(first.status) {
        let message = format!(
            "request {} is {}: only one that failed, expired or was cancelled is tried again",
            first.id, first.status
        );
        return Err(Problem::conflict(message));
    }
    caller.may_use(&first.queue).map_err(Denied::from)?;
    let body = gateway.desk.store().body(first.id).await;
    let body = body.map_err(|error| unavailable(&error))?;
    let body = body.ok_or_else(|| gone(first.id))?;
    let mut job = NewJob::new(first.queue, first.tenant, body);
    job.priority = first.priority;
    job.size = first.size;
    job.ttl = Some(gateway.desk.settings.request_ttl);
    job.max_attempts = gateway.max_attempts();
    job.details = first.details;
    job.details.retry_of = Some(first.id);
    // What the first one's headers said still holds, but nobody holds a connection for this one;
    // who is charged is who asks now.
    wanted::unnote(&mut job.details, AWAITED);
    wanted::charge_to(&mut job.details, &caller);
    has_room(&gateway, &caller, std::slice::from_ref(&job)).await?;
    let accepted = gateway.desk.accept(job).await?;
    Ok(told(&gateway, &accepted, StatusCode::ACCEPTED))
}
