//! Refusals that others on the account brought about, window by window.

use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::{LimitSpec, Timestamp};

/// What our side knew of a provider when it sent a call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Knew {
    /// As of when the provider had last told what was left; zero when it never had.
    told: Timestamp,
}

impl Knew {
    /// The provider has told what was left as of `told`.
    pub(crate) fn as_of(told: Timestamp) -> Self {
        Self { told }
    }

    /// Nobody can know of others before the provider has said anything.
    fn is_nothing(self) -> bool {
        self.told == Timestamp::ZERO
    }
}

/// So many refusals are told in words.
const TOLD_MAX: usize = 40;

/// The refusals of one provider's limits.
#[derive(Debug)]
pub(crate) struct Surprises {
    /// What others used, and when.
    uses: VecDeque<(Timestamp, u64)>,
    longest: Duration,
    windows: Vec<Window>,
    /// The most in one window of any limit …
    pub(crate) most: u64,
    /// … and of them those of calls that were sent when the provider had said something.
    pub(crate) most_told: u64,
    /// The first of them in words.
    pub(crate) words: Vec<String>,
}

/// One period, which begins with its first refusal.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    since: Timestamp,
    refusals: u64,
    told: u64,
}

impl Surprises {
    /// For limits with these periods.
    pub(crate) fn new(periods: impl ExactSizeIterator<Item = Duration>) -> Self {
        Self {
            uses: VecDeque::new(),
            windows: vec![Window::default(); periods.len()],
            longest: periods.max().unwrap_or_default(),
            most: 0,
            most_told: 0,
            words: Vec::new(),
        }
    }

    /// Others used `amount`.
    pub(crate) fn used(&mut self, amount: u64, now: Timestamp) {
        self.uses.push_back((now, amount));
        let oldest = now.before(self.longest);
        while self.uses.front().is_some_and(|(at, _)| *at < oldest) {
            self.uses.pop_front();
        }
    }

    /// A call was refused, `over` what was left.
    pub(crate) fn refused(
        &mut self,
        limit: usize,
        spec: &LimitSpec,
        over: u64,
        knew: Knew,
        now: Timestamp,
    ) {
        let window = &mut self.windows[limit];
        if now - window.since >= spec.period {
            *window = Window {
                since: now,
                ..Window::default()
            };
        }
        window.refusals += 1;
        window.told += u64::from(!knew.is_nothing());
        self.most = self.most.max(window.refusals);
        self.most_told = self.most_told.max(window.told);
        if self.words.len() < TOLD_MAX {
            let number = window.refusals;
            let since = knew.told.max(now.before(spec.period));
            let untold = self.uses.iter().filter(|(at, _)| *at > since);
            let untold: u64 = untold.map(|(_, amount)| *amount).sum();
            let silent = now - knew.told;
            let known = match knew.is_nothing() {
                true => "nothing was known".to_owned(),
                false => format!("others used {untold} in the {silent:?} since it last spoke"),
            };
            let at = now.as_nanos() / 1_000;
            self.words.push(format!(
                "at {at} µs, {spec}, number {number} of its window, {over} over: {known}"
            ));
        }
    }
}
