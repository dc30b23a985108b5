use std::sync::{Arc, OnceLock};
use std::time::Duration;

use llmq_core::Now;
use llmq_dispatch::{LimitId, Surroundings, UpstreamId};
use tokio_util::sync::CancellationToken;

use super::options::Price;
use super::progress::{Counters, Progress, Rates};
use crate::Hub;

/// The outside's hold on a run: looks at it, and stops it. Clones hold the same run.
#[derive(Debug, Clone, Default)]
pub struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    stop: CancellationToken,
    /// A person wants the stop.
    interrupt: CancellationToken,
    abort: CancellationToken,
    counters: Arc<Counters>,
    view: OnceLock<View>,
    rates: std::sync::Mutex<Rates>,
}

/// What is needed to look at a running run.
#[derive(Debug)]
pub(super) struct View {
    pub(super) hub: Arc<Hub>,
    pub(super) limits: Vec<LimitId>,
    pub(super) upstreams: Vec<UpstreamId>,
    pub(super) price: Option<Price>,
}

impl Control {
    /// For one run.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends nothing more; calls in flight come to their end and are written.
    pub fn stop(&self) {
        self.inner.interrupt.cancel();
        self.inner.stop.cancel();
    }

    /// Leaves at once: calls in flight are given up. What was written stays, and the same
    /// command continues.
    pub fn abort(&self) {
        self.inner.interrupt.cancel();
        self.inner.stop.cancel();
        self.inner.abort.cancel();
    }

    /// Where the run stands; rates are taken from one call of this to the next, so that it
    /// should be called about once a second, by one caller. `None` before the run has begun.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        let view = self.inner.view.get()?;
        let now = view.hub.surroundings().now();
        Some(self.look(view, now))
    }

    fn look(&self, view: &View, now: Now) -> Progress {
        let counters = &self.inner.counters;
        let (input, output) = (
            Counters::get(&counters.input_tokens),
            Counters::get(&counters.output_tokens),
        );
        let finished = Counters::get(&counters.completed) + Counters::get(&counters.failed);
        let (rows_per_second, tokens_per_minute) = {
            let mut rates = self
                .inner
                .rates
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            rates.update(finished, input + output, now.mono)
        };
        let rows = Some(Counters::get(&counters.rows)).filter(|rows| *rows != 0);
        let done = counters.done();
        let left = rows
            .map(|rows| rows.saturating_sub(done))
            .and_then(|left| time_left(left, rows_per_second));
        Progress {
            rows,
            done,
            failed: Counters::get(&counters.failed) + Counters::get(&counters.resumed_failed),
            resumed: Counters::get(&counters.resumed),
            rows_per_second,
            tokens_per_minute,
            binding: binding(view, now),
            in_flight: Counters::get(&counters.in_flight),
            retries: Counters::get(&counters.retries),
            rate_limited: Counters::get(&counters.rate_limited),
            cost_usd: view.price.map(|price| price.of(input, output)),
            left,
            paused: counters.with_pause(|pause| pause.now.clone()),
        }
    }

    pub(super) fn begins(&self, view: View) {
        let _ = self.inner.view.set(view);
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.inner.counters)
    }

    /// The account has had enough: what it has granted is still sent.
    pub(super) fn stop_by_verdict(&self) {
        self.inner.stop.cancel();
    }

    pub(super) fn interrupt_token(&self) -> &CancellationToken {
        &self.inner.interrupt
    }

    pub(super) fn stop_token(&self) -> &CancellationToken {
        &self.inner.stop
    }

    pub(super) fn abort_token(&self) -> &CancellationToken {
        &self.inner.abort
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
fn time_left(rows: u64, rows_per_second: f64) -> Option<Duration> {
    (rows_per_second > 0.0)
        .then(|| Duration::try_from_secs_f64(rows as f64 / rows_per_second).ok())?
}

/// The limit that is used most.
fn binding(view: &View, now: Now) -> Option<(String, f64)> {
    view.hub.with(|dispatcher| {
        let mut ids: Vec<LimitId> = view.limits.clone();
        for upstream in &view.upstreams {
            ids.extend(dispatcher.upstream_view(*upstream).limits);
        }
        ids.into_iter()
            .map(|id| dispatcher.limit_view(id, now))
            .map(|limit| (limit.name, limit.in_use * 100.0))
            .max_by(|a, b| a.1.total_cmp(&b.1))
    })
}
