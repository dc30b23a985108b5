//! Refusals that others on the account brought about, window by window.

use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::{LimitSpec, Timestamp};

/// What our side knew of a provider when it started a call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Knew {
    /// As of when the provider had last told what was left; zero when it never had.
    told: Timestamp,
    /// When it was started.
    started: Timestamp,
}

impl Knew {
    /// A call is started at `started`, when the provider has told what was left as of `told`.
    pub(crate) fn as_of(told: Timestamp, started: Timestamp) -> Self {
        Self { told, started }
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
    /// … and of them those of calls that were started when the provider had said something.
    pub(crate) most_told: u64,
    /// … and the most of calls that were started when our side had heard of a refusal in the window.
    pub(crate) most_heard: u64,
    /// The first of them in words.
    pub(crate) words: Vec<String>,
}

/// One period, which begins with its first refusal.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    since: Timestamp,
    refusals: u64,
    told: u64,
    /// When our side heard of its first refusal.
    heard: Option<Timestamp>,
    /// Refusals of calls that were started after that.
    after: u64,
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
            most_heard: 0,
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

    /// Our side hears of a refusal.
    pub(crate) fn heard(&mut self, limit: usize, now: Timestamp) {
        self.windows[limit].heard.get_or_insert(now);
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
        window.after += u64::from(window.heard.is_some_and(|heard| heard < knew.started));
        self.most = self.most.max(window.refusals);
        self.most_heard = self.most_heard.max(window.after);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_started_before_a_refusal_was_heard_of_cannot_be_called_back() {
        let ms = |ms| Timestamp::ZERO + Duration::from_millis(ms);
        let spec: LimitSpec = "requests=10/1s".parse().expect("a limit");
        let mut surprises = Surprises::new([spec.period].into_iter());
        let mut refused = |started: u64, at: u64, heard: Option<u64>| {
            let knew = Knew::as_of(ms(1), ms(started));
            surprises.refused(0, &spec, 1, knew, ms(at));
            if let Some(heard) = heard {
                surprises.heard(0, ms(heard));
            }
            (surprises.most, surprises.most_heard)
        };
        assert_eq!(refused(100, 110, Some(120)), (1, 0));
        assert_eq!(refused(119, 130, Some(140)), (2, 0), "it was on its way");
        assert_eq!(refused(121, 150, None), (3, 1));
        // In the next window nothing was heard yet.
        assert_eq!(refused(2_000, 2_010, None), (3, 1));
    }
}
