//! What a route's provider is told, and in which dialect.

use bytes::Bytes;
use http::StatusCode;
use llmq_core::Host;
use llmq_provider::translate::{self, OutputCap, Target, Untranslatable};
use llmq_provider::{
    ANTHROPIC_MAX_TOKENS, Dialect, Operation, WholeAnswer, with_model, with_stream_usage,
};

use crate::AssembledRoute;
use crate::config::{ModelSettings, StreamUsage};

/// A call as its caller made it.
#[derive(Debug, Clone, Copy)]
pub struct Saying<'a> {
    /// What it asks for, in its caller's dialect.
    pub operation: Operation,
    /// The model's name as it stands in the body.
    pub model: &'a str,
    /// How the model is set that it is to be answered by.
    pub settings: &'a ModelSettings,
    /// Its body.
    pub body: &'a Bytes,
    /// Whether its answer is to be a stream, and who needs the usage of that.
    pub stream: StreamOf,
}

/// Whether an answer is to be a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamOf {
    /// It comes as a whole.
    Nothing,
    /// Its caller says itself whether the usage is to be told.
    Caller,
    /// Its caller leaves that open, and nobody here counts for it.
    Anybody,
    /// Its caller leaves that open, and has a budget or limits in tokens.
    Counted,
}

/// What one provider is to get of a call.
#[derive(Debug)]
pub struct Outgoing {
    /// The operation in the provider's dialect.
    pub operation: Operation,
    /// The body: the caller's own bytes wherever that is possible.
    pub body: Bytes,
    /// Set where the call is translated: whether the caller asked for a stream's usage.
    pub include_usage: Option<bool>,
    /// It asks for a stream's usage, and the caller did not.
    pub asks_usage: bool,
}

impl Outgoing {
    /// The caller's own bytes, but for the name of the model where the provider knows it by
    /// another, and the wish for a stream's usage where that is to be counted; in the other
    /// dialect where the provider speaks that.
    ///
    /// # Errors
    ///
    /// The provider's dialect has no words for it.
    pub fn of(saying: &Saying<'_>, route: &AssembledRoute) -> Result<Self, Untranslatable> {
        let name = route.model.as_deref().unwrap_or(saying.model);
        let dialect = route.provider.dialect();
        if !saying.operation.speaks(dialect) {
            let target = target(saying.settings, route, name);
            let said = translate::request(saying.operation, saying.body, target)?;
            let is_asked = saying.stream != StreamOf::Nothing && dialect == Dialect::OpenAi;
            return Ok(Self {
                operation: said.operation,
                body: said.body,
                include_usage: Some(said.include_usage),
                asks_usage: is_asked && target.ask_stream_usage,
            });
        }
        let mut body = if name == saying.model {
            saying.body.clone()
        } else {
            // A body that was scanned is an object.
            with_model(saying.body, name).unwrap_or_else(|_| saying.body.clone())
        };
        let asks_usage = counts_stream(saying, route);
        if asks_usage {
            body = with_stream_usage(&body).unwrap_or(body);
        }
        Ok(Self {
            operation: saying.operation,
            body,
            include_usage: None,
            asks_usage,
        })
    }
}

/// Whether a stream must be asked for its usage that its caller said nothing of. Anthropic's
/// streams and those of the Responses API tell it unasked.
fn counts_stream(saying: &Saying<'_>, route: &AssembledRoute) -> bool {
    let is_counted = match saying.stream {
        StreamOf::Nothing | StreamOf::Caller => return false,
        StreamOf::Anybody => false,
        StreamOf::Counted => true,
    };
    let can_be_asked = matches!(
        saying.operation,
        Operation::ChatCompletions | Operation::Completions
    );
    let counts = match saying.settings.stream_usage {
        StreamUsage::Never => false,
        StreamUsage::Add => true,
        StreamUsage::Auto => route.counts_usage || is_counted,
    };
    can_be_asked && counts && !route.found_out.refuses_stream_usage()
}

/// Whether an answer refuses a call for what llmq had added to it. OpenAI's own API answers 400,
/// servers that check bodies by a schema 422.
#[must_use]
pub fn refuses_stream_options(answer: &WholeAnswer) -> bool {
    let refused = matches!(
        answer.status,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
    );
    let names = |word: &str| memchr::memmem::find(&answer.body, word.as_bytes()).is_some();
    refused && (names("stream_options") || names("include_usage"))
}

/// What a translation needs to know of where it goes.
fn target<'a>(settings: &ModelSettings, route: &AssembledRoute, name: &'a str) -> Target<'a> {
    // OpenAI's reasoning models take the newer member alone, and many compatible servers know
    // the older one alone.
    let cap = match route.provider.host() {
        Host::OpenAi | Host::Azure | Host::Groq | Host::Cerebras | Host::Mock => {
            OutputCap::MaxCompletionTokens
        }
        _ => OutputCap::MaxTokens,
    };
    let may_ask = settings.stream_usage != StreamUsage::Never;
    Target {
        model: name,
        max_tokens: settings.max_tokens.unwrap_or(ANTHROPIC_MAX_TOKENS),
        cap,
        ask_stream_usage: may_ask && !route.found_out.refuses_stream_usage(),
    }
}

/// The dialect in which the caller of an operation expects answers and errors.
#[must_use]
pub fn spoken(operation: Operation) -> Dialect {
    match operation {
        Operation::Messages | Operation::CountTokens => Dialect::Anthropic,
        _ => Dialect::OpenAi,
    }
}
