use proptest::prelude::*;

use super::latency::{ROUND_MIN, scaled};
use super::*;

fn at(millis: u64) -> Now {
    Now::default().after(Duration::from_millis(millis))
}

fn answer(outcome: AnswerOutcome, latency_ms: u64, output_tokens: u64, in_flight: u64) -> Answer {
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

/// A limit with the clock of its upstream.
struct Upstream {
    adaptive: Adaptive,
    now: Now,
}

impl Upstream {
    fn new(adaptive: Adaptive) -> Self {
        Self {
            adaptive,
            now: at(0),
        }
    }

    fn limit(&self) -> u64 {
        self.adaptive.limit()
    }

    fn answer(&mut self, answer: Answer) -> Option<ConcurrencyChange> {
        self.adaptive.on_answer(answer, None, self.now)
    }

    /// One full round of equal answers at full use, all sent when the last one ended.
    fn round(&mut self, latency_ms: u64, tokens: u64) -> Option<ConcurrencyChange> {
        self.now = self.now.after(Duration::from_millis(latency_ms));
        let limit = self.limit();
        let answer = success(latency_ms, tokens, limit);
        (0..limit.max(ROUND_MIN)).find_map(|_| self.answer(answer))
    }
}

#[test]
fn longer_answers_are_not_a_slower_provider() {
    let mut upstream = Upstream::new(latency(16));
    upstream.round(1_000, 50);
    let change = upstream.round(20_000, 1_000).unwrap();
    assert_eq!(change.reason, ChangeReason::Room);
}

#[test]
fn slower_tokens_shrink_it_in_proportion_and_to_a_half_at_most() {
    // Doubling ends where tokens come slower; growing does not, up to twice the usual time.
    let cases = [(3_000, 21), (30_000, 16), (1_500, 37), (1_200, 64)];
    for (latency_ms, expected) in cases {
        let mut upstream = Upstream::new(latency(16));
        upstream.round(1_000, 50);
        assert_eq!(upstream.limit(), 32);
        upstream.round(latency_ms, 50);
        assert_eq!(upstream.limit(), expected, "{latency_ms}");
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
fn answers_to_calls_from_before_a_cut_do_not_cut_again() {
    let mut upstream = Upstream::new(latency(32));
    upstream.round(1_000, 50);
    for (now_ms, expected) in [(20_000, 32), (25_000, 32), (40_000, 16)] {
        for _ in 0..64 {
            upstream.now = at(now_ms);
            upstream.answer(success(10_000, 50, 64));
        }
        assert_eq!(upstream.limit(), expected, "{now_ms}");
    }
}

#[test]
fn it_does_not_grow_unused_and_doubles_only_until_the_first_cut() {
    let mut upstream = Upstream::new(latency(16));
    for _ in 0..100 {
        assert_eq!(upstream.answer(success(100, 10, 3)), None);
    }
    assert_eq!(upstream.round(100, 10).unwrap().new, 32);
    upstream.answer(answer(AnswerOutcome::Overload, 1, 0, 32));
    assert_eq!(upstream.limit(), 22);
    assert_eq!(upstream.round(100, 10).unwrap().new, 26);
}

#[test]
fn calls_without_output_tokens_grow_it_until_the_provider_objects() {
    let mut upstream = Upstream::new(latency(16));
    upstream.round(10, 0);
    assert_eq!(upstream.round(5_000, 0).unwrap().reason, ChangeReason::Room);
}

#[test]
fn a_provider_that_is_slower_for_good_is_used_again() {
    let mut upstream = Upstream::new(latency(64));
    upstream.round(1_000, 100);
    for _ in 0..200 {
        upstream.round(10_000, 100);
    }
    assert!(upstream.limit() > 64, "{}", upstream.limit());
}

/// A simulated server whose tokens slow down once more than `room` calls are in flight.
#[test]
fn it_settles_near_what_a_server_can_take() {
    let room = 100.0;
    let mut upstream = Upstream::new(latency(16));
    let mut limits = Vec::new();
    for _ in 0..400 {
        let crowd = (upstream.limit() as f64 / room).max(1.0);
        let latency_ms = scaled(1_000, crowd * crowd);
        upstream.round(latency_ms, 100);
        limits.push(upstream.limit());
    }
    let late = &limits[350..];
    assert!(
        late.iter().all(|limit| (50..=600).contains(limit)),
        "{late:?}"
    );
}

fn ten(
    upstream: &mut Adaptive,
    failures: u32,
    quota_use: Option<f64>,
) -> Option<ConcurrencyChange> {
    (0..10)
        .map(|n| {
            let outcome = match n < failures {
                true => AnswerOutcome::Error,
                false => AnswerOutcome::Success,
            };
            upstream.on_answer(answer(outcome, 10, 1, 1), quota_use, at(0))
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
