use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmq_core::{Clock, Now, Timestamp, WallTime};
use tokio::time::Instant;

/// What the wall clock shows at the start: 2027-01-15T08:00:00Z.
const WALL_AT_START: WallTime = WallTime::from_micros(1_800_000_000_000_000);

/// A clock that goes as a test wants.
///
/// Its monotonic half begins at [`Timestamp::ZERO`] and never runs backwards; its wall half can
/// be set to anything, as a person or a time server sets a real one.
///
/// ```
/// use llmq_core::Clock;
/// use llmq_testkit::FakeClock;
/// use std::time::Duration;
/// let clock = FakeClock::new();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(clock.now(), before.after(Duration::from_secs(5)));
/// clock.set_wall(before.wall.before(Duration::from_secs(3_600)));
/// assert_eq!(clock.now().mono, before.after(Duration::from_secs(5)).mono);
/// ```
#[derive(Debug)]
pub struct FakeClock {
    /// Where tokio's time stood at the start, if it is followed.
    tokio_start: Option<Instant>,
    hands: Mutex<Hands>,
}

#[derive(Debug)]
struct Hands {
    /// How far it was moved by hand.
    moved: Duration,
    /// What the wall clock would have shown at the start, had it been right then.
    wall_at_start: WallTime,
}

impl FakeClock {
    /// A clock that stands still until it is moved.
    #[must_use]
    pub fn new() -> Self {
        Self::following(None)
    }

    /// A clock that follows tokio's time, paused or not.
    #[must_use]
    pub fn with_tokio() -> Self {
        Self::following(Some(Instant::now()))
    }

    fn following(tokio_start: Option<Instant>) -> Self {
        Self {
            tokio_start,
            hands: Mutex::new(Hands {
                moved: Duration::ZERO,
                wall_at_start: WALL_AT_START,
            }),
        }
    }

    /// Moves both halves on, beside whatever moves them otherwise.
    pub fn advance(&self, span: Duration) {
        self.hands().moved += span;
    }

    /// Sets the wall clock; it goes on from there. The monotonic half does not notice.
    pub fn set_wall(&self, wall: WallTime) {
        let mut hands = self.hands();
        hands.wall_at_start = wall.before(self.elapsed(&hands));
    }

    fn elapsed(&self, hands: &Hands) -> Duration {
        let followed = self.tokio_start.map_or(Duration::ZERO, |at| at.elapsed());
        followed + hands.moved
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for FakeClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Now {
        let hands = self.hands();
        let elapsed = self.elapsed(&hands);
        Now {
            mono: Timestamp::ZERO + elapsed,
            wall: hands.wall_at_start + elapsed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_stands_still_until_it_is_moved() {
        let clock = FakeClock::new();
        let start = clock.now();
        assert_eq!((start.mono, clock.now()), (Timestamp::ZERO, start));
        clock.advance(SECOND);
        clock.advance(SECOND);
        assert_eq!(clock.now(), start.after(SECOND * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn it_follows_paused_time() {
        let clock = FakeClock::with_tokio();
        let start = clock.now();
        tokio::time::advance(SECOND).await;
        clock.advance(SECOND);
        assert_eq!(clock.now(), start.after(SECOND * 2));
    }

    #[test]
    fn a_wall_that_was_set_goes_on_from_there_and_moves_nothing_else() {
        let clock = FakeClock::new();
        clock.advance(SECOND);
        for micros in [-1, 0, 4_000_000_000_000_000] {
            let wall = WallTime::from_micros(micros);
            let mono = clock.now().mono;
            clock.set_wall(wall);
            assert_eq!(clock.now(), Now { mono, wall });
            clock.advance(SECOND);
            assert_eq!(clock.now(), Now { mono, wall }.after(SECOND));
        }
    }
}
