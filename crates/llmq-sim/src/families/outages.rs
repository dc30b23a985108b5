//! Outages of up to ten minutes, of every kind.

use std::time::Duration;

use fastrand::Rng;
use llmq_core::Priority;

use super::{Ground, pick};
use crate::scenario::{Arrivals, Outage, OutageKind, Scenario, TenantPlan, UpstreamPlan};

/// The longest outage.
const LONGEST_S: f64 = 600.0;

pub(super) fn drawn(seed: u64, rng: &mut Rng) -> Scenario {
    let ground = Ground::drawn(&[1, 10, 60], rng);
    let count = rng.usize(1..=2);
    let span = ground.period.mul_f64(10.0);
    let upstreams: Vec<UpstreamPlan> = (0..count)
        .map(|_| {
            let limit = ground.binding(rng);
            let outages = (0..rng.usize(1..=3))
                .map(|_| drawn_outage(span, rng))
                .collect();
            UpstreamPlan {
                outages,
                ..ground.upstream(vec![limit], rng)
            }
        })
        .collect();
    let arrivals = *pick(
        &[
            Arrivals::AtOnce,
            Arrivals::Random {
                per_second: ground.capacity(),
            },
        ],
        rng,
    );
    let source = ground.source(arrivals, ground.calls(12.0), Priority::NORMAL);
    Scenario {
        tenants: vec![TenantPlan::default()],
        // As runs have it unless told otherwise.
        max_attempts: 5,
        network_max: Ground::network(ground.period, rng),
        aging: Duration::from_secs(366 * 86_400),
        ..Scenario::new(seed, upstreams, vec![source])
    }
}

/// An outage that begins within the first half of `span`: from a second to ten minutes, as many
/// short ones as long ones.
pub(super) fn drawn_outage(span: Duration, rng: &mut Rng) -> Outage {
    let kinds = [
        OutageKind::Refused,
        OutageKind::Overload,
        OutageKind::Silent,
    ];
    Outage {
        after: span.mul_f64(0.05 + 0.45 * rng.f64()),
        lasts: Duration::from_secs_f64(LONGEST_S.powf(rng.f64())),
        kind: *pick(&kinds, rng),
    }
}
