//! A share of every limit kept for urgent calls.

use std::time::Duration;

use fastrand::Rng;
use llmq_core::{Algorithm, LimitSpec, Priority};
use llmq_dispatch::Reserve;

use super::{Ground, pick};
use crate::scenario::{Arrivals, Scenario, TenantPlan};

pub(super) fn drawn(seed: u64, rng: &mut Rng) -> Scenario {
    let ground = Ground::drawn(&[1, 2, 10, 60], rng);
    let mut limits = vec![ground.binding(rng)];
    if rng.u32(..4) == 0 {
        limits.push(LimitSpec::concurrency(rng.u64(20..64)));
    }
    // Where more is reserved than a bucket holds at once, others would wait for a full one.
    for limit in &mut limits {
        if let Algorithm::Bucket { depth } = &mut limit.algorithm {
            *depth = limit.period;
        }
    }
    let upstream = ground.upstream(limits, rng);
    let background = *pick(&[Priority::LOW, Priority::NORMAL], rng);
    let urgent = *pick(&[Priority::HIGH, Priority::CRITICAL], rng);
    let per_second = ground.capacity() * (0.1 + 0.3 * rng.f64());
    let sources = vec![
        ground.source(Arrivals::AtOnce, ground.calls(10.0), background),
        ground.source(Arrivals::Random { per_second }, ground.calls(2.0), urgent),
    ];
    Scenario {
        tenants: vec![TenantPlan::default()],
        reserve: Some(Reserve {
            priority: Priority::HIGH,
            share: 0.05 + 0.15 * rng.f64(),
        }),
        network_max: Ground::network(ground.period, rng),
        aging: Duration::from_secs(366 * 86_400),
        ..Scenario::new(seed, vec![upstream], sources)
    }
}
