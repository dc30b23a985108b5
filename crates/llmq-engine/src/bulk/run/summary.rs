use std::time::Duration;

use llmq_core::{Algorithm, LimitKind, LimitSpec, Now, Timestamp};
use llmq_dispatch::LimitId;
use serde::Serialize;

use super::options::RunOptions;
use super::progress::Counters;
use crate::Hub;

/// What a run did, at its end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Rows of the input; of one that cannot be counted, or not in a few seconds after a stop, as
    /// far as it was read.
    pub rows: u64,
    /// Rows that have no result yet; none where nobody knows how many there are.
    pub to_do: Option<u64>,
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
    /// The bound over the elapsed time, pauses left out; at most 1. Waiting for a window, after
    /// a refusal too, is no pause.
    pub efficiency: Option<f64>,
    /// How much of that time the run paused, in seconds.
    pub paused_s: f64,
    /// Rows that earlier runs had finished.
    pub resumed: u64,
    /// The limit that decided the bound, if one did.
    pub binding: Option<String>,
    /// Why it stopped before the end, if the account or the provider was the reason.
    pub stopped: Option<String>,
}

/// What the run did since `started`.
pub(super) fn summarize(
    hub: &Hub,
    limits: &[LimitId],
    counters: &Counters,
    options: &RunOptions,
    started: Now,
) -> Summary {
    let calls = Counters::get(&counters.attempts);
    let latency = counters.mean_latency();
    let last = Timestamp::from_nanos(Counters::get(&counters.last_answer_ns)).max(started.mono);
    let elapsed = last - started.mono;
    // A pause may have been there a moment before the run.
    let paused = counters.with_pause(|pause| pause.at_last_answer());
    let paused = paused.min(elapsed);
    let bounds = limits.iter().map(|id| {
        hub.with(|dispatcher| {
            let limit = dispatcher.limit_mut(*id);
            let least = least_time(limit.spec(), limit.charged(), calls, latency);
            (least, dispatcher.limit_name(*id).to_owned())
        })
    });
    let tightest = bounds
        .max_by_key(|(time, _)| *time)
        .filter(|(time, _)| !time.is_zero());
    let bound = (Counters::get(&counters.answers) > 0)
        .then(|| tightest.as_ref().map_or(Duration::ZERO, |(time, _)| *time) + latency);
    let busy = elapsed.saturating_sub(paused);
    let (input_tokens, output_tokens) = (
        Counters::get(&counters.input_tokens),
        Counters::get(&counters.output_tokens),
    );
    let rows = Counters::get(&counters.rows);
    Summary {
        rows,
        to_do: (rows > 0).then(|| rows.saturating_sub(counters.done())),
        completed: Counters::get(&counters.completed) + Counters::get(&counters.resumed)
            - Counters::get(&counters.resumed_failed),
        failed: Counters::get(&counters.failed) + Counters::get(&counters.resumed_failed),
        attempts: calls,
        ambiguous_attempts: Counters::get(&counters.ambiguous_attempts),
        rate_limited: Counters::get(&counters.rate_limited),
        rate_limited_ours: Counters::get(&counters.rate_limited_ours),
        input_tokens,
        output_tokens,
        cost_usd: options
            .price
            .map(|price| price.of(input_tokens, output_tokens)),
        elapsed_s: elapsed.as_secs_f64(),
        bound_s: bound.map(|bound| bound.as_secs_f64()),
        efficiency: bound
            .map(|bound| (bound.as_secs_f64() / busy.as_secs_f64().max(1e-9)).min(1.0)),
        paused_s: paused.as_secs_f64(),
        resumed: Counters::get(&counters.resumed),
        binding: tightest.map(|(_, name)| name),
        stopped: None,
    }
}

/// The least time in which `charged` can be spent on a limit that is full at the start.
fn least_time(spec: &LimitSpec, charged: u64, calls: u64, latency: Duration) -> Duration {
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
