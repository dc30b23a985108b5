//! An answer that begins before there is one: 200 and comment lines, for streams whose callers
//! sit behind something that bears no silence.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use llmq_provider::{Dialect, translate};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::time::{Instant, Sleep};

use super::body::ReplyBody;
use super::reply::Reply;
use crate::dialect::Refusal;

/// A comment (WHATWG HTML, 9.2.6) and no blank line, which would end an event.
const COMMENT: Bytes = Bytes::from_static(b": wait\n");
/// Nobody needs them oftener …
const EVERY_MIN: Duration = Duration::from_secs(1);
/// … and proxies seldom bear more than 30 s.
const EVERY_MAX: Duration = Duration::from_secs(15);

/// The whole way of a call, to its reply.
type Way = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// A call whose caller has its 200, and no answer yet.
pub(crate) struct Early {
    call: Way,
    dialect: Dialect,
    every: Duration,
    next: Pin<Box<Sleep>>,
}

/// What comes next of it.
pub(super) enum Next {
    Comment(Bytes),
    /// The answer, or what is said instead.
    Body(ReplyBody),
}

/// The call's own reply, if it comes within `after`; else a reply that begins without it.
/// `begun` signs it.
pub(super) async fn reply(
    call: impl Future<Output = Reply> + Send + 'static,
    dialect: Dialect,
    after: Duration,
    begun: impl FnOnce(&mut Reply),
) -> Reply {
    let mut call: Way = Box::pin(call);
    if let Ok(reply) = tokio::time::timeout(after, &mut call).await {
        return reply;
    }
    let early = Early {
        call,
        dialect,
        every: after.clamp(EVERY_MIN, EVERY_MAX),
        next: Box::pin(tokio::time::sleep(Duration::ZERO)),
    };
    let mut reply = Response::new(ReplyBody::Early(Box::new(early)));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    begun(&mut reply);
    reply
}

impl Early {
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        if let Poll::Ready(reply) = self.call.as_mut().poll(context) {
            return Poll::Ready(Next::Body(late(reply, self.dialect)));
        }
        if self.next.as_mut().poll(context).is_ready() {
            let next = Instant::now() + self.every;
            self.next.as_mut().reset(next);
            return Poll::Ready(Next::Comment(COMMENT));
        }
        Poll::Pending
    }
}

/// What is left of a reply whose status and headers cannot be told any more: a stream as it is,
/// anything else as an error event.
fn late(reply: Reply, dialect: Dialect) -> ReplyBody {
    let status = reply.status();
    let kind = reply.headers().get(CONTENT_TYPE);
    let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    match reply.into_body() {
        stream @ ReplyBody::Passing(_) => stream,
        // That of a call with a key, as it comes or as it is kept.
        stream @ (ReplyBody::Whole(_) | ReplyBody::Other(_))
            if is_stream && status.is_success() =>
        {
            stream
        }
        ReplyBody::Whole(Some(body)) if !status.is_success() && is_json(&body) => {
            let event = if names_error(&body) {
                event(&body, dialect)
            } else {
                // The official SDKs take it for a piece of the answer.
                translate::error_event(dialect, status.as_u16(), &body)
            };
            ReplyBody::LastWords(Some(event))
        }
        _ => {
            let message = format!("the upstream answered {status} and no stream");
            let refusal = Refusal::new(StatusCode::BAD_GATEWAY, "upstream_failed", message);
            ReplyBody::LastWords(Some(refusal.event(dialect)))
        }
    }
}

fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(body).is_ok()
}

/// Whether a body is an object with an `error`, which is what SDKs look for. Mistral's, FastAPI's
/// and Gemini's are not.
fn names_error(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Failure<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
    }
    // serde takes an array for an object, member by member.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let failure = serde_json::from_slice::<Failure<'_>>(body);
    is_object && failure.is_ok_and(|failure| failure.error.is_some())
}

/// An error's body as an event; each of its lines is a line of data.
fn event(body: &[u8], dialect: Dialect) -> Bytes {
    let mut event = BytesMut::with_capacity(body.len() + 32);
    if dialect == Dialect::Anthropic {
        event.put_slice(b"event: error\n");
    }
    for line in body.split(|byte| matches!(byte, b'\n' | b'\r')) {
        event.put_slice(b"data: ");
        event.put_slice(line);
        event.put_u8(b'\n');
    }
    event.put_u8(b'\n');
    event.freeze()
}
