use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::Timestamp;

/// Entries of one grain that the whole span has, and entries that are kept in a fine grain.
const ENTRIES: u32 = 1_024;
/// More entries than this are merged.
const ENTRIES_MAX: usize = 4_096;
/// Calls sent so close to each other share an entry from the start.
const FINE: Duration = Duration::from_micros(100);

/// The running total of what was sent, by time: how much was charged before any instant of
/// the last `span`. Old neighbours closer than a grain are merged, which only widens the
/// answers; the newest are kept apart, since words on them are compared call by call.
#[derive(Debug, Clone)]
pub(crate) struct SentLog {
    span: Duration,
    grain: Duration,
    /// (first instant, last instant, total after it), oldest first.
    entries: VecDeque<(Timestamp, Timestamp, u64)>,
    total: u64,
    /// The total at everything that has been forgotten …
    forgotten: u64,
    /// … and when the last of it was sent.
    forgotten_last: Timestamp,
}

impl SentLog {
    pub(crate) fn new(span: Duration) -> Self {
        Self {
            span,
            grain: span / ENTRIES,
            entries: VecDeque::new(),
            total: 0,
            forgotten: 0,
            forgotten_last: Timestamp::ZERO,
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn add(&mut self, amount: u64, at: Timestamp) {
        self.total = self.total.saturating_add(amount);
        let fine = FINE.min(self.grain);
        match self.entries.back_mut() {
            Some((first, last, total)) if at - *first <= fine => {
                *last = (*last).max(at);
                *total = self.total;
            }
            // Sends are told in the order of their times, apart from a lost race or two.
            Some((_, last, _)) if at < *last => {
                let at = *last;
                self.entries.push_back((at, at, self.total));
            }
            _ => self.entries.push_back((at, at, self.total)),
        }
        let oldest = at.before(self.span);
        while self
            .entries
            .front()
            .is_some_and(|(_, last, _)| *last < oldest)
        {
            if let Some((_, last, total)) = self.entries.pop_front() {
                (self.forgotten, self.forgotten_last) = (total, last);
            }
        }
        if self.entries.len() > ENTRIES_MAX {
            self.merge_old();
        }
    }

    /// Merges neighbours within a grain, but for the newest entries. At most two grains' worth
    /// of entries and the newest are left, so this is seldom due.
    fn merge_old(&mut self) {
        let newest = self
            .entries
            .split_off(self.entries.len() - ENTRIES as usize);
        let mut merged: VecDeque<(Timestamp, Timestamp, u64)> = VecDeque::new();
        for (first, last, total) in self.entries.drain(..) {
            match merged.back_mut() {
                Some(entry) if last - entry.0 <= self.grain => (entry.1, entry.2) = (last, total),
                _ => merged.push_back((first, last, total)),
            }
        }
        merged.extend(newest);
        self.entries = merged;
    }

    /// A total not above what had been charged when `at` came. Of what has been forgotten
    /// nothing is known but that it was not negative.
    pub(crate) fn at_least_before(&self, at: Timestamp) -> u64 {
        let known = self.entries.partition_point(|(_, last, _)| *last < at);
        match known.checked_sub(1) {
            Some(index) => self.entries[index].2,
            None if self.forgotten_last < at => self.forgotten,
            None => 0,
        }
    }

    /// A total not below what had been charged when `at` was over.
    pub(crate) fn at_most_until(&self, at: Timestamp) -> u64 {
        let known = self.entries.partition_point(|(first, _, _)| *first <= at);
        known
            .checked_sub(1)
            .map_or(self.forgotten, |index| self.entries[index].2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn totals_are_bounds_on_both_sides_of_an_instant() {
        let mut log = SentLog::new(Duration::from_secs(1));
        for (amount, at) in [(5, 10), (7, 20), (1, 30)] {
            log.add(amount, ms(at));
        }
        assert_eq!(
            (log.at_least_before(ms(20)), log.at_most_until(ms(20))),
            (5, 12)
        );
        assert_eq!(
            (log.at_least_before(ms(25)), log.at_most_until(ms(25))),
            (12, 12)
        );
        assert_eq!(
            (log.at_least_before(ms(1)), log.at_most_until(ms(1))),
            (0, 0)
        );
        assert_eq!(log.total(), 13);
    }

    #[test]
    fn what_is_forgotten_bounds_nothing_before_it() {
        // Answers that took longer than the span were compared with a total that was charged
        // after their calls: each seemed to prove that we charge too much.
        let mut log = SentLog::new(Duration::from_secs(1));
        for at in [0, 500, 5_000] {
            log.add(10, ms(at));
        }
        assert_eq!(log.at_least_before(ms(400)), 0);
        assert!(log.at_most_until(ms(400)) >= 10);
        assert_eq!(log.at_least_before(ms(600)), 20);
    }

    #[test]
    fn the_newest_calls_are_told_apart_in_a_long_window_too() {
        let mut log = SentLog::new(Duration::from_secs(3_600));
        for at in 0..10_000 {
            log.add(1, ms(at));
        }
        assert_eq!(log.at_most_until(ms(9_500)), 9_501);
        assert_eq!(log.at_least_before(ms(9_500)), 9_500);
        assert!(log.at_least_before(ms(100)) <= 100 && log.at_most_until(ms(100)) >= 101);
    }

    #[test]
    fn its_size_is_bounded_and_the_total_is_not_lost() {
        let mut log = SentLog::new(Duration::from_secs(10));
        for at in 0..200_000 {
            log.add(1, ms(at));
        }
        assert!(log.entries.len() <= ENTRIES_MAX);
        assert_eq!(log.total(), 200_000);
        assert!(log.at_most_until(ms(199_000)) >= 199_001);
        assert!(log.at_least_before(ms(199_000)) <= 199_000);
    }
}
