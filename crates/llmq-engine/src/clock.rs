use std::time::Duration;

use llmq_core::{Clock, Now, Timestamp, WallTime};
use tokio::time::Instant;

/// How far the monotonic clock is set ahead at its start: an instant a year before the process
/// began can be named, as limits that are restored from disk need.
const HEAD_START: Duration = Duration::from_secs(400 * 86_400);

/// The system's time. The monotonic half is tokio's, so that it follows paused time in tests.
#[derive(Debug, Clone)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock that starts now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    /// A monotonic instant as tokio's.
    #[must_use]
    pub fn instant(&self, at: Timestamp) -> Instant {
        let ahead = at - (Timestamp::ZERO + HEAD_START);
        self.started
            .checked_add(ahead)
            .unwrap_or_else(|| self.started + HEAD_START)
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let mono = Timestamp::ZERO + HEAD_START + self.started.elapsed();
        Now { mono, wall: wall() }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
fn wall() -> WallTime {
    let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
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
