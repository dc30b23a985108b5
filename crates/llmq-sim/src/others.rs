//! What nobody can know of others who use the same account.

use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::Timestamp;

use crate::scenario::Foreign;

/// More than what is taken for the most is used once in so many times.
const RARE: f64 = 30_000.0;
/// Where so many are expected, their number hardly strays.
const MANY: f64 = 500.0;

/// Others on the account, as far as they can be known: how much they use in the long run, and up
/// to the provider's last word how much it was, but not what they did since then.
#[derive(Debug)]
pub(crate) struct Others {
    plan: Foreign,
    /// As of when the provider's newest word was said.
    told: Timestamp,
    /// No window is longer.
    longest: Duration,
    /// What they have used since and within that time, and when.
    untold: VecDeque<(Timestamp, u64)>,
}

impl Others {
    /// Others who do as planned, seen by windows of this length at most.
    pub(crate) fn new(plan: Foreign, longest: Duration, now: Timestamp) -> Self {
        Self {
            plan,
            longest,
            told: now,
            untold: VecDeque::new(),
        }
    }

    /// What they do in the long run.
    pub(crate) fn plan(&self) -> Foreign {
        self.plan
    }

    /// They used so much now.
    pub(crate) fn used(&mut self, amount: u64, now: Timestamp) {
        self.untold.push_back((now, amount));
        self.forget_until(now.before(self.longest));
    }

    /// The provider has told what was left as of then.
    pub(crate) fn told(&mut self, as_of: Timestamp) {
        self.told = self.told.max(as_of);
        self.forget_until(as_of);
    }

    fn forget_until(&mut self, then: Timestamp) {
        while self.untold.front().is_some_and(|(at, _)| *at <= then) {
            self.untold.pop_front();
        }
    }

    /// How much more than they did they may have used of a window that began at `since`, for all
    /// that can be known.
    pub(crate) fn may_be_more(&self, since: Timestamp, now: Timestamp) -> u64 {
        let since = self.told.max(since);
        let lumps = (now - since).as_secs_f64() / self.plan.every.as_secs_f64();
        let untold = self.untold.iter().filter(|(at, _)| *at > since);
        let untold: u64 = untold.map(|(_, amount)| *amount).sum();
        let most = self.plan.amount.saturating_mul(poisson(lumps));
        most.saturating_sub(untold)
    }
}

/// How many there are at most where `mean` are expected, but for once in [`RARE`] times.
fn poisson(mean: f64) -> u64 {
    if mean > MANY {
        return whole(mean + 4.0 * mean.sqrt());
    }
    let mut count = 0;
    let mut chance = (-mean).exp();
    let mut below = chance;
    while 1.0 - below > 1.0 / RARE {
        count += 1;
        chance *= mean / float(count);
        below += chance;
    }
    count
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count that is not negative"
)]
fn whole(count: f64) -> u64 {
    count.ceil() as u64
}

#[expect(clippy::cast_precision_loss, reason = "a small count")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use llmq_core::LimitKind;

    use super::*;

    fn ms(ms: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn so_many_are_hardly_ever_exceeded() {
        // From the tables of the distribution: above 5 of 0.5 comes once in 70,000 times.
        for (mean, most) in [
            (0.0, 0),
            (1e-6, 0),
            (0.001, 1),
            (0.5, 5),
            (4.0, 14),
            (20.0, 40),
        ] {
            assert_eq!(poisson(mean), most, "{mean}");
        }
        assert_eq!(poisson(10_000.0), 10_400);
    }

    #[test]
    fn what_was_told_is_known_and_what_came_since_is_not() {
        let plan = Foreign {
            kind: LimitKind::Requests,
            amount: 10,
            every: Duration::from_secs(1),
        };
        let mut others = Others::new(plan, Duration::from_secs(10), ms(0));
        assert_eq!(others.may_be_more(ms(0), ms(0)), 0);
        let most = others.may_be_more(ms(0), ms(4_000));
        assert_eq!(most, 140);
        others.used(30, ms(2_000));
        assert_eq!(others.may_be_more(ms(0), ms(4_000)), most - 30);
        others.told(ms(4_000));
        assert_eq!(others.may_be_more(ms(0), ms(4_000)), 0);
        others.used(30, ms(5_000));
        assert_eq!(
            others.may_be_more(ms(5_000), ms(5_000)),
            0,
            "a window that began now"
        );
    }
}
