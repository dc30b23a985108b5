//! Calls of one dialect served by an upstream of the other: OpenAI's chat completions and
//! Anthropic's messages.
//!
//! [`request()`] turns the call's body, [`answer()`] the whole answer, [`error()`] a failure's
//! body, and [`StreamTranslator`] a stream as it passes. Nothing here does I/O.
//!
//! A member is translated, or it is one of the few that change only cost or speed and is named
//! in [`Translated::left_out`], or the call is refused and [`Untranslatable`] names the member.
//! Nothing else is left out. The chapter "Between dialects" of the guide lists every member.

mod refusal;

mod json;
mod rules;

mod anthropic;
mod openai;

mod images;
mod messages_to_anthropic;
mod messages_to_openai;
mod tools_to_anthropic;
mod tools_to_openai;

mod request_to_anthropic;
mod request_to_openai;

mod stop;
mod usage;

mod answer;
mod error;

mod stream;
mod stream_to_anthropic;
mod stream_to_openai;

use std::collections::BTreeSet;

use bytes::Bytes;

pub use answer::{UnreadableAnswer, answer};
pub use error::{error, error_event};
pub use refusal::Untranslatable;
pub use stream::{StreamBroken, StreamOptions, StreamTranslator};

use crate::{ANTHROPIC_MAX_TOKENS, Operation};
use json::Members;

/// What a request is translated for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The model's name at the upstream.
    pub model: &'a str,
    /// The cap on output for a call without one, where the dialect requires one: Anthropic's.
    pub max_tokens: u32,
    /// The member that caps the output at an OpenAI upstream.
    pub cap: OutputCap,
    /// Whether a stream of an OpenAI upstream is asked for its usage (`stream_options`), which
    /// Anthropic's streams always tell. `false` for an upstream that refuses to be asked.
    pub ask_stream_usage: bool,
}

impl<'a> Target<'a> {
    /// The model `model` of an upstream without peculiarities.
    #[must_use]
    pub fn new(model: &'a str) -> Self {
        Self {
            model,
            max_tokens: ANTHROPIC_MAX_TOKENS,
            cap: OutputCap::MaxCompletionTokens,
            ask_stream_usage: true,
        }
    }
}

/// The member that caps the output of a chat completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputCap {
    /// `max_completion_tokens`: OpenAI's own, the only one its reasoning models take.
    MaxCompletionTokens,
    /// `max_tokens`: deprecated there, and the only one that some compatible servers know.
    MaxTokens,
}

/// A request in the other dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translated {
    /// What is asked for in that dialect.
    pub operation: Operation,
    /// The body to send.
    pub body: Bytes,
    /// Whether the caller of an OpenAI stream asked for its usage; for
    /// [`StreamOptions::include_usage`].
    pub include_usage: bool,
    /// The members that were left out since they say nothing about the answer, only about its
    /// cost or speed, such as `cache_control`.
    pub left_out: BTreeSet<&'static str>,
}

/// What `operation` is called in the dialect that does not know it; `None` when it exists in one
/// dialect only, or in both.
///
/// ```
/// use llmq_provider::Operation;
/// use llmq_provider::translate::counterpart;
/// assert_eq!(counterpart(Operation::Messages), Some(Operation::ChatCompletions));
/// assert_eq!(counterpart(Operation::Embeddings), None);
/// ```
#[must_use]
pub fn counterpart(operation: Operation) -> Option<Operation> {
    match operation {
        Operation::ChatCompletions => Some(Operation::Messages),
        Operation::Messages => Some(Operation::ChatCompletions),
        Operation::Responses
        | Operation::Embeddings
        | Operation::Completions
        | Operation::CountTokens
        | Operation::Models => None,
    }
}

/// The request in the dialect that does not know `operation`.
///
/// Texts, numbers, schemas and arguments keep their bytes. Values that a model of the upstream
/// does not take, such as a fifth stop sequence, are the upstream's to refuse.
///
/// # Errors
///
/// [`Untranslatable`] names the member that has no counterpart, or is wrong in the first place.
///
/// ```
/// use llmq_provider::Operation;
/// use llmq_provider::translate::{Target, request};
/// let body = br#"{"model":"any","messages":[{"role":"user","content":"Hi"}]}"#;
/// let translated = request(Operation::ChatCompletions, body, Target::new("claude-haiku-4-5"))?;
/// assert_eq!(translated.operation, Operation::Messages);
/// assert_eq!(
///     translated.body,
///     r#"{"model":"claude-haiku-4-5","max_tokens":1024,"messages":[{"role":"user","content":"Hi"}]}"#,
/// );
///
/// let two = br#"{"model":"any","n":2,"messages":[{"role":"user","content":"Hi"}]}"#;
/// let refused = request(Operation::ChatCompletions, two, Target::new("claude-haiku-4-5"));
/// assert_eq!(refused.unwrap_err().path(), Some("n"));
/// # Ok::<(), llmq_provider::translate::Untranslatable>(())
/// ```
pub fn request(
    operation: Operation,
    body: &[u8],
    target: Target<'_>,
) -> Result<Translated, Untranslatable> {
    let members = Members::read(body).ok_or(Untranslatable::NotAnObject)?;
    match operation {
        Operation::ChatCompletions => request_to_anthropic::translate(members, target),
        Operation::Messages => request_to_openai::translate(members, target),
        Operation::Responses
        | Operation::Embeddings
        | Operation::Completions
        | Operation::CountTokens
        | Operation::Models => Err(Untranslatable::Operation { operation }),
    }
}

/// A body of a type of ours.
fn written(body: &impl serde::Serialize) -> Bytes {
    // Texts, numbers and JSON that was read before always serialize.
    Bytes::from(serde_json::to_vec(body).unwrap_or_default())
}

#[cfg(test)]
mod tests;
