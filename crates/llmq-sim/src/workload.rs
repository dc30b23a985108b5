//! Calls drawn from a scenario's sources.

use std::time::Duration;

use fastrand::Rng;
use llmq_core::{CallSize, Usage};

use crate::scenario::{Arrivals, Estimates, Scenario, Sizes, Source, Spread};

/// One call as it will come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallPlan {
    /// From the start of the run.
    pub(crate) after: Duration,
    /// Which source sends it.
    pub(crate) source: usize,
    /// As estimated.
    pub(crate) size: CallSize,
    /// As it is.
    pub(crate) usage: Usage,
    /// Its caller gives up this long after it was submitted.
    pub(crate) leaves_after: Option<Duration>,
}

/// Nothing is larger than this many times the mean.
const TAIL: f64 = 20.0;

/// All calls of a scenario, in the order in which they come.
pub(crate) fn calls(scenario: &Scenario, rng: &mut Rng) -> Vec<CallPlan> {
    let mut calls = Vec::new();
    for (index, source) in scenario.sources.iter().enumerate() {
        let mut after = Duration::ZERO;
        for number in 0..source.calls {
            after = match source.arrivals {
                Arrivals::AtOnce => Duration::ZERO,
                Arrivals::Random { per_second } => after + exponential(1.0 / per_second, rng),
                Arrivals::Bursts { size, every } => every * (number / size.max(1)),
            };
            calls.push(call(scenario, source, index, after, rng));
        }
    }
    calls.sort_by_key(|call| call.after);
    calls
}

fn call(
    scenario: &Scenario,
    source: &Source,
    index: usize,
    after: Duration,
    rng: &mut Rng,
) -> CallPlan {
    let Sizes {
        input,
        output,
        cap,
        spread,
    } = source.sizes;
    let real_input = drawn(input, spread, rng);
    let real_output = drawn(output, spread, rng);
    let cap = cap.map(|cap| {
        let wanted = rounded(f64::from(output) * cap);
        wanted.max(real_output)
    });
    let usage = Usage {
        input_tokens: u64::from(real_input),
        output_tokens: u64::from(real_output),
        ..Usage::default()
    };
    let leaves = rng.f64() < scenario.leavers;
    CallPlan {
        after,
        source: index,
        size: CallSize {
            input_tokens: estimated(real_input, scenario.estimates, rng),
            max_output_tokens: cap,
            choices: 1,
        },
        usage,
        leaves_after: leaves.then(|| exponential(5.0, rng)),
    }
}

fn drawn(mean: u32, spread: Spread, rng: &mut Rng) -> u32 {
    let mean = f64::from(mean);
    let value = match spread {
        Spread::None => mean,
        Spread::Even => mean * (0.5 + rng.f64()),
        Spread::Pareto(shape) => {
            let scale = mean * (shape - 1.0) / shape;
            (scale / (1.0 - rng.f64()).powf(1.0 / shape)).min(mean * TAIL)
        }
    };
    rounded(value).max(1)
}

fn estimated(real: u32, estimates: Estimates, rng: &mut Rng) -> u32 {
    let noise = estimates.noise * (2.0 * rng.f64() - 1.0);
    rounded(f64::from(real) * (1.0 + estimates.bias) * (1.0 + noise)).max(1)
}

/// A wait with this mean, in seconds, as between events that know nothing of each other.
pub(crate) fn exponential(mean_s: f64, rng: &mut Rng) -> Duration {
    Duration::from_secs_f64(-mean_s * (1.0 - rng.f64()).ln())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "token counts of calls are far below 2^32 and not negative"
)]
fn rounded(value: f64) -> u32 {
    value.round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_kept_by_every_spread() {
        let mut rng = Rng::with_seed(1);
        for spread in [Spread::None, Spread::Even, Spread::Pareto(2.5)] {
            let sum: u64 = (0..20_000)
                .map(|_| u64::from(drawn(1_000, spread, &mut rng)))
                .sum();
            let mean = sum / 20_000;
            assert!((950..1_050).contains(&mean), "{spread:?}: {mean}");
        }
    }

    #[test]
    fn estimates_are_off_as_asked() {
        let mut rng = Rng::with_seed(1);
        let off = Estimates {
            bias: 0.15,
            noise: 0.0,
        };
        assert_eq!(estimated(1_000, off, &mut rng), 1_150);
        assert_eq!(estimated(1_000, Estimates::default(), &mut rng), 1_000);
    }
}
