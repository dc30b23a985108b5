//! Calls that came by a provider's API and become jobs: since they asked for that, since nobody
//! can serve them now, or since they carry a key that makes them safe to repeat.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::response::IntoResponse;
use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use llmq_core::{FailureClass, Priority, Status, parse_duration};
use llmq_engine::config::StreamRecovery;
use llmq_engine::jobs::AWAITED;
use llmq_store::{Idempotency, Job, JobError, JobId, NewJob};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::catalog::BUDGET_EXHAUSTED;
use super::desk::{Standing, refusal as refused};
use super::live::{self, Began};
use super::wanted::checked_key;
use super::{result, wanted};
use crate::call::{self, Incoming, Reply, ReplyBody};
use crate::dialect::Refusal;
use crate::models::Model;
use crate::{Gateway, Problem};

/// A job whose time is over is ended by the store a moment later, unless its queue stands still.
const ENDED_WITHIN: Duration = Duration::from_millis(500);
/// How often it is looked whether a job that runs longer than its caller would wait stands in line
/// again.
const LOOK: Duration = Duration::from_secs(5);
/// Before the names of a caller's own notes.
const NOTE: &str = "x-llmq-metadata-";
/// What marks a job whose answer is a stream, with what its caller says of that.
pub(super) const STREAM: &str = "stream";

/// What a call says that makes a job of it, or may.
#[derive(Debug, Clone, Default)]
pub(crate) struct Later {
    /// `Prefer: respond-async`.
    pub(crate) respond_async: bool,
    /// `Prefer: wait` beside it: it becomes a job only when that time is over.
    pub(crate) waits_first: bool,
    key: Option<String>,
    ttl: Option<Duration>,
    priority: Option<Priority>,
    notes: Vec<(String, String)>,
}

/// What a call says of being a job; none, as nearly always: nothing, and it does not become one
/// by itself either (`may_be_kept`).
pub(crate) fn asks_for_job(
    headers: &HeaderMap,
    respond_async: bool,
    waits_first: bool,
    may_be_kept: bool,
) -> Result<Option<Box<Later>>, Refusal> {
    let key = headers.get("idempotency-key");
    if key.is_none() && !respond_async && !may_be_kept {
        return Ok(None);
    }
    let bad = |header: &str, why: &str| Refusal::invalid(format!("{header}: {why}")).about(header);
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let key = text("idempotency-key")
        .map(|key| checked_key(key.to_owned()))
        .transpose()
        .map_err(|why| bad("Idempotency-Key", &why.0))?;
    let ttl = match text("x-llmq-ttl") {
        None => None,
        Some(text) => match parse_duration(text.trim()) {
            Some(ttl) if !ttl.is_zero() && ttl <= wanted::AHEAD_MAX => Some(ttl),
            _ => {
                return Err(bad(
                    "X-LLMQ-TTL",
                    "use a time above 0 and at most 365d, such as 4h",
                ));
            }
        },
    };
    // It was read before, and is right.
    let priority = text("x-llmq-priority").and_then(|text| text.trim().parse().ok());
    let notes = headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().strip_prefix(NOTE)?;
        Some((name.to_owned(), value.to_str().ok()?.to_owned()))
    });
    Ok(Some(Box::new(Later {
        respond_async,
        waits_first,
        key,
        ttl,
        priority,
        notes: notes.take(64).collect(),
    })))
}

impl Later {
    /// What is left of it for a call, which may be for a `stream`: nobody reads a 202 as one, so
    /// the preference is passed over (RFC 7240, 2), and nothing else.
    pub(crate) fn of_stream(mut self: Box<Self>, stream: bool) -> Option<Box<Self>> {
        if stream {
            (self.respond_async, self.waits_first) = (false, false);
        }
        (self.respond_async || self.key.is_some() || !stream).then_some(self)
    }

    /// Whether it is a call with a key whose caller waits: its bytes are kept for those who ask
    /// again.
    pub(crate) fn is_keyed(&self) -> bool {
        self.key.is_some() && (self.waits_first || !self.respond_async)
    }
}

/// The job that a call becomes.
///
/// # Errors
///
/// No upstream of the model can be told the call, or its caller's budget has no room for it.
pub(crate) async fn of_call(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
) -> Result<NewJob, Refusal> {
    let told = gateway
        .models
        .can_be_told(model, incoming.operation, &incoming.body);
    told.map_err(|why| Refusal {
        param: why.path().map(str::to_owned),
        ..Refusal::invalid(why.to_string())
    })?;
    // One that was asked before may be answered already: it is asked when it starts.
    let has_key = incoming
        .later
        .as_ref()
        .is_some_and(|later| later.key.is_some());
    if incoming.caller.has_budget() && !has_key {
        let most = call::most(&gateway.models, incoming.operation, incoming.size, model);
        call::has_room(gateway, &incoming.caller, most).await?;
    }
    let later = incoming.later.as_deref();
    let mut job = NewJob::new(
        model.name.clone(),
        incoming.tenant_name.clone(),
        incoming.body.clone(),
    );
    job.size = incoming.size;
    job.max_attempts = gateway.max_attempts();
    job.priority = later.and_then(|later| later.priority).unwrap_or_default();
    let ttl = later.and_then(|later| later.ttl);
    job.ttl = Some(ttl.unwrap_or(gateway.desk.settings.request_ttl));
    job.idempotency = later
        .and_then(|later| later.key.clone())
        .map(|key| Idempotency {
            key,
            request_hash: hash(incoming),
        });
    job.details.endpoint = format!("/v1{}", incoming.operation.path());
    let notes = later.into_iter().flat_map(|later| &later.notes);
    job.details.metadata = notes
        .map(|(name, text)| (name.clone(), text.clone().into()))
        .collect();
    wanted::charge_to(&mut job.details, &incoming.caller);
    for (name, headers) in [
        ("headers", &incoming.headers),
        ("account_headers", &incoming.account_headers),
    ] {
        if !headers.is_empty() {
            wanted::note(&mut job.details, name, noted(headers).into());
        }
    }
    if let Some(only) = &incoming.only {
        let (route, body) = (Arc::clone(only), incoming.body.clone());
        call::Place { route, body }.note(&mut job);
    }
    if incoming.stream {
        let stream = json!({"include_usage": incoming.include_usage});
        wanted::note(&mut job.details, STREAM, stream);
    }
    Ok(job)
}

/// Headers of the caller that a provider may see.
fn noted(headers: &HeaderMap) -> serde_json::Map<String, serde_json::Value> {
    let headers = headers.iter();
    headers
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.into())))
        .collect()
}

/// The same bytes at the same place.
fn hash(incoming: &Incoming) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(incoming.operation.path().as_bytes());
    // A response in the background has the body of the plain call that it becomes.
    hasher.update([0, u8::from(incoming.background.is_some())]);
    hasher.update(&incoming.body);
    hasher.finalize().into()
}

/// A call becomes a job.
///
/// # Errors
///
/// Those of [`of_call`], and why nothing is accepted.
pub(crate) async fn accepted(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
) -> Result<Reply, Refusal> {
    let job = of_call(gateway, incoming, model).await?;
    let accepted = gateway.desk.accept(job).await;
    let accepted = accepted.map_err(|problem| as_refusal(&problem))?;
    Ok(told_of(gateway, incoming, &accepted))
}

/// 202: where to ask for it (RFC 7240, 4.1).
fn told_of(gateway: &Gateway, incoming: &Incoming, accepted: &Standing) -> Reply {
    let id = accepted.job.id.to_string();
    let location = format!("/api/requests/{id}");
    let state = gateway.desk.state(accepted);
    let mut response = (StatusCode::ACCEPTED, Json(state)).into_response();
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::try_from(location) {
        headers.insert(LOCATION, location);
    }
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert("x-llmq-request-id", id);
    }
    if goes_on(incoming) {
        let applied = HeaderValue::from_static("respond-async");
        headers.insert("preference-applied", applied);
    }
    response.map(ReplyBody::Other)
}

/// Whether a call whose model nobody serves now becomes a job instead of failing.
pub(crate) fn queued_instead(incoming: &Incoming, model: &Model) -> bool {
    use llmq_engine::config::OnUnavailable;
    // No SDK reads a 202 as a stream.
    !incoming.stream && model.settings.on_unavailable == OnUnavailable::Queue
}

/// A call with a key: a job whose caller waits for it, and hears its stream while it comes. Whoever
/// asks again with the same key gets the same bytes; a caller that goes loses its connection only.
pub(crate) async fn by_key(gateway: &Gateway, incoming: &Incoming, model: &Model) -> Reply {
    let runner = &gateway.desk.runner;
    let handed_in = async {
        let mut job = of_call(gateway, incoming, model).await?;
        job.priority = incoming.priority;
        if !goes_on(incoming) {
            wanted::note(&mut job.details, AWAITED, true.into());
            // A call waits no longer than its caller would.
            job.ttl = Some(incoming.max_wait.max(Duration::from_millis(1)));
        }
        // One that is to be held to its end is told when it is whole.
        let is_held = model.settings.stream_recovery == StreamRecovery::Buffer;
        // Before it is handed in, so that nothing of it is missed.
        let heard = (incoming.stream && !is_held).then(|| runner.listen(job.id));
        let entry = runner.accept(job).await;
        let entry = entry.map_err(|error| as_refusal(&refused(&error)))?;
        Ok::<_, Refusal>((entry, heard))
    };
    let (entry, heard) = match handed_in.await {
        Ok(handed_in) => handed_in,
        Err(refusal) => return incoming.refused(gateway, &refusal),
    };
    // From here on the job is counted and logged at its end, whatever its caller is told.
    let answered = async {
        // One that was made before is told when it is whole.
        let heard = heard.filter(|_| entry.new.is_some());
        let began = async {
            match heard {
                Some(heard) => Began::of(heard).await,
                None => None,
            }
        };
        let waited = after_its_wait(gateway, incoming, entry.id);
        tokio::pin!(waited);
        let job = tokio::select! {
            biased;
            Some(began) = began => {
                return Ok(live::reply(runner, entry.id, incoming.dialect, began));
            }
            job = &mut waited => job?,
        };
        if job.status == Status::Queued && !gateway.observed.is_draining() {
            return waits_still(gateway, incoming, model, job).await;
        }
        if goes_on(incoming) && may_be_cured(gateway, &job)
            || queued_instead(incoming, model) && unserved(gateway, model, &job)
        {
            // Its key is free again, and is that of the one that is kept.
            return accepted(gateway, incoming, model).await;
        }
        Ok(told(gateway, incoming, model, job).await)
    };
    match answered.await {
        Ok(reply) => reply,
        Err(refusal) => call::refused(&refusal, incoming.dialect),
    }
}

/// Whether a call is a request that is answered as a call if it ends in time.
fn goes_on(incoming: &Incoming) -> bool {
    let later = incoming.later.as_ref();
    later.is_some_and(|later| later.respond_async)
}

/// Whether a job failed in a way that time may cure.
fn may_be_cured(gateway: &Gateway, job: &Job) -> bool {
    let class = job.error.as_ref().and_then(|error| error.class);
    let may_help = |class| match class {
        FailureClass::RowFault | FailureClass::TooLarge => false,
        class => gateway.live.load().retry.may_repeat(class),
    };
    job.status == Status::Failed && class.is_some_and(may_help)
}

/// Whether it was for its upstreams that a job found no answer, in its time or its attempts.
fn unserved(gateway: &Gateway, model: &Model, job: &Job) -> bool {
    let class = job.error.as_ref().and_then(|error| error.class);
    let may_help = class.is_none_or(|class| gateway.live.load().retry.may_repeat(class));
    let broken = class.is_some_and(|class| class.rule().trips_breaker);
    match job.status {
        Status::Failed => may_help && broken,
        Status::Expired => may_help && (broken || call::is_down(gateway, model)),
        _ => false,
    }
}

/// The job of a call at its end, or as it stands in line when its caller has waited as long as it
/// would: the time of jobs stands still while their queue does, that of callers does not, and an
/// earlier call of the same key may have been told to wait longer. One that runs takes its time.
async fn after_its_wait(gateway: &Gateway, incoming: &Incoming, id: JobId) -> Result<Job, Refusal> {
    let mut wait = incoming.max_wait;
    if !goes_on(incoming) {
        wait += ENDED_WITHIN;
    }
    loop {
        let job = gateway.desk.ended(id, wait).await;
        let job = job.map_err(|problem| as_refusal(&problem))?;
        let job = job.ok_or_else(|| Refusal::invalid("the request is removed already"))?;
        if job.status != Status::Processing {
            return Ok(job);
        }
        wait = LOOK;
    }
}

/// What a caller is told whose call waits on without it: the same key finds it.
async fn waits_still(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
    job: Job,
) -> Result<Reply, Refusal> {
    if goes_on(incoming) || queued_instead(incoming, model) && call::is_down(gateway, model) {
        let standing = gateway.desk.placed(vec![job]).await.remove(0);
        return Ok(told_of(gateway, incoming, &standing));
    }
    let message = format!(
        "the call of this Idempotency-Key waits still: ask again, or see /api/requests/{}",
        job.id
    );
    if let Some(mut refusal) = call::paused(gateway, model) {
        refusal.message = format!("{}; {message}", refusal.message);
        return Err(refusal);
    }
    let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message);
    Err(refusal.after(Some(call::comes_again(gateway, incoming, model))))
}

/// The headers that tell of attempts.
pub(super) fn described<B>(
    mut response: Response<B>,
    attempts: u32,
    upstream: Option<String>,
) -> Response<B> {
    let headers = response.headers_mut();
    headers.insert("x-llmq-attempts", HeaderValue::from(attempts));
    if let Some(Ok(upstream)) = upstream.map(HeaderValue::try_from) {
        headers.insert("x-llmq-upstream", upstream);
    }
    response
}

async fn told(gateway: &Gateway, incoming: &Incoming, model: &Model, job: Job) -> Reply {
    let again = || Some(call::comes_again(gateway, incoming, model));
    let refusal = match job.status {
        Status::Completed | Status::Failed => match gateway.desk.answer(job.id).await {
            Ok(Some(answer)) => {
                let response = result::passed_on(answer, job.id);
                let mut response = described(response, job.attempts, job.upstream);
                let headers = response.headers_mut();
                if job.status == Status::Failed {
                    // llmq has tried as often as makes sense.
                    headers.insert("x-should-retry", HeaderValue::from_static("false"));
                }
                return response.map(ReplyBody::whole);
            }
            Ok(None) => match over_budget(gateway, incoming, model, &job).await {
                Some(refusal) => refusal,
                None => as_refusal(&result::failure(&job)),
            },
            Err(problem) => as_refusal(&problem),
        },
        Status::Expired if job.error.as_ref().is_some_and(tells_of_upstreams) => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "upstream_unavailable",
            job.error.map(|error| error.message).unwrap_or_default(),
        )
        .after(again()),
        Status::Expired if call::is_down(gateway, model) => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "upstream_unavailable",
            format!("no upstream of `{}` can serve calls now", model.name),
        )
        .after(again()),
        Status::Expired => Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            format!(
                "the limits of `{}` had no room for the call in its time; X-LLMQ-Max-Wait lets it \
                 wait longer",
                incoming.model
            ),
        )
        .after(again()),
        Status::Cancelled => Refusal::new(
            StatusCode::CONFLICT,
            "cancelled",
            format!("the call was cancelled (DELETE /api/requests/{})", job.id),
        ),
        // The server ends: the call goes on in the next one, and the same key finds it there.
        Status::Queued | Status::Processing => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "the server ends; ask again with the same Idempotency-Key",
        ),
    };
    call::refused(&refusal, incoming.dialect)
}

/// Whether it was more than a limit that an attempt met.
fn tells_of_upstreams(error: &JobError) -> bool {
    error.class.is_none_or(|class| !call::is_limit(class))
}

/// What a call is told whose job found no room in its key's budget, and still would not.
async fn over_budget(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
    job: &Job,
) -> Option<Refusal> {
    job.error
        .as_ref()
        .filter(|error| error.code == BUDGET_EXHAUSTED)?;
    let most = call::most(&gateway.models, incoming.operation, incoming.size, model);
    let room = call::has_room(gateway, &incoming.caller, most).await;
    room.err()
}

/// A problem in the dialect of a provider's API.
pub(crate) fn as_refusal(problem: &Problem) -> Refusal {
    let body = problem.body();
    Refusal::new(problem.status(), problem.code(), body.message).after(problem.retry_after())
}
