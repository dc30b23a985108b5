use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::Timestamp;

/// Charges of calls that the provider may not have counted, such as those it turned away as
/// overloaded: when it shows more left than we thought, these come back first, each with the
/// date of its own call. Taken from other calls' dates, the room would open twice.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doubts {
    calls: VecDeque<(Timestamp, u64)>,
}

/// The least that the calls of one window are kept apart.
const GRAINS: u32 = 512;

impl Doubts {
    /// A call dated `at` was charged `amount`, and may not have been counted.
    pub(crate) fn add(&mut self, at: Timestamp, amount: u64, period: Duration) {
        let oldest = at.before(period);
        while self.calls.front().is_some_and(|(dated, _)| *dated < oldest) {
            self.calls.pop_front();
        }
        let grain = period / GRAINS;
        let position = self.calls.partition_point(|(dated, _)| *dated <= at);
        match position
            .checked_sub(1)
            .and_then(|before| self.calls.get_mut(before))
            .filter(|(dated, _)| at - *dated < grain)
        {
            Some((_, sum)) => *sum = sum.saturating_add(amount),
            None => self.calls.insert(position, (at, amount)),
        }
    }

    /// What was charged for calls dated after `from`, until `until`.
    pub(crate) fn sum(&self, from: Timestamp, until: Timestamp) -> u64 {
        let inside = self
            .calls
            .iter()
            .filter(|(dated, _)| from < *dated && *dated <= until);
        inside.map(|(_, amount)| *amount).sum()
    }

    /// Takes up to `amount` from calls dated until `until`, oldest first.
    pub(crate) fn take(&mut self, amount: u64, until: Timestamp) -> Vec<(Timestamp, u64)> {
        let mut left = amount;
        let mut taken = Vec::new();
        for (at, sum) in &mut self.calls {
            let part = left.min(*sum);
            if *at > until || left == 0 {
                break;
            }
            taken.push((*at, part));
            *sum -= part;
            left -= part;
        }
        self.calls.retain(|(_, sum)| *sum > 0);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn they_come_back_oldest_first_with_their_own_dates() {
        let mut doubts = Doubts::default();
        for (at, amount) in [(10, 5), (200, 7), (100, 3)] {
            doubts.add(ms(at), amount, PERIOD);
        }
        assert_eq!(doubts.take(6, ms(150)), [(ms(10), 5), (ms(100), 1)]);
        assert_eq!(doubts.take(100, ms(150)), [(ms(100), 2)]);
        assert_eq!(doubts.take(100, ms(300)), [(ms(200), 7)]);
        assert_eq!(doubts.take(100, ms(300)), []);
    }

    #[test]
    fn no_more_are_kept_than_a_window_has_grains() {
        let mut doubts = Doubts::default();
        for at in 0..100_000 {
            doubts.add(ms(at), 1, PERIOD);
        }
        assert!(doubts.calls.len() <= GRAINS as usize + 2);
        assert!(doubts.take(u64::MAX, ms(100_000)).len() <= GRAINS as usize + 2);
    }
}
