//! What the provider says, held against what our books expected.

use std::time::Duration;

use llmq_core::{Algorithm, Timestamp};

use super::{
    Entry, EntryState, Expect, Heard, Limit, Meter, OURS_AT_MOST, Verdict, float, float_signed,
};
use crate::charge::Refund;
use crate::learner::Sample;
use crate::margin::within;
use crate::sliding::signed;
use crate::survey::Word;

impl Limit {
    /// The provider's `remaining`, told with the answer to `entry`'s call and rounded to
    /// `rounding`: compared with what that call must have met. It is what would be left of the
    /// count that the call was sent by ([`Entry::sent_by`]), and so may be negative where that is
    /// lower than the provider's.
    ///
    /// What is missing is taken now. What is more than expected gives nothing back at once;
    /// it moves the charge factor, slowly.
    pub fn observe(
        &mut self,
        entry: &Entry,
        remaining: i64,
        rounding: u64,
        now: Timestamp,
        margin: Duration,
    ) -> Verdict {
        let EntryState::Sent { expect, .. } = entry.state else {
            return Verdict::Stale;
        };
        if expect.is_outdated {
            return Verdict::Stale;
        }
        let margin = within(margin, self.spec.period);
        let seen = remaining.saturating_sub(self.shown_beyond_depth(expect.count));
        let rounding = signed(rounding.saturating_sub(1));
        let newer = !self.heard.any || expect.sent_at >= self.heard.sent_at;
        let returned = if newer {
            signed(self.returned - expect.returned)
        } else {
            0
        };
        let below = self.low(&expect, margin) + returned - (seen + rounding);
        let above = (seen - rounding) - self.high(&expect, margin);
        let slack = -below;
        // From the least to the most that would have been as expected.
        let unsure = float_signed((-below - above).max(0));
        let hidden = u64::try_from(-above - below.max(0)).unwrap_or(0);
        let below = u64::try_from(below).unwrap_or(0);
        let above = u64::try_from(above).unwrap_or(0);
        if below > 0 {
            self.advance(now);
            self.correct_as_of(&expect, below, margin);
        }
        let unseen = self.unseen_after(&expect, below, hidden);
        if newer {
            self.note_lesson(&expect, seen, below, unsure);
            let returned = self.give_returned(&expect, above, now, margin);
            self.heed(&expect, seen, slack.max(0), above - returned, unsure);
        }
        self.heard.unseen = unseen;
        // What is used stays so by any count, and others may be kept by the time it matters.
        let used = signed(expect.count).saturating_sub(remaining);
        self.tail.heard(expect.tail, used.saturating_add(rounding));
        if let Some(group) = expect.group {
            self.survey.heard(Word {
                group,
                sent_at: expect.sent_at,
                stated: entry.cost.stated,
                used,
                rounding,
                margin: margin + (expect.told_at - expect.sent_at),
            });
        }
        if below > 0 {
            Verdict::Below(below)
        } else if !newer {
            Verdict::Stale
        } else if above > 0 {
            Verdict::Above(above)
        } else {
            Verdict::Inside
        }
    }

    /// `below` is gone that we had not charged: it was used from the last word on to this one,
    /// and leaves the window as late as the call that told of it.
    pub(super) fn correct_as_of(&mut self, expect: &Expect, below: u64, margin: Duration) {
        self.charge(signed(below), expect.sent_at.before(margin), expect.dated);
        self.corrected = self.corrected.saturating_add(below);
        self.returnable = self.returnable.saturating_add(below);
    }

    /// The call of the last word has ended: what the word says of the charges of its window is
    /// learned.
    pub(super) fn conclude_survey(&mut self) {
        let period = self.spec.period;
        let fresh = match &self.meter {
            Meter::Places => None,
            Meter::Sliding(_) => self.survey.counted(|first, last, margin| {
                let out = first.before(margin).before(period);
                Some((out, (last + margin).before(period)))
            }),
            Meter::Fixed(window) => self.survey.counted(|first, last, margin| {
                let end = window.ends(first.before(margin));
                let start = end.before(period);
                (window.ends(last + margin) == end).then(|| (start.before(margin), start))
            }),
            Meter::Bucket(_) => {
                let count = self.spec.count;
                self.survey.drawn(|span| refilled(count, period, span))
            }
        };
        if let Some((sample, share)) = fresh {
            let sample = Sample {
                used: sample.used.min(sample.stated * OURS_AT_MOST),
                ..sample
            };
            self.learn(&sample, share);
        }
    }

    /// How much less than stated the calls of a sample may have been charged, as far as calls
    /// are known to stray.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a charge that is not negative"
    )]
    pub(super) fn explained(&self, sample: &Sample) -> u64 {
        if !self.factor.is_calibrated() {
            return 0;
        }
        (3.0 * self.learner.stray() * sample.squares.max(0.0).sqrt()) as u64
    }

    /// What two words one after the other show to be left is given back, as of the calls of
    /// which they tell; where charges are no estimates, only what was taken beyond them.
    pub(super) fn give_returned(
        &mut self,
        expect: &Expect,
        above: u64,
        now: Timestamp,
        margin: Duration,
    ) -> u64 {
        if self.heard.is_of(expect) {
            return 0;
        }
        let mut back = above.min(self.heard.above);
        if !self.learns_from_words() {
            back = back.min(self.returnable);
        }
        if self.learns_from_words()
            && let Some(lesson) = &self.lesson
        {
            back = back.max(above.min(self.explained(lesson)));
        }
        self.give_back_now(expect, back, now, margin);
        back
    }

    pub(super) fn give_back_now(
        &mut self,
        expect: &Expect,
        back: u64,
        now: Timestamp,
        margin: Duration,
    ) {
        if back == 0 {
            return;
        }
        self.advance(now);
        let amount = signed(back);
        match &mut self.meter {
            Meter::Sliding(window) => {
                let mut rest = amount;
                for (at, part) in self.doubts.take(back, expect.dated) {
                    window.add(-signed(part), at);
                    rest -= signed(part);
                }
                window.take_back_before(rest, expect.dated);
            }
            Meter::Bucket(bucket) => bucket.take(-amount),
            Meter::Fixed(window) => {
                window.add(-amount, expect.sent_at.before(margin), expect.dated);
            }
            Meter::Places => {}
        }
        self.returned = self.returned.saturating_add(back);
        self.returnable = self.returnable.saturating_sub(back);
    }

    /// Whether only the provider's words tell what a call was charged.
    pub(super) fn learns_from_words(&self) -> bool {
        self.rule.is_estimate() && self.rule.refund != Refund::ToUsage
    }

    /// How much more was used than the books have, had calls arrived as they were sent.
    pub(super) fn residue(&self, expect: &Expect, seen: i64) -> i64 {
        let corrected = signed(self.corrected - expect.corrected);
        let returned = signed(self.returned - expect.returned);
        expect.remaining - corrected + returned - seen
    }

    pub(super) fn note_lesson(&mut self, expect: &Expect, seen: i64, below: u64, unsure: f64) {
        if self.heard.is_of(expect) {
            return;
        }
        let doubted = std::mem::take(&mut self.doubted);
        let since = |total: u64| float(total.saturating_sub(self.heard.total));
        let since_word = expect.sent_at - self.heard.sent_at;
        let seconds = since_word.min(self.shows_use_of()).as_secs_f64();
        // What was corrected just now is in the residue no more.
        let residue = self.residue(expect, seen).saturating_add(signed(below));
        let charged = since(expect.total);
        let used = charged + float_signed(residue - self.heard.residue);
        // Nor is it anybody else's use what the order of arrival explains.
        let unsure = unsure + self.heard.unsure;
        let beyond = (used - charged * OURS_AT_MOST).max(0.0);
        if self.learns_from_words() {
            if doubted == 0 {
                self.lesson = Some(Sample {
                    stated: expect.stated - self.heard.stated,
                    squares: expect.squares - self.heard.squares,
                    used: used - beyond,
                    unsure,
                });
            }
            if self.heard.any {
                let others = (beyond - unsure).clamp(0.0, float(below));
                self.foreign.learn(others, seconds.max(0.001));
            }
        } else if self.heard.any {
            // Calls whose usage is not known yet may have taken it.
            let open = 3.0 * self.learner.stray() * self.squares_open.sqrt();
            let others = (float(below) - open).max(0.0);
            self.foreign.learn(others, seconds.max(0.001));
        }
    }

    /// A refused call was not counted: what the word on it says is that much worse, and says
    /// nothing of how calls are charged.
    pub(super) fn unlearn_refused(&mut self, expect: &Expect, now: Timestamp) {
        if !self.heard.is_of(expect) {
            return;
        }
        self.lesson = None;
        self.heard.above = 0;
        if let Ok(missed) = u64::try_from(signed(expect.own) - self.heard.slack) {
            // The room that the call would have had, others took since the word before: that word's
            // time is in what is known of them already.
            self.foreign.learn(float(missed), 0.0);
            if self.rule.is_estimate() {
                self.advance(now);
                self.correct_as_of(expect, missed, Duration::ZERO);
            }
        }
        if !self.rule.is_estimate() {
            // It may not have been counted here either.
            self.returnable = self.returnable.saturating_add(expect.own);
        }
    }

    /// How far back the use lies that a word tells of: what was used before has left the window, or
    /// was refilled.
    fn shows_use_of(&self) -> Duration {
        match self.spec.algorithm {
            Algorithm::Bucket { depth } => depth,
            Algorithm::Sliding | Algorithm::Fixed => self.spec.period,
        }
    }

    /// A provider shows the count less what is used, also where its bucket is shallower than
    /// the period and holds less than that.
    pub(super) fn shown_beyond_depth(&self, count: u64) -> i64 {
        match &self.meter {
            Meter::Bucket(bucket) => signed(count) - signed(bucket.depth_of(count)),
            Meter::Sliding(_) | Meter::Fixed(_) | Meter::Places => 0,
        }
    }

    pub(super) fn heed(&mut self, expect: &Expect, seen: i64, slack: i64, above: u64, unsure: f64) {
        self.heard = Heard {
            sent_at: expect.sent_at,
            total: expect.total,
            stated: expect.stated,
            squares: expect.squares,
            above,
            slack,
            residue: self.residue(expect, seen),
            unsure,
            unseen: 0,
            any: true,
        };
    }

    /// What the provider had left at least: all calls sent up to a margin later came first.
    pub(super) fn low(&self, expect: &Expect, margin: Duration) -> i64 {
        let later = self
            .log
            .at_most_until(expect.told_at + margin)
            .saturating_sub(expect.total);
        let taken_since = self.corrected - expect.corrected;
        expect.remaining
            - signed(later)
            - signed(expect.unknown)
            - signed(taken_since)
            - self.come_since(expect, margin)
    }

    /// What our books had back by the telling that the provider may not have had when it answered.
    /// A full bucket takes no refill until a call arrives, and ours refills from the send on.
    fn come_since(&self, expect: &Expect, margin: Duration) -> i64 {
        let late = expect.told_at - expect.sent_at;
        match &self.meter {
            Meter::Bucket(_) => refilled(expect.count, self.spec.period, margin + late) + 1,
            Meter::Sliding(_) if !late.is_zero() => {
                let period = self.spec.period;
                let until = self.log.at_most_until(expect.told_at.before(period));
                let from = expect
                    .sent_at
                    .before(margin + self.late.most())
                    .before(period);
                signed(until.saturating_sub(self.log.at_least_before(from)))
            }
            Meter::Sliding(_) | Meter::Fixed(_) | Meter::Places => 0,
        }
    }

    pub(super) fn refill_in(&self, span: Duration) -> i64 {
        refilled(self.spec.count, self.spec.period, span)
    }

    /// What it had left at most: only calls sent a margin earlier had come, and what was about
    /// to come back had done so.
    pub(super) fn high(&self, expect: &Expect, margin: Duration) -> i64 {
        let before = expect.total - expect.own;
        let earlier =
            before.saturating_sub(self.log.at_least_before(expect.sent_at.before(margin)));
        let returned = self.returned - expect.returned;
        let taken = self.corrected - expect.corrected;
        expect.remaining + signed(returned) - signed(taken)
            + signed(earlier)
            + self.about_to_return(expect, margin)
    }

    pub(super) fn about_to_return(&self, expect: &Expect, margin: Duration) -> i64 {
        let (at, period) = (expect.sent_at, self.spec.period);
        match &self.meter {
            Meter::Places => 0,
            Meter::Bucket(_) => self.refill_in(margin * 2) + 1,
            Meter::Sliding(_) => {
                let reach = margin + period / 2_048 + self.put_off + self.late.most();
                let until = self.log.at_most_until((at + reach).before(period));
                let from = self.log.at_least_before(at.before(reach).before(period));
                signed(until.saturating_sub(from))
            }
            Meter::Fixed(window) => {
                let near_edge = window.spans_edge(at.before(margin), expect.told_at + margin);
                if near_edge {
                    signed(self.spec.count)
                } else {
                    0
                }
            }
        }
    }
}

/// What a bucket of this rate takes in within `span`.
pub(super) fn refilled(count: u64, period: Duration, span: Duration) -> i64 {
    let refill = u128::from(count) * span.as_nanos() / period.as_nanos().max(1);
    i64::try_from(refill).unwrap_or(i64::MAX / 4)
}
