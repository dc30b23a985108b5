//! Calls about something that an upstream made earlier: they go to the one that has it.

use std::sync::Arc;

use futures_util::stream;
use http::{Method, Request, StatusCode};
use llmq_engine::AssembledRoute;
use llmq_provider::{Dialect, Item, Operation, Request as Sent};
use uuid::Uuid;

use super::body::ReplyBody;
use super::incoming::Incoming;
use super::reply::{self, Reply};
use super::{forward, refused};
use crate::Gateway;
use crate::dialect::Refusal;
use crate::keys::{self, HandIn, Need as _};
use crate::models::Model;

/// The account that a call must go to, since what it names is kept there.
///
/// # Errors
///
/// It is not known which of several that is, or the model is not served there.
pub(super) fn account(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
) -> Result<Option<Arc<AssembledRoute>>, Refusal> {
    let Some((param, name)) = &incoming.names else {
        return Ok(None);
    };
    let maker = gateway
        .made
        .by(name)
        .and_then(|by| gateway.models.route(by));
    let is_one = |route: &&Arc<AssembledRoute>| match &maker {
        Some(maker) => route.account == maker.account,
        // There is no other who could have made it.
        None => model
            .routes
            .iter()
            .all(|other| other.account == route.account),
    };
    match model.routes.iter().find(is_one) {
        Some(route) => Ok(Some(Arc::clone(route))),
        None => Err(Refusal {
            param: Some((*param).to_owned()),
            ..Refusal::new(
                StatusCode::BAD_REQUEST,
                not_found(param),
                unknown(name, &model.name),
            )
        }),
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
        "`{shown}` was made by another account, and it is not known here that one of `{model}` \
         has it: what is older than the latest 50,000, or than this gateway, is forgotten where \
         there are several accounts"
    )
}

/// `/v1/responses/{id}` and what is below it: asked of the account that made the response, as it
/// comes, without a place in line.
pub(crate) async fn response<B>(gateway: &Gateway, request: &Request<B>, rest: &str) -> Reply {
    let refuse = |refusal: &Refusal| refused(refusal, Dialect::OpenAi);
    if let Err(denied) = keys::caller(&gateway.keys, request.headers(), HandIn::SCOPES) {
        return refuse(&denied.into());
    }
    let (id, below) = rest.split_once('/').unwrap_or((rest, ""));
    let is_served = match (request.method(), below) {
        (&Method::GET, "" | "input_items") | (&Method::DELETE, "") => true,
        (method, "cancel") => method == Method::POST,
        _ => false,
    };
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let maker = gateway.made.by(id).and_then(|by| gateway.models.route(by));
    let provider = match maker {
        Some(route) => Some(route.provider.clone()),
        None => gateway.models.only_provider(),
    };
    let provider = provider.filter(|provider| provider.dialect() == Dialect::OpenAi);
    let (true, true, Some(provider)) = (is_served, id.bytes().all(is_id), provider) else {
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
