//! Our wall clock is set, forwards and back, and the provider's is off.

use std::time::Duration;

use fastrand::Rng;
use llmq_core::{Algorithm, Priority};

use super::{Ground, pick};
use crate::scenario::{Arrivals, HeaderStyle, Scenario, UpstreamPlan, WallJump};

const HOUR_MS: i32 = 3_600_000;

pub(super) fn drawn(seed: u64, rng: &mut Rng) -> Scenario {
    let ground = Ground::drawn(&[10, 60], rng);
    let limit = ground.binding(rng);
    let dated = rng.u32(..3) > 0;
    let styles = [HeaderStyle::None, HeaderStyle::Full];
    let upstream = UpstreamPlan {
        headers: if dated {
            HeaderStyle::Dated
        } else {
            *pick(&styles, rng)
        },
        failures: if dated { 0.03 } else { 0.0 },
        // Whose windows follow the calendar cannot be foreseen where its clock is not known.
        skew_ms: match limit.algorithm {
            Algorithm::Fixed => 0,
            Algorithm::Sliding | Algorithm::Bucket { .. } => rng.i32(-HOUR_MS..=HOUR_MS),
        },
        ..ground.upstream(vec![limit], rng)
    };
    let windows = 12.0;
    let span = ground.period.mul_f64(windows);
    let jump = |rng: &mut Rng| WallJump {
        after: span.mul_f64(rng.f64()),
        by_ms: i64::from(rng.i32(-HOUR_MS..=HOUR_MS)),
    };
    let mut wall_jumps: Vec<WallJump> = (0..rng.usize(1..=5)).map(|_| jump(rng)).collect();
    // One at least that looks as if windows had passed, while there is work.
    wall_jumps.push(WallJump {
        after: span.mul_f64(0.1 + 0.6 * rng.f64()),
        by_ms: i64::from(rng.i32(HOUR_MS / 2..=HOUR_MS)),
    });
    let source = ground.source(Arrivals::AtOnce, ground.calls(windows), Priority::NORMAL);
    Scenario {
        wall_jumps,
        network_max: Ground::network(ground.period, rng),
        aging: Duration::from_secs(366 * 86_400),
        ..Scenario::new(seed, vec![upstream], vec![source])
    }
}
