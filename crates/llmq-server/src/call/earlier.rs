//! Calls about something that an upstream made earlier: they go to the one that has it.

use std::sync::Arc;

use futures_util::stream;
use http::{Method, Request, StatusCode};
use llmq_core::Host;
use llmq_engine::AssembledRoute;
use llmq_provider::{Dialect, Item, Operation, Request as Sent, with_member};
use serde_json::Value;
use uuid::Uuid;

use super::body::ReplyBody;
use super::incoming::Incoming;
use super::reply::{self, Reply};
use super::{forward, refused};
use crate::Gateway;
use crate::dialect::Refusal;
use crate::keys::{self, Caller, HandIn, Need as _};
use crate::models::Model;
use crate::openai::background;

/// Has a call go to the account that keeps what it names. What was made in the background here is
/// known to that account by another name, which takes the place of ours.
///
/// # Errors
///
/// It is not known which of several accounts that is, or the model is not served there; or it is
/// another tenant's.
pub(super) async fn follow(
    gateway: &Gateway,
    incoming: &mut Incoming,
    model: &Model,
) -> Result<(), Refusal> {
    let Some((param, name)) = &incoming.names else {
        return Ok(());
    };
    let mut routes = model.routes.iter();
    let kept = background::providers_own(gateway, &incoming.caller, name).await?;
    let account = match &kept {
        Some(kept) => {
            let own = Value::from(kept.id.as_str()).to_string();
            let body = with_member(&incoming.body, param, &own);
            incoming.body = body.map_err(|error| Refusal::invalid(error.to_string()))?;
            routes.find(|route| Some(&*route.name) == kept.upstream.as_deref())
        }
        None => match maker(gateway, &incoming.caller, &incoming.tenant_name, name) {
            Found::Made(maker) => routes.find(|route| route.account == maker.account),
            // There is no other who could have made it.
            Found::Unknown => model.routes.first().filter(|first| {
                let mut others = model.routes.iter();
                others.all(|other| other.account == first.account)
            }),
            Found::Foreign => None,
        },
    };
    match account {
        Some(route) => incoming.only = Some(Arc::clone(route)),
        None => {
            return Err(Refusal {
                param: Some((*param).to_owned()),
                ..Refusal::new(
                    StatusCode::BAD_REQUEST,
                    not_found(param),
                    unknown(name, &model.name),
                )
            });
        }
    }
    Ok(())
}

/// What is known of something that an upstream made earlier.
enum Found {
    Made(Arc<AssembledRoute>),
    /// Nobody knows: it is older than what is remembered.
    Unknown,
    /// Another tenant's.
    Foreign,
}

fn maker(gateway: &Gateway, caller: &Caller, tenant: &str, name: &str) -> Found {
    let maker = gateway.made.by(name);
    if let Some(maker) = maker
        && !maker.is_for(tenant)
        && !caller.sees_all()
    {
        return Found::Foreign;
    }
    match maker.and_then(|maker| gateway.models.route(maker.upstream)) {
        Some(route) => Found::Made(route),
        None => Found::Unknown,
    }
}

/// OpenAI's own word for a response that it does not have (openai-openapi, August 2026).
fn not_found(param: &str) -> &'static str {
    match param {
        "previous_response_id" => "previous_response_not_found",
        _ => "conversation_not_found",
    }
}

fn unknown(name: &str, model: &str) -> String {
    let shown: String = name.chars().take(100).collect();
    format!(
        "`{shown}` is not known here as made for this caller by an account of `{model}`: what is \
         older than the latest 50,000, or than this gateway, is forgotten where there are several \
         accounts"
    )
}

/// `/v1/responses/{id}` and what is below it: asked of the account that made the response, as it
/// comes, without a place in line.
pub(crate) async fn response<B>(gateway: &Gateway, request: &Request<B>, rest: &str) -> Reply {
    let refuse = |refusal: &Refusal| refused(refusal, Dialect::OpenAi);
    let caller = match keys::caller(&gateway.keys, request.headers(), HandIn::SCOPES) {
        Ok(caller) => caller,
        Err(denied) => return refuse(&denied.into()),
    };
    let tenant = match keys::tenant(&caller, request.headers()) {
        Ok(tenant) => tenant,
        Err(denied) => return refuse(&denied.into()),
    };
    let (id, below) = rest.split_once('/').unwrap_or((rest, ""));
    let is_served = match (request.method(), below) {
        (&Method::GET, "" | "input_items") | (&Method::DELETE, "") => true,
        (method, "cancel") => method == Method::POST,
        _ => false,
    };
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let is_served = is_served && !id.is_empty() && id.bytes().all(is_id);
    let provider = match maker(gateway, &caller, tenant, id) {
        Found::Made(route) => Some(route.provider.clone()),
        Found::Unknown => gateway
            .models
            .only_provider()
            .filter(|provider| provider.host() == Host::OpenAi),
        Found::Foreign => None,
    };
    let provider = provider.filter(|provider| provider.dialect() == Dialect::OpenAi);
    let (true, Some(provider)) = (is_served, provider) else {
        let shown: String = id.chars().take(100).collect();
        let message = format!("no response `{shown}` is known here");
        return refuse(&Refusal::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    let sent = Sent {
        headers: forward::for_provider(request.headers()),
        item: Some(Item {
            method: request.method().clone(),
            path: rest.to_owned(),
            query: request.uri().query().map(str::to_owned),
        }),
        ..Sent::new(Operation::Responses, "")
    };
    match provider.call(sent).await {
        Ok(answer) => {
            let (status, headers) = (answer.status(), answer.headers().clone());
            let pieces = stream::try_unfold(answer, |mut answer| async {
                Ok::<_, llmq_provider::CallError>(
                    answer.chunk().await?.map(|piece| (piece, answer)),
                )
            });
            let body = ReplyBody::Other(axum::body::Body::from_stream(pieces));
            reply::passed_on(status, headers, body, Uuid::now_v7())
        }
        Err(error) => {
            let error = error.to_string();
            refuse(&Refusal::new(
                StatusCode::BAD_GATEWAY,
                "upstream_failed",
                error,
            ))
        }
    }
}
