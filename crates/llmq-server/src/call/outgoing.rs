//! What an upstream gets of a call: the caller's own bytes, as far as it takes them so.

use http::HeaderMap;
use llmq_core::LimitKind;
use llmq_engine::{AssembledRoute, Outgoing, Saying, StreamOf};
use llmq_provider::translate::Untranslatable;

use super::incoming::Incoming;
use crate::keys::Caller;
use crate::models::Model;

/// What this route's provider is to get. `model`: the one in whose line the call stands, which is
/// another than it names where a larger context takes over.
pub(super) fn words(
    incoming: &Incoming,
    model: &Model,
    route: &AssembledRoute,
) -> Result<Outgoing, Untranslatable> {
    let stream = stream_of(incoming.stream, incoming.include_usage, &incoming.caller);
    let saying = Saying {
        model: &incoming.model,
        ..model.saying(incoming.operation, &incoming.body, stream)
    };
    Outgoing::of(&saying, route)
}

/// Whether a call is for a stream, and who needs its usage; `include_usage` is what its caller
/// says of that.
pub(crate) fn stream_of(stream: bool, include_usage: Option<bool>, caller: &Caller) -> StreamOf {
    if !stream {
        return StreamOf::Nothing;
    }
    if include_usage.is_some() {
        return StreamOf::Caller;
    }
    let counts = |kind| match kind {
        LimitKind::Tokens | LimitKind::InputTokens | LimitKind::OutputTokens => true,
        LimitKind::Requests | LimitKind::Concurrency => false,
    };
    if caller.has_budget() || caller.limits().iter().any(|limit| counts(limit.kind)) {
        StreamOf::Counted
    } else {
        StreamOf::Anybody
    }
}

/// What of a caller's headers it is to get.
pub(super) fn headers(incoming: &Incoming, route: &AssembledRoute) -> HeaderMap {
    let mut headers = incoming.headers.clone();
    for name in &*route.pass_headers {
        if let Some(value) = incoming.account_headers.get(name) {
            headers.insert(name, value.clone());
        }
    }
    headers
}
