use std::time::Duration;

use llmq_core::{Algorithm, CallSize, LimitKind, LimitSpec, Now, Timestamp, Usage};

use crate::Denied;
use crate::bucket::Bucket;
use crate::charge::{ChargeRule, InputCharge, OutputCharge};
use crate::doubts::Doubts;
use crate::factor::{Factor, Foreign};
use crate::fixed::Fixed;
use crate::learner::{Caution, Learner, Sample};
use crate::margin::within;
use crate::sent_log::SentLog;
use crate::sliding::{Sliding, signed};
use crate::survey::Survey;

mod hearing;
mod saved;

/// One limit with its books: what has been used, what is held, what the provider last said.
///
/// A call goes through it in steps: [`Limit::cost`] and [`Limit::check`] without side effects,
/// [`Limit::take`] when it is granted, [`Limit::sent`] when its bytes were written,
/// [`Limit::arrived`] and [`Limit::produced`] as the answer comes, and one of
/// [`Limit::settle`], [`Limit::failed`], [`Limit::give_back`] and [`Limit::refused`] at its end. What was granted
/// takes budget at once but has no date until it is sent, so a late send cannot be forgotten
/// early.
#[derive(Debug, Clone)]
pub struct Limit {
    spec: LimitSpec,
    rule: ChargeRule,
    meter: Meter,
    /// Granted or in flight, without a date.
    held: u64,
    /// The part of it that was granted and is not sent yet.
    unsent: u64,
    /// What calls without an answer were charged or hold.
    unanswered: u64,
    factor: Factor,
    learner: Learner,
    /// What our calls were charged since the word before the last one.
    lesson: Option<Sample>,
    survey: Survey,
    /// What was expected of the call sent last.
    last: Option<Expect>,
    /// What calls that were refused since then had been charged.
    uncharged: u64,
    caution: Caution,
    foreign: Foreign,
    /// What calls stated that were sent, and the squares of it, each summed up.
    stated: f64,
    squares: f64,
    /// The squares of what was granted and is not sent yet.
    squares_unsent: f64,
    /// The squares of what calls without an answer stated, granted ones included.
    squares_open: f64,
    log: SentLog,
    /// What headers showed to be gone that we had not charged, summed up.
    corrected: u64,
    /// What of it, or of our charges, later headers showed not to be gone.
    returned: u64,
    /// What may be returned where charges are no estimates.
    returnable: u64,
    heard: Heard,
    /// Charged since the last header for calls that the provider may not have counted.
    doubted: u64,
    /// Such charges that are still in the books.
    doubts: Doubts,
    /// Charges beyond this total wait until the books are on disk; none: no such rule.
    allowance: Option<u64>,
    /// What the last allowance let be taken.
    portion: u64,
    portion_told: bool,
    taken: u64,
    /// What our calls were charged in all, as far as that is settled.
    charged: i64,
}

#[derive(Debug, Clone)]
enum Meter {
    Sliding(Sliding),
    Bucket(Bucket),
    Fixed(Fixed),
    Places,
}

/// In how many steps of a period the use of others is taken to grow while nothing is heard.
const OTHERS_STEPS: u32 = 64;

/// So many standard deviations of what calls without a word may stray are held back; refusals
/// add to it.
const DEVIATIONS: f64 = 1.0;
/// What is used beyond this many times what we charged was not used by us.
const OURS_AT_MOST: f64 = 1.5;

/// The provider's last word, as of the call it answered.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    sent_at: Timestamp,
    /// The total sent when that call was.
    total: u64,
    stated: f64,
    squares: f64,
    /// What the provider had more than we thought, and still has.
    above: u64,
    /// How far its word was above the least that we thought possible.
    slack: i64,
    /// How much more was used than the books had, in the order of sending, and still is.
    residue: i64,
    /// By how much the order of arrival and rounding may have changed it.
    unsure: f64,
    any: bool,
}

impl Heard {
    /// Whether this is the word on that call.
    fn is_of(&self, expect: &Expect) -> bool {
        self.any && (self.sent_at, self.total) == (expect.sent_at, expect.total)
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

/// What one call costs one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Charged when it arrives.
    pub arrival: u64,
    /// Held until it ends.
    pub later: u64,
    /// The whole, as stated, before any learned factor: what is compared with the whole limit.
    stated: u64,
}

impl Cost {
    /// Both parts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.arrival.saturating_add(self.later)
    }
}

/// A call's place in one limit, from its grant to its end.
///
/// It must be given back to the limit it came from: dropped, it holds its place for ever.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a place that is not settled or given back is held for ever"]
pub struct Entry {
    cost: Cost,
    /// The whole cost when it was granted.
    granted: u64,
    state: EntryState,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum EntryState {
    Granted,
    Sent { expect: Expect, produced: u64 },
}

/// What we expected the provider to have left when it saw a call.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Expect {
    sent_at: Timestamp,
    /// The latest instant at which the call can have arrived.
    dated: Timestamp,
    /// What our books had left, this call charged.
    remaining: i64,
    own: u64,
    total: u64,
    stated: f64,
    squares: f64,
    corrected: u64,
    returned: u64,
    /// Which of the survey's groups it was sent with.
    group: u64,
    /// What was held for answers: the provider may have counted any part of it.
    unknown: u64,
}

/// What a provider's `remaining` says against our books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As expected, whatever the order in which calls arrived.
    Inside,
    /// This much is gone that we had not charged; it has been taken now.
    Below(u64),
    /// The provider has this much more than we thought.
    Above(u64),
    /// An older word than one already heard, with nothing to take away.
    Stale,
}

impl Limit {
    /// An unused limit.
    #[must_use]
    pub fn new(spec: LimitSpec, rule: ChargeRule, now: Now) -> Self {
        let meter = match (spec.kind, spec.algorithm) {
            (LimitKind::Concurrency, _) => Meter::Places,
            (_, Algorithm::Sliding) => Meter::Sliding(Sliding::new(spec.count, spec.period)),
            (_, Algorithm::Bucket { depth }) => {
                Meter::Bucket(Bucket::new(spec.count, spec.period, depth, now.mono))
            }
            (_, Algorithm::Fixed) => Meter::Fixed(Fixed::new(
                spec.count,
                spec.period,
                wall_offset(now, spec.period),
            )),
        };
        Self {
            spec,
            rule,
            meter,
            held: 0,
            unsent: 0,
            unanswered: 0,
            factor: Factor::default(),
            learner: Learner::new(1.0),
            lesson: None,
            last: None,
            uncharged: 0,
            survey: Survey::new(spec.period.max(Duration::from_secs(1)) + spec.period / 8),
            caution: Caution::default(),
            stated: 0.0,
            squares: 0.0,
            squares_unsent: 0.0,
            squares_open: 0.0,
            foreign: Foreign::default(),
            log: SentLog::new(spec.period.max(Duration::from_secs(1)) + spec.period / 8),
            corrected: 0,
            returned: 0,
            returnable: 0,
            heard: Heard::default(),
            doubted: 0,
            doubts: Doubts::default(),
            allowance: None,
            portion: 0,
            portion_told: false,
            taken: 0,
            charged: 0,
        }
    }

    /// The limit as stated.
    #[must_use]
    pub fn spec(&self) -> &LimitSpec {
        &self.spec
    }

    /// The learned charge factor.
    #[must_use]
    pub fn factor(&self) -> Factor {
        self.factor
    }

    /// Continues with a factor learned earlier.
    pub fn set_factor(&mut self, factor: Factor) {
        self.factor = factor;
        self.learner = Learner::new(factor.value());
    }

    /// Whether charges are estimates, so that a factor is worth learning.
    #[must_use]
    pub fn is_estimate(&self) -> bool {
        self.rule.is_estimate()
    }

    /// Changes the count; what is used stays used.
    pub fn set_count(&mut self, count: u64, now: Timestamp) {
        self.spec.count = count.max(1);
        match &mut self.meter {
            Meter::Sliding(window) => window.set_count(count.max(1)),
            Meter::Bucket(bucket) => bucket.set_count(count.max(1), now),
            Meter::Fixed(window) => window.set_count(count.max(1)),
            Meter::Places => {}
        }
    }

    /// What a call of `size` costs; `mean_output` is what answers of its kind took so far.
    #[must_use]
    pub fn cost(&self, size: &CallSize, mean_output: u64) -> Cost {
        let arrival = self.rule.on_arrival(size);
        let later = self.rule.held(size, mean_output);
        // The documented charge is a floor: the larger of estimate and cap is never undercut.
        let floor = match self.rule.output {
            OutputCharge::Cap { default } => {
                let input = match self.rule.input {
                    InputCharge::Tokens | InputCharge::Uncached => u64::from(size.input_tokens),
                    InputCharge::None | InputCharge::Call => 0,
                };
                size.output_cap(default).max(input)
            }
            OutputCharge::None | OutputCharge::Produced | OutputCharge::Place => 0,
        };
        let charged = if self.rule.is_estimate() {
            self.factor.apply(arrival).max(floor)
        } else {
            arrival
        };
        Cost {
            arrival: charged,
            later,
            stated: arrival,
        }
    }

    /// Whether a call of `cost` may start at `now`. `keep_back` of the limit is left alone (the
    /// share reserved for higher priorities).
    ///
    /// # Errors
    ///
    /// The earliest instant, an event to wait for, or never; see [`Denied`].
    pub fn check(
        &mut self,
        cost: Cost,
        keep_back: u64,
        now: Timestamp,
        margin: Duration,
    ) -> Result<(), Denied> {
        if cost.stated > self.spec.count && !matches!(self.meter, Meter::Places) {
            return Err(Denied::Never {
                limit: self.spec.count,
            });
        }
        if self
            .allowance
            .is_some_and(|allowance| self.taken.saturating_add(cost.total()) > allowance)
        {
            return Err(Denied::OnRelease);
        }
        let margin = within(margin, self.spec.period);
        // What is left alone for others never keeps a call from an unused limit: a large one
        // would wait for ever.
        let room = self.whole(margin).saturating_sub(cost.total());
        let aside = keep_back
            .min(self.spec.count - self.spec.count / 16)
            .saturating_add(self.others(now))
            .saturating_add(self.stray(cost))
            .min(room);
        let beside = self.held.saturating_add(aside);
        self.advance(now);
        match &self.meter {
            Meter::Sliding(window) => window.check(cost.total(), beside),
            Meter::Bucket(bucket) => bucket.check(cost.total(), beside, self.unsent, margin),
            Meter::Fixed(window) => window.check(cost.total(), beside, now, margin),
            Meter::Places if beside + cost.later <= self.spec.count => Ok(()),
            Meter::Places => Err(Denied::OnRelease),
        }
    }

    /// What others on the account may have used since the provider last spoke: at most a
    /// quarter of the limit is left alone for it.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "bounded by the count below"
    )]
    fn others(&self, now: Timestamp) -> u64 {
        if !self.heard.any {
            return 0;
        }
        // In steps: what grows with every instant would push the instant at which a call may
        // start before it, a little each time.
        let step = (self.spec.period / OTHERS_STEPS).max(Duration::from_nanos(1));
        let silent = (now - self.heard.sent_at).min(self.spec.period);
        let seconds = step.as_secs_f64() * (silent.as_nanos().div_ceil(step.as_nanos())) as f64;
        let most = self.whole(Duration::ZERO) / 4;
        (self.foreign.expected(seconds).ceil() as u64).min(most)
    }

    /// How far the calls of which the provider has not spoken yet, this one among them, may be
    /// charged more than we think.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a charge that is not negative"
    )]
    fn stray(&self, cost: Cost) -> u64 {
        let stray = DEVIATIONS * self.learner.stray() + self.caution.value();
        if stray == 0.0 {
            return 0;
        }
        let own = float(cost.stated);
        let mut squares = self.squares_open;
        if self.heard.any && self.learns_from_words() {
            // Of those sent before the call of the last word, that word spoke.
            let since = self.squares - self.heard.squares + self.squares_unsent;
            squares = squares.min(since);
        }
        let squares = squares.max(0.0) + own * own;
        (stray * squares.sqrt()) as u64
    }

    /// What can be in use at one time, less a bucket's margin.
    fn whole(&self, margin: Duration) -> u64 {
        match &self.meter {
            Meter::Bucket(bucket) => {
                let margin = u64::try_from(self.refill_in(margin)).unwrap_or(0);
                bucket.depth().saturating_sub(margin + 1)
            }
            Meter::Sliding(_) | Meter::Fixed(_) | Meter::Places => self.spec.count,
        }
    }

    fn advance(&mut self, now: Timestamp) {
        match &mut self.meter {
            Meter::Sliding(window) => window.advance(now),
            Meter::Bucket(bucket) => bucket.advance(now),
            Meter::Fixed(window) => window.advance(now),
            Meter::Places => {}
        }
    }

    /// Whether a call of `cost` would be one bet too many: the limit counts tokens as the provider
    /// sees them, and more than a tenth of it would be charged to calls without an answer.
    #[must_use]
    pub fn is_bold(&self, cost: Cost) -> bool {
        self.is_estimate()
            && self.unanswered > 0
            && self.unanswered.saturating_add(cost.total()) > self.whole(Duration::ZERO) / 10
    }

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

    /// The call's bytes were written at `now`: its charge on arrival gets its date.
    pub fn sent(&mut self, entry: &mut Entry, now: Timestamp, margin: Duration) {
        if entry.state != EntryState::Granted {
            return;
        }
        let margin = within(margin, self.spec.period);
        let own = entry.cost.arrival;
        self.held = self.held.saturating_sub(own);
        self.unsent = self.unsent.saturating_sub(own);
        let stated = float(entry.cost.stated);
        self.squares_unsent = (self.squares_unsent - stated * stated).max(0.0);
        self.stated += stated;
        self.squares += stated * stated;
        self.advance(now);
        let dated = now + margin;
        self.charge(signed(own), now.before(margin), dated);
        self.charged += signed(own);
        if let Meter::Fixed(window) = &self.meter
            && window.spans_edge(now.before(margin), dated)
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
        let group = if self.learns_from_words() {
            self.survey.sent(entry.cost.stated, now, margin)
        } else {
            0
        };
        let expect = Expect {
            group,
            sent_at: now,
            dated,
            remaining: self.books(now, margin),
            own,
            total: self.log.total(),
            stated: self.stated,
            squares: self.squares,
            corrected: self.corrected,
            returned: self.returned,
            unknown,
        };
        self.last = Some(expect);
        self.uncharged = 0;
        entry.state = EntryState::Sent {
            expect,
            produced: 0,
        };
    }

    /// Charges `amount` for a call that arrived between `from` and `to`.
    fn charge(&mut self, amount: i64, from: Timestamp, to: Timestamp) {
        match &mut self.meter {
            Meter::Sliding(window) => window.add(amount, to),
            Meter::Bucket(bucket) => bucket.take(amount),
            Meter::Fixed(window) => window.add(amount, from, to),
            Meter::Places => {}
        }
    }

    /// The provider has answered: the call had arrived by `at`, the answer's first byte less the
    /// provider's stated processing time. Where that time is stated (`proven`), it is the truth
    /// even if it is later than the margin allowed for; where it is not, a long answer only
    /// proves that the call had arrived before it.
    pub fn arrived(&mut self, entry: &mut Entry, at: Timestamp, proven: bool) {
        let EntryState::Sent { expect, .. } = &mut entry.state else {
            return;
        };
        // On a busy machine the answer may have been read late, which proves less than it seems:
        // no more than a tenth of the window is given up for it.
        let latest = expect.sent_at + self.spec.period / 10;
        let at = if proven {
            at.min(latest)
        } else {
            at.min(expect.dated)
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
        match &self.meter {
            Meter::Fixed(window) => window.spans_edge(now.before(self.spec.period / 100), now),
            Meter::Sliding(_) | Meter::Bucket(_) | Meter::Places => false,
        }
    }

    /// The call ended. With `usage` estimates are corrected in either direction, below zero if
    /// need be; without it, what was taken stays taken.
    pub fn settle(&mut self, mut entry: Entry, usage: Option<&Usage>, now: Timestamp) {
        let EntryState::Sent { expect, produced } = entry.state else {
            return self.give_back(entry);
        };
        self.close(&entry);
        self.caution.admitted();
        if usage.is_none() {
            self.doubt(&entry);
        }
        self.conclude_survey();
        self.reconcile(now);
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
        if let Some(real) = usage.and_then(|usage| self.rule.settled(usage)) {
            self.learn_input(entry.cost.stated, real);
            self.advance(now);
            let correction = signed(real) - signed(expect.own);
            self.charge(correction, expect.dated, expect.dated);
            self.charged += correction;
        }
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

    fn learn(&mut self, sample: &Sample, share: f64) {
        self.learner.learn(sample, share);
        self.factor.follow(self.learner.factor());
    }

    /// A call that was sent at `sent_at` and has been settled turns out to have cost `amount`
    /// more, or less where that is negative.
    pub fn correct(&mut self, amount: i64, sent_at: Timestamp, now: Timestamp) {
        self.advance(now);
        match &mut self.meter {
            Meter::Sliding(window) if amount < 0 => window.take_back(amount, sent_at),
            _ => self.charge(amount, sent_at, sent_at),
        }
        self.charged += amount;
    }

    fn close(&mut self, entry: &Entry) {
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
            self.charged -= signed(expect.own);
            self.survey
                .refused(entry.cost.stated, expect.sent_at, self.spec.period);
            self.caution.refused(expect.sent_at, now);
            self.unlearn_refused(&expect, now);
            if self.rule.is_estimate() {
                self.advance(now);
                self.charge(-signed(expect.own), expect.dated, expect.dated);
                self.uncharged = self.uncharged.saturating_add(expect.own);
            }
        }
        self.conclude_survey();
        self.give_back(entry);
        self.reconcile(now);
    }

    /// The call failed with an answer of the provider's: what it was charged on arrival and what
    /// it has produced stays; what was held for the rest of its answer is free.
    pub fn failed(&mut self, entry: Entry) {
        self.doubt(&entry);
        self.conclude_survey();
        self.give_back(entry);
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

    /// What our books have left: negative in debt. Calls that are held are not counted, since
    /// the provider does not know them yet.
    fn books(&self, now: Timestamp, margin: Duration) -> i64 {
        let count = signed(self.spec.count);
        match &self.meter {
            Meter::Sliding(window) => count - window.used(),
            Meter::Bucket(bucket) => bucket.remaining(),
            Meter::Fixed(window) => count - window.used(now, margin),
            Meter::Places => count - signed(self.held),
        }
    }

    /// The share of the limit that is in use or held, 0 to 1 (above 1 in debt).
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub fn in_use(&mut self, now: Timestamp) -> f64 {
        self.advance(now);
        let held = if matches!(self.meter, Meter::Places) {
            0
        } else {
            self.held
        };
        let left = self.books(now, Duration::ZERO) - signed(held);
        let most = match &self.meter {
            Meter::Bucket(bucket) => bucket.depth(),
            Meter::Sliding(_) | Meter::Fixed(_) | Meter::Places => self.spec.count,
        };
        1.0 - left as f64 / most.max(1) as f64
    }

    /// Whether nothing is in flight or granted.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held == 0
    }

    /// What calls of ours that ran were charged since the limit was made, corrections included.
    #[must_use]
    pub fn charged(&self) -> u64 {
        u64::try_from(self.charged).unwrap_or(0)
    }

    /// What calls in flight or granted hold.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Begins with `remaining` left: for a limit that an answer's headers told of.
    pub fn start_with(&mut self, remaining: u64, now: Timestamp) {
        let used = self.spec.count.saturating_sub(remaining);
        self.charge(signed(used), now, now);
    }

    /// Whether a refusal of `entry`'s call by this limit should have been foreseen: calls of
    /// our own, in the worst order that the margin allows, fill the limit.
    #[must_use]
    pub fn should_have_foreseen(&self, entry: &Entry, margin: Duration) -> bool {
        match entry.state {
            EntryState::Sent { expect, .. } => {
                self.low(&expect, within(margin, self.spec.period)) < 0
            }
            EntryState::Granted => false,
        }
    }
}

/// The wall clock at timestamp zero, in ns modulo the period, so that fixed windows start
/// where the calendar's do. Taken once: a later jump of the wall moves no window.
fn wall_offset(now: Now, period: Duration) -> u64 {
    let period = i128::try_from(period.as_nanos())
        .unwrap_or(i128::MAX)
        .max(1);
    let wall = i128::from(now.wall.as_micros()) * 1_000 - i128::from(now.mono.as_nanos());
    u64::try_from(wall.rem_euclid(period)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
