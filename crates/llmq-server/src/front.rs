//! Where a request belongs: a call, the list of models, or one of the small routes.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::IntoResponse as _;
use http::{Method, Request, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use llmq_provider::{Dialect, Operation};
use percent_encoding::percent_decode_str;
use tower_service::Service as _;

use crate::Gateway;
use crate::call::{self, Reply, ReplyBody};
use crate::dialect::Refusal;
use crate::openai::background;
use crate::timed::{Slow, Timed};
use crate::{Problem, cors, model_list, pages, rebinding, site};

/// Before the name of a response, kept here or by a provider.
const RESPONSE: &str = "/v1/responses/";

/// Before the name of a model.
const MODEL: &str = "/v1/models/";

/// What requests come to: the calls, and the small routes beside them.
pub(crate) struct Front {
    pub(crate) gateway: Arc<Gateway>,
    pages: Router,
}

impl Front {
    pub(crate) fn new(gateway: Arc<Gateway>) -> Self {
        Self {
            pages: pages::router(&gateway),
            gateway,
        }
    }
}

/// An answer on its way. Boxed as one piece, so that a connection holds room for no more than the
/// call that it has.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Reply> + Send>>;

fn at_once(reply: Reply) -> Answering {
    Box::pin(std::future::ready(reply))
}

/// Answers a request, for pages of other origins too where they may call.
pub(crate) fn answer(front: &Arc<Front>, request: Request<Incoming>) -> Answering {
    let live = front.gateway.live.load();
    let asked = cors::asked(&live.server.cors, request.method(), request.headers());
    drop(live);
    match asked {
        None if is_of_another_site(front, &request) => {
            at_once(another_site(&front.gateway, &request))
        }
        None => route(front, request),
        Some(cors::Asked::Preflight(reply)) => at_once(reply),
        Some(cors::Asked::Call(origin)) => {
            // Its pages are as good as our own.
            let answering = route(front, request);
            Box::pin(async move {
                let mut reply = answering.await;
                cors::allow(reply.headers_mut(), origin);
                reply
            })
        }
    }
}

/// The calls first: they are nearly all there is.
fn route(front: &Arc<Front>, request: Request<Incoming>) -> Answering {
    let gateway = &front.gateway;
    let path = request.uri().path();
    if gateway.keys.asks_nobody() && !rebinding::is_ours(request.uri(), request.headers()) {
        return at_once(foreign_host(gateway, &request));
    }
    match Operation::from_path(path) {
        Some(Operation::Models) => Box::pin(models(Arc::clone(gateway), request)),
        Some(operation) if request.method() == Method::POST => {
            Box::pin(call::call(Arc::clone(gateway), operation, request))
        }
        Some(_) => {
            let refusal = not_allowed(&format!("{path} takes POST"));
            at_once(allowing(refused(gateway, &request, &refusal), "POST"))
        }
        None if path.starts_with(MODEL) => Box::pin(models(Arc::clone(gateway), request)),
        None if path.starts_with(RESPONSE) => Box::pin(earlier(Arc::clone(gateway), request)),
        None if pages::has(path) => Box::pin(page(Arc::clone(front), request)),
        None => at_once(unknown_path(path, spoken(&request))),
    }
}

async fn models(gateway: Arc<Gateway>, mut request: Request<Incoming>) -> Reply {
    let is_head = becomes_get(&mut request);
    let name = request.uri().path().strip_prefix(MODEL);
    // The official SDKs write the slash of a name as `%2F`.
    let name = name.map(|name| percent_decode_str(name).decode_utf8_lossy());
    let reply = model_list::answer(&gateway, &request, name.as_deref()).await;
    match is_head {
        true => head_of(reply),
        false => reply,
    }
}

/// HEAD is answered as GET is, but for the body (RFC 9110, 9.3.2); the small routes see to it
/// themselves.
fn becomes_get(request: &mut Request<Incoming>) -> bool {
    let is_head = request.method() == Method::HEAD;
    if is_head {
        *request.method_mut() = Method::GET;
    }
    is_head
}

fn head_of(mut reply: Reply) -> Reply {
    if let Some(length) = reply.body().size_hint().exact() {
        let headers = reply.headers_mut();
        headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    reply.map(|_| ReplyBody::Whole(None))
}

/// A response that was made earlier: in the background here, or by a provider that keeps it.
async fn earlier(gateway: Arc<Gateway>, mut request: Request<Incoming>) -> Reply {
    let is_head = becomes_get(&mut request);
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    let reply = match background::kept(&gateway, method, uri, headers).await {
        Some(reply) => reply,
        None => call::response(&gateway, &request, &uri.path()[RESPONSE.len()..]).await,
    };
    match is_head {
        true => head_of(reply),
        false => reply,
    }
}

async fn page(front: Arc<Front>, request: Request<Incoming>) -> Reply {
    let slow = Slow::default();
    let bounds = front.gateway.bounds;
    let mut request = request.map(|body| Timed::new(body, bounds).telling(slow.clone()));
    // Some routes have a bound of their own.
    let max = usize::try_from(front.gateway.max_body_bytes()).unwrap_or(usize::MAX);
    DefaultBodyLimit::max(max).apply(&mut request);
    // A router is always ready.
    let Ok(mut response) = front.pages.clone().call(request).await;
    // Whoever read the body knows only that it broke off.
    if slow.was_met() {
        let status = StatusCode::REQUEST_TIMEOUT;
        let message = "the body came too slowly";
        response = Problem::new(status, "request_timeout", message).into_response();
    }
    response.map(ReplyBody::Other)
}

/// Whether a page sent this that must not spend anything here. Where a key is asked for, it has
/// none.
fn is_of_another_site(front: &Front, request: &Request<Incoming>) -> bool {
    site::is_another(request.method(), request.uri(), request.headers())
        && front.gateway.keys.asks_nobody()
}

fn another_site(gateway: &Gateway, request: &Request<Incoming>) -> Reply {
    let message = "pages of other sites may not call this server, since it asks for no key; \
                   server.cors names those that may";
    let path = request.uri().path();
    if pages::has(path) && !path.starts_with("/v1/") {
        let response = Problem::forbidden(message).into_response();
        return response.map(ReplyBody::Other);
    }
    let refusal = Refusal::new(StatusCode::FORBIDDEN, "forbidden", message);
    refused(gateway, request, &refusal)
}

/// Says why a request goes no further. A call is counted and logged as one that came further is.
fn refused(gateway: &Gateway, request: &Request<Incoming>, refusal: &Refusal) -> Reply {
    match Operation::from_path(request.uri().path()) {
        None | Some(Operation::Models) => call::refused(refusal, spoken(request)),
        Some(operation) => call::refused_unread(gateway, operation, refusal),
    }
}

pub(crate) fn wrong_method(message: &str, dialect: Dialect, allowed: &'static str) -> Reply {
    allowing(call::refused(&not_allowed(message), dialect), allowed)
}

fn not_allowed(message: &str) -> Refusal {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Refusal::new(status, "method_not_allowed", message)
}

fn allowing(mut reply: Reply, allowed: &'static str) -> Reply {
    reply
        .headers_mut()
        .insert(http::header::ALLOW, http::HeaderValue::from_static(allowed));
    reply
}

/// 421 (RFC 9110 §15.5.20): the request was meant for a server of another name.
fn foreign_host(gateway: &Gateway, request: &Request<Incoming>) -> Reply {
    let refusal = Refusal::new(
        StatusCode::MISDIRECTED_REQUEST,
        "misdirected_request",
        "this server asks for no key, so it answers only to its address, to localhost and to names \
         of the local network; to be reached by another name it needs a key (llmq keys create)",
    );
    refused(gateway, request, &refusal)
}

/// In which dialect a caller expects an answer where the path does not tell.
pub(crate) fn spoken(request: &Request<Incoming>) -> Dialect {
    if request.headers().contains_key("anthropic-version") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    }
}

fn unknown_path(path: &str, dialect: Dialect) -> Reply {
    let shown: String = path.chars().take(200).collect();
    let refusal = Refusal::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("there is nothing at {shown}; calls go to /v1/chat/completions and its like"),
    );
    call::refused(&refusal, dialect)
}
