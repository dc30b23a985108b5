//! A limit that joins an upstream whose calls are under way.

use std::time::Duration;

use llmq_core::Timestamp;

use super::{Cost, Entry, Limit};
use crate::margin::within;
use crate::sliding::signed;

/// What an answer stated of a limit before anybody kept its books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstWord {
    /// How much was used, by the answer's call too.
    pub used: u64,
    /// To what that was rounded.
    pub rounding: u64,
    /// The call was written then or soon after …
    pub sent_at: Timestamp,
    /// … and by then, when that was told.
    pub told_at: Timestamp,
}

/// A call that is under way when a limit joins its upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnderWay {
    /// What it costs.
    pub cost: Cost,
    /// When it was written, at the earliest, and when that was told; none: it is not, or nobody
    /// has told it yet.
    pub sent: Option<(Timestamp, Timestamp)>,
}

impl Limit {
    /// Begins amid calls that are under way: they count, and what their answers say is heard, as
    /// that of calls which are sent from now on. Where a word has come before, the limit should
    /// have been [made](Limit::new) as of its [`told_at`](FirstWord::told_at): what it says is
    /// used, and what those calls have used of that is not counted twice.
    ///
    /// The calls must be in the order in which it was told that they were sent. Returns the
    /// place of each.
    pub fn begin_amid(
        &mut self,
        calls: &[UnderWay],
        word: Option<&FirstWord>,
        margin: Duration,
    ) -> Vec<Entry> {
        let margin = within(margin, self.spec.period);
        let Some(word) = word else {
            return self.join_all(calls, margin);
        };
        let told_at = |call: &UnderWay| call.sent.map(|(_, told_at)| told_at);
        // Only calls that were there before its own, however long they took, are in it for sure.
        let is_in = |call: &&UnderWay| told_at(call).is_some_and(|at| at + margin <= word.sent_at);
        let known = calls.iter().filter(is_in).map(|call| call.cost.arrival);
        let rest = known.fold(word.used, u64::saturating_sub);
        let cost = Cost {
            arrival: rest,
            later: 0,
            stated: rest,
        };
        // First in the books, so that no earlier call is expected to have met an unused limit.
        let mut first = self.take(cost);
        self.sent(&mut first, word.sent_at, word.told_at, margin);
        // Whose it was, and what for, is not known; it may be that of calls which join now, and so
        // says nothing of how they are charged.
        self.survey.doubt(rest, word.sent_at, self.spec.period);
        self.taken = self.taken.saturating_sub(rest);
        self.charged -= signed(rest);
        let before =
            calls.partition_point(|call| told_at(call).is_some_and(|at| at <= word.told_at));
        let mut entries = self.join_all(&calls[..before], margin);
        let left = signed(self.spec.count) - signed(word.used);
        self.observe(&first, left, word.rounding, word.told_at, margin);
        self.close(&first);
        self.conclude_survey();
        self.reconcile(word.told_at);
        entries.extend(self.join_all(&calls[before..], margin));
        entries
    }

    fn join_all(&mut self, calls: &[UnderWay], margin: Duration) -> Vec<Entry> {
        let join = |call: &UnderWay| {
            let mut entry = self.take(call.cost);
            if let Some((sent_at, told_at)) = call.sent {
                self.sent(&mut entry, sent_at, told_at, margin);
            }
            entry
        };
        calls.iter().map(join).collect()
    }
}

#[cfg(test)]
mod tests {
    use llmq_core::{CallSize, Host, Now, Usage};

    use super::super::tests::{MARGIN, at, limit};
    use super::*;
    use crate::Verdict;
    use crate::charge::charge_rule;

    /// A limit of 100 a minute that begins by a word of 12 used, on a call sent at 5 s.
    fn begun(text: &str, sent: &[Option<u64>]) -> (Limit, Vec<Entry>) {
        let blank = limit(text, Host::Unknown);
        let cost = blank.cost(&CallSize::default(), 0);
        let as_of = Now {
            mono: at(5_000),
            ..Now::default()
        };
        let rule = charge_rule(Host::Unknown, blank.spec().kind);
        let mut limit = Limit::new(*blank.spec(), rule, as_of);
        let calls = sent.iter().map(|ms| UnderWay {
            cost,
            sent: ms.map(|ms| (at(ms), at(ms))),
        });
        let word = FirstWord {
            used: 12,
            rounding: 1,
            sent_at: at(5_000),
            told_at: at(5_000),
        };
        let entries = limit.begin_amid(&calls.collect::<Vec<_>>(), Some(&word), MARGIN);
        (limit, entries)
    }

    #[test]
    fn calls_since_the_word_count_beside_it_and_those_before_are_in_it() {
        for text in ["requests=100/1m", "requests=100/1m:bucket"] {
            let sent = [Some(0), Some(1_000), Some(5_001), Some(5_002), None];
            let (mut limit, entries) = begun(text, &sent);
            assert_eq!(entries.len(), 5);
            assert_eq!(limit.books(at(5_002), MARGIN), 86, "{text}");
            assert_eq!(limit.held(), 1);
            limit.advance(at(5_010));
            for entry in entries {
                limit.settle(entry, None, at(5_010));
            }
            assert_eq!(limit.books(at(5_010), MARGIN), 86, "nobody said otherwise");
        }
    }

    #[test]
    fn what_their_answers_say_is_heard() {
        let (mut limit, entries) = begun("requests=100/1m", &[Some(0), Some(5_100)]);
        let said = limit.observe(&entries[1], 87, 1, at(6_000), MARGIN);
        assert_eq!(said, Verdict::Inside);
        let said = limit.observe(&entries[1], 80, 1, at(6_000), MARGIN);
        assert_eq!(said, Verdict::Below(7));
        assert_eq!(limit.books(at(6_000), MARGIN), 80);
    }

    #[test]
    fn what_earlier_calls_met_gives_nothing_back() {
        // They saw less used than the word that came after them.
        let (mut limit, entries) = begun("requests=100/1m", &[Some(0), Some(1), Some(2)]);
        for (entry, left) in entries.into_iter().zip([99, 98, 97]) {
            limit.observe(&entry, left, 1, at(6_000), MARGIN);
            limit.settle(entry, None, at(6_000));
        }
        assert_eq!(limit.books(at(6_000), MARGIN), 88);
    }

    /// Calls that were sent close to the word's own were in what it said and in the books as well:
    /// the provider seemed to charge half of what it does, and calls to stray by a third.
    #[test]
    fn a_word_on_calls_that_may_be_in_it_teaches_no_factor() {
        let mut limit = limit("tokens=100000/1m", Host::Mock);
        let cost = limit.cost(&super::super::tests::call(900, 100), 0);
        let calls: Vec<UnderWay> = (0..40)
            .map(|ms| UnderWay {
                cost,
                sent: Some((at(4_992 + ms), at(4_992 + ms))),
            })
            .collect();
        let word = FirstWord {
            used: 40_000,
            rounding: 1,
            sent_at: at(5_000),
            told_at: at(5_000),
        };
        let entries = limit.begin_amid(&calls, Some(&word), MARGIN);
        for (entry, used) in entries.into_iter().zip(1..) {
            limit.observe(&entry, 100_000 - 1_000 * used, 1, at(5_500), MARGIN);
            limit.settle(entry, Some(&Usage::default()), at(5_500));
        }
        let factor = limit.factor().value();
        assert!((0.95..=1.05).contains(&factor), "{factor}");
        assert_eq!(
            limit.books(at(5_600), MARGIN),
            60_000,
            "the last word is the truth"
        );
    }
}
