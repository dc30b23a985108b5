use std::time::Duration;

use llmq_core::{Algorithm, CallSize, Host, LimitKind, Usage};

/// How a limit charges a call: one row per provider and dimension.
///
/// Sources: `OpenAI`'s and Azure's rate-limit guides and published response headers, Anthropic's
/// rate-limit page, Groq's and Cerebras's, as read in November 2026.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChargeRule {
    /// The part that is known when the call arrives.
    pub input: InputCharge,
    /// The part that the answer makes.
    pub output: OutputCharge,
    /// What becomes of an estimate that proves wrong.
    pub refund: Refund,
}

/// What the call itself is charged, when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputCharge {
    /// Nothing.
    None,
    /// One, whatever its size.
    Call,
    /// Its input tokens.
    Tokens,
    /// Its input tokens, less those read from a cache.
    Uncached,
}

/// What the answer is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputCharge {
    /// Nothing.
    None,
    /// The caller's cap for each answer asked for, or this default, when the call arrives.
    Cap {
        /// What the provider assumes when the caller sets no cap.
        default: u32,
    },
    /// What is really produced, while it is produced or at the end. Until then the mean
    /// answer is held; the caller's cap is not reserved.
    Produced,
    /// A place that is held while the call runs.
    Place,
}

/// What becomes of an estimate once the real use is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refund {
    /// It stays as it was charged.
    None,
    /// It is corrected to the real use.
    ToUsage,
    /// It stays, unless the provider's headers show that it gives something back.
    AsHeadersShow,
}

/// The charge rule of one limit.
///
/// ```
/// use llmq_core::{Host, LimitKind};
/// use llmq_limit::{OutputCharge, charge_rule};
/// // OpenAI reserves the cap when the call arrives; Anthropic counts what is produced.
/// let openai = charge_rule(Host::OpenAi, LimitKind::Tokens);
/// assert_eq!(openai.output, OutputCharge::Cap { default: 16 });
/// let anthropic = charge_rule(Host::Anthropic, LimitKind::OutputTokens);
/// assert_eq!(anthropic.output, OutputCharge::Produced);
/// ```
#[must_use]
pub fn charge_rule(host: Host, kind: LimitKind) -> ChargeRule {
    use InputCharge as I;
    use OutputCharge as O;
    use Refund as R;
    let row = |input, output, refund| ChargeRule {
        input,
        output,
        refund,
    };
    match (kind, host) {
        (LimitKind::Concurrency, _) => row(I::None, O::Place, R::None),
        (LimitKind::Requests, _) => row(I::Call, O::None, R::None),
        (LimitKind::Tokens, Host::OpenAi | Host::Azure | Host::Groq | Host::Mock) => {
            row(I::Tokens, O::Cap { default: 16 }, R::AsHeadersShow)
        }
        // Cerebras assumes the rest of the context, which is not known here; a cap should be set.
        (LimitKind::Tokens, Host::Cerebras) => {
            row(I::Tokens, O::Cap { default: 8_192 }, R::AsHeadersShow)
        }
        (LimitKind::Tokens, _) => row(I::Tokens, O::Produced, R::ToUsage),
        (LimitKind::InputTokens, Host::Anthropic) => row(I::Uncached, O::None, R::ToUsage),
        (LimitKind::InputTokens, Host::Mock) => row(I::Tokens, O::None, R::None),
        (LimitKind::InputTokens, _) => row(I::Tokens, O::None, R::ToUsage),
        (LimitKind::OutputTokens, Host::Mock) => {
            row(I::None, O::Cap { default: 16 }, R::AsHeadersShow)
        }
        (LimitKind::OutputTokens, _) => row(I::None, O::Produced, R::ToUsage),
    }
}

/// How use ages at a host when nobody says otherwise: a bucket as deep as published behaviour
/// shows, and a sliding window, the strictest of all, for servers of which nothing is known.
///
/// ```
/// use llmq_core::{Algorithm, Host};
/// use llmq_limit::default_algorithm;
/// use std::time::Duration;
/// let minute = Duration::from_secs(60);
/// assert_eq!(default_algorithm(Host::OpenAi, minute), Algorithm::Bucket { depth: minute });
/// assert_eq!(default_algorithm(Host::Unknown, minute), Algorithm::Sliding);
/// ```
#[must_use]
pub fn default_algorithm(host: Host, period: Duration) -> Algorithm {
    let bucket = |secs| Algorithm::Bucket {
        depth: period.min(Duration::from_secs(secs)),
    };
    match host {
        Host::OpenAi | Host::Groq => Algorithm::Bucket { depth: period },
        Host::Anthropic => bucket(10),
        Host::Azure => bucket(1),
        _ => Algorithm::Sliding,
    }
}

impl ChargeRule {
    /// What a call of `size` is charged on arrival, before any learned factor.
    #[must_use]
    pub fn on_arrival(&self, size: &CallSize) -> u64 {
        let input = match self.input {
            InputCharge::None => 0,
            InputCharge::Call => 1,
            InputCharge::Tokens | InputCharge::Uncached => u64::from(size.input_tokens),
        };
        let output = match self.output {
            OutputCharge::Cap { default } => size.output_cap(default),
            OutputCharge::None | OutputCharge::Produced | OutputCharge::Place => 0,
        };
        input + output
    }

    /// What is held beside it until the call ends; `mean_output` is what answers took so far.
    #[must_use]
    pub fn held(&self, size: &CallSize, mean_output: u64) -> u64 {
        match self.output {
            OutputCharge::Produced => {
                let answers = u64::from(size.choices.max(1));
                let cap = size
                    .max_output_tokens
                    .map_or(u64::MAX, |_| size.output_cap(0));
                mean_output.saturating_mul(answers).min(cap)
            }
            OutputCharge::Place => 1,
            OutputCharge::None | OutputCharge::Cap { .. } => 0,
        }
    }

    /// What the arrival's charge should have been, now that the real use is known; `None` when
    /// it stays as it is.
    #[must_use]
    pub fn settled(&self, usage: &Usage) -> Option<u64> {
        match (self.refund, self.input) {
            (Refund::None | Refund::AsHeadersShow, _)
            | (Refund::ToUsage, InputCharge::None | InputCharge::Call) => None,
            (Refund::ToUsage, InputCharge::Tokens) => Some(usage.input_tokens),
            (Refund::ToUsage, InputCharge::Uncached) => Some(usage.uncached_input()),
        }
    }

    /// Whether what a call is charged follows from what its answer is said to have used.
    #[must_use]
    pub fn heeds_usage(&self) -> bool {
        self.output == OutputCharge::Produced || self.refund == Refund::ToUsage
    }

    /// Whether the limit counts tokens, so that its charges are estimates.
    #[must_use]
    pub fn is_estimate(&self) -> bool {
        matches!(self.input, InputCharge::Tokens | InputCharge::Uncached)
            || matches!(
                self.output,
                OutputCharge::Produced | OutputCharge::Cap { .. }
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(input: u32, cap: Option<u32>, choices: u32) -> CallSize {
        CallSize {
            input_tokens: input,
            max_output_tokens: cap,
            choices,
        }
    }

    #[test]
    fn openai_reserves_estimate_and_cap_for_each_answer() {
        let rule = charge_rule(Host::OpenAi, LimitKind::Tokens);
        assert_eq!(rule.on_arrival(&call(7, Some(512), 1)), 519);
        assert_eq!(rule.on_arrival(&call(6, None, 1)), 22);
        assert_eq!(rule.on_arrival(&call(6, Some(100), 3)), 306);
        assert_eq!(rule.held(&call(6, Some(100), 3), 500), 0);
    }

    #[test]
    fn anthropic_holds_the_mean_answer_and_not_the_cap() {
        let rule = charge_rule(Host::Anthropic, LimitKind::OutputTokens);
        assert_eq!(rule.on_arrival(&call(7, Some(64_000), 1)), 0);
        assert_eq!(rule.held(&call(7, Some(64_000), 1), 250), 250);
        assert_eq!(rule.held(&call(7, Some(100), 1), 250), 100);
    }

    #[test]
    fn anthropic_input_is_corrected_to_what_no_cache_served() {
        let rule = charge_rule(Host::Anthropic, LimitKind::InputTokens);
        let usage = Usage {
            input_tokens: 1_000,
            cache_read_tokens: 900,
            ..Usage::default()
        };
        assert_eq!(rule.settled(&usage), Some(100));
        assert_eq!(
            charge_rule(Host::OpenAi, LimitKind::Tokens).settled(&usage),
            None
        );
        assert_eq!(
            charge_rule(Host::Unknown, LimitKind::Tokens).settled(&usage),
            Some(1_000)
        );
    }
}
