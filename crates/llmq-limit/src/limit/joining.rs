//! A limit that joins an upstream whose calls are under way.

use std::time::Duration;

use llmq_core::{Algorithm, Timestamp};

use super::{Cost, Entry, EntryState, Limit, Meter};
use crate::bucket::Bucket;
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

/// How a call under way stands to the word that its limit begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It was there before the word's call, so its own word is an older one.
    Earlier,
    /// Nobody knows which of the two was there first.
    Unsure,
    Later,
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
        now: Timestamp,
        margin: Duration,
    ) -> Vec<Entry> {
        let margin = within(margin, self.spec.period);
        let Some(word) = word else {
            return self.begin_unheard(calls, now, margin);
        };
        let place = |call: &UnderWay| match call.sent {
            Some((_, told_at)) if told_at + margin <= word.sent_at => Place::Earlier,
            Some((sent_at, _)) if sent_at <= word.told_at + margin => Place::Unsure,
            _ => Place::Later,
        };
        let earlier = calls.partition_point(|call| place(call) == Place::Earlier);
        let told_at = |call: &UnderWay| call.sent.map(|(_, told_at)| told_at);
        let before =
            calls.partition_point(|call| told_at(call).is_some_and(|at| at <= word.told_at));
        let unused = self.meter.clone();
        let mut entries = self.join_all(&calls[..earlier], place, margin);
        if let Meter::Bucket(_) = unused {
            // What they used may have been refilled since: the word says what has not been.
            self.meter = unused;
        }
        let known = calls[..earlier]
            .iter()
            .filter(|call| self.has(call, word, margin));
        let known = known.map(|call| call.cost.arrival);
        let rest = known.fold(word.used, u64::saturating_sub);
        // Before those of which nobody knows whether they are in it, so that none of them is
        // expected to have met an unused limit.
        let first = self.take_rest(rest, word, margin);
        entries.extend(self.join_all(&calls[earlier..before], place, margin));
        let left = signed(self.spec.count) - signed(word.used);
        self.observe(&first, left, word.rounding, word.told_at, margin);
        self.close(&first);
        self.conclude_survey();
        self.reconcile(word.told_at);
        entries.extend(self.join_all(&calls[before..], place, margin));
        entries
    }

    /// Nobody has said what is used: each call counts from when it was sent. What has come into a
    /// bucket since then is not owed any more.
    fn begin_unheard(
        &mut self,
        calls: &[UnderWay],
        now: Timestamp,
        margin: Duration,
    ) -> Vec<Entry> {
        self.advance(now);
        let began = calls.first().and_then(|call| call.sent);
        let (Meter::Bucket(mut bucket), Algorithm::Bucket { depth }, Some((_, began))) =
            (self.meter.clone(), self.spec.algorithm, began)
        else {
            return self.join_all(calls, |_| Place::Later, margin);
        };
        let full = Bucket::new(self.spec.count, self.spec.period, depth, began);
        self.meter = Meter::Bucket(full);
        let mut entries = self.join_all(calls, |_| Place::Later, margin);
        self.advance(now);
        let of_others = signed(bucket.depth()) - bucket.remaining();
        for entry in &mut entries {
            if let EntryState::Sent { expect, .. } = &mut entry.state {
                expect.remaining -= of_others;
            }
        }
        bucket.take(signed(bucket.depth()) - self.books(now, margin));
        self.meter = Meter::Bucket(bucket);
        entries
    }

    /// Whether an earlier call is in the books and, for sure, in what the word says is used.
    fn has(&self, call: &UnderWay, word: &FirstWord, margin: Duration) -> bool {
        let Some((sent_at, _)) = call.sent else {
            return false;
        };
        match &self.meter {
            Meter::Sliding(_) => sent_at + self.spec.period > word.told_at + margin,
            Meter::Fixed(window) => {
                !window.spans_edge(sent_at.before(margin), word.told_at + margin)
            }
            Meter::Bucket(_) | Meter::Places => false,
        }
    }

    /// Takes what was used beside the calls that are known: whose it was, when and what for,
    /// nobody knows, so it says nothing of how calls are charged.
    fn take_rest(&mut self, rest: u64, word: &FirstWord, margin: Duration) -> Entry {
        let mut first = self.take(Cost {
            arrival: rest,
            later: 0,
            stated: rest,
        });
        let (at, now) = (word.sent_at, word.told_at);
        let learns = self.learns_from_words();
        let group = learns.then(|| self.survey.rest(rest, at, now, margin));
        if learns && !matches!(self.meter, Meter::Bucket(_)) {
            // It leaves the window bit by bit. A bucket's next word is compared with this one.
            self.survey.doubt(rest, now, self.spec.period);
        }
        self.date(&mut first, at, now, margin, group);
        // The books keep it as long as it can count at all. What later words show to count no more
        // comes back, with its own date: room for it must not open twice.
        self.returnable = self.returnable.saturating_add(rest);
        if matches!(self.meter, Meter::Sliding(_)) {
            self.doubts.add(now + margin, rest, self.spec.period);
        }
        self.taken = self.taken.saturating_sub(rest);
        self.charged -= signed(rest);
        first
    }

    fn join_all(
        &mut self,
        calls: &[UnderWay],
        place: impl Fn(&UnderWay) -> Place,
        margin: Duration,
    ) -> Vec<Entry> {
        let join = |call: &UnderWay| {
            let mut entry = self.take(call.cost);
            let Some((sent_at, told_at)) = call.sent else {
                return entry;
            };
            let place = place(call);
            if place == Place::Unsure && self.learns_from_words() {
                self.survey
                    .unsure(call.cost.stated, told_at, self.spec.period);
                self.date(&mut entry, sent_at, told_at, margin, None);
            } else {
                self.sent(&mut entry, sent_at, told_at, margin);
            }
            if let EntryState::Sent { expect, .. } = &mut entry.state {
                expect.is_outdated = place == Place::Earlier;
            }
            entry
        };
        calls.iter().map(join).collect()
    }
}

#[cfg(test)]
mod tests {
    use llmq_core::{CallSize, Host, Now, Usage};

    use super::super::tests::{MARGIN, at, call, limit, send};
    use super::*;
    use crate::Verdict;
    use crate::charge::charge_rule;

    /// A limit that begins by a word of 12 used, on a call sent at 5 s.
    fn begun(text: &str, sent: &[Option<u64>]) -> (Limit, Vec<Entry>) {
        begun_by(text, Host::Unknown, 1, sent, 12)
    }

    /// The same by a word of so much used, and calls of so many tokens.
    fn begun_by(
        text: &str,
        host: Host,
        tokens: u32,
        sent: &[Option<u64>],
        used: u64,
    ) -> (Limit, Vec<Entry>) {
        let blank = limit(text, host);
        let cost = blank.cost(&call(tokens, 0), 0);
        let as_of = Now {
            mono: at(5_000),
            ..Now::default()
        };
        let rule = charge_rule(host, blank.spec().kind);
        let mut limit = Limit::new(*blank.spec(), rule, as_of);
        let calls = sent.iter().map(|ms| UnderWay {
            cost,
            sent: ms.map(|ms| (at(ms), at(ms))),
        });
        let word = FirstWord {
            used,
            rounding: 1,
            sent_at: at(5_000),
            told_at: at(5_000),
        };
        let entries = limit.begin_amid(&calls.collect::<Vec<_>>(), Some(&word), at(5_000), MARGIN);
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

    /// They were taken for part of what is used, and a sliding window forgot them at once: so much
    /// more was sent than there was room. A bucket was in debt by what had long been refilled.
    #[test]
    fn calls_that_have_left_the_limit_are_not_in_the_word() {
        let long_ago = [Some(0); 30];
        for text in ["requests=100/1s", "requests=100/1s:bucket"] {
            let (mut limit, entries) = begun(text, &long_ago);
            limit.advance(at(5_001));
            assert_eq!(limit.books(at(5_001), MARGIN), 88, "{text}");
            for entry in entries {
                limit.settle(entry, None, at(5_001));
            }
            assert_eq!(limit.books(at(5_001), MARGIN), 88, "{text}");
        }
    }

    /// A word as old as its call brought back what others had used then.
    #[test]
    fn what_earlier_calls_met_is_not_used_any_more() {
        for text in ["requests=100/1s", "requests=100/1s:bucket"] {
            let (mut limit, entries) = begun(text, &[Some(0), Some(4_500)]);
            for entry in entries {
                let said = limit.observe(&entry, 3, 1, at(5_001), MARGIN);
                assert_eq!(said, Verdict::Stale, "{text}");
            }
            assert_eq!(limit.books(at(5_001), MARGIN), 88, "{text}");
        }
    }

    #[test]
    fn an_earlier_call_that_is_refused_was_not_in_the_word() {
        for text in ["tokens=100000/1m", "tokens=100000/1m:bucket"] {
            let (mut limit, entries) = begun_by(text, Host::Mock, 1_000, &[Some(0)], 12_000);
            for entry in entries {
                limit.refused(entry, at(5_000));
            }
            assert_eq!(limit.books(at(5_000), MARGIN), 88_000, "{text}");
        }
    }

    /// What others had used over the minute before was held for a minute, though the provider had
    /// more and more room, as each answer said.
    #[test]
    fn what_was_used_before_comes_back_as_words_tell_and_once() {
        let (mut limit, _) = begun_by("requests=100/1m", Host::Unknown, 1, &[], 40);
        let under_way = send(&mut limit, &call(1, 0), at(9_000));
        for (ms, left) in [(10_000, 78), (12_000, 77)] {
            let entry = send(&mut limit, &call(1, 0), at(ms));
            limit.observe(&entry, left, 1, at(ms + 20), MARGIN);
            limit.settle(entry, None, at(ms + 20));
        }
        assert_eq!(limit.books(at(12_020), MARGIN), 77);
        // A minute after the word the rest of it leaves, and nothing else.
        limit.advance(at(65_010));
        assert_eq!(limit.books(at(65_010), MARGIN), 97);
        limit.settle(under_way, None, at(65_010));
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

    /// They were charged as if all of them had just been sent, and nothing started for as long as
    /// that takes to come in.
    #[test]
    fn a_bucket_owes_nothing_of_what_has_come_in_since() {
        let mut limit = limit("requests=60/1m:bucket", Host::Unknown);
        let cost = limit.cost(&CallSize::default(), 0);
        // One a second, as fast as it fills, and then ten at once.
        let sent = (0..300).map(|second| second * 1_000).chain([299_500; 10]);
        let calls = sent.map(|ms| UnderWay {
            cost,
            sent: Some((at(ms), at(ms))),
        });
        let calls: Vec<UnderWay> = calls.collect();
        let entries = limit.begin_amid(&calls, None, at(300_000), MARGIN);
        assert_eq!(limit.books(at(300_000), MARGIN), 50);
        for (entry, left) in [(entries[250], 59), (entries[309], 49)] {
            let said = limit.observe(&entry, left, 1, at(300_001), MARGIN);
            assert!(!matches!(said, Verdict::Below(_)), "{said:?}");
        }
        assert_eq!(limit.books(at(300_001), MARGIN), 50);
        for entry in entries {
            limit.settle(entry, None, at(300_001));
        }
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
        let cost = limit.cost(&call(900, 100), 0);
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
        let entries = limit.begin_amid(&calls, Some(&word), at(5_000), MARGIN);
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

    /// Their words were spoken before what others had used by the first word, which was counted
    /// against them: the provider seemed to charge a third of what it does.
    #[test]
    fn words_on_earlier_calls_teach_no_factor() {
        for text in ["tokens=100000/1m", "tokens=100000/1m:bucket"] {
            let sent = [0, 1_000, 2_000, 3_000, 4_000].map(Some);
            let (mut limit, entries) = begun_by(text, Host::Mock, 1_000, &sent, 24_000);
            for (entry, used) in entries.into_iter().zip(1..) {
                limit.observe(&entry, 100_000 - 1_000 * used, 1, at(5_500), MARGIN);
                limit.settle(entry, Some(&Usage::default()), at(5_500));
            }
            let factor = limit.factor().value();
            assert!((0.95..=1.05).contains(&factor), "{text}: {factor}");
        }
    }

    /// What others had used was taken for a single call of ours: beside it all others seemed to
    /// stray little, for thousands of them.
    #[test]
    fn what_was_used_before_says_nothing_of_how_far_calls_stray() {
        // Far enough apart for a window to hold one of them, and close enough for the bucket not
        // to be full in between.
        for (text, apart) in [
            ("tokens=1000000/1s", 1_100),
            ("tokens=3600000/1h:bucket", 100),
        ] {
            let (mut limit, _) = begun_by(text, Host::Mock, 1, &[], 50_000);
            let mut used = 50_000;
            for number in 1..=100 {
                let ms = 5_000 + apart * number;
                let strays = if number % 2 == 0 { 900 } else { 1_100 };
                used = match text.ends_with("bucket") {
                    true => used - 100 + strays,
                    false => strays,
                };
                let entry = send(&mut limit, &call(1_000, 0), at(ms));
                let left = signed(limit.spec().count) - used;
                limit.observe(&entry, left, 1, at(ms + 20), MARGIN);
                limit.settle(entry, Some(&Usage::default()), at(ms + 20));
            }
            let stray = limit.learner.stray();
            assert!((0.08..=0.12).contains(&stray), "{text}: {stray}");
        }
    }
}
