use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::header::{CACHE_CONTROL, LOCATION};
use http::{HeaderValue, StatusCode};
use llmq_api::{
    CreateKey, CreatedKey, KeyBudget, KeyInfo, KeyList, KeyScope, KeyUse, ProblemBody, UsedInPeriod,
};
use llmq_store_sqlite::{KeyRecord, StoreError};
use serde::Deserialize;
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ledger::Booked;
use super::{CreateKeyError, HasKeys, KeyRing, Manage, May, RevokeKeyError};
use crate::Problem;
use crate::shown::{instant, usd};

/// A key to make is a few hundred bytes; this is room for a hundred long model names.
const BODY_MAX: usize = 64 * 1024;

/// How many keys a page has unless something is asked, and at most.
const PAGE: u32 = 100;
const PAGE_MAX: u32 = 1_000;

/// `/api/keys`: `POST` makes a key, `GET` lists them, `GET /{id}` shows one, `DELETE /{id}`
/// revokes it. All of it needs the scope `manage`.
pub fn router(ring: Arc<KeyRing>) -> Router {
    let (router, _) = described().split_for_parts();
    router
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(ring)
}

/// The same with its description.
pub(crate) fn described() -> OpenApiRouter<Arc<KeyRing>> {
    OpenApiRouter::new()
        .routes(routes!(list_keys, create_key))
        .routes(routes!(get_key, revoke_key))
}

/// Makes a key; it is shown in this answer and never again.
#[utoipa::path(
    post,
    path = "/api/keys",
    tag = "keys",
    request_body = CreateKey,
    responses(
        (status = 201, description = "The key.", body = CreatedKey),
        (status = 400, description = "What is wrong, and where.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "Its name is taken, or nobody could manage keys.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn create_key(
    State(ring): State<Arc<KeyRing>>,
    _: May<Manage>,
    body: Result<Json<CreateKey>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(wanted) = body?;
    let created = ring.create(wanted).await?;
    let location = format!("/api/keys/{}", created.record.id);
    let answer = CreatedKey {
        key: created.key.expose().to_owned(),
        info: ring.info(&created.record),
    };
    let mut response = (StatusCode::CREATED, Json(answer)).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(location) = HeaderValue::from_str(&location) {
        headers.insert(LOCATION, location);
    }
    Ok(response)
}

#[derive(Debug, Deserialize)]
struct Page {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Keys, newest first, revoked ones too.
#[utoipa::path(
    get,
    path = "/api/keys",
    tag = "keys",
    params(
        ("limit" = Option<u32>, Query, description = "How many, 1 to 1000; 100 if left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
    ),
    responses((status = 200, description = "A page of them.", body = KeyList)),
)]
async fn list_keys(
    State(ring): State<Arc<KeyRing>>,
    _: May<Manage>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<KeyList>, Problem> {
    let Query(page) = page?;
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be 1 to {PAGE_MAX}")));
    }
    let cursor = page.cursor.as_deref().map(Uuid::parse_str).transpose();
    let cursor = cursor.map_err(|_| Problem::invalid("cursor is not one of a list of keys"))?;
    // One more than the page shows whether there is a next one.
    let mut records = ring.list(cursor, limit + 1).await?;
    let more = records.len() > limit as usize;
    records.truncate(limit as usize);
    let last = records.last().map(|record| record.id.to_string());
    Ok(Json(KeyList {
        keys: records.iter().map(|record| ring.info(record)).collect(),
        next_cursor: last.filter(|_| more),
    }))
}

/// One key, and what it used today and this month.
#[utoipa::path(
    get,
    path = "/api/keys/{id}",
    tag = "keys",
    params(("id" = String, Path, description = "The key's id.")),
    responses(
        (status = 200, description = "The key.", body = KeyInfo),
        (status = 404, description = "There is none.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn get_key(
    State(ring): State<Arc<KeyRing>>,
    _: May<Manage>,
    Path(id): Path<String>,
) -> Result<Json<KeyInfo>, Problem> {
    let id = parse_id(&id)?;
    let record = ring.one(id).await?;
    let record = record.ok_or_else(|| unknown(&id.to_string()))?;
    Ok(Json(ring.info(&record)))
}

/// Refuses a key from now on.
#[utoipa::path(
    delete,
    path = "/api/keys/{id}",
    tag = "keys",
    params(("id" = String, Path, description = "The key's id.")),
    responses(
        (status = 200, description = "The key, revoked by this or an earlier request.", body = KeyInfo),
        (status = 404, description = "There is none.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It is the last one that manages others.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn revoke_key(
    State(ring): State<Arc<KeyRing>>,
    _: May<Manage>,
    Path(id): Path<String>,
) -> Result<Json<KeyInfo>, Problem> {
    let record = ring.revoke(parse_id(&id)?).await?;
    Ok(Json(ring.info(&record)))
}

impl HasKeys for Arc<KeyRing> {
    fn key_ring(&self) -> &KeyRing {
        self
    }
}

impl From<CreateKeyError> for Problem {
    fn from(error: CreateKeyError) -> Self {
        let message = error.to_string();
        match error {
            CreateKeyError::Invalid { field, .. } => {
                Problem::invalid(message).with_details(json!({ "field": field }))
            }
            CreateKeyError::NameTaken(_) | CreateKeyError::NobodyManages => {
                Problem::conflict(message)
            }
            CreateKeyError::NoRandomness(_) => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            }
            CreateKeyError::Store(source) => source.into(),
        }
    }
}

impl From<RevokeKeyError> for Problem {
    fn from(error: RevokeKeyError) -> Self {
        let message = error.to_string();
        match error {
            RevokeKeyError::Unknown(_) => Problem::not_found("key_not_found", message),
            RevokeKeyError::LastManager(_) => Problem::conflict(message),
            RevokeKeyError::Store(source) => source.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        // What SQLite said is for the log; a caller can only come again.
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "the store refused"
        );
        Problem::unavailable("store_unavailable", "the store cannot be used now")
    }
}

fn parse_id(id: &str) -> Result<Uuid, Problem> {
    Uuid::parse_str(id).map_err(|_| unknown(id))
}

fn unknown(id: &str) -> Problem {
    Problem::not_found("key_not_found", format!("there is no key {id}"))
}

impl KeyRing {
    /// A key as it is shown.
    #[must_use]
    pub fn info(&self, record: &KeyRecord) -> KeyInfo {
        let scopes = record.scopes.iter();
        KeyInfo {
            id: record.id,
            name: record.name.clone(),
            prefix: record.prefix.clone(),
            scopes: scopes.filter_map(|word| KeyScope::named(word)).collect(),
            models: record.models.clone(),
            tenant: record.tenant.clone().unwrap_or_else(|| record.name.clone()),
            any_tenant: record.any_tenant,
            limits: record.limits.clone(),
            budget: KeyBudget {
                tokens_per_day: record.budget.tokens_per_day,
                tokens_per_month: record.budget.tokens_per_month,
                usd_per_day: record.budget.nano_usd_per_day.map(usd),
                usd_per_month: record.budget.nano_usd_per_month.map(usd),
            },
            usage: self.booked(record).map(|[day, month]| KeyUse {
                day: used(day),
                month: used(month),
            }),
            created_at: instant(record.created_at),
            revoked_at: record.revoked_at.map(instant),
        }
    }
}

fn used(booked: Booked) -> UsedInPeriod {
    UsedInPeriod {
        input_tokens: booked.input_tokens,
        output_tokens: booked.output_tokens,
        usd: usd(booked.nano_usd),
    }
}

#[cfg(test)]
mod tests;
