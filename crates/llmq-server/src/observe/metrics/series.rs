use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use llmq_core::{FailureClass, Priority};
use llmq_provider::Operation;

use super::histogram::{CALL_TIME, FIRST_TOKEN, Histogram, NEXT_TOKEN, TOKENS, WAIT, add_counts};
use crate::observe::record::{CallRecord, ErrorType};

/// What is counted for one model at one upstream in one operation.
#[derive(Debug)]
pub(crate) struct Series {
    /// Whole calls, by what they ended with.
    pub(crate) took: [OnceLock<Histogram>; ErrorType::COUNT],
    /// Their time at upstreams, over all attempts.
    pub(crate) sent: [OnceLock<Histogram>; ErrorType::COUNT],
    pub(crate) first_token: OnceLock<Histogram>,
    pub(crate) next_token: OnceLock<Histogram>,
    pub(crate) input: OnceLock<Histogram>,
    pub(crate) output: OnceLock<Histogram>,
    pub(crate) cached_input: AtomicU64,
    /// By status, for answers that were streams and that were not.
    pub(crate) calls: [[AtomicU64; STATUSES.len() + 1]; 2],
}

/// Statuses that are counted by themselves, ascending; others count as `other`.
pub(crate) const STATUSES: [u16; 21] = [
    200, 201, 202, 400, 401, 402, 403, 404, 405, 408, 409, 413, 421, 422, 429, 499, 500, 502, 503,
    504, 529,
];

impl Series {
    pub(crate) fn new() -> Self {
        Self {
            took: [const { OnceLock::new() }; ErrorType::COUNT],
            sent: [const { OnceLock::new() }; ErrorType::COUNT],
            first_token: OnceLock::new(),
            next_token: OnceLock::new(),
            input: OnceLock::new(),
            output: OnceLock::new(),
            cached_input: AtomicU64::new(0),
            calls: [const { [const { AtomicU64::new(0) }; STATUSES.len() + 1] }; 2],
        }
    }

    pub(crate) fn count(&self, call: &CallRecord<'_>) {
        let status = STATUSES
            .binary_search(&call.status)
            .unwrap_or(STATUSES.len());
        self.calls[usize::from(call.stream)][status].fetch_add(1, Ordering::Relaxed);
        let time = |ends: &[OnceLock<Histogram>; ErrorType::COUNT], time| {
            ends[ErrorType::of(call).index()]
                .get_or_init(|| Histogram::new(&CALL_TIME))
                .record_time(time);
        };
        time(&self.took, call.took);
        if call.attempts > 0 {
            let here = call.queued + call.added;
            time(&self.sent, call.took.saturating_sub(here));
        }
        if let Some(first) = call.first_token {
            self.first_token
                .get_or_init(|| Histogram::new(&FIRST_TOKEN))
                .record_time(first);
            self.count_next_tokens(call, first);
        }
        if let Some(usage) = call.usage {
            let tokens = |histogram: &OnceLock<Histogram>, count| {
                histogram
                    .get_or_init(|| Histogram::new(&TOKENS))
                    .record(count);
            };
            tokens(&self.input, usage.input_tokens);
            if call.operation != Operation::Embeddings {
                tokens(&self.output, usage.output_tokens);
            }
            if usage.cache_read_tokens > 0 {
                self.cached_input
                    .fetch_add(usage.cache_read_tokens, Ordering::Relaxed);
            }
        }
    }

    fn histograms(&self) -> impl Iterator<Item = &OnceLock<Histogram>> {
        let times = [&self.first_token, &self.next_token];
        let tokens = [&self.input, &self.output];
        let calls = self.took.iter().chain(&self.sent);
        calls.chain(times).chain(tokens)
    }

    fn counts(&self) -> impl Iterator<Item = &AtomicU64> {
        self.calls.iter().flatten().chain([&self.cached_input])
    }

    /// The mean time of the tokens after the first one.
    fn count_next_tokens(&self, call: &CallRecord<'_>, first: Duration) {
        let tokens = call.usage.map_or(0, |usage| usage.output_tokens);
        let Ok(others) = u32::try_from(tokens.saturating_sub(1)) else {
            return;
        };
        if let Some(each) = call.took.saturating_sub(first).checked_div(others) {
            self.next_token
                .get_or_init(|| Histogram::new(&NEXT_TOKEN))
                .record_time(each);
        }
    }
}

/// What is counted for one model, by named priority.
#[derive(Debug)]
pub(crate) struct Waits {
    pub(crate) by_level: [OnceLock<Histogram>; LEVELS.len()],
}

/// Priorities as labels: a number counts with the highest name that is not above it, and what
/// is below `low` with `low`.
pub(crate) const LEVELS: [(Priority, &str); 4] = [
    (Priority::LOW, "low"),
    (Priority::NORMAL, "normal"),
    (Priority::HIGH, "high"),
    (Priority::CRITICAL, "critical"),
];

/// A priority's place among the levels.
pub(crate) fn level(priority: Priority) -> usize {
    LEVELS
        .iter()
        .rposition(|(named, _)| *named <= priority)
        .unwrap_or(0)
}

/// What can be added to another of its kind.
pub(crate) trait Counted {
    /// Adds what it has counted to `to`.
    fn add_to(&self, to: &Self);
}

impl Counted for Series {
    fn add_to(&self, to: &Self) {
        add_histograms(self.histograms(), to.histograms());
        add_counts(self.counts(), to.counts());
    }
}

impl Counted for Waits {
    fn add_to(&self, to: &Self) {
        add_histograms(&self.by_level, &to.by_level);
    }
}

impl Counted for Sendings {
    fn add_to(&self, to: &Self) {
        add_counts(self.counts(), to.counts());
    }
}

/// Adds histograms to those that stand in the same places.
fn add_histograms<'a>(
    from: impl IntoIterator<Item = &'a OnceLock<Histogram>>,
    to: impl IntoIterator<Item = &'a OnceLock<Histogram>>,
) {
    for (from, to) in from.into_iter().zip(to) {
        if let Some(from) = from.get() {
            from.add_to(to);
        }
    }
}

impl Waits {
    pub(crate) fn new() -> Self {
        Self {
            by_level: [const { OnceLock::new() }; LEVELS.len()],
        }
    }

    pub(crate) fn count(&self, priority: Priority, queued: Duration) {
        self.by_level[level(priority)]
            .get_or_init(|| Histogram::new(&WAIT))
            .record_time(queued);
    }
}

/// What is counted for one upstream.
#[derive(Debug)]
pub(crate) struct Sendings {
    /// By class of failure; the first one counts those that were answered.
    pub(crate) by_outcome: [AtomicU64; FailureClass::ALL.len() + 1],
    /// Those whose caller left before their end.
    pub(crate) cancelled: AtomicU64,
    /// 429s that our own books should not have foreseen, and those that they should.
    pub(crate) rate_limited: [AtomicU64; 2],
    pub(crate) breaker_opened: AtomicU64,
}

impl Sendings {
    pub(crate) fn new() -> Self {
        Self {
            by_outcome: [const { AtomicU64::new(0) }; FailureClass::ALL.len() + 1],
            cancelled: AtomicU64::new(0),
            rate_limited: [const { AtomicU64::new(0) }; 2],
            breaker_opened: AtomicU64::new(0),
        }
    }

    pub(crate) fn count(&self, failure: Option<FailureClass>) {
        let place = failure
            .and_then(|class| FailureClass::ALL.iter().position(|other| *other == class))
            .map_or(0, |place| place + 1);
        self.by_outcome[place].fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self) -> impl Iterator<Item = &AtomicU64> {
        let others = [&self.cancelled, &self.breaker_opened];
        let counts = self.by_outcome.iter().chain(&self.rate_limited);
        counts.chain(others)
    }
}

/// The operation that counts for several: the conventions know one word for every kind of chat.
pub(crate) fn family(operation: Operation) -> Operation {
    match operation {
        Operation::Messages | Operation::Responses => Operation::ChatCompletions,
        other => other,
    }
}

/// An operation as the OpenTelemetry conventions name it, where they do.
pub(crate) fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::ChatCompletions | Operation::Messages | Operation::Responses => "chat",
        Operation::Completions => "text_completion",
        Operation::Embeddings => "embeddings",
        Operation::CountTokens => "count_tokens",
        Operation::Models => "models",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_can_be_searched() {
        assert!(STATUSES.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn every_number_has_a_level() {
        let check = |number, word| {
            let priority = Priority::new(number).unwrap();
            assert_eq!(LEVELS[level(priority)].1, word, "{number}");
        };
        check(0, "low");
        check(30, "low");
        check(49, "low");
        check(50, "normal");
        check(70, "high");
        check(89, "high");
        check(90, "critical");
        check(100, "critical");
    }
}
