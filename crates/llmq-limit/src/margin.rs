use std::time::Duration;

use llmq_core::Timestamp;

/// No margin is smaller: a loopback answers faster, but a busy scheduler does not.
const MIN: Duration = Duration::from_millis(2);
/// No margin grows beyond this; each limit cuts it to 1 % of its own window besides.
const MAX: Duration = Duration::from_secs(10);
/// How long without surprises halves it.
const CALM: Duration = Duration::from_secs(3_600);

/// How much later than it was written a call may reach the provider: learned per upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Margin {
    value: Duration,
    since: Timestamp,
    /// The latest arrivals that answers proved, in the present and the last span of that.
    proven: [Duration; 2],
    proven_since: Timestamp,
}

/// What answers proved is believed for one to two of these.
const PROVEN_SPAN: Duration = Duration::from_secs(60);

impl Margin {
    /// The smallest margin, 2 ms.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            value: MIN,
            since: now,
            proven: [Duration::ZERO; 2],
            proven_since: now,
        }
    }

    /// The margin now, halved for every hour without a surprise.
    #[must_use]
    pub fn at(&mut self, now: Timestamp) -> Duration {
        while now - self.since >= CALM {
            self.value = (self.value / 2).max(MIN);
            self.since = self.since + CALM;
        }
        if now - self.proven_since >= PROVEN_SPAN {
            self.proven = [Duration::ZERO, self.proven[0]];
            self.proven_since = now;
        }
        self.value.max(self.proven[0]).max(self.proven[1]).min(MAX)
    }

    /// An answer proved that its call arrived `delay` after it was written, or a little earlier.
    pub fn seen(&mut self, delay: Duration, now: Timestamp) {
        let _ = self.at(now);
        self.proven[0] = self.proven[0].max(delay);
    }

    /// A 429 came that our own books did not foresee.
    pub fn surprised(&mut self, now: Timestamp) {
        let _ = self.at(now);
        self.value = (self.value * 2).min(MAX);
        self.since = now;
    }
}

/// The margin as one window of `period` uses it: at most 1 % of the window.
#[must_use]
pub(crate) fn within(margin: Duration, period: Duration) -> Duration {
    margin.min(period / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surprise_doubles_it_and_calm_halves_it() {
        let mut margin = Margin::new(Timestamp::ZERO);
        assert_eq!(margin.at(Timestamp::ZERO), MIN);
        margin.surprised(Timestamp::ZERO);
        margin.surprised(Timestamp::ZERO);
        assert_eq!(margin.at(Timestamp::ZERO), MIN * 4);
        assert_eq!(margin.at(Timestamp::ZERO + CALM), MIN * 2);
        assert_eq!(margin.at(Timestamp::ZERO + CALM * 10), MIN);
        for _ in 0..40 {
            margin.surprised(Timestamp::ZERO);
        }
        assert_eq!(margin.at(Timestamp::ZERO), MAX);
    }

    #[test]
    fn what_answers_prove_is_believed_for_a_while() {
        let secs = |secs| Timestamp::ZERO + Duration::from_secs(secs);
        let mut margin = Margin::new(Timestamp::ZERO);
        margin.seen(MIN * 10, secs(30));
        margin.seen(MIN, secs(31));
        assert_eq!(margin.at(secs(31)), MIN * 10);
        assert_eq!(margin.at(secs(89)), MIN * 10);
        assert_eq!(margin.at(secs(300)), MIN);
    }

    #[test]
    fn a_window_gives_up_one_per_cent_at_most() {
        assert_eq!(
            within(MAX, Duration::from_secs(10)),
            Duration::from_millis(100)
        );
        assert_eq!(within(MIN, Duration::from_secs(10)), MIN);
    }
}
