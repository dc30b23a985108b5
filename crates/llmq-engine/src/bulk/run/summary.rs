use std::time::Duration;

use llmq_core::{Algorithm, LimitKind, LimitSpec};
use serde::Serialize;

/// What a run did, at its end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Rows of the input, as far as it was read.
    pub rows: u64,
    /// Rows with an answer, those of earlier runs included.
    pub completed: u64,
    /// Rows that failed for good, those of earlier runs included.
    pub failed: u64,
    /// Calls sent by this run.
    pub attempts: u64,
    /// Calls of this run that were sent and never answered: they may have been billed.
    pub ambiguous_attempts: u64,
    /// 429s received.
    pub rate_limited: u64,
    /// Those of them that our own books should have foreseen.
    pub rate_limited_ours: u64,
    /// Input tokens of this run, as the provider counted them.
    pub input_tokens: u64,
    /// Output tokens of this run, as the provider counted them.
    pub output_tokens: u64,
    /// What they cost, if the price is known.
    pub cost_usd: Option<f64>,
    /// From the first call to the last answer, in seconds.
    pub elapsed_s: f64,
    /// The least time that the limits allow for the same calls, full at the start, plus one
    /// mean latency; none when nothing was sent.
    pub bound_s: Option<f64>,
    /// The bound over the elapsed time, pauses left out; at most 1.
    pub efficiency: Option<f64>,
    /// How long the run paused, in seconds.
    pub paused_s: f64,
    /// Rows that earlier runs had finished.
    pub resumed: u64,
    /// The limit that decided the bound, if one did.
    pub binding: Option<String>,
}

/// The least time in which `charged` can be spent on a limit that is full at the start.
pub(super) fn least_time(
    spec: &LimitSpec,
    charged: u64,
    calls: u64,
    latency: Duration,
) -> Duration {
    let count = spec.count.max(1);
    match (spec.kind, spec.algorithm) {
        (LimitKind::Concurrency, _) => {
            // The last call's own latency is added by the caller.
            let rounds = calls.div_ceil(count).saturating_sub(1);
            latency.mul_f64(as_f64(rounds))
        }
        (_, Algorithm::Sliding | Algorithm::Fixed) => {
            let windows = charged.div_ceil(count).saturating_sub(1);
            spec.period.mul_f64(as_f64(windows))
        }
        (_, Algorithm::Bucket { depth }) => {
            let full = as_f64(count) * depth.as_secs_f64() / spec.period.as_secs_f64();
            let rest = (as_f64(charged) - full).max(0.0);
            spec.period.mul_f64(rest / as_f64(count))
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn least(text: &str, charged: u64) -> f64 {
        let spec: LimitSpec = text.parse().unwrap();
        least_time(&spec, charged, charged, Duration::from_millis(100)).as_secs_f64()
    }

    #[test]
    fn a_window_that_is_full_at_the_start_is_spent_at_once_and_then_one_a_period() {
        assert!((least("requests=2000/10s", 10_000) - 40.0).abs() < 1e-9);
        assert!((least("requests=2000/10s", 2_000) - 0.0).abs() < 1e-9);
        assert!((least("requests=5000/10s", 42_888) - 80.0).abs() < 1e-9);
    }

    #[test]
    fn a_bucket_spends_its_depth_at_once_and_then_its_rate() {
        assert!((least("requests=600/1m:bucket", 1_200) - 60.0).abs() < 1e-9);
    }

    #[test]
    fn places_take_turns() {
        assert!((least("concurrency=10", 100) - 0.9).abs() < 1e-9);
    }
}
