use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::Dialect;
use crate::lenient::{Lenient, Object};
use crate::usage::RawUsage;

type Count = Lenient<Option<u64>>;

/// The tokens that an upstream has told of so far, in its own dialect.
#[derive(Debug, Default)]
pub(super) struct Tally {
    raw: RawUsage,
    reasoning: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reasoning {
    completion_tokens_details: Lenient<Object<Details>>,
    output_tokens_details: Lenient<Object<Details>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    /// OpenAI's name.
    reasoning_tokens: Count,
    /// Anthropic's name.
    thinking_tokens: Count,
}

/// OpenAI's `usage` of a chat completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct ChatUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u64,
    cache_write_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u64,
}

/// Anthropic's `usage` of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct MessageUsage {
    /// Without what was read from the cache or written to it.
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    output_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct OutputDetails {
    thinking_tokens: u64,
}

impl Tally {
    /// Takes a `usage` object; what it does not repeat stays as it was.
    pub(super) fn add(&mut self, usage: &RawValue) {
        let Ok(Lenient(Object(raw))) = serde_json::from_str(usage.get()) else {
            return;
        };
        if raw == RawUsage::default() {
            return;
        }
        self.raw = self.raw.overlaid(raw);
        let details: Result<Reasoning, _> = serde_json::from_str(usage.get());
        if let Ok(details) = details {
            let (chat, message) = (
                details.completion_tokens_details.0.0.reasoning_tokens.0,
                details.output_tokens_details.0.0.thinking_tokens.0,
            );
            self.reasoning = chat.or(message).or(self.reasoning);
        }
    }

    /// What an Anthropic upstream told, in OpenAI's words; `None` when it told nothing.
    pub(super) fn for_openai(&self) -> Option<ChatUsage> {
        let usage = self.raw.usage(Dialect::Anthropic)?;
        Some(ChatUsage {
            prompt_tokens: usage.input_tokens,
            completion_tokens: usage.output_tokens,
            total_tokens: usage.input_tokens.saturating_add(usage.output_tokens),
            prompt_tokens_details: PromptDetails {
                cached_tokens: usage.cache_read_tokens,
                cache_write_tokens: usage.cache_write_tokens,
            },
            completion_tokens_details: self
                .reasoning
                .map(|reasoning_tokens| CompletionDetails { reasoning_tokens }),
        })
    }

    /// What an OpenAI upstream told, in Anthropic's words. Zeros when it told nothing, since
    /// Anthropic's clients rely on the numbers being there.
    pub(super) fn for_anthropic(&self) -> MessageUsage {
        let Some(usage) = self.raw.usage(Dialect::OpenAi) else {
            return MessageUsage::default();
        };
        let cached = usage
            .cache_read_tokens
            .saturating_add(usage.cache_write_tokens);
        MessageUsage {
            input_tokens: usage.input_tokens.saturating_sub(cached),
            cache_creation_input_tokens: usage.cache_write_tokens,
            cache_read_input_tokens: usage.cache_read_tokens,
            output_tokens: usage.output_tokens,
            output_tokens_details: self
                .reasoning
                .map(|thinking_tokens| OutputDetails { thinking_tokens }),
        }
    }
}
