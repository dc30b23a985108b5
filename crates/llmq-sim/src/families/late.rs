//! A busy machine: some of what happens is told late.

use std::time::Duration;

use fastrand::Rng;

use super::{Family, mixed, pick};
use crate::scenario::{Scenario, Telling};

pub(super) fn drawn(seed: u64, rng: &mut Rng) -> Scenario {
    let late_max = *pick(&[3, 30, 500], rng);
    Scenario {
        telling: Telling {
            late: 0.01 + 0.2 * rng.f64().powi(2),
            late_max: Duration::from_millis(late_max),
        },
        ..mixed::drawn(Family::Mixed, seed)
    }
}
