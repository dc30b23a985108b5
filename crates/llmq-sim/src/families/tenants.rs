//! Tenants and models with limits of their own, beside the account's.

use std::time::Duration;

use fastrand::Rng;
use llmq_core::{LimitSpec, Priority};

use super::{Ground, any_kind, mixed, pick};
use crate::scenario::{Arrivals, QueuePlan, Scenario, Source, TenantPlan};

pub(super) fn drawn(seed: u64, rng: &mut Rng) -> Scenario {
    let ground = Ground::drawn(&[1, 2, 10, 60], rng);
    let mut wide = vec![ground.binding(rng)];
    if rng.u32(..4) == 0 {
        wide.push(LimitSpec::concurrency(rng.u64(8..64)));
    }
    let upstream = ground.upstream(wide, rng);
    let tenants: Vec<TenantPlan> = (0..rng.usize(2..=5))
        .map(|_| TenantPlan {
            limits: own(&ground, 0.4, rng),
            ..TenantPlan::of_weight(0.5 + rng.f64() * 4.0)
        })
        .collect();
    // Shares can be compared where all calls are alike and wait for the account's limit alone.
    let alike = rng.u32(..3) > 0;
    let of_models = if alike { 0.0 } else { 0.8 };
    let queues: Vec<QueuePlan> = (0..rng.usize(1..=3))
        .map(|_| QueuePlan {
            limits: own(&ground, of_models, rng),
            ..QueuePlan::to([(0, 1.0)])
        })
        .collect();
    let mut sources = Vec::new();
    let calls = ground.calls(12.0 / f64::from(mixed::small(tenants.len())));
    for tenant in 0..tenants.len() {
        let ranks = [Priority::LOW, Priority::NORMAL, Priority::HIGH];
        let drawn = *pick(&ranks, rng);
        let priority = if alike { Priority::NORMAL } else { drawn };
        sources.push(Source {
            queue: rng.usize(..queues.len()),
            tenant,
            ..ground.source(Arrivals::AtOnce, calls, priority)
        });
    }
    let own = tenants.iter().flat_map(|plan| &plan.limits);
    let own = own.chain(queues.iter().flat_map(|plan| &plan.limits));
    let shortest = own.map(|spec| spec.period).min().unwrap_or(Duration::MAX);
    let network_max = Ground::network(shortest.min(ground.period), rng);
    Scenario {
        queues,
        tenants,
        network_max,
        aging: Duration::from_secs(366 * 86_400),
        leavers: *pick(&[0.0, 0.0, 0.02], rng),
        ..Scenario::new(seed, vec![upstream], sources)
    }
}

/// A limit that takes a part of what the account's takes, for some.
fn own(ground: &Ground, chance: f64, rng: &mut Rng) -> Vec<LimitSpec> {
    if rng.f64() > chance {
        return Vec::new();
    }
    let share = 0.1 + 0.4 * rng.f64();
    let times = rng.u32(1..=3);
    let slower = Ground {
        period: ground.period * times,
        per_window: ground.per_window * times,
        ..*ground
    };
    vec![slower.limit(any_kind(rng), share, rng)]
}
