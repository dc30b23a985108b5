//! What an upstream gets of a call: the caller's own bytes, as far as it takes them so.

use bytes::Bytes;
use http::HeaderMap;
use llmq_core::LimitKind;
use llmq_engine::{AssembledRoute, Outgoing as Words, StreamOf};
use llmq_provider::Operation;
use llmq_provider::translate::Untranslatable;

use super::incoming::Incoming;
use crate::keys::Caller;
use crate::models::Model;

/// In which words a call was said to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    AsItCame,
    /// In the other dialect; whether the caller asked for a stream's usage.
    Translated {
        include_usage: bool,
    },
}

/// What this route's provider is to get.
pub(super) struct Outgoing {
    pub(super) operation: Operation,
    pub(super) body: Bytes,
    pub(super) headers: HeaderMap,
    pub(super) said: Said,
    /// It asks for a stream's usage, and the caller did not.
    pub(super) asks_usage: bool,
}

impl Outgoing {
    pub(super) fn of(
        incoming: &Incoming,
        model: &Model,
        route: &AssembledRoute,
    ) -> Result<Self, Untranslatable> {
        let stream = stream_of(incoming.stream, incoming.include_usage, &incoming.caller);
        let saying = model.saying(incoming.operation, &incoming.body, stream);
        let words = Words::of(&saying, route)?;
        Ok(Self {
            operation: words.operation,
            body: words.body,
            headers: headers(incoming, route),
            said: match words.include_usage {
                None => Said::AsItCame,
                Some(include_usage) => Said::Translated { include_usage },
            },
            asks_usage: words.asks_usage,
        })
    }
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

fn headers(incoming: &Incoming, route: &AssembledRoute) -> HeaderMap {
    let mut headers = incoming.headers.clone();
    for name in &*route.pass_headers {
        if let Some(value) = incoming.account_headers.get(name) {
            headers.insert(name, value.clone());
        }
    }
    headers
}
