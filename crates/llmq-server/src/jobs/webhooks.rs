//! `/api/webhooks`.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, LOCATION};
use http::{HeaderValue, StatusCode};
use llmq_api::{
    CallbackSecret, CreateWebhook, DeliveryInfo, DeliveryList, DeliveryStatus, ProblemBody,
    UpdateWebhook, WebhookInfo, WebhookList, WebhookTest, WebhookWithSecret,
};
use llmq_client::webhooks::WebhookSecret;
use llmq_engine::webhooks::{EndpointState, message_id};
use llmq_store::{
    Delivery, DeliveryId, DeliveryState, Endpoint, EndpointId, OFFERED, Subject, Target,
};
use serde::Deserialize;
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::desk::unavailable;
use super::guard::sees;
use super::wanted::checked_url;
use crate::keys::{Caller, HandIn, Manage, May};
use crate::shown::instant as text;
use crate::{Gateway, Problem};

/// So many endpoints are told at most.
const WEBHOOKS_MAX: usize = 1_000;
const DESCRIPTION_MAX: usize = 500;
/// A page has so many deliveries unless something is asked, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1_000;

type Shared = State<Arc<Gateway>>;

/// The routes of webhooks.
pub(super) fn routes() -> super::Routes {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(callback_secret))
        .routes(routes!(show, update, delete))
        .routes(routes!(rotate))
        .routes(routes!(test))
        .routes(routes!(deliveries))
        .routes(routes!(all_deliveries))
        .routes(routes!(redeliver))
}

/// Makes an endpoint that is told of events. Its secret is in this answer, and in no other.
#[utoipa::path(
    post,
    path = "/api/webhooks",
    tag = "webhooks",
    operation_id = "create_webhook",
    request_body = CreateWebhook,
    responses(
        (status = 201, description = "The endpoint, with its secret.", body = WebhookWithSecret),
        (status = 400, description = "What is wrong, and where.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "There are as many as there may be.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn create(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
    body: Result<Json<CreateWebhook>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(wanted) = body?;
    let desk = &gateway.desk;
    checked_url(&desk.reach, &wanted.url).map_err(|why| wrong("url", &why))?;
    check_events(&wanted.events)?;
    check_description(wanted.description.as_deref())?;
    let secret = match &wanted.secret {
        Some(text) => text
            .parse()
            .map_err(|error| wrong("secret", &format!("{error}")))?,
        None => WebhookSecret::generate().map_err(|error| internal(&error))?,
    };
    let known = desk.endpoints.list().await;
    if known.map_err(|error| unavailable(&error))?.len() >= WEBHOOKS_MAX {
        let message = format!("there are {WEBHOOKS_MAX} webhooks already: delete one first");
        return Err(Problem::conflict(message));
    }
    let now = desk.wall();
    let mut state = EndpointState {
        description: wanted.description,
        ..EndpointState::default()
    };
    state.rotate(&secret, now);
    let endpoint = Endpoint {
        id: EndpointId::new(),
        tenant: (!caller.sees_all()).then(|| caller.tenant().to_owned()),
        url: wanted.url,
        events: wanted.events,
        disabled: false,
        state: state.to_value(),
        created_at: now,
    };
    let added = desk.endpoints.add(endpoint.clone()).await;
    added.map_err(|error| unavailable(&error))?;
    let mut response = (
        StatusCode::CREATED,
        Json(with_secret(&gateway, &endpoint, &secret)),
    )
        .into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let location = format!("/api/webhooks/{}", endpoint.id);
    if let Ok(location) = HeaderValue::try_from(location) {
        headers.insert(LOCATION, location);
    }
    Ok(response)
}

/// The endpoints that are told, oldest first.
#[utoipa::path(get, path = "/api/webhooks", tag = "webhooks", operation_id = "list_webhooks", responses((status = 200, description = "All of them.", body = WebhookList)))]
async fn list(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
) -> Result<Json<WebhookList>, Problem> {
    let all = gateway.desk.endpoints.list().await;
    let all = all.map_err(|error| unavailable(&error))?;
    let mine = all.iter().filter(|endpoint| is_of(&caller, endpoint));
    Ok(Json(WebhookList {
        webhooks: mine.map(|endpoint| info(&gateway, endpoint)).collect(),
        next_cursor: None,
    }))
}

/// One endpoint.
#[utoipa::path(
    get,
    path = "/api/webhooks/{id}",
    tag = "webhooks",
    operation_id = "get_webhook",
    params(("id" = String, Path, description = "Its id.")),
    responses(
        (status = 200, description = "The endpoint.", body = WebhookInfo),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn show(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
    Path(id): Path<String>,
) -> Result<Json<WebhookInfo>, Problem> {
    let endpoint = mine(&gateway, &caller, &id).await?;
    Ok(Json(info(&gateway, &endpoint)))
}

/// Changes an endpoint: only what is named. `enabled` brings one back that was disabled.
#[utoipa::path(
    patch,
    path = "/api/webhooks/{id}",
    tag = "webhooks",
    operation_id = "update_webhook",
    params(("id" = String, Path, description = "Its id.")),
    request_body = UpdateWebhook,
    responses(
        (status = 200, description = "The endpoint as it is then.", body = WebhookInfo),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn update(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
    Path(id): Path<String>,
    body: Result<Json<UpdateWebhook>, JsonRejection>,
) -> Result<Json<WebhookInfo>, Problem> {
    let endpoint = mine(&gateway, &caller, &id).await?;
    let Json(wanted) = body?;
    if let Some(url) = &wanted.url {
        checked_url(&gateway.desk.reach, url).map_err(|why| wrong("url", &why))?;
    }
    check_events(wanted.events.as_deref().unwrap_or_default())?;
    check_description(wanted.description.as_deref())?;
    let now = gateway.desk.wall();
    let changed = gateway
        .desk
        .endpoints
        .change(endpoint.id, |endpoint, state| {
            if let Some(url) = wanted.url {
                endpoint.url = url;
            }
            if let Some(events) = wanted.events {
                endpoint.events = events;
            }
            if let Some(description) = wanted.description {
                state.description = Some(description);
            }
            match wanted.enabled {
                Some(true) => {
                    endpoint.disabled = false;
                    (state.disabled_because, state.disabled_at) = (None, None);
                    state.takes();
                }
                Some(false) if !endpoint.disabled => {
                    endpoint.disabled = true;
                    state.disabled_at = Some(now);
                }
                Some(false) | None => {}
            }
        });
    let changed = changed.await.map_err(|error| unavailable(&error))?;
    let changed = changed.ok_or_else(|| unknown(&id))?;
    Ok(Json(info(&gateway, &changed)))
}

/// Removes an endpoint, with what it was still to be told.
#[utoipa::path(
    delete,
    path = "/api/webhooks/{id}",
    tag = "webhooks",
    operation_id = "delete_webhook",
    params(("id" = String, Path, description = "Its id.")),
    responses(
        (status = 200, description = "The endpoint as it was.", body = WebhookInfo),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn delete(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
    Path(id): Path<String>,
) -> Result<Json<WebhookInfo>, Problem> {
    let endpoint = mine(&gateway, &caller, &id).await?;
    let removed = gateway.desk.endpoints.remove(endpoint.id).await;
    if !removed.map_err(|error| unavailable(&error))? {
        return Err(unknown(&id));
    }
    Ok(Json(info(&gateway, &endpoint)))
}

/// Replaces the secret. The one before signs as well for 24 hours.
#[utoipa::path(
    post,
    path = "/api/webhooks/{id}/rotate",
    tag = "webhooks",
    operation_id = "rotate_webhook",
    params(("id" = String, Path, description = "Its id.")),
    responses(
        (status = 200, description = "The endpoint, with its new secret.", body = WebhookWithSecret),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn rotate(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let endpoint = mine(&gateway, &caller, &id).await?;
    let secret = WebhookSecret::generate().map_err(|error| internal(&error))?;
    let now = gateway.desk.wall();
    let changed = gateway
        .desk
        .endpoints
        .change(endpoint.id, |_, state| state.rotate(&secret, now));
    let changed = changed.await.map_err(|error| unavailable(&error))?;
    let changed = changed.ok_or_else(|| unknown(&id))?;
    let mut response = Json(with_secret(&gateway, &changed, &secret)).into_response();
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    Ok(response)
}

/// Sends an endpoint a message that tells of nothing (`webhook.test`), once.
#[utoipa::path(
    post,
    path = "/api/webhooks/{id}/test",
    tag = "webhooks",
    operation_id = "test_webhook",
    params(("id" = String, Path, description = "Its id.")),
    responses(
        (status = 200, description = "What came of it.", body = WebhookTest),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn test(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
    Path(id): Path<String>,
) -> Result<Json<WebhookTest>, Problem> {
    let endpoint = mine(&gateway, &caller, &id).await?;
    let tried = gateway.desk.outbox.test(&endpoint).await;
    let tried = tried.map_err(|error| unavailable(&error))?;
    Ok(Json(WebhookTest {
        delivered: tried.taken,
        status: tried.status,
        outcome: tried.outcome,
    }))
}

/// The secret that signs the callbacks (`callback_url`) of the caller's own requests.
#[utoipa::path(get, path = "/api/webhooks/secret", tag = "webhooks", responses((status = 200, description = "The secret.", body = CallbackSecret)))]
async fn callback_secret(
    State(gateway): Shared,
    May(caller, _): May<HandIn>,
) -> Result<Response, Problem> {
    let key = caller.key_id().map(|key| key.to_string());
    let secret = gateway.desk.endpoints.callback_secret(key.as_deref()).await;
    let secret = secret.map_err(|error| unavailable(&error))?;
    let mut response = Json(CallbackSecret {
        secret: secret.expose(),
    })
    .into_response();
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    Ok(response)
}

/// What a list of deliveries is asked for.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Page {
    /// At most so many, 1 to 1000; 100 unless said.
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// What an endpoint was or is to be told, newest first.
#[utoipa::path(
    get,
    path = "/api/webhooks/{id}/deliveries",
    tag = "webhooks",
    operation_id = "list_deliveries",
    params(("id" = String, Path, description = "Its id."), Page),
    responses(
        (status = 200, description = "One page.", body = DeliveryList),
        (status = 404, description = "There is none of that id.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn deliveries(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
    Path(id): Path<String>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<DeliveryList>, Problem> {
    let endpoint = mine(&gateway, &caller, &id).await?;
    let Query(page) = page?;
    page_of(&gateway, Some(endpoint.id), page, |_| true).await
}

/// What all endpoints and callbacks were or are to be told, newest first.
#[utoipa::path(
    get,
    path = "/api/webhooks/deliveries",
    tag = "webhooks",
    operation_id = "list_all_deliveries",
    params(Page),
    responses((status = 200, description = "One page.", body = DeliveryList)),
)]
async fn all_deliveries(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<DeliveryList>, Problem> {
    let Query(page) = page?;
    let theirs = Theirs::of(&gateway, &caller).await?;
    page_of(&gateway, None, page, |delivery| theirs.holds(delivery)).await
}

/// What a caller may see of deliveries: those to its own endpoints, and callbacks of its tenant's
/// requests.
struct Theirs<'a> {
    caller: &'a Caller,
    endpoints: HashSet<EndpointId>,
}

impl<'a> Theirs<'a> {
    async fn of(gateway: &Gateway, caller: &'a Caller) -> Result<Self, Problem> {
        let endpoints = gateway.desk.endpoints.list().await;
        let endpoints = endpoints.map_err(|error| unavailable(&error))?;
        let theirs = endpoints.iter().filter(|endpoint| is_of(caller, endpoint));
        Ok(Self {
            caller,
            endpoints: theirs.map(|endpoint| endpoint.id).collect(),
        })
    }

    fn holds(&self, delivery: &Delivery) -> bool {
        if self.caller.sees_all() {
            return true;
        }
        let tenant = delivery.event.event.tenant.as_deref();
        match &delivery.target {
            Target::Endpoint(id) => self.endpoints.contains(id),
            Target::Callback(_) => tenant.is_some_and(|tenant| sees(self.caller, tenant)),
        }
    }
}

async fn page_of(
    gateway: &Gateway,
    endpoint: Option<EndpointId>,
    page: Page,
    shown: impl Fn(&Delivery) -> bool,
) -> Result<Json<DeliveryList>, Problem> {
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("`limit` must be 1 to {PAGE_MAX}")));
    }
    let after = page.cursor.as_deref().map(str::parse::<u64>).transpose();
    let after =
        after.map_err(|_| Problem::invalid("`cursor` is not one of a list of deliveries"))?;
    let store = gateway.desk.store();
    // One more than the page shows whether there is a next one.
    let found = store.deliveries(endpoint, after.map(DeliveryId), limit + 1);
    let mut found = found.await.map_err(|error| unavailable(&error))?;
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().map(|delivery| delivery.id.0.to_string());
    let shown = found.iter().filter(|delivery| shown(delivery));
    Ok(Json(DeliveryList {
        deliveries: shown
            .map(|delivery| delivery_info(gateway, delivery))
            .collect(),
        next_cursor: last.filter(|_| more),
    }))
}

/// Sends a message again, whatever came of it before. Its `webhook-id` stays the same.
#[utoipa::path(
    post,
    path = "/api/webhooks/deliveries/{id}/redeliver",
    tag = "webhooks",
    operation_id = "redeliver",
    params(("id" = u64, Path, description = "The delivery's number.")),
    responses(
        (status = 202, description = "It is due now.", body = DeliveryInfo),
        (status = 404, description = "There is none of that number.", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
async fn redeliver(
    State(gateway): Shared,
    May(caller, _): May<Manage>,
    Path(number): Path<String>,
) -> Result<Response, Problem> {
    let unknown = || {
        let shown: String = number.chars().take(100).collect();
        Problem::not_found(
            "delivery_not_found",
            format!("there is no delivery `{shown}`"),
        )
    };
    let id = DeliveryId(number.parse().map_err(|_| unknown())?);
    let store = gateway.desk.store();
    let found = store.delivery(id).await;
    let found = found.map_err(|error| unavailable(&error))?;
    let theirs = Theirs::of(&gateway, &caller).await?;
    found
        .filter(|delivery| theirs.holds(delivery))
        .ok_or_else(unknown)?;
    let now = llmq_core::Clock::now(&gateway.desk.clock);
    let again = store.redeliver(id, now).await;
    if !again.map_err(|error| unavailable(&error))? {
        return Err(unknown());
    }
    gateway.desk.outbox.look_again();
    let found = store.delivery(id).await;
    let found = found.map_err(|error| unavailable(&error))?;
    let found = found.ok_or_else(unknown)?;
    let info = delivery_info(&gateway, &found);
    Ok((StatusCode::ACCEPTED, Json(info)).into_response())
}

/// An endpoint that the caller may change; another tenant's is told like one that is not there.
async fn mine(gateway: &Gateway, caller: &Caller, id: &str) -> Result<Endpoint, Problem> {
    let parsed: EndpointId = id.parse().map_err(|_| unknown(id))?;
    let found = gateway.desk.endpoints.get(parsed).await;
    let found = found.map_err(|error| unavailable(&error))?;
    let found = found.filter(|endpoint| is_of(caller, endpoint));
    found.ok_or_else(|| unknown(id))
}

fn is_of(caller: &Caller, endpoint: &Endpoint) -> bool {
    match &endpoint.tenant {
        Some(tenant) => sees(caller, tenant),
        None => caller.sees_all(),
    }
}

fn unknown(id: &str) -> Problem {
    let shown: String = id.chars().take(100).collect();
    Problem::not_found(
        "webhook_not_found",
        format!("there is no webhook `{shown}`"),
    )
}

fn wrong(field: &str, why: &str) -> Problem {
    Problem::invalid(format!("`{field}`: {why}")).with_details(json!({"field": field}))
}

fn internal(error: &dyn std::error::Error) -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        error.to_string(),
    )
}

fn check_events(events: &[String]) -> Result<(), Problem> {
    let kinds: BTreeSet<&str> = OFFERED
        .iter()
        .filter_map(|event| event.split_once('.').map(|(kind, _)| kind))
        .collect();
    for event in events {
        let all_of = event
            .strip_suffix(".*")
            .is_some_and(|kind| kinds.contains(kind));
        if !all_of && event != "*" && !OFFERED.contains(&event.as_str()) {
            let shown: String = event.chars().take(100).collect();
            let why = format!(
                "`{shown}` is no event; there are {}, and such as `request.*`",
                OFFERED.join(", ")
            );
            return Err(wrong("events", &why));
        }
    }
    Ok(())
}

fn check_description(description: Option<&str>) -> Result<(), Problem> {
    let long = description.is_some_and(|text| text.chars().count() > DESCRIPTION_MAX);
    if long {
        let why = format!("longer than {DESCRIPTION_MAX} characters");
        return Err(wrong("description", &why));
    }
    Ok(())
}

fn info(gateway: &Gateway, endpoint: &Endpoint) -> WebhookInfo {
    let state = EndpointState::of(endpoint);
    let secrets = state.signing(gateway.desk.wall()).len();
    WebhookInfo {
        id: endpoint.id.to_string(),
        url: endpoint.url.clone(),
        events: endpoint.events.clone(),
        description: state.description,
        tenant: endpoint.tenant.clone(),
        enabled: !endpoint.disabled,
        disabled_because: state.disabled_because,
        failing_since: state.failing_since.map(text),
        created_at: text(endpoint.created_at),
        secrets: u32::try_from(secrets).unwrap_or(u32::MAX),
    }
}

fn with_secret(
    gateway: &Gateway,
    endpoint: &Endpoint,
    secret: &WebhookSecret,
) -> WebhookWithSecret {
    WebhookWithSecret {
        secret: secret.expose(),
        info: info(gateway, endpoint),
    }
}

fn delivery_info(gateway: &Gateway, delivery: &Delivery) -> DeliveryInfo {
    let event = &delivery.event;
    let (webhook_id, callback_url) = match &delivery.target {
        Target::Endpoint(id) => (Some(id.to_string()), None),
        Target::Callback(callback) => (None, Some(callback.url.clone())),
    };
    let (status, next) = match delivery.state {
        DeliveryState::Due(at) => (DeliveryStatus::Pending, Some(text(at))),
        DeliveryState::Delivered => (DeliveryStatus::Delivered, None),
        DeliveryState::GivenUp => (DeliveryStatus::Failed, None),
    };
    DeliveryInfo {
        id: delivery.id.0,
        message_id: message_id(gateway.desk.store().id(), event),
        webhook_id,
        callback_url,
        event: event.event.kind.clone(),
        queue_id: match &event.event.subject {
            Subject::Job { id, .. } => Some(id.to_string()),
            _ => None,
        },
        status,
        attempts: delivery.attempts,
        next_attempt_at: next,
        last_attempt_at: delivery.last_attempt_at.map(text),
        last_outcome: delivery.last_outcome.clone(),
        created_at: text(event.at),
    }
}
