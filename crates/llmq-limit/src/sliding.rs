use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::Timestamp;

use crate::Denied;

/// A window is kept in at most this many slices, so its error is at most one part in 4,096.
const SLICES: u64 = 4_096;

/// Never more than `count` in any window of `period`'s length.
///
/// What was used is kept by date, in slices on a fixed grid. A slice counts until its last
/// instant has left the window, so a slot can come back late by one slice, never early; a
/// slice with a single call in it is exact.
#[derive(Debug, Clone)]
pub(crate) struct Sliding {
    count: u64,
    period_ns: u64,
    slice_ns: u64,
    /// Oldest first, by index.
    slices: VecDeque<Slice>,
    /// The sum over `slices`.
    dated: i64,
}

#[derive(Debug, Clone, Copy)]
struct Slice {
    index: u64,
    last: Timestamp,
    used: i64,
}

impl Sliding {
    pub(crate) fn new(count: u64, period: Duration) -> Self {
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX).max(1);
        let slice_ns = period_ns.div_ceil(SLICES);
        Self {
            count,
            period_ns,
            slice_ns,
            slices: VecDeque::new(),
            dated: 0,
        }
    }

    pub(crate) fn set_count(&mut self, count: u64) {
        self.count = count;
    }

    /// Forgets what has left the window at `now`.
    pub(crate) fn advance(&mut self, now: Timestamp) {
        while let Some(slice) = self
            .slices
            .front()
            .filter(|slice| self.leaves(slice) <= now)
        {
            self.dated -= slice.used;
            self.slices.pop_front();
        }
    }

    fn leaves(&self, slice: &Slice) -> Timestamp {
        slice.last + Duration::from_nanos(self.period_ns)
    }

    /// What the window holds, as of the last `advance`.
    pub(crate) fn used(&self) -> i64 {
        self.dated
    }

    /// Whether `cost` fits beside what the window and `held` take; call `advance` first.
    pub(crate) fn check(&self, cost: u64, held: u64) -> Result<(), Denied> {
        // A cost above the window's own count waits until the window is empty.
        let cost = signed(cost.min(self.count));
        let excess = self.dated + signed(held) + cost - signed(self.count);
        if excess <= 0 {
            return Ok(());
        }
        let mut freed = 0;
        for slice in &self.slices {
            freed += slice.used;
            if freed >= excess {
                return Err(Denied::Until(self.leaves(slice)));
            }
        }
        Err(Denied::OnRelease)
    }

    /// Adds `amount` (less, if negative) at `at`. What has left the window already is not
    /// counted again.
    pub(crate) fn add(&mut self, amount: i64, at: Timestamp) {
        let index = at.as_nanos() / self.slice_ns;
        let position = self.slices.partition_point(|slice| slice.index < index);
        match self
            .slices
            .get_mut(position)
            .filter(|slice| slice.index == index)
        {
            Some(slice) => {
                slice.used += amount;
                slice.last = slice.last.max(at);
            }
            // Taking from a slice that is gone would give the same budget back twice.
            None if amount < 0 => return,
            None => self.slices.insert(
                position,
                Slice {
                    index,
                    last: at,
                    used: amount,
                },
            ),
        }
        self.dated += amount;
    }

    /// Takes `amount` back from what is dated up to `until`: the newest first, and of each part
    /// no more than half, so that what is taken leaves about when its calls do.
    pub(crate) fn take_back_before(&mut self, amount: i64, until: Timestamp) {
        let mut left = amount;
        let index = until.as_nanos() / self.slice_ns;
        let position = self.slices.partition_point(|slice| slice.index <= index);
        for slice in self.slices.range_mut(..position).rev() {
            let part = left.min((slice.used + 1) / 2).max(0);
            slice.used -= part;
            self.dated -= part;
            left -= part;
            if left == 0 {
                return;
            }
        }
    }

    /// Takes `amount` back from what is oldest. What had left the provider's window already is
    /// among that; taken from newer calls, it would come back a second time when it leaves ours.
    pub(crate) fn take_back_oldest(&mut self, amount: i64) {
        let mut left = amount;
        for slice in &mut self.slices {
            let part = left.min(slice.used).max(0);
            slice.used -= part;
            self.dated -= part;
            left -= part;
            if left == 0 {
                return;
            }
        }
    }

    /// The window's content as (age, amount) pairs, oldest first.
    pub(crate) fn content(&self, now: Timestamp) -> impl Iterator<Item = (Duration, i64)> {
        self.slices
            .iter()
            .map(move |slice| (now.since(slice.last), slice.used))
    }
}

pub(crate) fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_slot_is_free_one_period_after_its_call_and_not_before() {
        let mut window = Sliding::new(2, Duration::from_secs(1));
        window.add(1, ms(100));
        window.add(1, ms(250));
        assert_eq!(window.check(1, 0), Err(Denied::Until(ms(1_100))));
        window.advance(ms(1_099));
        assert_eq!(window.check(1, 0), Err(Denied::Until(ms(1_100))));
        window.advance(ms(1_100));
        assert_eq!(window.check(1, 0), Ok(()));
        assert_eq!(window.check(2, 0), Err(Denied::Until(ms(1_250))));
    }

    #[test]
    fn what_is_held_without_a_date_frees_by_an_event_only() {
        let mut window = Sliding::new(2, Duration::from_secs(1));
        window.add(1, ms(0));
        assert_eq!(window.check(1, 1), Err(Denied::Until(ms(1_000))));
        assert_eq!(window.check(1, 2), Err(Denied::OnRelease));
    }

    #[test]
    fn a_cost_above_the_count_waits_for_an_empty_window() {
        let mut window = Sliding::new(10, Duration::from_secs(1));
        assert_eq!(window.check(25, 0), Ok(()));
        window.add(25, ms(0));
        assert_eq!(window.check(1, 0), Err(Denied::Until(ms(1_000))));
    }

    #[test]
    fn what_is_taken_back_from_many_calls_leaves_with_them() {
        let mut window = Sliding::new(100, Duration::from_secs(1));
        for at in [0, 100, 200, 900] {
            window.add(20, ms(at));
        }
        window.take_back_before(15, ms(200));
        assert_eq!(window.used(), 65);
        window.advance(ms(1_200));
        assert_eq!(window.used(), 20, "what came later is untouched");
        window.take_back_before(1_000, ms(900));
        assert!(window.used() >= 0);
    }

    #[test]
    fn what_is_taken_back_from_the_oldest_leaves_no_window_twice() {
        let mut window = Sliding::new(100, Duration::from_secs(1));
        for at in [0, 100, 200] {
            window.add(20, ms(at));
        }
        window.take_back_oldest(30);
        assert_eq!(window.used(), 30);
        window.advance(ms(1_100));
        assert_eq!(window.used(), 20);
        window.take_back_oldest(1_000);
        assert_eq!(window.used(), 0);
    }

    #[test]
    fn a_refund_after_the_window_has_passed_gives_nothing_back() {
        let mut window = Sliding::new(10, Duration::from_secs(1));
        window.add(10, ms(0));
        window.advance(ms(1_000));
        window.add(-10, ms(0));
        assert_eq!(window.used(), 0);
    }

    proptest! {
        /// The law of the window, against the plain list of calls: whatever the dates, no window
        /// of the period's length ever holds more than the count.
        #[test]
        fn no_window_holds_more_than_the_count(
            count in 1u64..20,
            period in 1u64..5_000_000,
            steps in proptest::collection::vec((1u64..10, 0u64..2_000_000), 1..200),
        ) {
            let period = Duration::from_nanos(period);
            let mut window = Sliding::new(count, period);
            let mut now = Timestamp::ZERO;
            let mut calls: Vec<(Timestamp, u64)> = Vec::new();
            for (cost, pause) in steps {
                let cost = cost.min(count);
                now = now + Duration::from_nanos(pause);
                window.advance(now);
                if let Err(Denied::Until(at)) = window.check(cost, 0) {
                    prop_assert!(at > now);
                    // At most one slice later than the plain list would say.
                    let sum = |at: Timestamp| -> u64 {
                        calls.iter().filter(|(t, _)| *t + period > at).map(|(_, c)| c).sum()
                    };
                    prop_assert!(sum(at) + cost <= count);
                    let early = at.before(Duration::from_nanos(window.slice_ns + 1));
                    prop_assert!(early <= now || sum(early) + cost > count);
                    now = at;
                    window.advance(now);
                }
                prop_assert_eq!(window.check(cost, 0), Ok(()));
                window.add(signed(cost), now);
                calls.push((now, cost));
                let in_window: u64 =
                    calls.iter().filter(|(t, _)| *t + period > now).map(|(_, c)| c).sum();
                prop_assert!(in_window <= count, "{in_window} > {count}");
                prop_assert!(window.slices.len() as u64 <= SLICES + 2);
            }
        }
    }
}
