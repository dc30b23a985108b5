use std::time::Duration;

use llmq_core::{FailureClass, Priority, Usage};
use llmq_provider::Operation;
use uuid::Uuid;

/// One call, when it is over: what the metrics count and the call log says. Never the prompt
/// or the answer.
#[derive(Debug, Clone, Copy)]
pub struct CallRecord<'a> {
    /// Its number, as `X-LLMQ-Request-Id` says it.
    pub id: Uuid,
    /// Who it was charged to, empty for one that was refused before that was known; only the log
    /// tells it.
    pub tenant: &'a str,
    /// The model that the caller asked for, empty for one that was refused before that was known.
    /// A name nobody configured counts as `other`.
    pub model: &'a str,
    /// The upstream that answered, or that was asked last; none: it was sent nowhere.
    pub upstream: Option<&'a str>,
    /// What it asked for.
    pub operation: Operation,
    /// How urgent it was.
    pub priority: Priority,
    /// Whether its answer was a stream.
    pub stream: bool,
    /// The status that the caller got; 499 when it left before.
    pub status: u16,
    /// The class of the failure with which it ended; none: it was answered, or llmq itself
    /// refused it, or its caller left.
    pub outcome: Option<FailureClass>,
    /// How often it was sent.
    pub attempts: u32,
    /// How long it waited for its turn.
    pub queued: Duration,
    /// From its arrival to the last byte of its answer.
    pub took: Duration,
    /// The part of `took` that was spent neither waiting for its turn nor for an upstream.
    pub added: Duration,
    /// From its arrival to the first token of its answer.
    pub first_token: Option<Duration>,
    /// What it used, where the provider said.
    pub usage: Option<Usage>,
}

/// With what a call ended, as a label: few words, whatever upstreams answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ErrorType(usize);

impl ErrorType {
    /// How many there are.
    pub(crate) const COUNT: usize = 5 + FailureClass::ALL.len();

    const OWN: [&'static str; 5] = ["", "cancelled", "rejected", "no-room", "internal"];

    pub(crate) fn of(call: &CallRecord<'_>) -> Self {
        match (call.outcome, call.status) {
            (Some(class), _) => Self::of_class(class),
            (None, ..400) => Self(0),
            (None, 499) => Self(1),
            (None, 429 | 503) => Self(3),
            (None, 400..500) => Self(2),
            (None, _) => Self(4),
        }
    }

    fn of_class(class: FailureClass) -> Self {
        let place = FailureClass::ALL.iter().position(|other| *other == class);
        Self(Self::OWN.len() + place.unwrap_or(0))
    }

    pub(crate) fn at(index: usize) -> Self {
        Self(index)
    }

    pub(crate) fn index(self) -> usize {
        self.0
    }

    /// Its word; empty for a call that was answered.
    pub(crate) fn as_str(self) -> &'static str {
        match self.0.checked_sub(Self::OWN.len()) {
            None => Self::OWN[self.0],
            Some(class) => FailureClass::ALL
                .get(class)
                .map_or("", |class| class.as_str()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record() -> CallRecord<'static> {
        CallRecord {
            id: Uuid::from_u128(7),
            tenant: "default",
            model: "gpt",
            upstream: Some("openai"),
            operation: Operation::ChatCompletions,
            priority: Priority::HIGH,
            stream: false,
            status: 200,
            outcome: None,
            attempts: 1,
            queued: Duration::ZERO,
            took: Duration::from_millis(150),
            added: Duration::from_micros(30),
            first_token: None,
            usage: None,
        }
    }

    #[test]
    fn every_end_has_a_word_of_its_own() {
        let mut words: Vec<&str> = (0..ErrorType::COUNT)
            .map(|index| ErrorType::at(index).as_str())
            .collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), ErrorType::COUNT);
    }

    #[test]
    fn a_class_goes_before_the_status() {
        let check = |outcome, status, word: &str| {
            let call = CallRecord {
                outcome,
                status,
                ..record()
            };
            assert_eq!(ErrorType::of(&call).as_str(), word);
        };
        check(None, 200, "");
        check(None, 499, "cancelled");
        check(None, 404, "rejected");
        check(None, 429, "no-room");
        check(None, 500, "internal");
        check(Some(FailureClass::Money), 429, "money");
        check(Some(FailureClass::Ambiguous), 200, "ambiguous");
    }
}
