use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::Timestamp;

/// Use is kept below half of 2^64, so that sums with one more charge cannot wrap.
const USED_MAX: u64 = u64::MAX / 2;

/// A sliding window as the exact log of its charges: never more than the count in any window
/// of the period's length.
///
/// What is charged at t counts in (t, t + period) and at t itself, and is gone at t + period.
/// Each entry holds the running total up to and including itself, so that the use of a window
/// and the instant at which enough has left are found by binary search. Totals wrap; only
/// their differences mean something.
#[derive(Debug, Clone)]
pub(crate) struct SlidingLog {
    count: u64,
    period: Duration,
    entries: VecDeque<Entry>,
    /// The running total of all that has been dropped from the front.
    left: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: Timestamp,
    total: u64,
}

impl SlidingLog {
    pub(crate) fn new(count: u64, period: Duration) -> Self {
        Self {
            count,
            period,
            entries: VecDeque::new(),
            left: 0,
        }
    }

    pub(crate) fn used(&self, now: Timestamp) -> u64 {
        let newest = self.entries.back().map_or(self.left, |entry| entry.total);
        newest.wrapping_sub(self.left_by(now))
    }

    /// How long until `room` fits, which must not be above the count; zero when it fits now.
    pub(crate) fn wait(&self, room: u64, now: Timestamp) -> Duration {
        let left = self.left_by(now);
        let excess = (self.used(now) + room).saturating_sub(self.count);
        if excess == 0 {
            return Duration::ZERO;
        }
        let enough = self.entries.partition_point(|entry| {
            !self.alive(entry, now) || entry.total.wrapping_sub(left) < excess
        });
        self.entries
            .get(enough)
            .map_or(self.period, |entry| entry.at + self.period - now)
    }

    pub(crate) fn charge(&mut self, amount: u64, now: Timestamp) {
        self.drop_gone(now);
        let used = self.used(now);
        let amount = amount.min(USED_MAX - used);
        if amount == 0 {
            return;
        }
        match self.entries.back_mut() {
            Some(newest) if newest.at == now => newest.total = newest.total.wrapping_add(amount),
            newest => {
                let before = newest.map_or(self.left, |entry| entry.total);
                self.entries.push_back(Entry {
                    at: now,
                    total: before.wrapping_add(amount),
                });
            }
        }
    }

    /// How long until nothing is used any more.
    pub(crate) fn full_in(&self, now: Timestamp) -> Duration {
        self.entries
            .back()
            .map_or(Duration::ZERO, |newest| newest.at + self.period - now)
    }

    fn alive(&self, entry: &Entry, now: Timestamp) -> bool {
        entry.at + self.period > now
    }

    /// The running total of all that has left the window by `now`.
    fn left_by(&self, now: Timestamp) -> u64 {
        match self.entries.front() {
            Some(oldest) if !self.alive(oldest, now) => {
                let gone = self
                    .entries
                    .partition_point(|entry| !self.alive(entry, now));
                self.entries[gone - 1].total
            }
            _ => self.left,
        }
    }

    fn drop_gone(&mut self, now: Timestamp) {
        while let Some(oldest) = self.entries.front().copied()
            && !self.alive(&oldest, now)
        {
            self.left = oldest.total;
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    #[test]
    fn a_charge_counts_until_one_period_after_it_exactly() {
        let mut log = SlidingLog::new(3, Duration::from_nanos(100));
        log.charge(2, at(10));
        log.charge(1, at(50));
        assert_eq!(log.used(at(109)), 3);
        assert_eq!(log.used(at(110)), 1);
        assert_eq!(log.wait(2, at(60)), Duration::from_nanos(50));
        assert_eq!(log.wait(3, at(60)), Duration::from_nanos(90));
        assert_eq!(log.wait(2, at(110)), Duration::ZERO);
        assert_eq!(log.full_in(at(60)), Duration::from_nanos(90));
        assert_eq!(log.full_in(at(500)), Duration::ZERO);
    }

    #[test]
    fn only_what_is_inside_the_window_is_kept() {
        let mut log = SlidingLog::new(10, Duration::from_nanos(10));
        for step in 0..100_000 {
            log.charge(1, at(step));
        }
        assert_eq!(log.entries.len(), 10);
        assert_eq!(log.used(at(99_999)), 10);
    }

    #[test]
    fn running_totals_may_wrap() {
        let mut log = SlidingLog::new(5, Duration::from_nanos(10));
        log.left = u64::MAX - 1;
        log.charge(3, at(0));
        log.charge(2, at(1));
        assert_eq!(log.used(at(2)), 5);
        assert_eq!(log.wait(3, at(2)), Duration::from_nanos(8));
        assert_eq!(log.wait(4, at(2)), Duration::from_nanos(9));
        log.charge(u64::MAX, at(3));
        assert_eq!(log.used(at(3)), USED_MAX);
    }
}
