//! A model with another one to fall back on, outages and calls too large for its own.

use std::time::Duration;

use fastrand::Rng;
use llmq_core::Priority;

use super::{Ground, outages, pick};
use crate::scenario::{Arrivals, QueuePlan, Scenario, Source, UpstreamPlan};

pub(super) fn drawn(seed: u64, rng: &mut Rng) -> Scenario {
    let ground = Ground::drawn(&[10, 60], rng);
    let own = rng.usize(1..=2);
    let span = ground.period.mul_f64(10.0);
    let mut upstreams: Vec<UpstreamPlan> = (0..=own)
        .map(|_| {
            let limit = ground.binding(rng);
            ground.upstream(vec![limit], rng)
        })
        .collect();
    // All of the model's own are down at once for a while, so that nothing else is left.
    let outage = outages::drawn_outage(span, rng);
    for plan in &mut upstreams[..own] {
        plan.outages.push(outage);
    }
    let routes = (0..own).map(|upstream| (upstream, 1.0 + rng.f64()));
    let queues = vec![
        QueuePlan {
            fallback: vec![1],
            ..QueuePlan::to(routes)
        },
        QueuePlan::to([(own, 1.0)]),
    ];
    let arrivals = *pick(
        &[
            Arrivals::AtOnce,
            Arrivals::Random {
                per_second: ground.capacity() * 0.8,
            },
        ],
        rng,
    );
    let mut sources = vec![ground.source(arrivals, ground.calls(10.0), Priority::NORMAL)];
    if rng.bool() {
        sources.push(Source {
            queue: 1,
            ..ground.source(Arrivals::AtOnce, ground.calls(3.0), Priority::NORMAL)
        });
    }
    Scenario {
        queues,
        network_max: Ground::network(ground.period, rng),
        aging: Duration::from_secs(366 * 86_400),
        ..Scenario::new(seed, upstreams, sources)
    }
}
