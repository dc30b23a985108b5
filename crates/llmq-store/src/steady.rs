use std::time::Duration;

use llmq_core::{Now, Timestamp, WallTime};

/// A wall clock that does not jump: it showed the wall's time when its process began, and has
/// followed the monotonic clock since. Waits that outlive a process are kept in its time, so that
/// a jump of the wall moves none while the process runs.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    origin: Now,
}

impl Steady {
    /// One that shows the wall's time at `origin`.
    #[must_use]
    pub fn new(origin: Now) -> Self {
        Self { origin }
    }

    /// What it shows at `now`.
    #[must_use]
    pub fn at(self, now: Now) -> WallTime {
        self.origin.wall_at(now.mono)
    }

    /// The monotonic instant at which it shows `instant`, and `now` if it has passed.
    #[must_use]
    pub fn when(self, instant: WallTime, now: Now) -> Timestamp {
        now.mono + instant.since(self.at(now))
    }

    /// What the wall shows when this clock shows `instant`, as things stand at `now`.
    #[must_use]
    pub fn on_the_wall(self, instant: WallTime, now: Now) -> WallTime {
        let here = self.at(now);
        if instant >= here {
            now.wall + instant.since(here)
        } else {
            now.wall.before(here.since(instant))
        }
    }
}

/// How long a queue has stood, so that the time to live of its jobs can stand with it. A job's
/// deadline is kept as if its queue had never stood, and compared with the time less what it stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stood {
    /// Over all pauses that have ended.
    pub total: Duration,
    /// Since when it stands, in steady time.
    pub since: Option<WallTime>,
}

impl Stood {
    /// How long until `now` (steady).
    #[must_use]
    pub fn until(self, now: WallTime) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// The queue stands or goes from `now` (steady) on.
    pub fn set(&mut self, stands: bool, now: WallTime) {
        match (stands, self.since) {
            (true, None) => self.since = Some(now),
            (false, Some(_)) => {
                self.total = self.until(now);
                self.since = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// The deadline of a job that has `ttl` left at `now` (steady).
    #[must_use]
    pub fn deadline(self, ttl: Duration, now: WallTime) -> WallTime {
        now.before(self.until(now)) + ttl
    }

    /// The time that deadlines are compared with.
    #[must_use]
    pub fn queue_time(self, now: WallTime) -> WallTime {
        now.before(self.until(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_moves_by_what_the_queue_stood() {
        let at = |seconds: u64| WallTime::from_micros(1_000_000_000) + Duration::from_secs(seconds);
        let mut stood = Stood::default();
        let deadline = stood.deadline(Duration::from_secs(10), at(0));
        stood.set(true, at(5));
        assert!(stood.queue_time(at(1000)) < deadline);
        stood.set(true, at(600));
        stood.set(false, at(1005));
        assert!(stood.queue_time(at(1009)) < deadline);
        assert!(stood.queue_time(at(1010)) >= deadline);
    }

    #[test]
    fn a_jump_of_the_wall_does_not_move_it() {
        let origin = Now::default();
        let steady = Steady::new(origin);
        let mut now = origin.after(Duration::from_secs(1));
        now.wall = WallTime::from_micros(-77);
        assert_eq!(steady.at(now), WallTime::from_micros(1_000_000));
    }
}
