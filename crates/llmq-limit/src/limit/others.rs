//! What others on the account may have used, as far as the provider's words leave it open.

use std::time::Duration;

use llmq_core::Timestamp;

use super::{Expect, Limit, Meter};

/// So many standard deviations of what others use are left alone beside its mean: more is used
/// once in 160 times …
const OTHERS: f64 = 2.5;
/// … and so many for a period after a refusal: once in four thousand.
const OTHERS_REFUSED: f64 = 3.5;

impl Limit {
    /// What others on the account may have used of which the provider's words say nothing: before
    /// the last of them, and since.
    pub(super) fn others(&self, now: Timestamp) -> u64 {
        if !self.heard.any {
            return 0;
        }
        let (heard_at, period) = (self.heard.sent_at, self.spec.period);
        let mut silent = (now - heard_at).min(period);
        let mut unseen = self.heard.unseen;
        match &self.meter {
            Meter::Fixed(window) => {
                // What was used before the window began is no part of it.
                let begun = period.saturating_sub(window.ends(now) - now);
                if begun < silent {
                    (silent, unseen) = (begun, 0);
                }
            }
            Meter::Sliding(_) if silent == period => unseen = 0,
            Meter::Sliding(_) | Meter::Bucket(_) | Meter::Places => {}
        }
        self.used_within(silent, now).saturating_add(unseen)
    }

    /// What others may use within `silent`. More is left alone for a period after a refusal: a
    /// first one may happen, a second one should not.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an amount that is not negative"
    )]
    pub(super) fn used_within(&self, silent: Duration, now: Timestamp) -> u64 {
        let period = self.spec.period;
        let refused = self.refused_at.is_some_and(|at| now - at < period);
        let deviations = if refused { OTHERS_REFUSED } else { OTHERS };
        self.foreign.most(silent.as_secs_f64(), deviations).ceil() as u64
    }

    /// What others may have used before the last word for all that it and this one say. Calls
    /// that were sent together may have arrived in any order, and `hidden` is what of others' use
    /// that may have hidden here; `below` was seen and is charged.
    pub(super) fn unseen_after(&self, expect: &Expect, below: u64, hidden: u64) -> u64 {
        let newest = expect.sent_at.max(self.heard.sent_at);
        // Zero for the newest word.
        let since = self.heard.sent_at - expect.sent_at;
        let known = hidden.saturating_add(self.used_within(since, newest));
        let thought = self.others(newest).saturating_sub(below);
        thought.min(known)
    }
}

#[cfg(test)]
mod tests {
    use llmq_core::{Algorithm, CallSize, Host, LimitKind, LimitSpec, Now};

    use super::super::tests::{MARGIN, at, limit, send};
    use super::*;
    use crate::charge::charge_rule;
    use crate::sliding::signed;

    /// A limit of 1,000 a second of which others use 5 every 20 ms, as words on calls tell.
    fn shared() -> Limit {
        let mut limit = limit("requests=1000/1s", Host::Unknown);
        for number in 0..20 {
            let ms = number * 20;
            let entry = send(&mut limit, &CallSize::default(), at(ms));
            let left = limit.books(at(ms), MARGIN) - 5;
            limit.observe(&entry, left, 1, at(ms + 5), MARGIN);
            limit.settle(entry, None, at(ms + 5));
        }
        limit
    }

    #[test]
    fn the_longer_nothing_is_heard_of_others_the_more_is_left_alone() {
        // Only the mean of what they use was left alone, and at most a quarter of the limit: every
        // second time they used more, and ten calls were refused where one would have told.
        let limit = shared();
        let soon = limit.others(at(400));
        let late = limit.others(at(780));
        assert!((5..40).contains(&soon), "{soon}");
        assert!((100..250).contains(&late), "{late}");
    }

    #[test]
    fn more_is_left_alone_for_a_period_after_a_refusal() {
        // The next call was sent at the very instant that the provider had named, and others had
        // taken that room meanwhile.
        let mut limit = shared();
        let calm = limit.others(at(600));
        let entry = send(&mut limit, &CallSize::default(), at(400));
        limit.refused(entry, at(405));
        assert!(limit.others(at(600)) > calm);
        let long_after = limit.others(at(1_404));
        assert!(limit.others(at(1_405)) < long_after);
    }

    #[test]
    fn a_refusal_tells_what_others_took() {
        // What the word on a refused call says was put down as our own charge, so that the time
        // since the word before taught that nobody else had used anything in it.
        for (text, others) in [
            ("requests=100/1s", 1),
            ("input_tokens=100000/1s", 800),
            ("input_tokens=100000/1s:bucket", 800),
        ] {
            let mut limit = limit(text, Host::Unknown);
            let size = CallSize::of_input(1_000);
            let first = send(&mut limit, &size, at(0));
            let left = limit.books(at(0), Duration::ZERO);
            limit.observe(&first, left, 1, at(5), Duration::ZERO);
            limit.settle(first, None, at(5));
            assert_eq!(limit.others(at(100)), 0, "{text}");
            // The refused call itself was not counted.
            let refused = send(&mut limit, &size, at(100));
            let own = signed(refused.cost.total());
            let left = limit.books(at(100), Duration::ZERO) + own - others;
            limit.observe(&refused, left, 1, at(105), Duration::ZERO);
            limit.refused(refused, at(105));
            assert!(limit.others(at(200)) > 0, "{text}");
        }
    }

    #[test]
    fn what_others_used_before_a_bucket_was_full_again_says_nothing_of_how_often_they_come() {
        // After a pause of a day all that was seen of it was what the last seconds had left, and
        // spread over that day it was next to nothing.
        let depth = Duration::from_secs(1);
        let spec = LimitSpec::per(
            LimitKind::Requests,
            6_000,
            Duration::from_secs(60),
            Algorithm::Bucket { depth },
        );
        let rule = charge_rule(Host::Unknown, spec.kind);
        let mut limit = Limit::new(spec, rule, Now::default());
        let mut speak = |ms: u64, taken: i64| {
            let entry = send(&mut limit, &CallSize::default(), at(ms));
            let left = limit.books(at(ms), MARGIN) + limit.shown_beyond_depth(6_000) - taken;
            limit.observe(&entry, left, 1, at(ms + 5), MARGIN);
            limit.settle(entry, None, at(ms + 5));
            limit.others(at(ms + 2_000))
        };
        for second in 0..20 {
            speak(second * 1_000, 4);
        }
        let day = 86_400_000;
        let after_a_day = speak(day, 4);
        assert!(after_a_day >= 4, "{after_a_day}");
    }

    #[test]
    fn a_word_on_one_of_a_burst_does_not_clear_others() {
        // Any of its calls may have come before or after it, and what others had used stayed
        // hidden in that; still the rest of the limit was spent on that word.
        let mut limit = shared();
        let before = limit.others(at(780));
        let burst = [(); 40].map(|()| send(&mut limit, &CallSize::default(), at(780)));
        let left = limit.books(at(780), MARGIN);
        limit.observe(&burst[20], left + 19, 1, at(790), MARGIN);
        let unsure = limit.others(at(780));
        assert!((20..=before).contains(&unsure), "{unsure} of {before}");
        // When there is a word on each of them, the lowest tells all.
        for (entry, arrived_after) in burst.into_iter().zip(1..) {
            limit.observe(&entry, left + 40 - arrived_after - 15, 1, at(791), MARGIN);
            limit.settle(entry, None, at(791));
        }
        assert_eq!(limit.books(at(791), MARGIN), left - 15);
        assert_eq!(limit.others(at(780)), 0);
    }
}
