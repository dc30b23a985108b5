//! What is known for certain when nothing is under way.

use llmq_core::Timestamp;

use super::hearing::refilled;
use super::{Limit, Meter, float};
use crate::sliding::signed;

impl Limit {
    /// When nothing is under way and the provider has said what was left after the last of our
    /// calls, there is nothing to doubt in that: what it has more than our books is free. No
    /// other word would come before the room that is missing does.
    pub(super) fn reconcile(&mut self, now: Timestamp) {
        self.tail.ended(now);
        let (0, Some(last), Some((used, since))) = (self.unanswered, self.last, self.tail.used())
        else {
            return;
        };
        let margin = last.dated - last.sent_at;
        let (from, to) = self.tail.span();
        let whole = signed(self.spec.count) - self.shown_beyond_depth(self.spec.count);
        let left = whole.saturating_sub(used);
        let left = match &self.meter {
            Meter::Bucket(bucket) => {
                // What would have come into a full bucket is lost.
                let count = last.count.min(self.spec.count);
                let span = (now - to).saturating_sub(margin);
                let refilled = refilled(count, self.spec.period, span) - 1;
                (left + refilled).min(signed(bucket.depth()))
            }
            // Nobody knows which window it was that so much was left of.
            Meter::Fixed(window) if window.spans_edge(from.before(margin), now + margin) => return,
            Meter::Sliding(_) | Meter::Fixed(_) => left,
            Meter::Places => return,
        };
        self.heard.unseen = 0;
        self.advance(now);
        let Ok(above) = u64::try_from(left - since - self.books(now, margin)) else {
            return;
        };
        match &mut self.meter {
            Meter::Sliding(window) => window.take_back_oldest(signed(above)),
            Meter::Bucket(bucket) => bucket.take(-signed(above)),
            Meter::Fixed(window) => window.add(-signed(above), last.sent_at, last.sent_at),
            Meter::Places => {}
        }
        self.returned = self.returned.saturating_add(above);
        self.returnable = self.returnable.saturating_sub(above);
        self.heard.residue += signed(above);
        self.heard.above = 0;
        self.foreign.unlearn(float(above));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use llmq_core::Host;
    use proptest::prelude::*;

    use super::super::tests::{MARGIN, at, call, limit, send, used};
    use super::*;

    #[test]
    fn the_last_word_is_the_truth() {
        // More than expected is given back only when a second word confirms it. When the limit is
        // full no second word comes before the window has passed: a fifth of it lay idle.
        let mut limit = limit("tokens=1000/1h", Host::Mock);
        let [first, second] = [0, 100].map(|ms| send(&mut limit, &call(400, 100), at(ms)));
        limit.observe(&second, 200, 1, at(150), MARGIN);
        limit.settle(second, Some(&used(400, 100)), at(150));
        assert_eq!(limit.books(at(160), MARGIN), 0, "the first is under way");
        limit.observe(&first, 600, 1, at(200), MARGIN);
        limit.settle(first, Some(&used(400, 100)), at(200));
        assert_eq!(limit.books(at(210), MARGIN), 200);
    }

    #[test]
    fn it_is_so_a_window_after_another_burst_as_well() {
        // All of the burst before was taken for about to leave the window, for as long as a slice
        // of it lasts, so nothing was given back: the last calls of each hour waited for the next.
        let mut limit = limit("tokens=10000/1h", Host::Mock);
        for window in [0, 3_600_100] {
            let calls = [(); 10].map(|()| send(&mut limit, &call(900, 100), at(window)));
            for (entry, left) in calls.into_iter().zip(1..) {
                limit.observe(&entry, 10_000 - 960 * left, 1, at(window + 50), MARGIN);
                // Whether a failure is counted is not known, so it teaches nothing.
                limit.failed(entry, at(window + 50));
            }
            assert_eq!(limit.books(at(window + 60), MARGIN), 400);
        }
    }

    #[test]
    fn what_a_failed_call_was_charged_too_much_is_free() {
        // Nobody says what input a failed call had, so its estimate stayed charged for ever: each
        // failure cost the bucket a little more.
        let mut limit = limit("input_tokens=36000/1h:bucket", Host::Anthropic);
        let entry = send(&mut limit, &call(1_000, 10), at(0));
        limit.observe(&entry, 35_200, 1, at(100), MARGIN);
        limit.failed(entry, at(100));
        assert_eq!(limit.books(at(110), MARGIN), 35_199);
    }

    #[test]
    fn what_would_have_come_into_a_full_bucket_is_lost() {
        // It was counted as free after the answers that were charged meanwhile.
        let mut limit = limit("output_tokens=1000/10s:bucket", Host::Unknown);
        let entry = send(&mut limit, &call(5, 100), at(0));
        limit.observe(&entry, 1_000, 1, at(5_000), MARGIN);
        limit.settle(entry, Some(&used(5, 100)), at(5_000));
        assert_eq!(limit.books(at(5_000), MARGIN), 900);
    }

    #[test]
    fn what_the_answers_took_since_is_not_given_back() {
        let mut limit = limit("output_tokens=1000/10s", Host::Anthropic);
        let mut entry = send(&mut limit, &call(5, 100), at(0));
        limit.produced(&mut entry, 60, at(500));
        limit.observe(&entry, 1_000, 1, at(900), MARGIN);
        limit.settle(entry, Some(&used(5, 100)), at(900));
        assert_eq!(limit.books(at(900), MARGIN), 900);
    }

    #[test]
    fn without_a_word_on_each_of_the_last_calls_nothing_is_certain() {
        let mut limit = limit("tokens=10000/1m", Host::Mock);
        let [silent, heard] = [0, 5].map(|ms| send(&mut limit, &call(900, 100), at(ms)));
        limit.observe(&heard, 9_000, 1, at(100), MARGIN);
        limit.settle(heard, Some(&used(900, 100)), at(100));
        limit.settle(silent, None, at(100));
        assert_eq!(limit.books(at(110), MARGIN), 8_000);
    }

    #[test]
    fn at_an_edge_nobody_knows_of_which_window_a_word_spoke() {
        let mut limit = limit("requests=10/1s:fixed", Host::Unknown);
        let calls = [(); 10].map(|()| send(&mut limit, &call(1, 1), at(995)));
        for entry in calls {
            limit.observe(&entry, 9, 1, at(1_002), MARGIN);
            limit.settle(entry, None, at(1_002));
        }
        assert_eq!(limit.books(at(1_003), MARGIN), 0);
    }

    /// A provider's exact sliding window.
    struct Window {
        count: i64,
        period: Duration,
        calls: Vec<(Timestamp, i64)>,
    }

    impl Window {
        fn left(&self, now: Timestamp) -> i64 {
            let inside = |(at, _): &&(Timestamp, i64)| *at + self.period > now;
            self.count
                - self
                    .calls
                    .iter()
                    .filter(inside)
                    .map(|(_, used)| used)
                    .sum::<i64>()
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Step {
        Arrives,
        Told,
        Heard,
    }

    proptest! {
        /// Where calls are never charged too little, the books never have more than the provider
        /// when nothing is under way, whatever the order in which calls arrive and are answered,
        /// and however late we are told that one was sent.
        #[test]
        fn no_more_is_given_back_than_the_provider_has(
            bursts in proptest::collection::vec(
                (0u64..700, proptest::collection::vec(
                    (0u64..10, 0i64..=100, 0u64..30, 0u64..10), 1..8)),
                1..40,
            ),
        ) {
            let mut limit = limit("input_tokens=2000/1s", Host::Unknown);
            let mut provider = Window { count: 2_000, period: Duration::from_secs(1), calls: vec![] };
            let mut ms = 0;
            for (pause, burst) in bursts {
                ms += pause;
                let mut calls = Vec::new();
                let mut steps = Vec::new();
                for (delay, less, late, answered) in burst {
                    let cost = limit.cost(&call(300, 1), 0);
                    if limit.check(cost, 0, at(ms), MARGIN).is_err() {
                        continue;
                    }
                    let number = calls.len();
                    calls.push((at(ms), limit.take(cost), 300 - less, 0));
                    // Nobody hears of an answer before he has told that the call was sent.
                    let (arrives, told) = (ms + delay, ms + late);
                    steps.push((arrives, Step::Arrives, number));
                    steps.push((told, Step::Told, number));
                    steps.push((arrives.max(told) + answered, Step::Heard, number));
                    ms += 3;
                }
                steps.sort_unstable();
                for (step_ms, step, number) in steps {
                    ms = ms.max(step_ms);
                    let (sent_at, entry, real, left) = &mut calls[number];
                    match step {
                        Step::Arrives => {
                            provider.calls.push((at(step_ms), *real));
                            *left = provider.left(at(step_ms));
                        }
                        Step::Told => limit.sent(entry, *sent_at, at(step_ms), MARGIN),
                        Step::Heard => {
                            limit.observe(entry, *left, 1, at(step_ms), MARGIN);
                            // What a failed call was is not told, so its estimate stays.
                            limit.failed(*entry, at(step_ms));
                        }
                    }
                }
                let (books, truth) = (limit.books(at(ms), MARGIN), provider.left(at(ms)));
                prop_assert!(books <= truth, "{books} of {truth} at {ms}");
            }
        }
    }
}
