use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use llmq_core::{Now, Timestamp, WallTime};
use serde::Serialize;

use super::verdict::Pause;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Progress {
    /// Rows of the input, once they are counted.
    pub rows: Option<u64>,
    /// Rows with a result, those of earlier runs included.
    pub done: u64,
    /// Of those, rows that failed.
    pub failed: u64,
    /// Rows that earlier runs had finished.
    pub resumed: u64,
    /// Rows finished a second, over the last ten seconds.
    pub rows_per_second: f64,
    /// Input and output tokens a minute, over the last ten seconds.
    pub tokens_per_minute: f64,
    /// The limit that is used most, and how much of it, in per cent.
    pub binding: Option<(String, f64)>,
    /// Calls in flight.
    pub in_flight: u64,
    /// Attempts beyond the first of each row.
    pub retries: u64,
    /// 429s received.
    pub rate_limited: u64,
    /// What it cost so far, if the price is known.
    pub cost_usd: Option<f64>,
    /// Time left at the present rate.
    pub left: Option<Duration>,
    /// Why nothing is sent, and until when, if that is so.
    pub paused: Option<Paused>,
}

/// Why a run pauses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Paused {
    /// Why.
    pub reason: String,
    /// Until when; none: until something changes.
    pub until: Option<WallTime>,
}

/// Counts that every part of a run adds to.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Rows of the input; 0 until they are counted.
    pub(super) rows: AtomicU64,
    /// Rows that were read so far.
    pub(super) read: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) resumed_failed: AtomicU64,
    pub(super) completed: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) attempts: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) in_flight: AtomicU64,
    pub(super) ambiguous_attempts: AtomicU64,
    pub(super) rate_limited: AtomicU64,
    pub(super) rate_limited_ours: AtomicU64,
    pub(super) input_tokens: AtomicU64,
    pub(super) output_tokens: AtomicU64,
    pub(super) latency_us: AtomicU64,
    pub(super) answers: AtomicU64,
    pub(super) last_answer_ns: AtomicU64,
    pub(super) pause: Mutex<PauseClock>,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// Rows with a result of this or an earlier run.
    pub(super) fn done(&self) -> u64 {
        [&self.resumed, &self.completed, &self.failed]
            .into_iter()
            .map(Self::get)
            .sum()
    }

    pub(super) fn mean_latency(&self) -> Duration {
        let answers = Self::get(&self.answers).max(1);
        Duration::from_micros(Self::get(&self.latency_us) / answers)
    }

    pub(super) fn with_pause<T>(&self, look: impl FnOnce(&mut PauseClock) -> T) -> T {
        look(
            &mut self
                .pause
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }
}

/// How long a run has paused, and why it does now.
#[derive(Debug, Default)]
pub(super) struct PauseClock {
    pub(super) now: Option<Paused>,
    since: Option<Timestamp>,
    total: Duration,
    /// What it was at the last answer.
    at_last_answer: Duration,
}

impl PauseClock {
    /// A wait for a window is shown, and is no time that a run could not use.
    pub(super) fn begin(&mut self, pause: Pause, now: Now) {
        if pause.is_pacing {
            self.end(now);
        } else {
            self.since.get_or_insert(now.mono);
        }
        self.now = Some(pause.told);
    }

    pub(super) fn end(&mut self, now: Now) {
        if let Some(since) = self.since.take() {
            self.total += now.mono - since;
        }
        self.now = None;
    }

    /// A call was answered.
    pub(super) fn answered(&mut self, now: Now) {
        self.at_last_answer = self.at_last_answer.max(self.total(now));
    }

    /// How long it has paused up to the last answer: a run's time ends with that, and a pause in
    /// which it is stopped is no part of it.
    pub(super) fn at_last_answer(&self) -> Duration {
        self.at_last_answer
    }

    fn total(&self, now: Now) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| now.mono - since)
    }
}

/// Rates over the last few seconds.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// (when, rows finished by this run, its tokens), one a second.
    samples: std::collections::VecDeque<(Timestamp, u64, u64)>,
}

/// Rates are taken over this long.
const SPAN: Duration = Duration::from_secs(10);

impl Rates {
    /// Rows a second and tokens a minute.
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    pub(super) fn update(&mut self, rows: u64, tokens: u64, now: Timestamp) -> (f64, f64) {
        self.samples.push_back((now, rows, tokens));
        while self.samples.len() > 2
            && self
                .samples
                .get(1)
                .is_some_and(|(at, ..)| now - *at >= SPAN)
        {
            self.samples.pop_front();
        }
        let Some((since, old_rows, old_tokens)) = self.samples.front() else {
            return (0.0, 0.0);
        };
        let seconds = (now - *since).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        let (rows, tokens) = (rows - old_rows, tokens - old_tokens);
        (rows as f64 / seconds, tokens as f64 * 60.0 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Now {
        Now {
            mono: Timestamp::ZERO + Duration::from_secs(secs),
            ..Now::default()
        }
    }

    #[test]
    fn pauses_add_up_and_overlapping_ones_count_once() {
        let pause = |is_pacing| Pause {
            told: Paused {
                reason: "r".into(),
                until: None,
            },
            is_pacing,
        };
        let mut clock = PauseClock::default();
        clock.begin(pause(false), at(10));
        clock.begin(pause(false), at(15));
        clock.end(at(20));
        clock.end(at(30));
        clock.begin(pause(false), at(40));
        clock.answered(at(45));
        assert_eq!(clock.at_last_answer(), Duration::from_secs(15));
        // A refusal of a window had counted as a pause, and the run as perfect.
        clock.begin(pause(true), at(50));
        assert!(clock.now.is_some());
        clock.answered(at(60));
        assert_eq!(clock.at_last_answer(), Duration::from_secs(20));
        // A run that was stopped in a pause had paused for longer than it took, and was perfect.
        clock.begin(pause(false), at(70));
        clock.end(at(7_000));
        clock.begin(pause(false), at(8_000));
        assert_eq!(clock.at_last_answer(), Duration::from_secs(20));
    }

    #[test]
    fn rates_follow_the_last_seconds_and_not_the_whole_run() {
        let mut rates = Rates::default();
        for secs in 0..100 {
            rates.update(secs * 100, secs * 1_000, at(secs).mono);
        }
        let (rows, tokens) = rates.update(99 * 100, 99_000, at(109).mono);
        assert!((rows - 0.0).abs() < 1e-9, "{rows}");
        assert!((tokens - 0.0).abs() < 1e-9, "{tokens}");
        assert!(rates.samples.len() <= 12);
    }
}
