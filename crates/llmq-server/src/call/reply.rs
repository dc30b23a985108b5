//! The answer to a caller, with what llmq has to say of it in headers.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use llmq_core::{Clock, Timestamp};
use llmq_provider::{Dialect, failed_status, translate};
use uuid::Uuid;

use super::attempt::Failure;
use super::body::ReplyBody;
use super::forward;
use super::incoming::Incoming;
use super::line;
use super::progress::Progress;
use crate::Gateway;
use crate::dialect::Refusal;

pub(crate) type Reply = Response<ReplyBody>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-llmq-request-id");
const QUEUED_MS: HeaderName = HeaderName::from_static("x-llmq-queued-ms");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-llmq-attempts");
const UPSTREAM: HeaderName = HeaderName::from_static("x-llmq-upstream");
const WAIT: HeaderName = HeaderName::from_static("x-llmq-wait");
/// The official SDKs repeat a call or not by this header, whatever the status.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Longer than this no SDK is told to wait by itself. OpenAI's own gives up on a longer
/// `Retry-After` (openai 2.45, 2026); Anthropic's sleeps through any, a month included, with
/// nothing said to its caller (anthropic 2.12, 2026).
const SDK_WAITS: Duration = Duration::from_secs(120);

/// A provider's answer, passed on.
pub(crate) fn answered(
    status: StatusCode,
    headers: HeaderMap,
    body: ReplyBody,
    id: Uuid,
    progress: &Progress,
) -> Reply {
    let mut reply = forwarded(status, headers, body);
    sign(reply.headers_mut(), id, progress);
    reply
}

/// What a provider says of something that it keeps.
pub(crate) fn passed_on(
    status: StatusCode,
    headers: HeaderMap,
    body: ReplyBody,
    id: Uuid,
) -> Reply {
    let mut reply = forwarded(status, headers, body);
    name(reply.headers_mut(), id);
    reply
}

fn forwarded(status: StatusCode, headers: HeaderMap, body: ReplyBody) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    *reply.headers_mut() = forward::for_caller(headers);
    reply
}

/// Signs a reply that begins before it has an answer. `id`: none where nobody knows it yet.
pub(crate) fn begun(reply: &mut Reply, id: Option<Uuid>, waits_for: Option<String>) {
    if let Some(id) = id {
        name(reply.headers_mut(), id);
    }
    if let Some(Ok(text)) = waits_for.map(HeaderValue::try_from) {
        reply.headers_mut().insert(WAIT, text);
    }
}

/// The provider's own error, since no attempt brought more. `turn`: when it would be the call's
/// turn again, as far as that is known.
pub(crate) fn failed(
    gateway: &Gateway,
    incoming: &Incoming,
    failure: Failure,
    turn: Option<Timestamp>,
    progress: &mut Progress,
) -> Reply {
    let class = failure.class;
    let reply = in_its_words(gateway, incoming, failure, turn, progress);
    progress.ends(reply.status().as_u16(), Some(class));
    reply
}

fn in_its_words(
    gateway: &Gateway,
    incoming: &Incoming,
    failure: Failure,
    turn: Option<Timestamp>,
    progress: &Progress,
) -> Reply {
    let now = gateway.clock.now().mono;
    let dialect = failure.dialect;
    let Some((theirs, mut headers, mut body)) = failure.answer else {
        return refused(&failure.refusal, incoming.dialect, Some(progress));
    };
    if let Some(refusal) = redirected(theirs, &headers) {
        return refused(&refusal, incoming.dialect, Some(progress));
    }
    // A failure dressed as a 200 is none for the caller.
    let status = failed_status(theirs, &body);
    if theirs.is_success() {
        // It may have come in a stream.
        headers.insert(CONTENT_TYPE, JSON);
    }
    if dialect != incoming.dialect {
        body = translate::error(incoming.dialect, status.as_u16(), &body);
        headers.insert(CONTENT_TYPE, JSON);
        forward::translate_request_id(&mut headers, incoming.dialect);
    }
    let mut reply = answered(
        status,
        headers,
        ReplyBody::whole(body),
        incoming.id,
        progress,
    );
    // Where others wait too, it is not the provider's time at which there is room.
    let passes = matches!(
        reply.status(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    let until = failure.until.max(turn.filter(|_| passes));
    let wait = until.map(|until| until.since(now));
    if let Some(wait) = wait {
        retry_after(reply.headers_mut(), wait);
    }
    // llmq has tried as often as makes sense; but a limit has room again at its time.
    let wait = wait.filter(|_| line::is_limit(failure.class));
    should_retry(reply.headers_mut(), wait);
    reply
}

/// What is told of a redirect.
pub(crate) fn redirected(status: StatusCode, headers: &HeaderMap) -> Option<Refusal> {
    let message = llmq_provider::redirected(status, headers)?;
    let status = StatusCode::BAD_GATEWAY;
    Some(Refusal::new(status, "upstream_failed", message))
}

/// A word of llmq's own. An SDK is to try again by itself only where it is said when, and that is
/// soon.
pub(crate) fn refused(refusal: &Refusal, dialect: Dialect, progress: Option<&Progress>) -> Reply {
    let id = progress.map_or_else(Uuid::now_v7, |progress| progress.id);
    let mut reply = own_words(refusal, dialect, id).map(ReplyBody::whole);
    if let Some(progress) = progress {
        sign(reply.headers_mut(), id, progress);
    }
    reply
}

/// The same for whatever route it is said on.
pub(crate) fn own_words(refusal: &Refusal, dialect: Dialect, id: Uuid) -> Response<Bytes> {
    let mut text = [0; uuid::fmt::Simple::LENGTH];
    let shown = format!("req_{}", id.simple().encode_lower(&mut text));
    let mut reply = Response::new(refusal.body(dialect, Some(&shown)));
    *reply.status_mut() = refusal.status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    should_retry(headers, refusal.retry_after);
    if let Some(wait) = refusal.retry_after {
        retry_after(headers, wait);
    }
    if let Ok(shown) = HeaderValue::from_str(&shown) {
        headers.insert(forward::request_id_of(dialect), shown);
    }
    name(headers, id);
    reply
}

/// Whether an SDK is to try again by itself, where another try makes sense after `wait`.
fn should_retry(headers: &mut HeaderMap, wait: Option<Duration>) {
    let soon = wait.is_some_and(|wait| wait <= SDK_WAITS);
    let word = HeaderValue::from_static(if soon { "true" } else { "false" });
    headers.insert(SHOULD_RETRY, word);
}

/// RFC 9110, 10.2.3: whole seconds. Rounded up, so that it is never too early.
fn retry_after(headers: &mut HeaderMap, wait: Duration) {
    let seconds = wait.as_millis().div_ceil(1_000).max(1);
    let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
}

fn name(headers: &mut HeaderMap, id: Uuid) {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    if let Ok(id) = HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)) {
        headers.insert(REQUEST_ID, id);
    }
}

/// Nearly every call waits for nothing and is sent once.
fn number(number: u64) -> HeaderValue {
    match number {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        more => HeaderValue::from(more),
    }
}

fn sign(headers: &mut HeaderMap, id: Uuid, progress: &Progress) {
    name(headers, id);
    let queued = u64::try_from(progress.queued.as_millis()).unwrap_or(u64::MAX);
    headers.insert(QUEUED_MS, number(queued));
    headers.insert(ATTEMPTS, number(u64::from(progress.attempts)));
    let named = [
        (UPSTREAM, progress.upstream.as_deref()),
        (WAIT, progress.waited_for.as_deref()),
    ];
    for (name, text) in named {
        // A name with letters that headers cannot hold is left out.
        if let Some(Ok(value)) = text.map(HeaderValue::from_str) {
            headers.insert(name, value);
        }
    }
}
