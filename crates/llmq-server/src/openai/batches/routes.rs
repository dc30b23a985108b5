//! `/v1/batches`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use llmq_core::{Clock, parse_duration};
use llmq_provider::Operation;
use llmq_store::{Batch, BatchStatus, StoreError, StoredFile};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::files::find as find_file;
use super::super::guard::{Refused, not_found, sees_of};
use super::super::{ids, lists, upload};
use super::notes::{Instants, Notes};
use super::object::object;
use super::steward::{told, update};
use crate::Gateway;
use crate::call;
use crate::dialect::Refusal;
use crate::jobs::{checked_key, sees};
use crate::keys::{self, Caller, HandIn, Look, May, Spend};

type Shared = State<Arc<Gateway>>;

/// OpenAI's limits of `metadata` (API reference, 2026).
const PAIRS_MAX: usize = 16;
const KEY_MAX: usize = 64;
const VALUE_MAX: usize = 512;
/// The most batches of one answer, and how many it has where nothing is said.
const LIMIT_MAX: usize = 100;
const LIMIT: usize = 20;
/// Nobody plans further ahead.
const WINDOW_MAX_S: u64 = 365 * 86_400;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    input_file_id: String,
    endpoint: String,
    completion_window: String,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    #[serde(default)]
    output_expires_after: Option<Expiry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expiry {
    anchor: String,
    seconds: u64,
}

/// Makes a batch of a file of calls. It is read, checked and begun on its own; `GET` tells how it
/// stands. With an `Idempotency-Key`, one that was made of the same file with the same key, and
/// has not failed, is answered instead.
#[utoipa::path(
    post,
    path = "/v1/batches",
    tag = "batches",
    operation_id = "create_batch",
    params(("Idempotency-Key" = Option<String>, Header, description = "For one file and key, one batch is made.")),
    request_body(content_type = "application/json", content = Object),
    responses(
        (status = 200, description = "OpenAI's batch object, `validating`.", body = Object),
        (status = 400, description = "What is wrong, and where.", body = Object),
        (status = 409, description = "The idempotency key was used for another batch of the file.", body = Object),
        (status = 503, description = "The store cannot record, or the server ends (`store_unavailable`).", body = Object),
    ),
)]
pub(in super::super) async fn create(
    State(gateway): Shared,
    May(caller, _): May<HandIn, Refused>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Refused> {
    let tenant = keys::tenant(&caller, &headers)?.to_owned();
    let body = body.map_err(|rejection| Refusal::invalid(rejection.body_text()))?;
    let wanted: Create =
        serde_json::from_slice(&body).map_err(|error| Refusal::invalid(error.to_string()))?;
    gateway.desk.runner.takes_work()?;
    let file = input(&gateway, &caller, &wanted.input_file_id).await?;
    // What its lines may cost is held line by line, as each one starts.
    let least = Spend {
        tokens: 1,
        nano_usd: 1,
    };
    call::has_room(&gateway, &caller, least).await?;
    let key = idempotency_key(&headers)?;
    let notes = Notes {
        idempotency_key: key,
        ..notes(&caller, &file, wanted)?
    };
    let now = gateway.clock.now().wall;
    let batch = Batch::new(tenant, notes.kept(), now);
    let (making, wanted) = (Arc::clone(&gateway), notes.clone());
    let batch = led_on(&gateway, async move {
        let _alone = match wanted.idempotency_key {
            Some(_) => Some(making.batches.making.lock().await),
            None => None,
        };
        if let Some(earlier) = made_before(&making, &batch.tenant, &file, &wanted).await? {
            return Ok(earlier);
        }
        making.desk.store().create_batch(batch.clone()).await?;
        making.batches.touch(batch.id);
        Ok(batch)
    })
    .await?;
    if !Notes::of(&batch)?.is_for(&notes) {
        let message = "the idempotency key was used for another batch of this file";
        return Err(Refusal::new(StatusCode::CONFLICT, "conflict", message).into());
    }
    Ok(Json(object(&batch)?))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    // What cannot be read is no key.
    let key = key.to_str().unwrap_or_default().to_owned();
    let key = checked_key(key).map_err(|wrongful| {
        let message = format!("Idempotency-Key: {wrongful}");
        Refusal::invalid(message).about("Idempotency-Key")
    })?;
    Ok(Some(key))
}

/// The batch that was made of a file with the key of these notes, unless it has failed.
async fn made_before(
    gateway: &Gateway,
    tenant: &str,
    file: &StoredFile,
    wanted: &Notes,
) -> Result<Option<Batch>, StoreError> {
    /// The wall clock may have been set back a little since the file came.
    const EARLIER: Duration = Duration::from_secs(60);
    if wanted.idempotency_key.is_none() {
        return Ok(None);
    }
    let is_it = |batch: &Batch| {
        let notes = Notes::of(batch).ok();
        batch.status != BatchStatus::Failed
            && notes.is_some_and(|notes| {
                notes.input == wanted.input && notes.idempotency_key == wanted.idempotency_key
            })
    };
    let mut after = None;
    loop {
        // The newest come first, and none of a file is older than the file.
        let page = gateway.desk.store().batches(Some(tenant), after, LIMIT_MAX);
        let page = page.await?;
        let Some(last) = page.last() else {
            return Ok(None);
        };
        after = Some(last.id);
        let is_too_old = last.created_at + EARLIER < file.created_at;
        if let Some(found) = page.into_iter().find(is_it) {
            return Ok(Some(found));
        }
        if is_too_old {
            return Ok(None);
        }
    }
}

async fn input(gateway: &Gateway, caller: &Caller, name: &str) -> Result<StoredFile, Refused> {
    let bad = |message: String| Refused(Refusal::invalid(message).about("input_file_id"));
    let file = match find_file(gateway, caller, name).await {
        Ok(file) => file,
        Err(Refused(refusal)) if refusal.status == StatusCode::NOT_FOUND => {
            return Err(bad(refusal.message));
        }
        Err(refused) => return Err(refused),
    };
    if file.purpose != "batch" {
        let message = format!("the purpose of the file is {}, not batch", file.purpose);
        return Err(bad(message));
    }
    Ok(file)
}

fn notes(caller: &Caller, file: &StoredFile, wanted: Create) -> Result<Notes, Refused> {
    let is_known = wanted.endpoint.starts_with("/v1/")
        && Operation::from_path(&wanted.endpoint)
            .is_some_and(|operation| operation != Operation::Models);
    if !is_known {
        let message = "`endpoint` must be one that calls go to, such as /v1/chat/completions";
        return Err(Refusal::invalid(message).about("endpoint").into());
    }
    let window_s = parse_duration(&wanted.completion_window).map_or(0, |window| window.as_secs());
    if window_s == 0 || window_s > WINDOW_MAX_S {
        let message = "`completion_window` must be a time of 1s to 365d, such as 24h";
        return Err(Refusal::invalid(message).about("completion_window").into());
    }
    let metadata = wanted.metadata.unwrap_or_default();
    check_metadata(&metadata)?;
    let kept = match wanted.output_expires_after {
        None => upload::KEPT,
        Some(expiry) if expiry.anchor == "created_at" => upload::expiry(expiry.seconds)?,
        Some(_) => return Err(upload::bad_expiry()),
    };
    Ok(Notes {
        input: file.id,
        endpoint: wanted.endpoint,
        window: wanted.completion_window,
        window_s,
        metadata,
        output_kept_s: kept.as_secs(),
        key: caller.key_id(),
        idempotency_key: None,
        models: caller.models().map(<[String]>::to_vec),
        model: None,
        errors: Vec::new(),
        at: Instants::default(),
        output: None,
        error_output: None,
        usage: None,
    })
}

fn check_metadata(metadata: &Map<String, Value>) -> Result<(), Refused> {
    let fits = |(key, value): (&String, &Value)| {
        let value = value.as_str().map(|value| value.chars().count());
        key.chars().count() <= KEY_MAX && value.is_some_and(|length| length <= VALUE_MAX)
    };
    if metadata.len() > PAIRS_MAX || !metadata.iter().all(fits) {
        let message = format!(
            "`metadata` takes {PAIRS_MAX} texts of at most {VALUE_MAX} characters, under names of \
             at most {KEY_MAX}"
        );
        return Err(Refusal::invalid(message).about("metadata").into());
    }
    Ok(())
}

/// Which batches a list shows.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct Asked {
    /// At most so many, 1 to 100; 20 where nothing is said.
    limit: Option<usize>,
    /// From behind this batch on.
    after: Option<String>,
}

/// Batches, newest first.
#[utoipa::path(
    get,
    path = "/v1/batches",
    tag = "batches",
    operation_id = "list_batches",
    params(Asked),
    responses((status = 200, description = "OpenAI's list of batch objects.", body = Object)),
)]
pub(in super::super) async fn list(
    State(gateway): Shared,
    May(caller, _): May<Look, Refused>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Value>, Refused> {
    let Query(asked) = asked?;
    let limit = lists::limit(asked.limit, LIMIT, LIMIT_MAX)?;
    let after = lists::after(asked.after.as_deref(), ids::batch_of)?;
    let store = gateway.desk.store();
    let tenant = sees_of(&caller);
    let mut batches = store.batches(tenant, after, limit + 1).await?;
    let has_more = batches.len() > limit;
    batches.truncate(limit);
    let data = batches.iter().map(object).collect::<Result<_, _>>()?;
    Ok(Json(lists::listed(data, has_more)))
}

/// A batch as it stands.
#[utoipa::path(
    get,
    path = "/v1/batches/{id}",
    tag = "batches",
    operation_id = "get_batch",
    params(("id" = String, Path, description = "Its `id`.")),
    responses(
        (status = 200, description = "OpenAI's batch object.", body = Object),
        (status = 404, description = "There is none of that id.", body = Object),
    ),
)]
pub(in super::super) async fn show(
    State(gateway): Shared,
    May(caller, _): May<Look, Refused>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refused> {
    Ok(Json(object(&find(&gateway, &caller, &name).await?)?))
}

/// Ends a batch early. What is done by then is kept, and is in its output.
#[utoipa::path(
    post,
    path = "/v1/batches/{id}/cancel",
    tag = "batches",
    operation_id = "cancel_batch",
    params(("id" = String, Path, description = "Its `id`.")),
    responses(
        (status = 200, description = "The batch, `cancelling` or `cancelled`.", body = Object),
        (status = 400, description = "It has ended.", body = Object),
        (status = 404, description = "There is none of that id.", body = Object),
    ),
)]
pub(in super::super) async fn cancel(
    State(gateway): Shared,
    May(caller, _): May<HandIn, Refused>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refused> {
    loop {
        let batch = find(&gateway, &caller, &name).await?;
        let now = gateway.clock.now();
        let mut notes = Notes::of(&batch)?;
        let (to, event) = match batch.status {
            // Nothing of it was begun.
            BatchStatus::Validating => {
                notes.at.cancelled = Some(now.wall);
                (
                    BatchStatus::Cancelled,
                    Some(told(&batch, "batch.cancelled")),
                )
            }
            BatchStatus::InProgress => (BatchStatus::Cancelling, None),
            // It is as good as ended, by itself or by an earlier wish.
            BatchStatus::Finalizing | BatchStatus::Cancelling | BatchStatus::Cancelled => {
                return Ok(Json(object(&batch)?));
            }
            BatchStatus::Failed | BatchStatus::Completed | BatchStatus::Expired => {
                let message = "the batch has ended and cannot be cancelled any more";
                return Err(Refusal::invalid(message).about("id").into());
            }
        };
        notes.at.cancelling = Some(now.wall);
        let update = update(batch.status, to, &notes, event);
        let ending = Arc::clone(&gateway);
        let moved = led_on(&gateway, async move {
            let store = ending.desk.store();
            let moved = store.update_batch(batch.id, update, now).await?;
            if moved.is_some() {
                ending.batches.touch(batch.id);
            }
            Ok(moved)
        });
        // If it has moved on meanwhile, what is to be done is another thing.
        if let Some(batch) = moved.await? {
            return Ok(Json(object(&batch)?));
        }
    }
}

/// Carries out a change of a batch to its end although its caller may go: what is in the store and
/// was told to nobody who leads batches on would stand still until the next start.
async fn led_on<T: Send + 'static>(
    gateway: &Gateway,
    change: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let changed = gateway.desk.tasks.spawn(change).await;
    changed.unwrap_or(Err(StoreError::Closed))
}

/// A batch that the caller may see. One of another tenant is told like one that is not there.
async fn find(gateway: &Gateway, caller: &Caller, name: &str) -> Result<Batch, Refused> {
    let unknown = || not_found("batch", name);
    let id = ids::batch_of(name).ok_or_else(unknown)?;
    let batch = gateway.desk.store().batch(id).await?;
    batch
        .filter(|batch| sees(caller, &batch.tenant))
        .ok_or_else(unknown)
}
