use std::time::Duration;

use llmq_core::Timestamp;

/// A counter that begins anew at each multiple of the period on the wall clock. What one
/// window is overdrawn by is forgotten in the next, as such counters do.
#[derive(Debug, Clone)]
pub(crate) struct FixedWindow {
    count: u64,
    period_nanos: u128,
    /// What the wall clock shows at [`Timestamp::ZERO`], in nanoseconds since its own epoch.
    wall_nanos: u128,
    /// The number of the window that `used` belongs to.
    window: u128,
    used: u64,
}

impl FixedWindow {
    pub(crate) fn new(count: u64, period: Duration, wall_at_zero: Duration) -> Self {
        Self {
            count,
            period_nanos: period.as_nanos().max(1),
            wall_nanos: wall_at_zero.as_nanos(),
            window: 0,
            used: 0,
        }
    }

    pub(crate) fn used(&self, now: Timestamp) -> u64 {
        if self.window_at(now) == self.window {
            self.used
        } else {
            0
        }
    }

    /// How long until `room` fits, which must not be above the count; zero when it fits now.
    pub(crate) fn wait(&self, room: u64, now: Timestamp) -> Duration {
        if self.used(now).saturating_add(room) <= self.count {
            Duration::ZERO
        } else {
            self.to_next_window(now)
        }
    }

    pub(crate) fn charge(&mut self, amount: u64, now: Timestamp) {
        self.used = self.used(now).saturating_add(amount);
        self.window = self.window_at(now);
    }

    /// How long until nothing is used any more.
    pub(crate) fn full_in(&self, now: Timestamp) -> Duration {
        if self.used(now) == 0 {
            Duration::ZERO
        } else {
            self.to_next_window(now)
        }
    }

    fn wall(&self, now: Timestamp) -> u128 {
        self.wall_nanos + u128::from(now.as_nanos())
    }

    fn window_at(&self, now: Timestamp) -> u128 {
        self.wall(now) / self.period_nanos
    }

    fn to_next_window(&self, now: Timestamp) -> Duration {
        let rest = self.period_nanos - self.wall(now) % self.period_nanos;
        Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_at_multiples_of_the_period_on_the_wall_clock() {
        let second = Duration::from_secs(1);
        let mut window = FixedWindow::new(2, Duration::from_secs(60), 59 * second);
        window.charge(2, Timestamp::ZERO);
        assert_eq!(window.wait(1, Timestamp::ZERO), second);
        let turn = Timestamp::ZERO + second;
        assert_eq!(window.wait(2, turn), Duration::ZERO);
        window.charge(5, turn);
        assert_eq!(window.used(turn), 5);
        assert_eq!(window.full_in(turn), 60 * second);
        assert_eq!(window.used(turn + 60 * second), 0);
    }
}
