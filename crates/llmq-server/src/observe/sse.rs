//! `GET /api/events`: the ring as an event stream (WHATWG HTML, "Server-sent events").

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use http::Extensions;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::events::{Cursor, Next};
use super::kept;
use super::observed::{LISTENERS_MAX, Observed};
use crate::keys::Caller;
use crate::problem::Problem;

/// A comment goes out after this long without an event, so that nobody between closes the
/// connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// So many events go out together at most.
const TOGETHER_MAX: usize = 64;
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
    if let Some(journal) = observed.journal.get() {
        let caller = extensions.get::<Caller>().cloned();
        // Where nobody was asked for a key, everybody may see everything.
        let caller = caller.unwrap_or_else(Caller::anonymous);
        // What is no text is no id of ours either.
        let last = headers.get("last-event-id");
        let last = last.map(|id| id.to_str().unwrap_or_default());
        let listener = kept::Listener::new(Arc::clone(&observed), journal, last, caller, permit);
        return stream(listener, |mut listener| async move {
            let frame = listener.next(KEEP_ALIVE).await?;
            Some((frame, listener))
        });
    }
    let news = observed.events.watch();
    let cursor = match headers.get("last-event-id") {
        // What is no id of ours is one that is not known any more.
        Some(id) => id.to_str().ok().and_then(|id| id.parse().ok()),
        None => Some(observed.events.end()),
    };
    let listener = Listener {
        observed,
        news,
        cursor: cursor.unwrap_or(Cursor::UNKNOWN),
        _permit: permit,
    };
    stream(listener, |mut listener| async move {
        let frame = listener.next().await?;
        Some((frame, listener))
    })
}

/// What a listener hears, as an answer.
fn stream<L, N, F>(listener: L, next: N) -> Response
where
    L: Send + 'static,
    N: Fn(L) -> F + Send + 'static,
    F: Future<Output = Option<(String, L)>> + Send + 'static,
{
    let opening = futures_util::stream::once(async { Ok::<_, Infallible>(OPENING.to_owned()) });
    let frames = futures_util::stream::unfold(listener, move |listener| {
        let next = next(listener);
        async move { next.await.map(|(frame, listener)| (Ok(frame), listener)) }
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

/// One listener's place in the ring.
struct Listener {
    observed: Arc<Observed>,
    news: watch::Receiver<u64>,
    cursor: Cursor,
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    /// What goes out next; none: the server ends.
    async fn next(&mut self) -> Option<String> {
        loop {
            // What comes after this is seen as a change.
            self.news.mark_unchanged();
            if let Some(frames) = self.frames() {
                return Some(frames);
            }
            tokio::select! {
                biased;
                () = self.observed.draining.cancelled() => return None,
                changed = self.news.changed() => changed.ok()?,
                () = tokio::time::sleep(KEEP_ALIVE) => return Some(":\n\n".to_owned()),
            }
        }
    }

    /// Events that are there already.
    fn frames(&mut self) -> Option<String> {
        let events = &self.observed.events;
        let mut frames = String::new();
        match events.after(self.cursor, TOGETHER_MAX, self.observed.now()) {
            Next::Reset(cursor) => {
                self.cursor = cursor;
                frame(&mut frames, cursor, "reset", "{\"type\":\"reset\"}");
            }
            Next::Events(missed) => {
                for event in missed {
                    self.cursor = self.cursor.past(&event);
                    frame(&mut frames, self.cursor, event.kind, &event.data);
                }
            }
        }
        (!frames.is_empty()).then_some(frames)
    }
}

/// One event. JSON on one line has no line ends that could break it.
fn frame(frames: &mut String, id: Cursor, kind: &str, data: &str) {
    // Writing to a string cannot fail.
    let _ = write!(frames, "id: {id}\nevent: {kind}\ndata: {data}\n\n");
}
