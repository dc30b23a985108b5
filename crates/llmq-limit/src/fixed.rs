use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::Timestamp;

use crate::Denied;
use crate::sliding::signed;

/// Windows that start at multiples of the period and begin empty.
///
/// A call near an edge may be counted by the provider on either side of it, so it is counted
/// on both until its answer tells.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    count: u64,
    period_ns: u64,
    /// Added to a timestamp so that windows start at multiples of the period.
    offset_ns: u64,
    /// (window, used), oldest first; never more than a few.
    windows: VecDeque<(u64, i64)>,
}

impl Fixed {
    /// `offset_ns` is the wall clock (ns since 1970, modulo the period) at timestamp zero.
    pub(crate) fn new(count: u64, period: Duration, offset_ns: u64) -> Self {
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self {
            count,
            period_ns,
            offset_ns: offset_ns % period_ns,
            windows: VecDeque::new(),
        }
    }

    pub(crate) fn set_count(&mut self, count: u64) {
        self.count = count;
    }

    fn window(&self, at: Timestamp) -> u64 {
        at.as_nanos().saturating_add(self.offset_ns) / self.period_ns
    }

    fn start(&self, window: u64) -> Timestamp {
        Timestamp::from_nanos(
            window
                .saturating_mul(self.period_ns)
                .saturating_sub(self.offset_ns),
        )
    }

    /// Forgets the windows before the last one, which binds until a margin after its end.
    pub(crate) fn advance(&mut self, now: Timestamp) {
        let oldest = self.window(now).saturating_sub(1);
        while self
            .windows
            .front()
            .is_some_and(|(window, _)| *window < oldest)
        {
            self.windows.pop_front();
        }
    }

    fn used_in(&self, window: u64) -> i64 {
        self.windows
            .iter()
            .find(|(at, _)| *at == window)
            .map_or(0, |(_, used)| *used)
    }

    /// The most that is used in any window that a call sent now may fall into.
    pub(crate) fn used(&self, now: Timestamp, margin: Duration) -> i64 {
        self.used_between(now.before(margin), now + margin)
    }

    /// The most that is used in any window from the one to the other.
    pub(crate) fn used_between(&self, from: Timestamp, to: Timestamp) -> i64 {
        self.touched(from, to)
            .map(|window| self.used_in(window))
            .max()
            .unwrap_or(0)
    }

    fn touched(&self, from: Timestamp, to: Timestamp) -> std::ops::RangeInclusive<u64> {
        self.window(from)..=self.window(to)
    }

    pub(crate) fn check(
        &self,
        cost: u64,
        held: u64,
        now: Timestamp,
        margin: Duration,
    ) -> Result<(), Denied> {
        let cost = signed(cost.min(self.count));
        let full = |window: u64| self.used_in(window) + signed(held) + cost > signed(self.count);
        let Some(blocking) = self
            .touched(now.before(margin), now + margin)
            .rev()
            .find(|w| full(*w))
        else {
            return Ok(());
        };
        if signed(held) + cost > signed(self.count) {
            return Err(Denied::OnRelease);
        }
        // The next window that has room, and far enough inside it that the call cannot fall
        // back into the one before.
        let mut next = blocking + 1;
        while full(next) {
            next += 1;
        }
        Err(Denied::Until(self.start(next) + margin))
    }

    /// Whether a new window begins between `from` and `to`.
    pub(crate) fn spans_edge(&self, from: Timestamp, to: Timestamp) -> bool {
        self.window(from) != self.window(to)
    }

    /// Adds `amount` to every window in which a call may have arrived between `from` and `to`.
    pub(crate) fn add(&mut self, amount: i64, from: Timestamp, to: Timestamp) {
        for window in self.touched(from, to) {
            self.add_in(window, amount);
        }
    }

    fn add_in(&mut self, window: u64, amount: i64) {
        let position = self.windows.partition_point(|(at, _)| *at < window);
        match self
            .windows
            .get_mut(position)
            .filter(|(at, _)| *at == window)
        {
            Some((_, used)) => *used += amount,
            None if amount > 0 => self.windows.insert(position, (window, amount)),
            None => {}
        }
    }

    /// When the window at `now` ends.
    pub(crate) fn ends(&self, now: Timestamp) -> Timestamp {
        self.start(self.window(now) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(ms)
    }

    const MARGIN: Duration = Duration::from_millis(5);

    #[test]
    fn a_window_begins_empty_at_a_multiple_of_the_period() {
        let mut window = Fixed::new(2, Duration::from_secs(1), 300_000_000);
        window.add(2, ms(400), ms(400));
        assert_eq!(
            window.check(1, 0, ms(400), MARGIN),
            Err(Denied::Until(ms(705)))
        );
        window.advance(ms(705));
        assert_eq!(window.check(2, 0, ms(705), MARGIN), Ok(()));
    }

    #[test]
    fn near_an_edge_a_call_counts_on_both_sides() {
        let mut window = Fixed::new(1, Duration::from_secs(1), 0);
        window.add(1, ms(993), ms(1_003));
        assert!(window.check(1, 0, ms(990), MARGIN).is_err());
        assert_eq!(
            window.check(1, 0, ms(1_100), MARGIN),
            Err(Denied::Until(ms(2_005)))
        );
    }

    #[test]
    fn just_after_an_edge_the_window_before_still_binds() {
        let mut window = Fixed::new(1, Duration::from_secs(1), 0);
        window.add(1, ms(500), ms(500));
        // An answer that was settled just after the edge dropped the window too early.
        window.advance(ms(1_001));
        assert_eq!(
            window.check(1, 0, ms(1_002), MARGIN),
            Err(Denied::Until(ms(1_005)))
        );
        assert_eq!(window.check(1, 0, ms(1_005), MARGIN), Ok(()));
    }
}
