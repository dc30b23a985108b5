use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::Timestamp;

use crate::doubts::Doubts;
use crate::learner::Sample;
use crate::sent_log::SentLog;
use crate::sliding::signed;

/// How a provider charges, read off whole windows: what it says is used, against what our calls
/// in that window stated.
///
/// A window holds many calls, so their errors even out, and only the calls near its two ends are
/// unsure: those within a margin of the call that the provider answered, and those about to
/// leave. Calls that were sent within a margin of each other are a *group*: they may have
/// arrived in any order, but once all of them were answered, the highest word is what was used
/// after all of them.
#[derive(Debug, Clone)]
pub(crate) struct Survey {
    stated: SentLog,
    squares: f64,
    /// What of it no call of ours stated.
    rest: u64,
    /// What was stated by calls that were refused, and so not counted.
    uncounted: Doubts,
    /// What was stated by calls of which nobody knows whether they were counted.
    doubted: Doubts,
    groups: VecDeque<Group>,
    pending: Option<Word>,
    /// What had been stated when the last sample was taken.
    sampled: u64,
    /// The word that a bucket's next sample begins at.
    base: Option<Level>,
    /// Since when its rate is what it is.
    began: Timestamp,
}

/// Calls sent within a margin of each other.
#[derive(Debug, Clone, Copy)]
struct Group {
    number: u64,
    first: Timestamp,
    last: Timestamp,
    sent: u32,
    answered: u32,
    highest: i64,
    /// What had been stated when the last of it was sent.
    total: u64,
    is_taken: bool,
}

/// What the provider said with the answer to a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Word {
    pub(crate) group: u64,
    pub(crate) sent_at: Timestamp,
    pub(crate) stated: u64,
    pub(crate) used: i64,
    pub(crate) rounding: i64,
    pub(crate) margin: Duration,
}

/// A word made as exact as can be: what was used when, and what had been stated by then.
#[derive(Debug, Clone, Copy)]
struct Level {
    rounding: i64,
    margin: Duration,
    first: Timestamp,
    last: Timestamp,
    used: i64,
    least: u64,
    most: u64,
}

/// Groups of calls that wait for answers, kept at most.
const GROUPS: usize = 256;
/// A group that takes longer than this many margins is none: windows move on meanwhile.
const LONGEST: u32 = 4;
/// A bucket's sample spans at least so many times what is unsure in it.
const SPAN: i64 = 32;

/// A sample, and the share of it that no sample before it spoke of.
pub(crate) type Fresh = (Sample, f64);

impl Survey {
    pub(crate) fn new(span: Duration) -> Self {
        Self {
            stated: SentLog::new(span),
            squares: 0.0,
            rest: 0,
            uncounted: Doubts::default(),
            doubted: Doubts::default(),
            groups: VecDeque::new(),
            pending: None,
            sampled: 0,
            base: None,
            began: Timestamp::ZERO,
        }
    }

    /// A call was sent between `at` and `now`; returns the number of its group.
    pub(crate) fn sent(
        &mut self,
        stated: u64,
        at: Timestamp,
        now: Timestamp,
        margin: Duration,
    ) -> u64 {
        self.squares += float(stated) * float(stated);
        self.add(stated, at, now, margin)
    }

    /// So much was used, by the answer to a call that was sent between `at` and `now`, when nothing
    /// had been kept yet; returns the number of its group. Of how far calls stray it says nothing.
    pub(crate) fn rest(
        &mut self,
        used: u64,
        at: Timestamp,
        now: Timestamp,
        margin: Duration,
    ) -> u64 {
        self.rest = self.rest.saturating_add(used);
        self.add(used, at, now, margin)
    }

    /// A call was sent about when the first word's was, which may have counted it. Its own word
    /// is not to be told.
    pub(crate) fn unsure(&mut self, stated: u64, now: Timestamp, period: Duration) {
        self.squares += float(stated) * float(stated);
        self.stated.add(stated, now);
        self.doubt(stated, now, period);
    }

    fn add(&mut self, stated: u64, at: Timestamp, now: Timestamp, margin: Duration) -> u64 {
        self.stated.add(stated, now);
        let number = match self.groups.back_mut() {
            Some(group) if at - group.last <= margin && at - group.first <= margin * LONGEST => {
                group.first = group.first.min(at);
                group.last = group.last.max(now);
                group.sent = group.sent.saturating_add(1);
                group.total = self.stated.total();
                return group.number;
            }
            Some(group) => group.number + 1,
            None => 0,
        };
        if self.groups.len() == GROUPS {
            self.groups.pop_front();
        }
        self.groups.push_back(Group {
            number,
            first: at,
            last: now,
            sent: 1,
            answered: 0,
            highest: i64::MIN,
            total: self.stated.total(),
            is_taken: false,
        });
        number
    }

    /// The provider has spoken with the answer to a call. It counts once that call's fate is
    /// known: see [`Survey::counted`].
    pub(crate) fn heard(&mut self, word: Word) {
        self.pending = Some(word);
    }

    /// A call was refused, and so was not counted.
    pub(crate) fn refused(&mut self, stated: u64, sent_at: Timestamp, period: Duration) {
        self.uncounted.add(sent_at, stated, period);
    }

    /// Nobody knows whether a call was counted.
    pub(crate) fn doubt(&mut self, stated: u64, sent_at: Timestamp, period: Duration) {
        self.doubted.add(sent_at, stated, period);
    }

    /// The word on the call that has just ended, made as exact as its group allows.
    fn level(&mut self) -> Option<Level> {
        let word = self.pending.take()?;
        let (rounding, margin) = (word.rounding, word.margin);
        let alone = Level {
            rounding,
            margin,
            first: word.sent_at,
            last: word.sent_at,
            used: word.used,
            least: self
                .stated
                .at_least_before(word.sent_at.before(margin))
                .saturating_add(word.stated),
            most: self.stated.at_most_until(word.sent_at + margin),
        };
        let front = self.groups.front()?.number;
        let index = usize::try_from(word.group.checked_sub(front)?).ok()?;
        let follower = self.groups.get(index + 1).map(|next| next.first);
        let group = self.groups.get_mut(index)?;
        group.answered = group.answered.saturating_add(1);
        group.highest = group.highest.max(word.used);
        let apart = follower.is_none_or(|next| next - group.last > margin);
        if group.answered < group.sent || group.is_taken || !apart {
            return Some(alone);
        }
        group.is_taken = true;
        let (first, last, used, total) = (group.first, group.last, group.highest, group.total);
        // Its predecessor may have been cut off for its length only.
        let before = index
            .checked_sub(1)
            .and_then(|before| self.groups.get(before));
        if before.is_some_and(|before| first - before.last <= margin) {
            return Some(alone);
        }
        Some(Level {
            first,
            last,
            used,
            least: total,
            most: total,
            ..alone
        })
    }

    /// The call of the last word has ended. `since` tells for the sending times of the first and
    /// the last call and the margin: what was sent before the first of its instants has left the
    /// window, and what was sent after the second has not.
    pub(crate) fn counted(
        &mut self,
        since: impl Fn(Timestamp, Timestamp, Duration) -> Option<(Timestamp, Timestamp)>,
    ) -> Option<Fresh> {
        let level = self.level()?;
        let margin = level.margin;
        let (out, inside) = since(level.first, level.last, margin)?;
        let gone_least = self.stated.at_least_before(out);
        let gone_most = self.stated.at_most_until(inside);
        let uncounted = self.uncounted.sum(inside, level.last + margin);
        let doubted = self.doubted.sum(out, level.last + margin);
        let least = level.least.saturating_sub(gone_most + uncounted + doubted);
        let most = level.most.saturating_sub(gone_least + uncounted);
        self.sample(level.used, level.rounding, least, most, level.most)
    }

    /// A bucket fills at another rate from now on: no sample begins before.
    pub(crate) fn begin_anew(&mut self, now: Timestamp) {
        self.base = None;
        self.began = now;
    }

    /// The same for a bucket; `refill_in` is what comes in over a time.
    pub(crate) fn drawn(&mut self, refill_in: impl Fn(Duration) -> i64) -> Option<Fresh> {
        let level = self.level().filter(|level| level.first >= self.began)?;
        let margin = level.margin;
        let Some(base) = self.base.filter(|base| base.last < level.first) else {
            if self.base.is_none() {
                self.base = Some(level);
            }
            return None;
        };
        let span = level.last - base.first;
        let refilled = refill_in(span);
        // It may have been full in between, and then some of that was lost.
        if base.used <= refilled {
            self.base = Some(level);
            return None;
        }
        let uncounted = self.uncounted.sum(base.last, level.last + margin);
        let doubted = self
            .doubted
            .sum(base.first.before(margin), level.last + margin);
        let least = level.least.saturating_sub(base.most + uncounted + doubted);
        let most = level.most.saturating_sub(base.least + uncounted);
        // Both words and the refill are whole numbers.
        let slack = level.rounding
            + base.rounding
            + refill_in(margin)
            + refill_in(level.last - level.first)
            + 2;
        if signed(most) < SPAN * (signed(most - least.min(most)) / 2 + slack) {
            return None;
        }
        self.base = Some(level);
        let used = level.used - base.used + refilled;
        self.sample(used, slack, least, most, level.most)
    }

    fn sample(
        &mut self,
        used: i64,
        slack: i64,
        least: u64,
        most: u64,
        total: u64,
    ) -> Option<Fresh> {
        let stated = float(least) / 2.0 + float(most) / 2.0;
        if least == 0 || most < least || used <= 0 {
            return None;
        }
        let new = float(total.saturating_sub(self.sampled)) / stated;
        self.sampled = self.sampled.max(total);
        let calls = self.stated.total().saturating_sub(self.rest);
        let each = self.squares / float(calls).max(1.0);
        let sample = Sample {
            stated,
            squares: each * stated,
            used: float_signed(used),
            unsure: float(most - least) / 2.0 + float_signed(slack),
        };
        Some((sample, new.clamp(0.0, 1.0)))
    }
}

#[expect(clippy::cast_precision_loss, reason = "charges are at most 10^15")]
fn float(amount: u64) -> f64 {
    amount as f64
}

#[expect(clippy::cast_precision_loss, reason = "charges are at most 10^15")]
fn float_signed(amount: i64) -> f64 {
    amount as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARGIN: Duration = Duration::from_millis(2);
    const PERIOD: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Timestamp {
        Timestamp::ZERO + PERIOD * 10 + Duration::from_millis(ms)
    }

    fn word(group: u64, sent: u64, used: i64) -> Word {
        Word {
            group,
            sent_at: ms(sent),
            stated: 100,
            used,
            rounding: 0,
            margin: MARGIN,
        }
    }

    /// A sliding window in which nothing is about to leave.
    fn counted(survey: &mut Survey) -> Option<Fresh> {
        survey.counted(|first, last, margin| {
            let out = first.before(margin).before(PERIOD);
            Some((out, (last + margin).before(PERIOD)))
        })
    }

    #[test]
    fn calls_far_apart_say_exactly_what_was_charged() {
        let mut survey = Survey::new(PERIOD * 2);
        for (number, at) in [(1, 0), (2, 100), (3, 200)] {
            let group = survey.sent(100, ms(at), ms(at), MARGIN);
            survey.heard(word(group, at, number * 115));
            let (sample, share) = counted(&mut survey).expect("a sample");
            assert_eq!(
                (sample.stated, sample.used),
                (
                    f64::from(u32::try_from(number).unwrap()) * 100.0,
                    f64::from(u32::try_from(number).unwrap()) * 115.0
                )
            );
            assert_eq!(sample.unsure, 0.0);
            assert!((share - 1.0 / f64::from(u32::try_from(number).unwrap())).abs() < 1e-9);
        }
    }

    #[test]
    fn a_burst_is_unsure_until_all_of_it_was_answered() {
        let mut survey = Survey::new(PERIOD * 2);
        for _ in 0..10 {
            survey.sent(100, ms(0), ms(0), MARGIN);
        }
        // Answered in another order than that of arrival.
        for (number, left) in [
            9_655, 9_885, 8_850, 9_080, 9_310, 9_540, 9_770, 9_195, 9_425,
        ]
        .into_iter()
        .enumerate()
        {
            survey.heard(word(0, 0, 10_000 - left));
            if let Some((sample, _)) = counted(&mut survey) {
                assert!(sample.unsure >= 100.0, "answer {number}: {sample:?}");
            }
        }
        survey.heard(word(0, 0, 1_035));
        let (sample, _) = counted(&mut survey).expect("a sample");
        assert_eq!(
            (sample.stated, sample.used, sample.unsure),
            (1_000.0, 1_150.0, 0.0)
        );
    }

    #[test]
    fn a_refused_call_is_left_out_and_a_doubtful_one_makes_unsure() {
        let mut survey = Survey::new(PERIOD * 2);
        let refused = survey.sent(100, ms(0), ms(0), MARGIN);
        survey.heard(word(refused, 0, 0));
        survey.refused(100, ms(0), PERIOD);
        assert!(counted(&mut survey).is_none(), "nothing was used");
        survey.sent(100, ms(50), ms(50), MARGIN);
        survey.doubt(100, ms(50), PERIOD);
        let group = survey.sent(100, ms(100), ms(100), MARGIN);
        survey.heard(word(group, 100, 115));
        let (sample, _) = counted(&mut survey).expect("a sample");
        assert_eq!(
            (sample.stated, sample.used, sample.unsure),
            (150.0, 115.0, 50.0)
        );
    }

    #[test]
    fn a_buckets_refill_is_counted_unless_it_may_have_been_full() {
        let refill = |span: Duration| i64::try_from(span.as_millis()).unwrap();
        let mut survey = Survey::new(PERIOD * 20);
        let mut say = |at: u64, used: i64| {
            let group = survey.sent(10_000, ms(at), ms(at), MARGIN);
            survey.heard(Word {
                stated: 10_000,
                ..word(group, at, used)
            });
            survey.drawn(refill)
        };
        assert!(say(0, 50_000).is_none(), "a beginning");
        let (sample, _) = say(1_000, 50_000 + 11_500 - 1_000).expect("a sample");
        assert_eq!((sample.stated, sample.used), (10_000.0, 11_500.0));
        assert!(say(90_000, 30_000).is_none(), "full in between");
    }

    #[test]
    fn what_waits_for_answers_is_bounded() {
        let mut survey = Survey::new(PERIOD);
        for at in 0..10_000 {
            survey.sent(1, ms(at * 10), ms(at * 10), MARGIN);
        }
        assert!(survey.groups.len() <= GROUPS);
        survey.heard(word(0, 0, 10));
        assert!(counted(&mut survey).is_none(), "forgotten");
    }
}
