//! What an upstream gets of a call: the caller's own bytes, as far as it takes them so.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use llmq_core::{Host, LimitKind};
use llmq_engine::AssembledRoute;
use llmq_engine::config::StreamUsage;
use llmq_provider::translate::{self, OutputCap, Target, Untranslatable};
use llmq_provider::{
    ANTHROPIC_MAX_TOKENS, Dialect, Operation, WholeAnswer, with_model, with_stream_usage,
};

use super::incoming::Incoming;
use crate::Gateway;
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
    /// The caller's own bytes, but for the name of the model where the provider knows it by
    /// another, and the wish for a stream's usage where that is to be counted; in the other
    /// dialect where the provider speaks that.
    pub(super) fn of(
        incoming: &Incoming,
        model: &Model,
        route: &AssembledRoute,
    ) -> Result<Self, Untranslatable> {
        let name = route.model.as_deref().unwrap_or(&incoming.model);
        let dialect = route.provider.dialect();
        let headers = headers(incoming, route);
        if !incoming.operation.speaks(dialect) {
            let target = target(model, route, name);
            let said = translate::request(incoming.operation, &incoming.body, target)?;
            let asks_usage = incoming.stream && dialect == Dialect::OpenAi;
            return Ok(Self {
                operation: said.operation,
                body: said.body,
                headers,
                said: Said::Translated {
                    include_usage: said.include_usage,
                },
                asks_usage: asks_usage && target.ask_stream_usage,
            });
        }
        let mut body = if name == incoming.model {
            incoming.body.clone()
        } else {
            // A body that was scanned is an object.
            with_model(&incoming.body, name).unwrap_or_else(|_| incoming.body.clone())
        };
        let asks_usage = incoming.stream && counts_stream(incoming, model, route);
        if asks_usage {
            body = with_stream_usage(&body).unwrap_or(body);
        }
        Ok(Self {
            operation: incoming.operation,
            body,
            headers,
            said: Said::AsItCame,
            asks_usage,
        })
    }
}

/// Whether a stream must be asked for its usage that its caller said nothing of. Anthropic's
/// streams and those of the Responses API tell it unasked.
fn counts_stream(incoming: &Incoming, model: &Model, route: &AssembledRoute) -> bool {
    let can_be_asked = matches!(
        incoming.operation,
        Operation::ChatCompletions | Operation::Completions
    );
    let counts = || match model.settings.stream_usage {
        StreamUsage::Never => false,
        StreamUsage::Add => true,
        StreamUsage::Auto => {
            let limits = incoming.caller.limits();
            route.counts_usage
                || incoming.caller.has_budget()
                || limits.iter().any(|limit| counts_tokens(limit.kind))
        }
    };
    can_be_asked
        && incoming.include_usage.is_none()
        && counts()
        && !route.found_out.refuses_stream_usage()
}

fn counts_tokens(kind: LimitKind) -> bool {
    match kind {
        LimitKind::Tokens | LimitKind::InputTokens | LimitKind::OutputTokens => true,
        LimitKind::Requests | LimitKind::Concurrency => false,
    }
}

/// Whether an answer refuses a call for what llmq had added to it. OpenAI's own API answers 400,
/// servers that check bodies by a schema 422.
pub(super) fn refuses_stream_options(answer: &WholeAnswer) -> bool {
    let refused = matches!(
        answer.status,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
    );
    let names = |word: &str| memchr::memmem::find(&answer.body, word.as_bytes()).is_some();
    refused && (names("stream_options") || names("include_usage"))
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

/// What a translation needs to know of where it goes.
fn target<'a>(model: &Model, route: &AssembledRoute, name: &'a str) -> Target<'a> {
    // OpenAI's reasoning models take the newer member alone, and many compatible servers know
    // the older one alone.
    let cap = match route.provider.host() {
        Host::OpenAi | Host::Azure | Host::Groq | Host::Cerebras | Host::Mock => {
            OutputCap::MaxCompletionTokens
        }
        _ => OutputCap::MaxTokens,
    };
    let may_ask = model.settings.stream_usage != StreamUsage::Never;
    Target {
        model: name,
        max_tokens: model.settings.max_tokens.unwrap_or(ANTHROPIC_MAX_TOKENS),
        cap,
        ask_stream_usage: may_ask && !route.found_out.refuses_stream_usage(),
    }
}

/// Whether a call can be said to at least one of a model's upstreams or its fallbacks'; else why
/// not.
pub(super) fn speakable(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
) -> Result<(), Untranslatable> {
    let native = |route: &Arc<AssembledRoute>| incoming.operation.speaks(route.provider.dialect());
    if model.routes.iter().any(native) {
        return Ok(());
    }
    let names = model.settings.fallback.iter();
    let fallbacks: Vec<_> = names
        .filter_map(|name| gateway.models.known(name))
        .collect();
    let others = fallbacks.iter().flat_map(|other| &other.routes);
    let mut first = None;
    for route in model.routes.iter().chain(others) {
        match Outgoing::of(incoming, model, route) {
            Ok(_) => return Ok(()),
            Err(untranslatable) => first = first.or(Some(untranslatable)),
        }
    }
    first.map_or(Ok(()), Err)
}
