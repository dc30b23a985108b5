use std::time::Duration;

use llmq_core::{Now, Timestamp};

/// How the number of calls in flight to an upstream is found, where no limit is published
/// (`[upstreams.*] adaptive`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdaptiveConfig {
    /// By the latency of an output token and by overload answers.
    Latency(LatencyPolicy),
    /// By the share of errors and the use of the daily quota.
    Plain(PlainPolicy),
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        Self::Latency(LatencyPolicy::default())
    }
}

/// Bounds of the policy `latency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyPolicy {
    /// Where it starts, at least 1.
    pub initial: u64,
    /// It never grows above this.
    pub max: u64,
}

impl Default for LatencyPolicy {
    fn default() -> Self {
        Self {
            initial: 16,
            max: 2_048,
        }
    }
}

/// Bounds and thresholds of the policy `plain`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlainPolicy {
    /// Where it starts, at least 1.
    pub initial: u64,
    /// It never grows above this.
    pub max: u64,
    /// A share of errors above it takes a quarter away.
    pub error_down: f64,
    /// A use of the daily quota above it takes a quarter away.
    pub use_down: f64,
    /// A share of successes above it allows one more …
    pub success_up: f64,
    /// … while the use of the daily quota is below this.
    pub use_up: f64,
}

impl Default for PlainPolicy {
    fn default() -> Self {
        Self {
            initial: 4,
            max: 16,
            error_down: 0.2,
            use_down: 0.9,
            success_up: 0.95,
            use_up: 0.5,
        }
    }
}

/// How a call ended, as far as concurrency is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerOutcome {
    /// With an answer.
    Success,
    /// The provider said that it lacks capacity (503, 529, 498).
    Overload,
    /// In any other way that is the provider's or the network's fault.
    Error,
}

/// One finished call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// From sending to the end of the answer.
    pub latency: Duration,
    /// Output tokens; 0 when unknown or when there are none (embeddings).
    pub output_tokens: u64,
    /// How it ended.
    pub outcome: AnswerOutcome,
    /// Calls in flight just before it ended, itself included.
    pub in_flight: u64,
}

/// Why the concurrency changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeReason {
    /// The provider said that it is overloaded.
    Overload,
    /// Output tokens take much longer than they used to.
    Slower,
    /// The limit was used and nothing spoke against more.
    Room,
    /// Too many errors.
    Errors,
    /// The daily quota is nearly used.
    QuotaUse,
}

/// A change of the concurrency, for one structured log event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyChange {
    /// The limit before.
    pub old: u64,
    /// The limit now.
    pub new: u64,
    /// Why.
    pub reason: ChangeReason,
}

/// A concurrency limit that follows what the upstream can take.
///
/// ```
/// use llmq_core::Now;
/// use llmq_limit::{Adaptive, AdaptiveConfig, Answer, AnswerOutcome};
/// use std::time::Duration;
/// let mut adaptive = Adaptive::new(AdaptiveConfig::default());
/// let overloaded = Answer {
///     latency: Duration::from_secs(1),
///     output_tokens: 0,
///     outcome: AnswerOutcome::Overload,
///     in_flight: 16,
/// };
/// let change = adaptive.on_answer(overloaded, None, Now::default()).unwrap();
/// assert_eq!((change.old, change.new), (16, 11));
/// ```
#[derive(Debug, Clone)]
pub struct Adaptive {
    limit: u64,
    max: u64,
    policy: Policy,
}

#[derive(Debug, Clone)]
enum Policy {
    Latency(Latency),
    Plain(Plain),
}

impl Adaptive {
    /// Starts at the configured initial limit. A maximum or initial of 0 is read as 1: a limit
    /// of none would never find out anything.
    #[must_use]
    pub fn new(config: AdaptiveConfig) -> Self {
        let (initial, max, policy) = match config {
            AdaptiveConfig::Latency(policy) => {
                (policy.initial, policy.max, Policy::Latency(Latency::new()))
            }
            AdaptiveConfig::Plain(policy) => (
                policy.initial,
                policy.max,
                Policy::Plain(Plain::new(policy)),
            ),
        };
        let max = max.max(1);
        Self {
            limit: initial.clamp(1, max),
            max,
            policy,
        }
    }

    /// How many calls may be in flight, from 1 to the configured maximum.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Learns from one answer. `quota_use` is the used share of the daily quota, 0 to 1, where
    /// one is known; an unknown one speaks neither for nor against.
    pub fn on_answer(
        &mut self,
        answer: Answer,
        quota_use: Option<f64>,
        now: Now,
    ) -> Option<ConcurrencyChange> {
        let old = self.limit;
        let (wanted, reason) = match &mut self.policy {
            Policy::Latency(latency) => latency.on_answer(old, answer, now)?,
            Policy::Plain(plain) => plain.on_answer(old, answer, quota_use)?,
        };
        self.limit = wanted.clamp(1, self.max);
        (self.limit != old).then_some(ConcurrencyChange {
            old,
            new: self.limit,
            reason,
        })
    }
}

/// A round has at least so many answers, so that one slow answer does not decide.
const ROUND_MIN: u64 = 32;
/// How much slower than usual an output token may come before the limit shrinks. Batching
/// servers slow down somewhat with every call they take in, and are still the faster for it.
const SLOWDOWN: f64 = 2.0;
/// The most that one round takes away.
const SHRINK_MIN: f64 = 0.5;
/// How far one faster round moves what is usual.
const FASTER: f64 = 0.25;
/// When the limit has come down to this part and tokens are as slow as before, it is not the
/// number of calls that slows them.
const NOT_OURS: u64 = 4;

/// The policy `latency`: once a round, compares the time an output token took with what is
/// usual; shrinks in proportion when it took too long, grows when the limit was really used.
///
/// The raw latency says nothing, since it follows the length of the answers. Summing times and
/// tokens over a round weighs each token alike.
#[derive(Debug, Clone)]
struct Latency {
    round: Round,
    /// What an output token takes while the provider is at ease, in seconds. It only falls: if
    /// it followed slower rounds, it would follow those that we cause, and never object.
    usual: Option<f64>,
    /// The limit at which the slow rounds began, of which this is the latest.
    slow_from: Option<u64>,
    /// Doubling until the first sign that it is enough.
    searching: bool,
    last_cut: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Round {
    answers: u64,
    tokens: u64,
    time: Duration,
    in_flight_max: u64,
}

impl Latency {
    fn new() -> Self {
        Self {
            round: Round::default(),
            usual: None,
            slow_from: None,
            searching: true,
            last_cut: None,
        }
    }

    fn on_answer(&mut self, limit: u64, answer: Answer, now: Now) -> Option<(u64, ChangeReason)> {
        match answer.outcome {
            AnswerOutcome::Overload => return self.on_overload(limit, answer, now),
            // Says nothing about how fast the provider works.
            AnswerOutcome::Error => return None,
            AnswerOutcome::Success => self.round.add(answer),
        }
        if self.round.answers < limit.max(ROUND_MIN) {
            return None;
        }
        let round = std::mem::take(&mut self.round);
        self.end_round(limit, round)
    }

    /// Of the calls in flight at a cut, any number may still report the same overload: only one
    /// that was sent after the cut says that it was not enough.
    fn on_overload(&mut self, limit: u64, answer: Answer, now: Now) -> Option<(u64, ChangeReason)> {
        let sent = now.mono.before(answer.latency);
        if self.last_cut.is_some_and(|cut| sent < cut) {
            return None;
        }
        self.last_cut = Some(now.mono);
        self.searching = false;
        self.round = Round::default();
        Some((limit * 7 / 10, ChangeReason::Overload))
    }

    fn end_round(&mut self, limit: u64, round: Round) -> Option<(u64, ChangeReason)> {
        let slowdown = round
            .seconds_per_token()
            .map_or(1.0, |took| self.slowdown(limit, took));
        if slowdown > SLOWDOWN {
            self.searching = false;
            let factor = (SLOWDOWN / slowdown).max(SHRINK_MIN);
            return Some((scaled(limit, factor), ChangeReason::Slower));
        }
        // Growing unused says nothing about what the provider can take.
        let used = round.in_flight_max >= limit - limit / 5;
        let step = match self.searching {
            true => limit,
            false => limit.isqrt().max(1),
        };
        used.then(|| (limit.saturating_add(step), ChangeReason::Room))
    }

    /// How many times the usual time a token took; learns what is usual.
    fn slowdown(&mut self, limit: u64, took: f64) -> f64 {
        let usual = self.usual.unwrap_or(took);
        if took <= usual * SLOWDOWN {
            self.slow_from = None;
            self.usual = Some(usual + (took - usual).min(0.0) * FASTER);
            return 1.0;
        }
        let slow_from = *self.slow_from.get_or_insert(limit);
        if limit > slow_from / NOT_OURS && limit > 1 {
            return took / usual;
        }
        self.slow_from = None;
        self.usual = Some(took);
        1.0
    }
}

impl Round {
    fn add(&mut self, answer: Answer) {
        self.answers += 1;
        self.in_flight_max = self.in_flight_max.max(answer.in_flight);
        if answer.output_tokens > 0 {
            self.tokens = self.tokens.saturating_add(answer.output_tokens);
            self.time = self.time.saturating_add(answer.latency);
        }
    }

    fn seconds_per_token(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.time.as_secs_f64() / self.tokens as f64)
    }
}

fn scaled(limit: u64, factor: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a small count, rounded down on purpose"
    )]
    let scaled = (limit as f64 * factor) as u64;
    scaled
}

/// The policy `plain` looks at so many answers at a time, and so changes no more often.
const PLAIN_ANSWERS: u32 = 10;

#[derive(Debug, Clone)]
struct Plain {
    policy: PlainPolicy,
    answers: u32,
    failures: u32,
}

impl Plain {
    fn new(policy: PlainPolicy) -> Self {
        Self {
            policy,
            answers: 0,
            failures: 0,
        }
    }

    fn on_answer(
        &mut self,
        limit: u64,
        answer: Answer,
        quota_use: Option<f64>,
    ) -> Option<(u64, ChangeReason)> {
        self.answers += 1;
        self.failures += u32::from(answer.outcome != AnswerOutcome::Success);
        if self.answers < PLAIN_ANSWERS {
            return None;
        }
        let errors = f64::from(self.failures) / f64::from(self.answers);
        (self.answers, self.failures) = (0, 0);
        let quarter_less = limit - limit.div_ceil(4);
        if errors > self.policy.error_down {
            Some((quarter_less, ChangeReason::Errors))
        } else if quota_use.is_some_and(|used| used > self.policy.use_down) {
            Some((quarter_less, ChangeReason::QuotaUse))
        } else if 1.0 - errors > self.policy.success_up
            && quota_use.is_none_or(|used| used < self.policy.use_up)
        {
            Some((limit + 1, ChangeReason::Room))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Now {
        Now::default().after(Duration::from_millis(millis))
    }

    fn answer(
        outcome: AnswerOutcome,
        latency_ms: u64,
        output_tokens: u64,
        in_flight: u64,
    ) -> Answer {
        Answer {
            latency: Duration::from_millis(latency_ms),
            output_tokens,
            outcome,
            in_flight,
        }
    }

    fn success(latency_ms: u64, output_tokens: u64, in_flight: u64) -> Answer {
        answer(AnswerOutcome::Success, latency_ms, output_tokens, in_flight)
    }

    fn latency(initial: u64) -> Adaptive {
        Adaptive::new(AdaptiveConfig::Latency(LatencyPolicy {
            initial,
            max: 2_048,
        }))
    }

    fn plain(initial: u64) -> Adaptive {
        Adaptive::new(AdaptiveConfig::Plain(PlainPolicy {
            initial,
            ..PlainPolicy::default()
        }))
    }

    /// One full round of equal answers at full use.
    fn round(adaptive: &mut Adaptive, latency_ms: u64, tokens: u64) -> Option<ConcurrencyChange> {
        let limit = adaptive.limit();
        (0..limit.max(ROUND_MIN))
            .find_map(|_| adaptive.on_answer(success(latency_ms, tokens, limit), None, at(0)))
    }

    #[test]
    fn longer_answers_are_not_a_slower_provider() {
        let mut adaptive = latency(16);
        round(&mut adaptive, 1_000, 50);
        let change = round(&mut adaptive, 20_000, 1_000).unwrap();
        assert_eq!(change.reason, ChangeReason::Room);
    }

    #[test]
    fn slower_tokens_shrink_it_in_proportion_and_to_a_half_at_most() {
        for (latency_ms, expected) in [(3_000, 21), (30_000, 16), (1_500, 64)] {
            let mut adaptive = latency(16);
            round(&mut adaptive, 1_000, 50);
            assert_eq!(adaptive.limit(), 32);
            round(&mut adaptive, latency_ms, 50);
            assert_eq!(adaptive.limit(), expected, "{latency_ms}");
        }
    }

    #[test]
    fn overload_cuts_once_a_round_trip() {
        let mut adaptive = latency(100);
        let overload = |latency_ms| answer(AnswerOutcome::Overload, latency_ms, 0, 100);
        assert_eq!(
            adaptive
                .on_answer(overload(50), None, at(1_000))
                .unwrap()
                .new,
            70
        );
        // Sent before the cut, so it tells nothing new.
        assert_eq!(adaptive.on_answer(overload(200), None, at(1_100)), None);
        assert_eq!(
            adaptive
                .on_answer(overload(50), None, at(1_100))
                .unwrap()
                .new,
            49
        );
    }

    #[test]
    fn it_does_not_grow_unused_and_doubles_only_until_the_first_cut() {
        let mut adaptive = latency(16);
        for _ in 0..100 {
            assert_eq!(adaptive.on_answer(success(100, 10, 3), None, at(0)), None);
        }
        assert_eq!(round(&mut adaptive, 100, 10).unwrap().new, 32);
        adaptive.on_answer(answer(AnswerOutcome::Overload, 1, 0, 32), None, at(10));
        assert_eq!(adaptive.limit(), 22);
        assert_eq!(round(&mut adaptive, 100, 10).unwrap().new, 26);
    }

    #[test]
    fn calls_without_output_tokens_grow_it_until_the_provider_objects() {
        let mut adaptive = latency(16);
        round(&mut adaptive, 10, 0);
        assert_eq!(
            round(&mut adaptive, 5_000, 0).unwrap().reason,
            ChangeReason::Room
        );
    }

    #[test]
    fn a_provider_that_is_slower_for_good_is_used_again() {
        let mut adaptive = latency(64);
        round(&mut adaptive, 1_000, 100);
        for _ in 0..200 {
            round(&mut adaptive, 10_000, 100);
        }
        assert!(adaptive.limit() > 64, "{}", adaptive.limit());
    }

    /// A simulated server whose tokens slow down once more than `room` calls are in flight.
    #[test]
    fn it_settles_near_what_a_server_can_take() {
        let room = 100.0;
        let mut adaptive = latency(16);
        let mut limits = Vec::new();
        for _ in 0..400 {
            let crowd = (adaptive.limit() as f64 / room).max(1.0);
            let latency_ms = scaled(1_000, crowd * crowd);
            round(&mut adaptive, latency_ms, 100);
            limits.push(adaptive.limit());
        }
        let late = &limits[350..];
        assert!(
            late.iter().all(|limit| (50..=600).contains(limit)),
            "{late:?}"
        );
    }

    fn ten(
        adaptive: &mut Adaptive,
        failures: u32,
        quota_use: Option<f64>,
    ) -> Option<ConcurrencyChange> {
        (0..10)
            .map(|n| {
                let outcome = match n < failures {
                    true => AnswerOutcome::Error,
                    false => AnswerOutcome::Success,
                };
                adaptive.on_answer(answer(outcome, 10, 1, 1), quota_use, at(0))
            })
            .last()
            .flatten()
    }

    #[test]
    fn the_plain_rule_moves_as_written() {
        for (failures, quota_use, expected) in [
            (0, None, 9),
            (0, Some(0.49), 9),
            (0, Some(0.5), 8),
            (0, Some(0.9), 8),
            (0, Some(0.91), 6),
            (1, None, 8),
            (2, None, 8),
            (3, None, 6),
            (10, Some(0.0), 6),
        ] {
            let mut adaptive = plain(8);
            ten(&mut adaptive, failures, quota_use);
            assert_eq!(adaptive.limit(), expected, "{failures} {quota_use:?}");
        }
    }

    #[test]
    fn the_plain_rule_changes_at_most_once_in_ten_answers_and_stays_in_its_bounds() {
        let mut adaptive = Adaptive::new(AdaptiveConfig::Plain(PlainPolicy::default()));
        assert_eq!(adaptive.limit(), 4);
        for n in 1..=9 {
            assert_eq!(adaptive.on_answer(success(1, 1, 1), None, at(n)), None);
        }
        assert!(adaptive.on_answer(success(1, 1, 1), None, at(10)).is_some());
        for _ in 0..30 {
            ten(&mut adaptive, 0, None);
        }
        assert_eq!(adaptive.limit(), 16);
        let falling: Vec<u64> = (0..8)
            .map(|_| {
                ten(&mut adaptive, 5, None);
                adaptive.limit()
            })
            .collect();
        assert_eq!(falling, [12, 9, 6, 4, 3, 2, 1, 1]);
    }

    proptest! {
        #[test]
        fn it_is_never_below_one_nor_above_its_maximum(
            is_plain in any::<bool>(),
            initial in 0u64..5_000,
            max in 0u64..3_000,
            answers in proptest::collection::vec(
                (0u8..3, 0u64..100_000, 0u64..5_000, 0u64..4_000, proptest::option::of(0.0f64..2.0)),
                0..500,
            ),
        ) {
            let mut adaptive = Adaptive::new(match is_plain {
                true => AdaptiveConfig::Plain(PlainPolicy { initial, max, ..PlainPolicy::default() }),
                false => AdaptiveConfig::Latency(LatencyPolicy { initial, max }),
            });
            let mut now = at(0);
            for (outcome, latency_ms, tokens, in_flight, used) in answers {
                let outcome = match outcome {
                    0 => AnswerOutcome::Success,
                    1 => AnswerOutcome::Overload,
                    _ => AnswerOutcome::Error,
                };
                let old = adaptive.limit();
                let change = adaptive.on_answer(answer(outcome, latency_ms, tokens, in_flight), used, now);
                prop_assert!((1..=max.max(1)).contains(&adaptive.limit()));
                prop_assert_eq!(change.map(|change| change.new), (adaptive.limit() != old).then(|| adaptive.limit()));
                now = now.after(Duration::from_millis(latency_ms / 100));
            }
        }
    }
}
