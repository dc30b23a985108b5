use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use llmq_core::{Clock, Now, Timestamp, WallTime};
use tokio::time::Instant;

/// How far the monotonic clock is set ahead at its start: an instant a year before the process
/// began can be named, as limits that are restored from disk need.
const HEAD_START: Duration = Duration::from_secs(400 * 86_400);

/// Every clock of a process counts from here, so that what one of them read can be compared
/// with what another did.
static EPOCH: OnceLock<Instant> = OnceLock::new();

/// The system's time. The monotonic half is tokio's, so that it follows paused time in tests.
#[derive(Clone)]
pub struct SystemClock {
    epoch: Instant,
    /// Whose wall is looked at instead of the system's.
    wall: Option<Arc<dyn Clock>>,
}

impl fmt::Debug for SystemClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemClock").finish_non_exhaustive()
    }
}

impl SystemClock {
    /// The process's clock.
    #[must_use]
    pub fn new() -> Self {
        Self {
            epoch: *EPOCH.get_or_init(Instant::now),
            wall: None,
        }
    }

    /// The same with another clock's wall: for tests in which the wall is set.
    #[must_use]
    pub fn with_wall_of(clock: Arc<dyn Clock>) -> Self {
        Self {
            wall: Some(clock),
            ..Self::new()
        }
    }

    /// A monotonic instant as tokio's.
    #[must_use]
    pub fn instant(&self, at: Timestamp) -> Instant {
        let start = Timestamp::ZERO + HEAD_START;
        let later = self.epoch.checked_add(at - start);
        let earlier = self.epoch.checked_sub(start - at);
        if at >= start { later } else { earlier }.unwrap_or(self.epoch + HEAD_START)
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let now = Instant::now();
        let start = Timestamp::ZERO + HEAD_START;
        let mono = match now.checked_duration_since(self.epoch) {
            Some(since) => start + since,
            // A test's paused time may lie before that of another, which set the epoch.
            None => start.before(self.epoch.saturating_duration_since(now)),
        };
        Now {
            mono,
            wall: match &self.wall {
                Some(clock) => clock.now().wall,
                None => wall_at(now),
            },
        }
    }
}

/// The wall clock is looked at again after this time. Until then it goes on as the other does,
/// which one reading then does for: calls read both, several times each.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

thread_local! {
    static SEEN: Cell<Option<(Instant, WallTime)>> = const { Cell::new(None) };
}

/// The wall clock at `now`; a jump is noticed a millisecond later at most.
fn wall_at(now: Instant) -> WallTime {
    if let Some((at, seen)) = SEEN.get()
        && let Some(since) = now.checked_duration_since(at)
        && since < LOOK_AGAIN
    {
        return seen + since;
    }
    let seen = wall();
    SEEN.set(Some((now, seen)));
    seen
}

#[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
fn wall() -> WallTime {
    let micros = |span: Duration| {
        let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        let rest = i64::from(span.subsec_micros());
        seconds.saturating_mul(1_000_000).saturating_add(rest)
    };
    WallTime::from_micros(
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => micros(since),
            Err(error) => -micros(error.duration()),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_follows_paused_time_and_can_name_a_year_ago() {
        let clock = SystemClock::new();
        let before = clock.now();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now().mono - before.mono, Duration::from_secs(5));
        let year = Duration::from_secs(366 * 86_400);
        assert_eq!(before.mono - before.mono.before(year), year);
        assert_eq!(clock.instant(clock.now().mono), Instant::now());
    }
}
