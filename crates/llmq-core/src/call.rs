use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// How large a call is, as far as it can be known before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallSize {
    /// Estimated input tokens.
    pub input_tokens: u32,
    /// The caller's cap on output tokens, if it set one.
    pub max_output_tokens: Option<u32>,
    /// How many answers are asked for (OpenAI's `n`); 0 is read as 1.
    pub choices: u32,
}

impl CallSize {
    /// A call with `input_tokens` of input, one answer and no cap.
    #[must_use]
    pub fn of_input(input_tokens: u32) -> Self {
        Self {
            input_tokens,
            max_output_tokens: None,
            choices: 1,
        }
    }

    /// The most output the call can produce if one answer is capped at `cap` tokens.
    #[must_use]
    pub fn output_cap(&self, cap: u32) -> u64 {
        u64::from(self.choices.max(1)) * u64::from(self.max_output_tokens.unwrap_or(cap))
    }
}

/// What a call has really used, as the provider reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// All input tokens, cached ones included.
    pub input_tokens: u64,
    /// Output tokens, reasoning included.
    pub output_tokens: u64,
    /// Input tokens read from a cache; part of `input_tokens`.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_read_tokens: u64,
    /// Input tokens written to a cache; part of `input_tokens`.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_write_tokens: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Usage {
    /// Input and output together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }

    /// Input that was not read from a cache.
    #[must_use]
    pub fn uncached_input(&self) -> u64 {
        self.input_tokens.saturating_sub(self.cache_read_tokens)
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.cache_read_tokens = self
            .cache_read_tokens
            .saturating_add(other.cache_read_tokens);
        self.cache_write_tokens = self
            .cache_write_tokens
            .saturating_add(other.cache_write_tokens);
    }
}
