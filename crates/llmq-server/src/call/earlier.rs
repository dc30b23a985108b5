//! Calls about something that one account keeps: they go to that one.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode};
use llmq_core::Host;
use llmq_engine::AssembledRoute;
use llmq_engine::jobs::ACCOUNT;
use llmq_provider::{
    Answer, CallError, Dialect, Item, Kept, Operation, Request as Sent, with_member,
};
use llmq_store::{NewJob, StoreError};
use serde_json::Value;
use uuid::Uuid;

use super::body::ReplyBody;
use super::incoming::Incoming;
use super::reply::{self, Reply};
use super::{forward, refused};
use crate::Gateway;
use crate::dialect::Refusal;
use crate::jobs::{as_refusal, note, unavailable};
use crate::keys::{self, Caller, HandIn, Need as _};
use crate::models::Model;
use crate::openai::{background, files};

/// Has a call go to the account that keeps what it names.
///
/// # Errors
///
/// Those of [`Naming::place`].
pub(super) async fn follow(
    gateway: &Gateway,
    incoming: &mut Incoming,
    model: &Model,
) -> Result<(), Refusal> {
    let naming = Naming {
        caller: &incoming.caller,
        tenant: &incoming.tenant_name,
        model,
        operation: incoming.operation,
        kept: &incoming.kept,
        body: &incoming.body,
    };
    if let Some(place) = naming.place(gateway).await? {
        (incoming.only, incoming.body) = (Some(place.route), place.body);
    }
    Ok(())
}

/// Why a call has no place to go to.
#[derive(Debug)]
pub(crate) enum Unplaced {
    Refused(Refusal),
    /// What it names could not be looked up.
    Unread(StoreError),
}

impl From<Refusal> for Unplaced {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for Unplaced {
    fn from(error: StoreError) -> Self {
        Self::Unread(error)
    }
}

impl From<Unplaced> for Refusal {
    fn from(unplaced: Unplaced) -> Self {
        match unplaced {
            Unplaced::Refused(refusal) => refusal,
            Unplaced::Unread(error) => as_refusal(&unavailable(&error)),
        }
    }
}

/// A call, as far as it matters for where what it names is kept.
pub(crate) struct Naming<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) tenant: &'a str,
    pub(crate) model: &'a Model,
    pub(crate) operation: Operation,
    pub(crate) kept: &'a Kept,
    pub(crate) body: &'a Bytes,
}

/// Where a call has to go.
pub(crate) struct Place {
    /// A route to the only account that it may go to.
    pub(crate) route: Arc<AssembledRoute>,
    /// Its body as that account understands it.
    pub(crate) body: Bytes,
}

impl Place {
    /// Has a job go there.
    pub(crate) fn note(self, job: &mut NewJob) {
        job.body = self.body;
        let account = self.route.account.as_str();
        note(&mut job.details, ACCOUNT, account.into());
    }
}

impl Naming<'_> {
    /// The account that keeps what the call names; none where it may go to any. What was made in
    /// the background here is known to that account by another name, which takes the place of
    /// ours.
    ///
    /// # Errors
    ///
    /// It is not known which of several accounts that is, or the model is not served there; or it
    /// is another tenant's; or it is a file that is kept here, where no account can read it. Or the
    /// store could not say.
    pub(crate) async fn place(&self, gateway: &Gateway) -> Result<Option<Place>, Unplaced> {
        for name in &self.kept.files {
            let file = files::of_caller(gateway, self.caller, name).await?;
            if file.is_some() {
                return Err(kept_here(name, self.operation).into());
            }
        }
        match &self.kept.earlier {
            Some((param, name)) => self.of_earlier(gateway, param, name).await.map(Some),
            None => Ok(self.of_files()?),
        }
    }

    async fn of_earlier(
        &self,
        gateway: &Gateway,
        param: &'static str,
        name: &str,
    ) -> Result<Place, Unplaced> {
        let mut routes = self.model.routes.iter();
        let mut body = self.body.clone();
        let kept = background::providers_own(gateway, self.caller, name).await?;
        let route = match &kept {
            Some(kept) => {
                let own = Value::from(kept.id.as_str()).to_string();
                let named = with_member(&body, param, &own);
                body = named.map_err(|error| Refusal::invalid(error.to_string()))?;
                routes.find(|route| Some(&*route.name) == kept.upstream.as_deref())
            }
            None => match maker(gateway, self.caller, self.tenant, name) {
                Found::Made(maker) => routes.find(|route| route.account == maker.account),
                // There is no other who could have made it.
                Found::Unknown => only_account(routes),
                Found::Foreign => None,
            },
        };
        match route {
            Some(route) => Ok(Place {
                route: Arc::clone(route),
                body,
            }),
            None => Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                not_found(param),
                unknown(name, &self.model.name),
            )
            .about(param)
            .into()),
        }
    }

    /// Files come to an account by no way of ours, so only where one account alone could have
    /// been given them is it known which.
    fn of_files(&self) -> Result<Option<Place>, Refusal> {
        let Some(name) = self.kept.files.first() else {
            return Ok(None);
        };
        // Another dialect has no word for it, and is passed over.
        let speaks = |route: &&Arc<AssembledRoute>| self.operation.speaks(route.provider.dialect());
        let mut routes = self.model.routes.iter().filter(speaks);
        if routes.clone().next().is_none() {
            return Ok(None);
        }
        match only_account(&mut routes) {
            Some(route) => Ok(Some(Place {
                route: Arc::clone(route),
                body: self.body.clone(),
            })),
            None => Err(file_refusal(format!(
                "`{}` is kept by one account, and it is not known here by which one of those of \
                 `{}`: send what it holds in the call ({}), or call a model that one account \
                 serves",
                short(name),
                self.model.name,
                instead(self.operation),
            ))),
        }
    }
}

/// The first of the routes, if all of them lead to one account.
fn only_account<'a>(
    mut routes: impl Iterator<Item = &'a Arc<AssembledRoute>>,
) -> Option<&'a Arc<AssembledRoute>> {
    let first = routes.next()?;
    routes
        .all(|other| other.account == first.account)
        .then_some(first)
}

fn kept_here(name: &str, operation: Operation) -> Refusal {
    file_refusal(format!(
        "`{}` is kept here, where no provider can read it: send what it holds in the call ({})",
        short(name),
        instead(operation),
    ))
}

fn file_refusal(message: String) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "file_not_found", message).about("file_id")
}

/// How a dialect says what is in a file.
fn instead(operation: Operation) -> &'static str {
    match operation {
        Operation::Messages | Operation::CountTokens => "a `source` of type `base64`",
        _ => "`file_data`; for an image `image_url` with a data URL",
    }
}

fn short(name: &str) -> String {
    name.chars().take(100).collect()
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
    format!(
        "`{}` is not known here as made for this caller by an account of `{model}`: what is older \
         than the latest 50,000, or than this gateway, is forgotten where there are several \
         accounts",
        short(name)
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
    let answered = match provider.call(sent).await {
        Ok(answer) => match reply::redirected(answer.status(), answer.headers()) {
            Some(refusal) => Ok(refuse(&refusal)),
            None => passed_on(answer).await,
        },
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(|error| {
        let (status, error) = (StatusCode::BAD_GATEWAY, error.to_string());
        refuse(&Refusal::new(status, "upstream_failed", error))
    })
}

/// An answer as it comes; a failure once it is whole, since it may quote the account's key.
async fn passed_on(answer: Answer) -> Result<Reply, CallError> {
    let id = Uuid::now_v7();
    if !answer.status().is_success() {
        let whole = answer.collect().await?;
        let body = ReplyBody::whole(whole.body);
        return Ok(reply::passed_on(whole.status, whole.headers, body, id));
    }
    let (status, headers) = (answer.status(), answer.headers().clone());
    let pieces = stream::try_unfold(answer, |mut answer| async {
        let piece = answer.chunk().await?;
        Ok::<_, CallError>(piece.map(|piece| (piece, answer)))
    });
    let body = ReplyBody::Other(axum::body::Body::from_stream(pieces));
    Ok(reply::passed_on(status, headers, body, id))
}
