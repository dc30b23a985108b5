//! A call's way through a limit, from its grant to its end.

use std::time::Duration;

use llmq_core::{Timestamp, Usage};

use super::{Cost, Entry, EntryState, Expect, Limit, Meter, Settled, When, float};
use crate::charge::{OutputCharge, Refund};
use crate::learner::Sample;
use crate::margin::within;
use crate::sliding::signed;

/// No longer is a call taken to have been held up on its way, unless its provider says so.
const HELD_UP: Duration = Duration::from_millis(50);

impl Limit {
    /// Takes what [`Limit::check`] allowed.
    pub fn take(&mut self, cost: Cost) -> Entry {
        self.held = self.held.saturating_add(cost.total());
        self.unsent = self.unsent.saturating_add(cost.arrival);
        self.squares_unsent += float(cost.stated).powi(2);
        self.squares_open += float(cost.stated).powi(2);
        self.unanswered = self.unanswered.saturating_add(cost.total());
        self.taken = self.taken.saturating_add(cost.total());
        Entry {
            cost,
            granted: cost.total(),
            state: EntryState::Granted,
        }
    }

    /// The call's bytes were written between `at` and `now`: its charge on arrival gets its date.
    ///
    /// `at` may lie before calls that were told of earlier: on a busy machine a thread may be held
    /// up between writing and telling, even until the answer is there.
    pub fn sent(&mut self, entry: &mut Entry, at: Timestamp, now: Timestamp, margin: Duration) {
        if entry.state != EntryState::Granted {
            return;
        }
        let margin = within(margin, self.spec.period);
        let at = at.min(now);
        let stated = entry.cost.stated;
        let learns = self.learns_from_words();
        let group = learns.then(|| self.survey.sent(stated, at, now, margin));
        self.date(entry, at, now, margin, group);
    }

    /// The same; what the survey is told of it is the caller's.
    pub(super) fn date(
        &mut self,
        entry: &mut Entry,
        at: Timestamp,
        now: Timestamp,
        margin: Duration,
        group: Option<u64>,
    ) {
        let own = entry.cost.arrival;
        self.held = self.held.saturating_sub(own);
        self.unsent = self.unsent.saturating_sub(own);
        let stated = float(entry.cost.stated);
        self.squares_unsent = (self.squares_unsent - stated * stated).max(0.0);
        self.stated += stated;
        self.squares += stated * stated;
        self.advance(now);
        let dated = now + margin;
        self.charge(signed(own), at.before(margin), dated);
        self.charged += signed(own);
        if let Meter::Fixed(window) = &self.meter
            && window.spans_edge(at.before(margin), dated)
        {
            // Counted in both windows, and by the provider in one.
            self.doubted = self.doubted.saturating_add(own);
        }
        self.log.add(own, now);
        let unknown = if self.rule.output == OutputCharge::Produced {
            self.held
        } else {
            0
        };
        self.late.seen(now - at, now, self.spec.period);
        let expect = Expect {
            group,
            is_outdated: false,
            tail: self.tail.sent(at, now, margin),
            sent_at: at,
            told_at: now,
            dated,
            count: self.spec.count,
            remaining: self.books_met(at, now, margin),
            own,
            total: self.log.total(),
            stated: self.stated,
            squares: self.squares,
            corrected: self.corrected,
            returned: self.returned,
            unknown,
        };
        self.last = Some(expect);
        entry.state = EntryState::Sent {
            expect,
            produced: 0,
        };
    }

    /// Charges `amount` for a call that arrived between `from` and `to`.
    pub(super) fn charge(&mut self, amount: i64, from: Timestamp, to: Timestamp) {
        match &mut self.meter {
            Meter::Sliding(window) => window.add(amount, to),
            Meter::Bucket(bucket) => bucket.take(amount),
            Meter::Fixed(window) => window.add(amount, from, to),
            Meter::Places => {}
        }
    }

    /// The provider has answered: the call had arrived by `at`, the answer's first byte less the
    /// provider's stated processing time. Where that time is stated (`proven`), it is the truth
    /// even if it is later than the margin allowed for. Where it is not, an answer within a
    /// hundredth of the window and 50 ms is believed as well: that costs next to nothing, and
    /// the call may have been held up on its way. A longer one only proves that the call had
    /// arrived before it.
    pub fn arrived(&mut self, entry: &mut Entry, at: Timestamp, proven: bool) {
        let EntryState::Sent { expect, .. } = &mut entry.state else {
            return;
        };
        // On a busy machine the answer may have been read late, which proves less than it seems:
        // no more than a tenth of the window is given up for it.
        let most = match proven {
            true => self.spec.period / 10,
            false => (self.spec.period / 100).min(HELD_UP),
        };
        // How late we were told that it was sent is no part of that.
        let latest = match proven {
            true => expect.told_at + most,
            false => expect.sent_at + most,
        };
        let at = match proven || at <= latest {
            true => at.min(latest),
            false => at.min(expect.dated),
        };
        if at == expect.dated {
            return;
        }
        // Not before it was sent: a clock of the provider's own cannot prove that.
        let at = at.max(expect.sent_at);
        let own = signed(expect.own);
        match &mut self.meter {
            Meter::Sliding(window) => {
                window.add(-own, expect.dated);
                window.add(own, at);
                if !proven {
                    // The provider may see it leave its window so much earlier.
                    self.put_off = self.put_off.max(at - expect.dated);
                }
                expect.dated = at;
            }
            // A bucket forgets dates, and a fixed window keeps both sides of an edge.
            Meter::Bucket(_) | Meter::Fixed(_) | Meter::Places => {}
        }
    }

    /// The answer has `tokens` so far. True when another call may start earlier than it was told
    /// for it: just after the edge of a fixed window, what streams in is held in the old one no
    /// more.
    pub fn produced(&mut self, entry: &mut Entry, tokens: u64, now: Timestamp) -> bool {
        if self.rule.output != OutputCharge::Produced {
            return false;
        }
        let EntryState::Sent { produced, .. } = &mut entry.state else {
            return false;
        };
        let new = tokens.saturating_sub(*produced);
        *produced = (*produced).max(tokens);
        let freed = new.min(entry.cost.later);
        entry.cost.later -= freed;
        self.held = self.held.saturating_sub(freed);
        self.advance(now);
        self.charge(signed(new), now, now);
        self.charged += signed(new);
        self.tail.charged(signed(new), now);
        match &self.meter {
            Meter::Fixed(window) => window.spans_edge(now.before(self.spec.period / 100), now),
            Meter::Sliding(_) | Meter::Bucket(_) | Meter::Places => false,
        }
    }

    /// The call ended. With `usage` estimates are corrected in either direction, below zero if
    /// need be; without it, what was taken stays taken. Returns what it was charged where usage
    /// that is told later may [correct](Limit::correct) it.
    pub fn settle(
        &mut self,
        mut entry: Entry,
        usage: Option<&Usage>,
        now: Timestamp,
    ) -> Option<Settled> {
        let EntryState::Sent { expect, produced } = entry.state else {
            self.give_back(entry);
            return None;
        };
        self.close(&entry);
        self.caution.admitted();
        if usage.is_none() {
            self.doubt(&entry);
        }
        self.conclude_survey();
        match (self.rule.output, usage) {
            (OutputCharge::Produced, Some(usage)) => {
                self.produced(&mut entry, usage.output_tokens, now);
            }
            // Nobody knows what it produced: the estimate is charged.
            (OutputCharge::Produced, None) => {
                let rest = produced.saturating_add(entry.cost.later);
                self.produced(&mut entry, rest, now);
            }
            (OutputCharge::Place | OutputCharge::None | OutputCharge::Cap { .. }, _) => {}
        }
        self.held = self.held.saturating_sub(entry.cost.later);
        let real = usage.and_then(|usage| self.rule.settled(usage));
        if let Some(real) = real {
            self.learn_input(entry.cost.stated, real);
            self.advance(now);
            let correction = signed(real) - signed(expect.own);
            self.charge(correction, expect.dated, expect.dated);
            self.charged += correction;
            self.tail.charged(correction, now);
        }
        let settled = self.settled(&entry, now);
        self.reconcile(now);
        let settled = settled?;
        Some(Settled {
            arrival: real.unwrap_or(settled.arrival),
            is_told: usage.is_some(),
            ..settled
        })
    }

    /// What a call that ends is charged, where that is corrected to what it used.
    fn settled(&mut self, entry: &Entry, now: Timestamp) -> Option<Settled> {
        let EntryState::Sent { expect, produced } = entry.state else {
            return None;
        };
        if self.rule.refund != Refund::ToUsage {
            return None;
        }
        self.advance(now);
        Some(Settled {
            stated: entry.cost.stated,
            arrival: expect.own,
            output: produced,
            returned: self.returned,
            when: match &self.meter {
                Meter::Bucket(bucket) => When::Drawn(bucket.mark()),
                Meter::Sliding(_) | Meter::Fixed(_) | Meter::Places => {
                    When::Dated(expect.dated, now)
                }
            },
            is_told: false,
        })
    }

    /// A provider that corrects to usage charges usage: its factor is real over estimate.
    fn learn_input(&mut self, stated: u64, real: u64) {
        if stated == 0 || real == 0 {
            return;
        }
        let stated = float(stated);
        let sample = Sample {
            stated,
            squares: stated * stated,
            used: float(real),
            unsure: 0.0,
        };
        self.learn(&sample, 1.0);
    }

    pub(super) fn learn(&mut self, sample: &Sample, share: f64) {
        self.learner.learn(sample, share);
        self.factor.follow(self.learner.factor());
    }

    /// Somebody tells what a call used that has ended: its charges become what they would be had
    /// it been told in time. What has left the window since is neither taken nor given back, nor
    /// is given back what the provider's words have returned since.
    pub fn correct(&mut self, settled: &mut Settled, usage: &Usage, now: Timestamp) {
        let real = self.rule.settled(usage);
        if let Some(real) = real.filter(|_| !settled.is_told) {
            self.learn_input(settled.stated, real);
        }
        let arrival = real.unwrap_or(settled.arrival);
        let output = match self.rule.output {
            OutputCharge::Produced => usage.output_tokens,
            OutputCharge::Place | OutputCharge::None | OutputCharge::Cap { .. } => settled.output,
        };
        let more = [(arrival, settled.arrival), (output, settled.output)]
            .map(|(now, before)| signed(now) - signed(before));
        self.charged = self.charged.saturating_add(more[0].saturating_add(more[1]));
        let more = more.map(|more| {
            self.tail.charged(more, now);
            let less = u64::try_from(-more).unwrap_or(0);
            let known = less.min(self.returned.saturating_sub(settled.returned));
            settled.returned += known;
            more + signed(known)
        });
        self.advance(now);
        let sum = more[0].saturating_add(more[1]);
        match (&mut self.meter, &mut settled.when) {
            (Meter::Bucket(bucket), When::Drawn(mark)) => {
                bucket.correct(sum, *mark);
                *mark = bucket.mark();
            }
            (_, When::Dated(arrived, ended)) => {
                let (arrived, ended) = (*arrived, *ended);
                self.charge(more[0], arrived, arrived);
                self.charge(more[1], ended, ended);
            }
            (_, When::Drawn(_)) => {}
        }
        (settled.arrival, settled.output) = (arrival, output);
        settled.is_told = true;
    }

    pub(super) fn close(&mut self, entry: &Entry) {
        self.unanswered = self.unanswered.saturating_sub(entry.granted);
        self.squares_open = (self.squares_open - float(entry.cost.stated).powi(2)).max(0.0);
    }

    /// The call was never sent: everything it held is free again.
    pub fn give_back(&mut self, entry: Entry) {
        self.close(&entry);
        match entry.state {
            EntryState::Granted => {
                self.held = self.held.saturating_sub(entry.cost.total());
                self.unsent = self.unsent.saturating_sub(entry.cost.arrival);
                self.squares_unsent =
                    (self.squares_unsent - float(entry.cost.stated).powi(2)).max(0.0);
                self.taken = self.taken.saturating_sub(entry.cost.total());
            }
            EntryState::Sent { .. } => self.held = self.held.saturating_sub(entry.cost.later),
        }
    }

    /// The provider refused the call before it ran: its tokens are free again, but refused
    /// calls still count against a limit on calls (`OpenAI`'s rate-limit guide, 2026).
    pub fn refused(&mut self, entry: Entry, now: Timestamp) {
        if let EntryState::Sent { expect, .. } = entry.state {
            self.refused_at = Some(now);
            self.caution.refused(expect.sent_at, now);
        }
        self.refused_for_another(entry, now);
    }

    /// The same where this limit cannot be what the call was refused for: it holds back no more
    /// than before.
    pub fn refused_for_another(&mut self, entry: Entry, now: Timestamp) {
        if let EntryState::Sent { expect, .. } = entry.state {
            self.charged -= signed(expect.own);
            self.survey
                .refused(entry.cost.stated, expect.sent_at, self.spec.period);
            self.unlearn_refused(&expect, now);
            // A word that came later had not counted it, and the books are by that.
            if self.rule.is_estimate() && !expect.is_outdated {
                self.advance(now);
                self.charge(-signed(expect.own), expect.dated, expect.dated);
            }
        }
        self.conclude_survey();
        self.give_back(entry);
        self.reconcile(now);
    }

    /// The call failed with an answer of the provider's: what it was charged on arrival and what
    /// it has produced stays; what was held for the rest of its answer is free. Returns the same
    /// as [`Limit::settle`].
    pub fn failed(&mut self, entry: Entry, now: Timestamp) -> Option<Settled> {
        self.doubt(&entry);
        self.conclude_survey();
        self.give_back(entry);
        let settled = self.settled(&entry, now);
        self.reconcile(now);
        settled
    }

    /// The provider may not have counted the call: that it has more left than we thought says
    /// nothing about how it charges then, whether that was seen already or will be.
    fn doubt(&mut self, entry: &Entry) {
        if let EntryState::Sent { expect, .. } = entry.state {
            self.doubted = self.doubted.saturating_add(expect.own);
            if matches!(self.meter, Meter::Sliding(_)) && expect.own > 0 {
                self.doubts.add(expect.dated, expect.own, self.spec.period);
            }
            self.survey
                .doubt(entry.cost.stated, expect.sent_at, self.spec.period);
            if self.heard.total >= expect.total {
                self.lesson = None;
            }
        }
    }
}
