use std::time::Duration;

use llmq_core::{Algorithm, LimitKind, LimitSpec, Now, Timestamp};

use crate::bucket::Bucket;
use crate::charge::{ChargeRule, OutputCharge};
use crate::doubts::Doubts;
use crate::factor::Factor;
use crate::fixed::Fixed;
use crate::foreign::Foreign;
use crate::learner::{Caution, Learner, Sample};
use crate::margin::within;
use crate::sent_log::SentLog;
use crate::sliding::{Sliding, signed};
use crate::survey::Survey;
use crate::tail::Tail;

mod entry;

mod asking;
mod hearing;
mod joining;
mod late;
mod life;
mod others;
mod quiet;
mod saved;

pub use entry::{Cost, Entry, Settled, Verdict};
pub use joining::{FirstWord, UnderWay};

use entry::{EntryState, Expect, When};
use late::Late;

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
    /// The count, or what it was before a word that nothing has confirmed yet.
    believed: u64,
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
    tail: Tail,
    /// By how much a call's date was put off on the word of a quick answer alone.
    put_off: Duration,
    /// How late we were told that calls had been sent.
    late: Late,
    /// What was expected of the call sent last.
    last: Option<Expect>,
    caution: Caution,
    foreign: Foreign,
    /// When a call was refused last.
    refused_at: Option<Timestamp>,
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
    /// The most that a call needed which the allowance was too small for.
    short: u64,
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

/// How long it is remembered what was sent: an answer tells what had been used one period before
/// its call was sent, so one that takes longer than what is beyond the period tells nothing.
fn remembered(period: Duration) -> Duration {
    period + (period.max(Duration::from_secs(1)) * 3).min(LONG_ANSWER)
}

/// No answer is expected to take longer.
const LONG_ANSWER: Duration = Duration::from_secs(600);

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
    /// What others may have used before it, for all that it says.
    unseen: u64,
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
            believed: spec.count,
            rule,
            meter,
            held: 0,
            unsent: 0,
            unanswered: 0,
            factor: Factor::default(),
            learner: Learner::new(1.0),
            lesson: None,
            put_off: Duration::ZERO,
            late: Late::default(),
            last: None,
            survey: Survey::new(remembered(spec.period)),
            tail: Tail::default(),
            caution: Caution::default(),
            stated: 0.0,
            squares: 0.0,
            squares_unsent: 0.0,
            squares_open: 0.0,
            foreign: Foreign::new(spec.period),
            refused_at: None,
            log: SentLog::new(remembered(spec.period)),
            corrected: 0,
            returned: 0,
            returnable: 0,
            heard: Heard::default(),
            doubted: 0,
            doubts: Doubts::default(),
            allowance: None,
            portion: 0,
            portion_told: false,
            short: 0,
            taken: 0,
            charged: 0,
        }
    }

    /// The limit as stated.
    #[must_use]
    pub fn spec(&self) -> &LimitSpec {
        &self.spec
    }

    /// How it charges.
    #[must_use]
    pub fn rule(&self) -> ChargeRule {
        self.rule
    }

    /// The learned charge factor.
    #[must_use]
    pub fn factor(&self) -> Factor {
        self.factor
    }

    /// The charge factor, once enough answers have shown it; none for a limit whose charges are
    /// no estimates. For the next process: see [`Limit::set_factor`].
    #[must_use]
    pub fn learned_factor(&self) -> Option<Factor> {
        (self.is_estimate() && self.factor.is_calibrated()).then_some(self.factor)
    }

    /// Continues with a factor learned earlier. It is followed no less readily for that: a few
    /// answers that say otherwise overrule it.
    pub fn set_factor(&mut self, factor: Factor) {
        if self.is_estimate() {
            self.factor = factor;
            self.learner = Learner::new(factor.value());
        }
    }

    /// Whether charges are estimates, so that a factor is worth learning.
    #[must_use]
    pub fn is_estimate(&self) -> bool {
        self.rule.is_estimate()
    }

    /// Whether it is charged for output as that is produced.
    #[must_use]
    pub fn counts_output(&self) -> bool {
        self.rule.output == OutputCharge::Produced
    }

    /// Changes the count; what is used stays used.
    pub fn set_count(&mut self, count: u64, now: Timestamp) {
        self.set_count_for_now(count, now);
        self.believe();
    }

    /// The same on the word of a single answer, which may mislead: a call that was not too large
    /// before still is not, and goes alone.
    pub fn set_count_for_now(&mut self, count: u64, now: Timestamp) {
        if count != self.spec.count {
            self.survey.begin_anew(now);
        }
        self.spec.count = count.max(1);
        match &mut self.meter {
            Meter::Sliding(window) => window.set_count(count.max(1)),
            Meter::Bucket(bucket) => bucket.set_count(count.max(1), now),
            Meter::Fixed(window) => window.set_count(count.max(1)),
            Meter::Places => {}
        }
    }

    /// What a single answer told of the count is so.
    pub fn believe(&mut self) {
        self.believed = self.spec.count;
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

    /// The least that a call can have met which was written between `at` and `now`.
    fn books_met(&self, at: Timestamp, now: Timestamp, margin: Duration) -> i64 {
        match &self.meter {
            Meter::Fixed(window) => {
                signed(self.spec.count) - window.used_between(at.before(margin), now + margin)
            }
            Meter::Sliding(_) | Meter::Bucket(_) | Meter::Places => self.books(now, margin),
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

    /// Begins with `remaining` left: for a limit of which nothing else is known.
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
