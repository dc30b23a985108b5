use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// What a queue has done since it was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct QueueMetrics {
    /// Requests accepted. Each ends in one of the next four.
    pub accepted: u64,
    /// … with a result.
    pub completed: u64,
    /// … with an error of the processor, the provider or a limit.
    pub failed: u64,
    /// … because its time was over.
    pub timed_out: u64,
    /// … because somebody cancelled it, or shut the queue down.
    pub cancelled: u64,
    /// Requests that were not accepted.
    pub refused: u64,
    /// Requests that were joined to another one in flight.
    pub deduplicated: u64,
    /// Attempts begun.
    pub attempts: u64,
    /// Attempts that were followed by another.
    pub retried: u64,
    /// Attempts that the provider refused for its rate.
    pub rate_limited: u64,
    /// Time spent waiting for a first attempt, all requests together.
    pub queued_time: Duration,
    /// Time spent in attempts, all together.
    pub processing_time: Duration,
}

impl QueueMetrics {
    /// The mean time of an attempt; none before the first.
    #[must_use]
    pub fn mean_processing_time(&self) -> Option<Duration> {
        mean(self.processing_time, self.attempts)
    }

    /// The mean wait for a first attempt; none before the first.
    #[must_use]
    pub fn mean_queued_time(&self) -> Option<Duration> {
        mean(self.queued_time, self.attempts.saturating_sub(self.retried))
    }

    /// The share of finished requests that have a result, 0 to 1; none before the first.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub fn success_rate(&self) -> Option<f64> {
        let finished = self.completed + self.failed + self.timed_out + self.cancelled;
        (finished > 0).then(|| self.completed as f64 / finished as f64)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.completed += other.completed;
        self.failed += other.failed;
        self.timed_out += other.timed_out;
        self.cancelled += other.cancelled;
        self.refused += other.refused;
        self.deduplicated += other.deduplicated;
        self.attempts += other.attempts;
        self.retried += other.retried;
        self.rate_limited += other.rate_limited;
        self.queued_time += other.queued_time;
        self.processing_time += other.processing_time;
    }
}

fn mean(total: Duration, count: u64) -> Option<Duration> {
    let nanos = total.as_nanos().checked_div(u128::from(count))?;
    Some(Duration::from_nanos(
        u64::try_from(nanos).unwrap_or(u64::MAX),
    ))
}

/// The same while it is being counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) accepted: Counter,
    pub(crate) completed: Counter,
    pub(crate) failed: Counter,
    pub(crate) timed_out: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) refused: Counter,
    pub(crate) deduplicated: Counter,
    pub(crate) attempts: Counter,
    pub(crate) retried: Counter,
    pub(crate) rate_limited: Counter,
    pub(crate) queued_nanos: Counter,
    pub(crate) processing_nanos: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn span(&self, span: Duration) {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn read(&self) -> QueueMetrics {
        QueueMetrics {
            accepted: self.accepted.get(),
            completed: self.completed.get(),
            failed: self.failed.get(),
            timed_out: self.timed_out.get(),
            cancelled: self.cancelled.get(),
            refused: self.refused.get(),
            deduplicated: self.deduplicated.get(),
            attempts: self.attempts.get(),
            retried: self.retried.get(),
            rate_limited: self.rate_limited.get(),
            queued_time: Duration::from_nanos(self.queued_nanos.get()),
            processing_time: Duration::from_nanos(self.processing_nanos.get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_shares_are_unknown_before_there_is_anything() {
        let none = Counters::default().read();
        assert_eq!(none.mean_processing_time(), None);
        assert_eq!(none.success_rate(), None);
        let counters = Counters::default();
        for _ in 0..4 {
            counters.attempts.one();
            counters.processing_nanos.span(Duration::from_millis(3));
        }
        counters.completed.one();
        counters.failed.one();
        let read = counters.read();
        assert_eq!(read.mean_processing_time(), Some(Duration::from_millis(3)));
        assert_eq!(read.success_rate(), Some(0.5));
    }
}
