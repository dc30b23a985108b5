use std::time::Duration;

use llmq_core::Timestamp;

/// A token bucket: full at the start, refilled continuously, exact.
///
/// Amounts are kept in whole units of 1/period-in-nanoseconds of a token: a nanosecond brings
/// `count` units and a token is worth `period` of them, so nothing is ever rounded. The
/// largest limit (10^15 a year) stays below 2^105.
#[derive(Debug, Clone)]
pub(crate) struct TokenBucket {
    /// Units that a nanosecond brings.
    count: i128,
    /// Units that a token is worth: nanoseconds in a period.
    period: i128,
    /// Units in a full bucket.
    capacity: i128,
    /// Units at the instant `as_of`; negative in debt.
    level: i128,
    as_of: Timestamp,
}

impl TokenBucket {
    pub(crate) fn new(count: u64, period: Duration, depth: Duration, now: Timestamp) -> Self {
        let count = i128::from(count);
        let capacity = count * nanos(depth);
        Self {
            count,
            period: nanos(period).max(1),
            capacity,
            level: capacity,
            as_of: now,
        }
    }

    /// Tokens missing from a full bucket, rounded up.
    pub(crate) fn used(&self, now: Timestamp) -> u64 {
        let missing = self.capacity - self.level_at(now);
        u64::try_from(div_ceil(missing, self.period)).unwrap_or(u64::MAX)
    }

    /// How long until a call of `room` tokens passes; zero when it passes now. A call above the
    /// capacity passes when the bucket is full, and leaves it in debt.
    pub(crate) fn wait(&self, room: u64, now: Timestamp) -> Duration {
        let needed = (i128::from(room) * self.period).min(self.capacity);
        self.time_for(needed - self.level_at(now))
    }

    pub(crate) fn charge(&mut self, amount: u64, now: Timestamp) {
        let units = i128::from(amount) * self.period;
        // Debt has a floor far below anything real, so that sums stay inside 128 bits.
        self.level = (self.level_at(now) - units).max(i128::MIN / 4);
        self.as_of = now;
    }

    /// The largest amount that passes now without debt.
    pub(crate) fn room(&self, now: Timestamp) -> u64 {
        u64::try_from(self.level_at(now).max(0) / self.period).unwrap_or(u64::MAX)
    }

    /// How long until the bucket is full.
    pub(crate) fn full_in(&self, now: Timestamp) -> Duration {
        self.time_for(self.capacity - self.level_at(now))
    }

    fn level_at(&self, now: Timestamp) -> i128 {
        let refilled = self.level + nanos(now - self.as_of) * self.count;
        refilled.min(self.capacity)
    }

    /// How long it takes for `units` to flow in, rounded up to whole nanoseconds.
    fn time_for(&self, units: i128) -> Duration {
        let nanos = div_ceil(units.max(0), self.count.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Nanoseconds of a span, at most 2^64 (584 years), so that products stay inside 128 bits.
fn nanos(span: Duration) -> i128 {
    i128::from(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}

/// `value / by` rounded up; neither is negative.
fn div_ceil(value: i128, by: i128) -> i128 {
    value / by + i128::from(value % by > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_year_of_calls_at_the_full_rate_does_not_drift_by_a_nanosecond() {
        // 7 in 60 s does not divide: one call each 8.571428… s.
        let mut bucket = TokenBucket::new(7, MINUTE, MINUTE, Timestamp::ZERO);
        bucket.charge(7, Timestamp::ZERO);
        let mut now = Timestamp::ZERO;
        let calls = 7 * 60 * 24 * 365;
        for _ in 0..calls {
            now = now + bucket.wait(1, now);
            bucket.charge(1, now);
        }
        assert_eq!(now, Timestamp::ZERO + Duration::from_secs(365 * 86_400));
    }

    #[test]
    fn a_call_above_the_capacity_waits_for_a_full_bucket_and_leaves_debt() {
        let mut bucket = TokenBucket::new(60, MINUTE, Duration::from_secs(10), Timestamp::ZERO);
        assert_eq!(bucket.wait(30, Timestamp::ZERO), Duration::ZERO);
        bucket.charge(30, Timestamp::ZERO);
        assert_eq!(bucket.used(Timestamp::ZERO), 30);
        assert_eq!(bucket.room(Timestamp::ZERO), 0);
        assert_eq!(bucket.wait(1, Timestamp::ZERO), Duration::from_secs(21));
        assert_eq!(bucket.wait(50, Timestamp::ZERO), Duration::from_secs(30));
        assert_eq!(bucket.full_in(Timestamp::ZERO), Duration::from_secs(30));
    }

    #[test]
    fn the_largest_limits_and_spans_stay_inside_the_arithmetic() {
        let year = Duration::from_secs(366 * 86_400);
        let mut bucket = TokenBucket::new(1_000_000_000_000_000, year, year, Timestamp::ZERO);
        for _ in 0..10 {
            bucket.charge(u64::MAX, Timestamp::ZERO);
        }
        assert_eq!(bucket.room(Timestamp::FAR_FUTURE), 0);
        assert!(bucket.wait(1, Timestamp::ZERO) > Duration::ZERO);
        assert_eq!(bucket.used(Timestamp::ZERO), u64::MAX);
    }
}
