//! Our own clocks: a wall clock that somebody sets, and a monotonic one that does not care.

use std::time::Duration;

use llmq_core::{Now, Timestamp, WallTime};

/// The wall clock at zero; odd, so that no run begins at the edge of a window.
pub(super) const WALL: Duration = Duration::from_millis(1_790_000_017_345);

/// What our clocks show at an instant of the run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    /// By how much the wall clock was set.
    set_by_ms: i64,
    /// By how much the monotonic clock runs ahead: only where that is broken on purpose.
    ahead: Duration,
}

impl Clock {
    pub(super) fn at(self, now: Timestamp) -> Now {
        let right = WallTime::from_micros(0) + WALL + Duration::from_nanos(now.as_nanos());
        Now {
            mono: now + self.ahead,
            wall: WallTime::from_micros(right.as_micros().saturating_add(self.set_by_ms * 1_000)),
        }
    }

    /// The instant of the run at which the monotonic clock shows `mono`.
    pub(super) fn instant(self, mono: Timestamp) -> Timestamp {
        mono.before(self.ahead)
    }

    pub(super) fn set(&mut self, by_ms: i64) {
        self.set_by_ms += by_ms;
    }

    /// Sets the wall clock and lets the monotonic one follow, forwards at least.
    pub(super) fn set_both(&mut self, by_ms: i64) {
        self.set(by_ms);
        self.ahead += Duration::from_millis(u64::try_from(by_ms).unwrap_or(0));
    }
}
