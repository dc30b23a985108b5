//! A model served by several providers, each with a weight, below their capacity.

use fastrand::Rng;
use llmq_core::{Algorithm, LimitKind, LimitSpec, Priority};

use super::{Ground, mixed, pick};
use crate::scenario::{Arrivals, QueuePlan, Scenario};

pub(super) fn drawn(seed: u64, rng: &mut Rng) -> Scenario {
    let ground = Ground::drawn(&[10, 60], rng);
    let count = rng.usize(2..=3);
    // Windows remember what each had. Buckets below their capacity are as good as full, and who
    // is chosen then goes by the calls in flight.
    let limit = LimitSpec {
        algorithm: *pick(&[Algorithm::Sliding, Algorithm::Fixed], rng),
        ..ground.limit(LimitKind::Requests, 1.0, rng)
    };
    let upstreams = (0..count)
        .map(|_| ground.upstream(vec![limit], rng))
        .collect();
    let weights: Vec<f64> = (0..count).map(|_| 1.0 + rng.f64() * 3.0).collect();
    // So much that even the one with the greatest weight has room for its share.
    let largest = weights.iter().copied().fold(0.0, f64::max);
    let share = largest / weights.iter().sum::<f64>();
    let per_second = ground.capacity() * (0.5 + 0.3 * rng.f64()) / share;
    let calls = ground.calls(12.0) * mixed::small(count);
    let source = ground.source(Arrivals::Random { per_second }, calls, Priority::NORMAL);
    Scenario {
        queues: vec![QueuePlan::to(weights.into_iter().enumerate())],
        network_max: Ground::network(ground.period, rng),
        ..Scenario::new(seed, upstreams, vec![source])
    }
}
