//! Pages of other origins that may call (CORS, the Fetch standard, section 3.3): none, unless
//! `[server] cors` names them.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::{Method, Response, StatusCode};

use crate::call::{Reply, ReplyBody};

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, OPTIONS");
/// What a page may read of an answer beside its body.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "retry-after, x-should-retry, x-request-id, request-id, location, x-llmq-request-id, \
     x-llmq-queued-ms, x-llmq-attempts, x-llmq-upstream, x-llmq-wait",
);
/// How long a browser need not ask again: Chromium's maximum, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// What a request of a page of another origin gets.
pub(crate) enum Asked {
    /// It only asks whether it may call.
    Preflight(Reply),
    /// It calls; the answer is for this origin too.
    Call(HeaderValue),
}

/// What a request means for CORS; none: nothing, as for all that programs send.
pub(crate) fn asked(allowed: &[String], method: &Method, headers: &HeaderMap) -> Option<Asked> {
    if allowed.is_empty() {
        return None;
    }
    let origin = headers.get(ORIGIN)?;
    if !is_allowed(allowed, origin) {
        return None;
    }
    if method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return Some(Asked::Preflight(preflight(origin, headers)));
    }
    Some(Asked::Call(origin.clone()))
}

/// Whether pages of `origin` may call.
pub(crate) fn is_allowed(allowed: &[String], origin: &HeaderValue) -> bool {
    allowed
        .iter()
        .any(|known| known == "*" || known.as_bytes() == origin.as_bytes())
}

/// Lets the page of `origin` read an answer.
pub(crate) fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    headers.append(VARY, HeaderValue::from_name(ORIGIN));
}

fn preflight(origin: &HeaderValue, asked: &HeaderMap) -> Reply {
    let mut reply = Response::new(ReplyBody::whole(bytes::Bytes::new()));
    *reply.status_mut() = StatusCode::NO_CONTENT;
    let headers = reply.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    // `*` would not stand for Authorization (Fetch standard, "CORS non-wildcard request-header
    // name"), so what is asked for is named.
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    // A page of a public site that asks a server on this machine or network (Private Network
    // Access).
    let private = HeaderName::from_static("access-control-request-private-network");
    if asked.contains_key(private) {
        let allowed = HeaderName::from_static("access-control-allow-private-network");
        headers.insert(allowed, HeaderValue::from_static("true"));
    }
    allow(headers, origin.clone());
    reply
}
