use std::time::Duration;

use llmq_core::{CallSize, LimitKind};

/// The output that a provider reserves for a call that states no cap, in tokens.
///
/// Inferred from response headers: a call without `max_tokens` and with a prompt of a few
/// tokens was charged about 16 more than the prompt.
pub const DEFAULT_OUTPUT_CAP: u64 = 16;

/// When, and by what measure, a provider counts tokens.
///
/// Requests always count 1 on arrival and input tokens always count on arrival. The kinds
/// differ in output, and so in [`LimitKind::OutputTokens`] and [`LimitKind::Tokens`] (input and
/// output together).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Charge {
    /// The output cap is charged on arrival, once for each answer asked for, and nothing is
    /// given back: OpenAI, Azure, Groq.
    #[default]
    Arrival,
    /// The output is charged when the call ends, by what it really was. A limit may be overdrawn
    /// by it; calls are then refused until it has recovered.
    Usage,
    /// The output is charged as it is produced; `max_tokens` is not reserved: Anthropic.
    Stream,
}

impl Charge {
    /// Reads `arrival`, `usage` or `stream`; `None` for any other word.
    ///
    /// ```
    /// use llmq_strict::Charge;
    /// assert_eq!(Charge::parse("usage"), Some(Charge::Usage));
    /// assert_eq!(Charge::parse("never"), None);
    /// ```
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "arrival" => Some(Self::Arrival),
            "usage" => Some(Self::Usage),
            "stream" => Some(Self::Stream),
            _ => None,
        }
    }
}

/// A call as it reaches the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arrival {
    /// Input tokens as this provider counts them.
    pub input_tokens: u64,
    /// The cap on the output of each answer; `None` is read as [`DEFAULT_OUTPUT_CAP`].
    pub max_output_tokens: Option<u64>,
    /// Answers asked for; 0 is read as 1.
    pub choices: u32,
}

impl Arrival {
    /// A call for one answer without a stated cap.
    #[must_use]
    pub fn of_input(input_tokens: u64) -> Self {
        Self {
            input_tokens,
            max_output_tokens: None,
            choices: 1,
        }
    }

    /// The output that is reserved where output is reserved at all.
    #[must_use]
    pub fn output_cap(&self) -> u64 {
        self.max_output_tokens
            .unwrap_or(DEFAULT_OUTPUT_CAP)
            .saturating_mul(u64::from(self.choices.max(1)))
    }

    /// What a limit of `kind` is charged when the call arrives.
    pub(crate) fn cost(&self, kind: LimitKind, charge: Charge) -> u64 {
        let output = match charge {
            Charge::Arrival => self.output_cap(),
            Charge::Usage | Charge::Stream => 0,
        };
        match kind {
            LimitKind::Requests | LimitKind::Concurrency => 1,
            LimitKind::InputTokens => self.input_tokens,
            LimitKind::OutputTokens => output,
            LimitKind::Tokens => self.input_tokens.saturating_add(output),
        }
    }

    /// How much must be left of a limit of `kind` for the call to be let in.
    ///
    /// Where output is counted later the call needs at least one token of room: an account with
    /// nothing left is refused although the arrival itself costs nothing.
    pub(crate) fn room_needed(&self, kind: LimitKind, charge: Charge) -> u64 {
        let cost = self.cost(kind, charge);
        match (charge, kind) {
            (Charge::Usage | Charge::Stream, LimitKind::OutputTokens | LimitKind::Tokens) => {
                cost.max(1)
            }
            _ => cost,
        }
    }
}

impl From<CallSize> for Arrival {
    fn from(size: CallSize) -> Self {
        Self {
            input_tokens: u64::from(size.input_tokens),
            max_output_tokens: size.max_output_tokens.map(u64::from),
            choices: size.choices,
        }
    }
}

/// Names a call that was admitted, until it ends. A name that has ended is never given again
/// within 2^32 calls on the same slot, so a late report cannot hit another call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Why a call was refused, as far as a 429 tells.
///
/// When several limits refuse, it is the one that does so for the longest: one that can never
/// admit the call, else a concurrency limit (whose end nobody knows), else the one with the
/// longest wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Which of the provider's limits, by its place in the list given to
    /// [`StrictProvider::new`](crate::StrictProvider::new).
    pub limit: usize,
    /// What the call asked of that limit.
    pub requested: u64,
    /// What was used of it, rounded up; above `count` when it was overdrawn.
    pub used: u64,
    /// The limit's count.
    pub count: u64,
    /// The exact time after which the call is admitted if nothing else happens; `None` when
    /// that is never ([`is_too_large`](Self::is_too_large)) or depends on calls in flight.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// Whether the call is above the whole limit, so that waiting is in vain.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.requested > self.count
    }

    /// Orders refusals by how long they stand.
    pub(crate) fn severity(&self) -> (bool, bool, Option<Duration>) {
        (
            self.is_too_large(),
            self.retry_after.is_none(),
            self.retry_after,
        )
    }
}
