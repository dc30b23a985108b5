//! `GET /api/events`: what happens as an event stream (WHATWG HTML, "Server-sent events").

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use http::Extensions;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};

use super::observed::{LISTENERS_MAX, Observed};
use super::stored_events::{Hears, Listener};
use crate::keys::{Caller, KeyRing};
use crate::problem::Problem;

/// A comment goes out after this long without an event, so that nobody between closes the
/// connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A listener that lost its connection waits this long; SDKs and browsers heed it.
const OPENING: &str = "retry: 2000\n: events of llmq\n\n";

/// Every change as it happens. `Last-Event-ID` resumes; where what was missed is not known any
/// more a `reset` event says so.
#[utoipa::path(
    get,
    path = "/api/events",
    tag = "watching",
    params(("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen.")),
    responses(
        (status = 200, description = "Events without end.", content_type = "text/event-stream", body = String),
        (status = 503, description = "Too many listen.", body = llmq_api::ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn events(
    State(observed): State<Arc<Observed>>,
    extensions: Extensions,
    headers: HeaderMap,
) -> Response {
    let Ok(permit) = Arc::clone(&observed.listeners).try_acquire_owned() else {
        let message = format!("{LISTENERS_MAX} listen already");
        return Problem::unavailable("too_many_listeners", message)
            .with_retry_after(KEEP_ALIVE)
            .into_response();
    };
    let caller = extensions.get::<Caller>().cloned();
    let hears = Hears {
        // Where nobody was asked for a key, everybody may see everything.
        caller: caller.unwrap_or_else(Caller::anonymous),
        keys: extensions.get::<Arc<KeyRing>>().cloned(),
    };
    // What is no text is no id of ours either.
    let last = headers.get("last-event-id");
    let last = last.map(|id| id.to_str().unwrap_or_default());
    let listener = Listener::new(Arc::clone(&observed), last, hears, permit);
    stream(listener)
}

/// What a listener hears, as an answer.
fn stream(listener: Listener) -> Response {
    let opening = futures_util::stream::once(async { Ok::<_, Infallible>(OPENING.to_owned()) });
    let frames = futures_util::stream::unfold(listener, |mut listener| async move {
        let frame = listener.next(KEEP_ALIVE).await?;
        Some((Ok(frame), listener))
    });
    let frames = opening.chain(frames);
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies of nginx's kind hold a stream back otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
