use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::{Now, Timestamp};

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerConfig {
    /// So many failures in a row open it, however far apart they are.
    pub failures_in_row: u32,
    /// So many of the last outcomes are looked at for the share of failures.
    pub sample_max: usize,
    /// With fewer of them the share says nothing.
    pub sample_min: usize,
    /// Outcomes older than this are no longer looked at.
    pub sample_age: Duration,
    /// This share of failures opens it, 0 to 1.
    pub failure_share: f64,
    /// How long it stays open the first time; doubled each time a probe fails.
    pub open_base: Duration,
    /// How long it stays open at most, so that a provider that is back is soon found so.
    pub open_max: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures_in_row: 5,
            sample_max: 20,
            sample_min: 10,
            sample_age: Duration::from_secs(30),
            failure_share: 0.5,
            open_base: Duration::from_secs(1),
            open_max: Duration::from_secs(15),
        }
    }
}

/// What a breaker does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls flow.
    Closed,
    /// No call passes before the instant; the next one then is the probe.
    Open {
        /// When a probe may start.
        until: Timestamp,
    },
    /// One probe is out, and its result decides.
    HalfOpen,
}

/// Whether a call may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// It may.
    Yes,
    /// It may, as the one probe: report its result as [`CallRole::Probe`], or that it was lost.
    Probe,
    /// Not before this instant. While a probe is out nobody can know the instant, and this is
    /// when to ask again if its result has not come before.
    Until(Timestamp),
}

/// As what a call was admitted. Calls that were under way when the breaker opened still report
/// later, and must not be mistaken for the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallRole {
    /// Admitted with [`Admit::Yes`].
    Normal,
    /// Admitted with [`Admit::Probe`].
    Probe,
}

/// A change to tell about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerChange {
    /// No calls for now.
    Opened {
        /// When a probe may start.
        until: Timestamp,
    },
    /// Calls flow again.
    Closed,
}

/// A circuit breaker: closed, open, half-open with exactly one probe at a time.
///
/// Only failures whose class says so ([`RetryRule::trips_breaker`](llmq_core::RetryRule)) belong
/// here: a busy account is not a broken provider.
///
/// ```
/// use llmq_core::Now;
/// use llmq_limit::{Admit, Breaker, BreakerConfig, CallRole};
/// use std::time::Duration;
/// let mut breaker = Breaker::new(BreakerConfig::default());
/// let now = Now::default();
/// for _ in 0..5 {
///     breaker.failed(CallRole::Normal, now);
/// }
/// let later = now.after(Duration::from_secs(1));
/// assert_eq!(breaker.admit(now), Admit::Until(later.mono));
/// assert_eq!(breaker.admit(later), Admit::Probe);
/// breaker.succeeded(CallRole::Probe, later);
/// assert_eq!(breaker.admit(later), Admit::Yes);
/// ```
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    state: BreakerState,
    outcomes: Outcomes,
    /// How often it opened since it was last closed.
    openings: u32,
    /// When it last opened or closed.
    changed_at: Timestamp,
}

/// What happened, as the state machine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A normal call ended; whether the outcomes by now say that the provider is down.
    Ended {
        down: bool,
    },
    ProbeSucceeded,
    ProbeFailed,
    /// The probe was dropped before it had a result.
    ProbeLost,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            state: BreakerState::Closed,
            outcomes: Outcomes::default(),
            openings: 0,
            changed_at: Timestamp::ZERO,
        }
    }

    /// When it opens and for how long.
    #[must_use]
    pub fn config(&self) -> &BreakerConfig {
        &self.config
    }

    /// Whether a normal call sent at `sent` tells of the provider as it is now. One from before
    /// the last opening or closing tells of a time that the breaker has already answered: calls
    /// that hang through an outage and time out after it must not open the breaker again, so
    /// callers do not report them.
    #[must_use]
    pub fn is_current(&self, sent: Timestamp) -> bool {
        sent >= self.changed_at
    }

    /// Its state; [`BreakerState::Open`] also after its instant, until a call asks.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Whether a call may start now. Every [`Admit::Probe`] must be followed by one of
    /// [`succeeded`](Self::succeeded), [`failed`](Self::failed) and
    /// [`probe_lost`](Self::probe_lost).
    pub fn admit(&mut self, now: Now) -> Admit {
        match self.state {
            BreakerState::Closed => Admit::Yes,
            BreakerState::Open { until } if now.mono < until => Admit::Until(until),
            BreakerState::Open { .. } => {
                self.state = BreakerState::HalfOpen;
                Admit::Probe
            }
            BreakerState::HalfOpen => Admit::Until(now.mono + self.config.open_base),
        }
    }

    /// When a call may start, without starting one: `None` means now.
    #[must_use]
    pub fn opens_at(&self, now: Now) -> Option<Timestamp> {
        match self.state {
            BreakerState::Closed => None,
            BreakerState::Open { until } => (now.mono < until).then_some(until),
            BreakerState::HalfOpen => Some(now.mono + self.config.open_base),
        }
    }

    /// A call got an answer that shows the provider at work.
    pub fn succeeded(&mut self, role: CallRole, now: Now) -> Option<BreakerChange> {
        match role {
            CallRole::Normal => self.ended(Outcome::Success, now),
            CallRole::Probe => self.handle(Event::ProbeSucceeded, now),
        }
    }

    /// A call failed in a way that suggests that the provider is down.
    pub fn failed(&mut self, role: CallRole, now: Now) -> Option<BreakerChange> {
        match role {
            CallRole::Normal => self.ended(Outcome::Failure, now),
            CallRole::Probe => self.handle(Event::ProbeFailed, now),
        }
    }

    /// The probe was dropped without a result, so that the next call can be it.
    pub fn probe_lost(&mut self, now: Now) {
        self.handle(Event::ProbeLost, now);
    }

    fn ended(&mut self, outcome: Outcome, now: Now) -> Option<BreakerChange> {
        self.outcomes.record(outcome, now.mono, &self.config);
        let down = self.outcomes.say_down(&self.config);
        self.handle(Event::Ended { down }, now)
    }

    fn handle(&mut self, event: Event, now: Now) -> Option<BreakerChange> {
        use BreakerState as S;
        use Event as E;
        match (self.state, event) {
            (S::Closed, E::Ended { down: true }) | (S::HalfOpen, E::ProbeFailed) => {
                Some(self.open(now))
            }
            (S::HalfOpen, E::ProbeSucceeded) => Some(self.close(now)),
            (S::HalfOpen, E::ProbeLost) => {
                self.state = S::Open { until: now.mono };
                None
            }
            // A call from before the opening tells of that time; only the probe tells of now.
            (S::Closed, E::Ended { down: false })
            | (S::Open { .. } | S::HalfOpen, E::Ended { .. }) => None,
            // No probe is out.
            (S::Closed | S::Open { .. }, E::ProbeSucceeded | E::ProbeFailed | E::ProbeLost) => None,
        }
    }

    fn open(&mut self, now: Now) -> BreakerChange {
        let doublings = self.openings.min(31);
        let span = self.config.open_base.saturating_mul(1 << doublings);
        let until = now.mono + span.min(self.config.open_max);
        self.openings = self.openings.saturating_add(1);
        self.outcomes = Outcomes::default();
        self.changed_at = now.mono;
        self.state = BreakerState::Open { until };
        BreakerChange::Opened { until }
    }

    fn close(&mut self, now: Now) -> BreakerChange {
        self.openings = 0;
        self.changed_at = now.mono;
        self.outcomes = Outcomes::default();
        self.state = BreakerState::Closed;
        BreakerChange::Closed
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Success,
    Failure,
}

/// The last outcomes, oldest first, at most `sample_max`.
#[derive(Debug, Clone, Default)]
struct Outcomes {
    recent: VecDeque<(Timestamp, Outcome)>,
    failures_in_row: u32,
}

impl Outcomes {
    fn record(&mut self, outcome: Outcome, now: Timestamp, config: &BreakerConfig) {
        self.failures_in_row = match outcome {
            Outcome::Success => 0,
            Outcome::Failure => self.failures_in_row.saturating_add(1),
        };
        self.recent.push_back((now, outcome));
        let is_old = |at: Timestamp| now.since(at) > config.sample_age;
        while self.recent.len() > config.sample_max
            || self.recent.front().is_some_and(|(at, _)| is_old(*at))
        {
            self.recent.pop_front();
        }
    }

    fn say_down(&self, config: &BreakerConfig) -> bool {
        let failures = self
            .recent
            .iter()
            .filter(|(_, outcome)| *outcome == Outcome::Failure)
            .count();
        let share = failures as f64 / self.recent.len().max(1) as f64;
        self.failures_in_row >= config.failures_in_row
            || (self.recent.len() >= config.sample_min && share >= config.failure_share)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Now {
        Now::default().after(Duration::from_millis(millis))
    }

    fn breaker() -> Breaker {
        Breaker::new(BreakerConfig::default())
    }

    /// A breaker that opened at 0.
    fn open() -> Breaker {
        let mut breaker = breaker();
        for _ in 0..5 {
            breaker.failed(CallRole::Normal, at(0));
        }
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_four_do_not() {
        let mut breaker = breaker();
        for _ in 0..4 {
            assert_eq!(breaker.failed(CallRole::Normal, at(0)), None);
        }
        assert_eq!(breaker.admit(at(0)), Admit::Yes);
        let until = at(1_000).mono;
        assert_eq!(
            breaker.failed(CallRole::Normal, at(0)),
            Some(BreakerChange::Opened { until })
        );
        assert_eq!(breaker.admit(at(999)), Admit::Until(until));
    }

    #[test]
    fn half_of_ten_recent_outcomes_open_it_and_old_ones_do_not_count() {
        let alternate = |gap_ms: u64| {
            let mut breaker = breaker();
            for n in 0..10 {
                let role = CallRole::Normal;
                match n % 2 {
                    0 => breaker.succeeded(role, at(n * gap_ms)),
                    _ => breaker.failed(role, at(n * gap_ms)),
                };
            }
            breaker.state()
        };
        assert!(matches!(alternate(1_000), BreakerState::Open { .. }));
        assert_eq!(alternate(5_000), BreakerState::Closed);
    }

    #[test]
    fn while_the_probe_is_out_nobody_else_passes() {
        let mut breaker = open();
        assert_eq!(breaker.admit(at(1_000)), Admit::Probe);
        for _ in 0..3 {
            assert!(matches!(breaker.admit(at(2_000)), Admit::Until(_)));
        }
        // Calls from before the opening are not the probe.
        assert_eq!(breaker.failed(CallRole::Normal, at(2_000)), None);
        assert_eq!(breaker.succeeded(CallRole::Normal, at(2_000)), None);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(
            breaker.succeeded(CallRole::Probe, at(2_500)),
            Some(BreakerChange::Closed)
        );
        assert_eq!(breaker.admit(at(2_500)), Admit::Yes);
    }

    #[test]
    fn a_call_from_before_the_last_change_is_not_current() {
        let mut breaker = breaker();
        assert!(breaker.is_current(at(0).mono));
        for _ in 0..5 {
            breaker.failed(CallRole::Normal, at(500));
        }
        assert!(!breaker.is_current(at(499).mono));
        breaker.admit(at(2_000));
        breaker.succeeded(CallRole::Probe, at(3_000));
        assert!(!breaker.is_current(at(2_999).mono));
        assert!(breaker.is_current(at(3_000).mono));
    }

    #[test]
    fn a_lost_probe_makes_room_for_the_next_at_once() {
        let mut breaker = open();
        assert_eq!(breaker.admit(at(1_000)), Admit::Probe);
        breaker.probe_lost(at(1_200));
        assert_eq!(breaker.opens_at(at(1_200)), None);
        assert_eq!(breaker.admit(at(1_200)), Admit::Probe);
    }

    #[test]
    fn failed_probes_double_the_wait_to_its_bound_and_a_success_forgets_them() {
        let mut breaker = open();
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..6 {
            let BreakerState::Open { until } = breaker.state() else {
                panic!("closed")
            };
            waits.push(until.since(now.mono).as_secs());
            now = now.after(until.since(now.mono));
            assert_eq!(breaker.admit(now), Admit::Probe);
            breaker.failed(CallRole::Probe, now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 15, 15]);
        now = now.after(Duration::from_secs(15));
        assert_eq!(breaker.admit(now), Admit::Probe);
        breaker.succeeded(CallRole::Probe, now);
        for _ in 0..5 {
            breaker.failed(CallRole::Normal, now);
        }
        let until = now.mono + Duration::from_secs(1);
        assert_eq!(breaker.state(), BreakerState::Open { until });
    }

    proptest! {
        #[test]
        fn there_are_never_two_probes_and_never_a_call_while_it_is_open(
            steps in proptest::collection::vec((0u8..6, 0u64..3_000), 0..300),
        ) {
            let mut breaker = breaker();
            let (mut now, mut probes) = (at(0), 0);
            for (what, millis) in steps {
                now = now.after(Duration::from_millis(millis));
                match what {
                    0 | 1 => {
                        let before = breaker.state();
                        let ready = breaker.opens_at(now).is_none();
                        match breaker.admit(now) {
                            Admit::Probe => probes += 1,
                            Admit::Yes => prop_assert_eq!(before, BreakerState::Closed),
                            Admit::Until(at) => prop_assert!(at > now.mono && !ready),
                        }
                    }
                    2 => { breaker.failed(CallRole::Normal, now); }
                    3 => { breaker.succeeded(CallRole::Normal, now); }
                    4 if probes > 0 => { probes -= 1; breaker.failed(CallRole::Probe, now); }
                    5 if probes > 0 => { probes -= 1; breaker.probe_lost(now); }
                    _ => {}
                }
                prop_assert!(probes <= 1);
                prop_assert_eq!(probes == 1, breaker.state() == BreakerState::HalfOpen);
                if let BreakerState::Open { until } = breaker.state() {
                    prop_assert!(until.since(now.mono) <= Duration::from_secs(15));
                }
            }
        }
    }
}
