//! Limits that nobody configured: only the provider's headers tell of them.

use fastrand::Rng;
use llmq_core::{LimitSpec, Priority};
use llmq_limit::default_algorithm;

use super::{Ground, any_kind, pick};
use crate::scenario::{Arrivals, HeaderStyle, Knowledge, Scenario, UpstreamPlan};

pub(super) fn drawn(seed: u64, rng: &mut Rng) -> Scenario {
    let ground = Ground::drawn(&[10, 60], rng);
    // A provider limits in the way that is known of its kind.
    let algorithm = default_algorithm(ground.account.host(), ground.period);
    let usual = |spec: LimitSpec| LimitSpec { algorithm, ..spec };
    let first = usual(ground.binding(rng));
    let second = usual(ground.limit(any_kind(rng), 0.9 + rng.f64(), rng));
    let mut limits = vec![first];
    if rng.bool() && second.kind != first.kind {
        limits.push(second);
    }
    let styles = [HeaderStyle::Full, HeaderStyle::Bare, HeaderStyle::Rounded];
    let upstream = UpstreamPlan {
        knowledge: Knowledge::Learned,
        asks_first: true,
        headers: *pick(&styles, rng),
        ..ground.upstream(limits, rng)
    };
    let arrivals = *pick(
        &[
            Arrivals::AtOnce,
            Arrivals::Random {
                per_second: ground.capacity() * 1.5,
            },
        ],
        rng,
    );
    let source = ground.source(arrivals, ground.calls(12.0), Priority::NORMAL);
    Scenario {
        network_max: Ground::network(ground.period, rng),
        ..Scenario::new(seed, vec![upstream], vec![source])
    }
}
