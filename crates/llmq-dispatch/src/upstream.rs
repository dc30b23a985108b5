use std::time::Duration;

use llmq_core::Host;
use llmq_core::{FailureClass, Now, Timestamp};
use llmq_limit::{
    Adaptive, AdaptiveConfig, Admit, Breaker, CallRole, Margin, MinuteGate, PauseAdvice,
    PauseReason, PauseScope, QuotaEvent, QuotaMonitor, QuotaState, RampGuard, SlowStart,
};

use crate::heard_of::HeardOf;
use crate::ids::LimitId;
use crate::order::{Fair, WaitList};
use crate::setup::UpstreamSetup;

/// An upstream's own state, limits apart.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    pub(crate) limits: Vec<LimitId>,
    pub(crate) credential: Option<u32>,
    pub(crate) breaker: Breaker,
    pub(crate) margin: Margin,
    /// It takes nothing; by a failure's word.
    pub(crate) closed: Option<Closed>,
    /// The 429 that closed it came from a limit that nobody knows.
    pub(crate) was_unforeseen: bool,
    /// It is open again after such a 429, and takes calls little by little.
    slow_start: Option<SlowStart>,
    /// After a refusal that a person need not mend, it is tried by one call.
    trial: Option<Trial>,
    /// It has answered a call.
    pub(crate) has_completed: bool,
    /// It takes nothing below `high` until then, to spare the day's quota.
    pub(crate) low_closed: Option<Timestamp>,
    /// It takes nothing until then: the day's quota is used up.
    pub(crate) quota_closed: Option<Timestamp>,
    /// The provider refuses until then what it has no quota for any more.
    day_refused: Option<Timestamp>,
    pub(crate) quota: Option<QuotaMonitor>,
    pub(crate) quota_is_saved: bool,
    /// The quota's count is being written.
    pub(crate) saving: bool,
    /// When it is looked whether what shuts it is over.
    pub(crate) gate_timer: Option<Timestamp>,
    pub(crate) gate: WaitList,
    pub(crate) low_gate: WaitList,
    /// In whose turn its calls go, where no limit of its own keeps that.
    pub(crate) fair: Fair,
    pub(crate) in_flight: u64,
    /// Failures in a row that closed the gate, for their backoff.
    pub(crate) closures: u32,
    /// Concurrency that adapts, and the limit it moves.
    pub(crate) adaptive: Option<(Adaptive, LimitId)>,
    /// By what it adapts.
    pub(crate) adaptive_by: Option<AdaptiveConfig>,
    pub(crate) learn_as: Option<Host>,
    /// What headers told of its limits.
    pub(crate) heard_of: HeardOf,
    /// Holds the rate back after the provider found that it rose too fast.
    pub(crate) ramp: RampGuard,
    pub(crate) ask_before_betting: bool,
    answers: u32,
    mean: Mean,
    /// Lets one warning a minute of headers that cannot be read through.
    pub(crate) garbled: MinuteGate,
    /// It is not configured any more.
    pub(crate) retired: bool,
}

/// One call at a time finds out whether an upstream takes calls again.
#[derive(Debug, Clone, Copy)]
struct Trial {
    since: Timestamp,
    /// A call that was granted since then is under way.
    is_out: bool,
}

/// Why and how long an upstream takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) class: FailureClass,
    /// None: until a person acts.
    pub(crate) until: Option<Timestamp>,
    pub(crate) since: Timestamp,
}

/// A gate that is shut, as admission sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GateState {
    /// When it may open, if that is an instant.
    pub(crate) until: Option<Timestamp>,
    /// When to look again at the latest.
    pub(crate) wake: Option<Timestamp>,
    /// It is shut because the upstream is broken or refuses us, so that a fallback should serve
    /// even calls that could wait.
    pub(crate) down: bool,
    /// It opens with the next answer.
    pub(crate) soon: bool,
}

/// So many limits are learned of an upstream: each is asked at every decision, and a server may
/// state new ones without end.
pub(crate) const LEARNED_MAX: usize = 16;
/// Answers that calibrate an upstream's charges …
const CALIBRATED: u32 = 50;
/// … and how many calls may be unanswered until then.
const BETS: u64 = 200;
/// No gate sleeps longer without looking at the wall clock again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl Upstream {
    pub(crate) fn new(
        setup: UpstreamSetup,
        adaptive: Option<(LimitId, AdaptiveConfig)>,
        now: Now,
    ) -> Self {
        let mut limits = each_once(setup.limits);
        limits.extend(adaptive.as_ref().map(|(limit, _)| *limit));
        Self {
            name: setup.name,
            limits,
            adaptive_by: adaptive.as_ref().map(|(_, config)| *config),
            adaptive: adaptive.map(|(limit, config)| (Adaptive::new(config), limit)),
            learn_as: setup.learn_as,
            heard_of: HeardOf::default(),
            credential: setup.credential,
            breaker: Breaker::new(setup.breaker),
            margin: Margin::new(now.mono),
            closed: None,
            was_unforeseen: false,
            slow_start: None,
            trial: None,
            has_completed: false,
            low_closed: None,
            quota_closed: None,
            day_refused: None,
            quota: setup.quota,
            quota_is_saved: setup.quota_is_saved,
            saving: false,
            gate_timer: None,
            gate: WaitList::default(),
            low_gate: WaitList::default(),
            fair: Fair::default(),
            in_flight: 0,
            closures: 0,
            ramp: RampGuard::default(),
            ask_before_betting: setup.ask_before_betting,
            answers: 0,
            mean: Mean::default(),
            garbled: MinuteGate::default(),
            retired: false,
        }
    }

    /// Whether it takes nothing now, and why; none: it does take calls.
    pub(crate) fn gate_state(&self, now: Now) -> Option<GateState> {
        let shut = |until: Option<Timestamp>, down, soon| {
            Some(GateState {
                until,
                wake: until,
                down,
                soon,
            })
        };
        if let Some(closed) = self.closed {
            let down = matches!(closed.class, FailureClass::NoAccess | FailureClass::Money);
            return shut(closed.until, down, false);
        }
        if self.trial.is_some_and(|trial| trial.is_out) {
            return shut(None, true, false);
        }
        if let Some(until) = self.breaker.opens_at(now) {
            return shut(Some(until), true, false);
        }
        if self.saving {
            return shut(None, false, true);
        }
        if let Some(until) = self.quota_closed {
            return Some(GateState {
                until: Some(until),
                wake: Some(look_again(until, now)),
                down: false,
                soon: false,
            });
        }
        if self.is_betting() && self.in_flight >= BETS {
            return shut(None, false, true);
        }
        let next = self.slow_start.and_then(|slow| slow.check(now).err())?;
        Some(GateState {
            until: None,
            wake: Some(next),
            down: false,
            soon: true,
        })
    }

    /// When what shuts it may be over, or is to be looked at again.
    pub(crate) fn looks_again_at(&self, now: Now) -> Option<Timestamp> {
        let closed = self.closed.and_then(|closed| closed.until);
        let days = [self.quota_closed, self.low_closed].into_iter().flatten();
        let days = days.map(|until| look_again(until, now));
        days.chain(closed).min()
    }

    /// What had closed it is over. A limit that is known holds back those that wait; where it is
    /// not, all of them would go at once, and all but a few be refused again.
    pub(crate) fn open_again(&mut self, now: Now) -> Option<Closed> {
        let closed = self.closed.take()?;
        self.slow_start = std::mem::take(&mut self.was_unforeseen).then(|| SlowStart::new(now));
        Some(closed)
    }

    /// The provider has taken a call that was granted then: it answered, and with no 429.
    pub(crate) fn has_taken(&mut self, granted_at: Timestamp) {
        if let Some(slow) = self.slow_start_since(granted_at) {
            slow.taken();
        }
    }

    /// A call that was granted then has not been sent.
    pub(crate) fn has_not_sent(&mut self, granted_at: Timestamp) {
        if let Some(slow) = self.slow_start_since(granted_at) {
            slow.given_back();
        }
    }

    fn slow_start_since(&mut self, granted_at: Timestamp) -> Option<&mut SlowStart> {
        let slow = self.slow_start.as_mut();
        slow.filter(|slow| slow.since() <= granted_at)
    }

    /// Until when nothing below `high` is taken, to spare the day's quota, and when to look again.
    pub(crate) fn low_gate_state(&self, now: Now) -> Option<Timestamp> {
        self.low_closed.map(|until| look_again(until, now))
    }

    /// Whether a call's charges are still a bet on how this upstream counts.
    pub(crate) fn is_betting(&self) -> bool {
        self.ask_before_betting && self.answers < CALIBRATED
    }

    /// A call starts; whether it is the breaker's probe.
    pub(crate) fn begin(&mut self, now: Now) -> bool {
        if let Some(slow) = &mut self.slow_start {
            slow.started();
        }
        if let Some(trial) = &mut self.trial {
            trial.is_out = true;
        }
        self.breaker.admit(now) == Admit::Probe
    }

    /// Counts a call against the day and reserves the next one. The state must be on disk before
    /// that one starts.
    pub(crate) fn count_request(&mut self, now: Now) -> (Vec<QuotaEvent>, Option<QuotaState>) {
        let Some(quota) = &mut self.quota else {
            return (Vec::new(), None);
        };
        let events = quota.record_request(now);
        let state = if self.quota_is_saved {
            quota.draw(now)
        } else {
            None
        };
        self.saving |= state.is_some();
        (events, state)
    }

    /// Brings the gates in line with what the quota says; true if either changed.
    pub(crate) fn heed_quota(&mut self, now: Now) -> bool {
        let quota = self.quota.as_ref();
        let pause_of = |work| quota.and_then(|quota| quota.pause_of(work, now));
        let until = |advice: &PauseAdvice| now.when(advice.resume_at);
        // A short refusal of all work ends at its time, though work below `high` waits longer.
        let all = pause_of(PauseScope::All);
        let low = pause_of(PauseScope::BelowHigh).as_ref().map(until);
        let told = all
            .as_ref()
            .filter(|advice| matches!(advice.reason, PauseReason::Told(_)));
        self.day_refused = told.map(until);
        let before = (self.low_closed.is_some(), self.quota_closed.is_some());
        self.low_closed = low;
        self.quota_closed = all.as_ref().map(until);
        before != (self.low_closed.is_some(), self.quota_closed.is_some())
    }

    /// What refused work altogether, and until when (none: until a person acts).
    pub(crate) fn refused_by(&self) -> Option<(FailureClass, Option<Timestamp>)> {
        let closed = self.closed.map(|closed| (closed.class, closed.until));
        let day = self
            .day_refused
            .map(|until| (FailureClass::QuotaDay, Some(until)));
        closed.or(day)
    }

    /// How much of `count` is left alone because traffic rose too fast.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a count below 10^15"
    )]
    pub(crate) fn held_back(&self, count: u64, now: Now) -> u64 {
        let share = self.ramp.share(now);
        if share < 1.0 {
            (count as f64 * (1.0 - share)) as u64
        } else {
            0
        }
    }

    /// A call that was granted then has ended. One from before a trial decides nothing there.
    pub(crate) fn answered(&mut self, granted_at: Timestamp) {
        self.answers = self.answers.saturating_add(1);
        self.trial = self.trial.filter(|trial| granted_at < trial.since);
    }

    /// The next call is to find out whether it takes calls again.
    pub(crate) fn begin_trial(&mut self, now: Timestamp) {
        self.trial = Some(Trial {
            since: now,
            is_out: false,
        });
    }

    /// A call that was granted then is over, answered or not: another one may try.
    pub(crate) fn has_ended(&mut self, granted_at: Timestamp) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(trial) = &mut self.trial {
            trial.is_out &= granted_at < trial.since;
        }
    }

    pub(crate) fn learn_output(&mut self, tokens: u64) {
        self.mean.learn(tokens);
    }

    /// What to hold for the output of one call: the mean answer, and a share of its spread
    /// that shrinks with the calls in flight, since their sum spreads less than each.
    pub(crate) fn mean_output(&self) -> u64 {
        self.mean.expected(self.in_flight)
    }

    pub(crate) fn role(probe: bool) -> CallRole {
        if probe {
            CallRole::Probe
        } else {
            CallRole::Normal
        }
    }

    /// Closes the gate, never for a shorter time than it is closed already.
    pub(crate) fn close(
        &mut self,
        class: FailureClass,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> bool {
        let longer = match (self.closed, until) {
            (None, _) => true,
            (Some(Closed { until: None, .. }), _) => false,
            (Some(_), None) => true,
            (
                Some(Closed {
                    until: Some(old), ..
                }),
                Some(new),
            ) => new > old,
        };
        if longer {
            let since = self.closed.map_or(now, |closed| closed.since);
            self.closed = Some(Closed {
                class,
                until,
                since,
            });
            self.trial = None;
        }
        longer
    }
}

/// A day's end is by the wall, which may be set meanwhile: it is looked at every minute.
fn look_again(until: Timestamp, now: Now) -> Timestamp {
    until.min(now.mono + LOOK_AGAIN)
}

/// A call meets a limit once, however often it is referred to.
pub(crate) fn each_once(mut limits: Vec<LimitId>) -> Vec<LimitId> {
    let mut seen = Vec::with_capacity(limits.len());
    limits.retain(|limit| {
        let is_new = !seen.contains(limit);
        seen.push(*limit);
        is_new
    });
    limits
}

/// The running mean and spread of answers' lengths.
#[derive(Debug, Clone, Copy)]
struct Mean {
    count: u32,
    mean: f64,
    variance: f64,
}

/// Before any answer: a paragraph.
const FIRST_GUESS: f64 = 256.0;
/// The weight of one answer once there are many.
const GAIN_MIN: f64 = 0.01;

impl Default for Mean {
    fn default() -> Self {
        Self {
            count: 0,
            mean: FIRST_GUESS,
            variance: 0.0,
        }
    }
}

impl Mean {
    #[expect(clippy::cast_precision_loss, reason = "a mean of token counts")]
    fn learn(&mut self, tokens: u64) {
        self.count = self.count.saturating_add(1);
        let gain = (1.0 / f64::from(self.count)).max(GAIN_MIN);
        let difference = tokens as f64 - self.mean;
        self.mean += gain * difference;
        self.variance = (1.0 - gain) * (self.variance + gain * difference * difference);
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a positive mean of token counts"
    )]
    fn expected(&self, in_flight: u64) -> u64 {
        let spread = 2.0 * (self.variance / in_flight.max(1) as f64).sqrt();
        (self.mean + spread).ceil().max(1.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_never_shut_for_a_shorter_time() {
        let at = Timestamp::from_nanos;
        let mut upstream = Upstream::new(UpstreamSetup::default(), None, Now::default());
        assert!(upstream.close(FailureClass::QuotaWindow, Some(at(10)), at(0)));
        assert!(!upstream.close(FailureClass::QuotaWindow, Some(at(5)), at(0)));
        assert!(upstream.close(FailureClass::NoAccess, None, at(0)));
        assert!(!upstream.close(FailureClass::QuotaDay, Some(at(99)), at(0)));
        assert_eq!(upstream.closed.unwrap().class, FailureClass::NoAccess);
    }

    #[test]
    fn the_held_output_covers_the_spread_of_a_single_call_and_less_of_many() {
        let mut mean = Mean::default();
        for index in 0..1_000 {
            mean.learn(if index % 2 == 0 { 100 } else { 300 });
        }
        assert!((mean.mean - 200.0).abs() < 10.0);
        assert!(mean.expected(1) > 390 && mean.expected(10_000) < 212);
    }
}
