//! `/v1/files`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::MultipartRejection;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Multipart, Path, Query, State};
use axum::response::Response;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use llmq_core::WallTime;
use llmq_store::{FileId, Store, StoreError, StoredFile};
use serde::Deserialize;
use serde_json::{Value, json};

use super::guard::{Refused, not_found, sees_of};
use super::{ids, lists, upload};
use crate::Gateway;
use crate::dialect::Refusal;
use crate::jobs::sees;
use crate::keys::{self, Caller, HandIn, Look, May};

type Shared = State<Arc<Gateway>>;

/// So many files are read from the store at once.
const PAGE: usize = 500;
/// The most files of one answer.
const LIMIT_MAX: usize = 10_000;

/// Uploads a file, as a form with `purpose`, `file` and, if wanted, `expires_after`. It is streamed
/// to the store, and seen when all of it is there.
#[utoipa::path(
    post,
    path = "/v1/files",
    tag = "batches",
    operation_id = "create_file",
    request_body(content_type = "multipart/form-data", content = Object),
    responses(
        (status = 200, description = "OpenAI's file object.", body = Object),
        (status = 400, description = "What is wrong with the form, in OpenAI's form of errors.", body = Object),
        (status = 413, description = "It is larger than `server.max_file`.", body = Object),
        (status = 503, description = "The store cannot record, or the server ends (`store_unavailable`).", body = Object),
    ),
)]
pub(super) async fn create(
    State(gateway): Shared,
    May(caller, _): May<HandIn, Refused>,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Json<Value>, Refused> {
    let tenant = keys::tenant(&caller, &headers)?.to_owned();
    let form = form.map_err(|rejection| Refusal::invalid(rejection.body_text()))?;
    gateway.desk.runner.takes_work()?;
    // If the caller goes, the task ends by the broken form, and takes out what came until then.
    let taking = upload::take(Arc::clone(&gateway), tenant, form);
    match gateway.desk.tasks.spawn(taking).await {
        Ok(taken) => Ok(Json(object(&taken?))),
        Err(_) => Err(StoreError::Closed.into()),
    }
}

/// Which files a list shows.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Only those for this.
    purpose: Option<String>,
    /// At most so many, 1 to 10,000 (the default).
    limit: Option<usize>,
    /// `desc`, the newest first (the default), or `asc`.
    order: Option<String>,
    /// From behind this file on.
    after: Option<String>,
}

/// Files, newest first or oldest first.
#[utoipa::path(
    get,
    path = "/v1/files",
    tag = "batches",
    operation_id = "list_files",
    params(Asked),
    responses((status = 200, description = "OpenAI's list of file objects.", body = Object)),
)]
pub(super) async fn list(
    State(gateway): Shared,
    May(caller, _): May<Look, Refused>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Value>, Refused> {
    let Query(asked) = asked?;
    let limit = lists::limit(asked.limit, LIMIT_MAX, LIMIT_MAX)?;
    let after = lists::after(asked.after.as_deref(), ids::file_of)?;
    let wanted = Wanted {
        tenant: sees_of(&caller),
        purpose: asked.purpose.as_deref(),
        after,
        limit,
    };
    let store = gateway.desk.store().as_ref();
    let mut files = match asked.order.as_deref() {
        None | Some("desc") => wanted.newest_first(store).await?,
        Some("asc") => wanted.oldest_first(store).await?,
        Some(_) => {
            let message = "`order` must be asc or desc";
            return Err(Refusal::invalid(message).about("order").into());
        }
    };
    let has_more = files.len() > limit;
    files.truncate(limit);
    let data: Vec<Value> = files.iter().map(object).collect();
    Ok(Json(lists::listed(data, has_more)))
}

/// What a list shows, and one more where there is one.
struct Wanted<'a> {
    tenant: Option<&'a str>,
    purpose: Option<&'a str>,
    after: Option<FileId>,
    limit: usize,
}

impl Wanted<'_> {
    async fn newest_first(&self, store: &dyn Store) -> Result<Vec<StoredFile>, StoreError> {
        let (mut found, mut after) = (Vec::new(), self.after);
        while found.len() <= self.limit {
            let page = store.files(self.tenant, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            found.extend(page.into_iter().filter(|file| self.passes(file)));
        }
        Ok(found)
    }

    /// The store lists the newest first: all of them pass by, and the last ones stay.
    async fn oldest_first(&self, store: &dyn Store) -> Result<Vec<StoredFile>, StoreError> {
        let (mut kept, mut after) = (VecDeque::new(), None);
        loop {
            let page = store.files(self.tenant, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            let is_behind = |file: &StoredFile| self.after.is_none_or(|after| file.id > after);
            let at_end = page.iter().any(|file| !is_behind(file));
            for file in page {
                if is_behind(&file) && self.passes(&file) {
                    kept.push_front(file);
                    kept.truncate(self.limit + 1);
                }
            }
            if at_end {
                break;
            }
        }
        Ok(kept.into())
    }

    fn passes(&self, file: &StoredFile) -> bool {
        self.purpose.is_none_or(|purpose| file.purpose == purpose)
    }
}

/// One file's description.
#[utoipa::path(
    get,
    path = "/v1/files/{id}",
    tag = "batches",
    operation_id = "get_file",
    params(("id" = String, Path, description = "Its `id`.")),
    responses(
        (status = 200, description = "OpenAI's file object.", body = Object),
        (status = 404, description = "There is none of that id.", body = Object),
    ),
)]
pub(super) async fn show(
    State(gateway): Shared,
    May(caller, _): May<Look, Refused>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refused> {
    Ok(Json(object(&find(&gateway, &caller, &name).await?)))
}

/// What is in a file, as it was handed in.
#[utoipa::path(
    get,
    path = "/v1/files/{id}/content",
    tag = "batches",
    operation_id = "get_file_content",
    params(("id" = String, Path, description = "Its `id`.")),
    responses(
        (status = 200, description = "Its bytes."),
        (status = 404, description = "There is none of that id.", body = Object),
    ),
)]
pub(super) async fn content(
    State(gateway): Shared,
    May(caller, _): May<Look, Refused>,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    let file = find(&gateway, &caller, &name).await?;
    let store = Arc::clone(gateway.desk.store());
    let id = file.id;
    // Once the head is sent, an error can only break the answer off.
    let first = store.read_file(id, 0).await?;
    let chunks = stream::try_unfold((store, 0, first), move |(store, chunk, first)| async move {
        let read = match first {
            Some(first) => Some(first),
            None => store.read_file(id, chunk).await.inspect_err(|error| {
                tracing::error!(file = %ids::file(id), %error, "a file breaks off");
            })?,
        };
        Ok::<_, StoreError>(read.map(|bytes| (bytes, (store, chunk + 1, None))))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/octet-stream");
    headers.insert(CONTENT_TYPE, kind);
    // A file that is removed meanwhile breaks off, and does not pass for whole.
    headers.insert(CONTENT_LENGTH, HeaderValue::from(file.bytes));
    Ok(response)
}

/// Removes a file. A batch that still reads it fails; one that has read it goes on.
#[utoipa::path(
    delete,
    path = "/v1/files/{id}",
    tag = "batches",
    operation_id = "delete_file",
    params(("id" = String, Path, description = "Its `id`.")),
    responses(
        (status = 200, description = "It is removed.", body = Object),
        (status = 404, description = "There is none of that id.", body = Object),
    ),
)]
pub(super) async fn delete(
    State(gateway): Shared,
    May(caller, _): May<HandIn, Refused>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refused> {
    let file = find(&gateway, &caller, &name).await?;
    if !gateway.desk.store().delete_file(file.id).await? {
        return Err(not_found("file", &name));
    }
    Ok(Json(json!({"id": name, "object": "file", "deleted": true})))
}

/// A file that the caller may see. One of another tenant is told like one that is not there.
pub(super) async fn find(
    gateway: &Gateway,
    caller: &Caller,
    name: &str,
) -> Result<StoredFile, Refused> {
    let file = of_caller(gateway, caller, name).await?;
    file.ok_or_else(|| not_found("file", name))
}

/// The file of this name, if it is kept here and the caller may see it.
pub(crate) async fn of_caller(
    gateway: &Gateway,
    caller: &Caller,
    name: &str,
) -> Result<Option<StoredFile>, StoreError> {
    let Some(id) = ids::file_of(name) else {
        return Ok(None);
    };
    let file = gateway.desk.store().file(id).await?;
    Ok(file.filter(|file| sees(caller, &file.tenant)))
}

/// OpenAI's file object (API reference, 2026).
fn object(file: &StoredFile) -> Value {
    json!({
        "id": ids::file(file.id),
        "object": "file",
        "bytes": file.bytes,
        "created_at": seconds(file.created_at),
        "expires_at": file.expires_at.map(seconds),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": null,
    })
}

/// An instant as OpenAI's API tells it.
pub(super) fn seconds(at: WallTime) -> i64 {
    at.as_micros().div_euclid(1_000_000)
}
