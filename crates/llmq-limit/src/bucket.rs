use std::time::Duration;

use llmq_core::Timestamp;

use crate::Denied;

/// A bucket that refills continuously: `count` in each `period`, at most `depth` worth of it.
///
/// The level is kept in units of (amount × period in ns), in which one nanosecond refills
/// exactly `count`: nothing is rounded, so a year of calls does not drift. It may be negative:
/// that is debt, and later refill pays it first.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    count: u64,
    period_ns: u64,
    depth_ns: u64,
    level: i128,
    as_of: Timestamp,
    /// Since when it has been full, if it is.
    full_since: Timestamp,
    /// What would have come into it while it was full, summed up.
    lost: i128,
    /// What was taken, summed up.
    drawn: u64,
    /// Guards against spending a full bucket in one instant.
    pace: Pace,
}

/// How fast a full bucket may be spent: a tenth at once and nine times the refill rate on
/// top, which together empty it in a tenth of its depth.
///
/// A provider may apply its limit over shorter periods than it says, and estimates may be
/// wrong: what is spent in one instant cannot be taken back.
#[derive(Debug, Clone)]
struct Pace {
    level: i128,
    as_of: Timestamp,
}

/// Where a bucket stood when a call ended, by what had been taken from it and lost until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    drawn: u64,
    lost: u64,
}

const PACE_SHARE: i128 = 10;
const PACE_RATE: i128 = 9;
/// A provider that looks at shorter periods looks at parts of a minute: a bucket that is deeper,
/// such as a day's, is spent as fast as one of a minute.
const PACE_DEPTH_NS: i128 = 60_000_000_000;

impl Bucket {
    /// A full bucket at `now`.
    pub(crate) fn new(count: u64, period: Duration, depth: Duration, now: Timestamp) -> Self {
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
        let mut bucket = Self {
            count,
            period_ns: nanos(period),
            depth_ns: nanos(depth),
            level: 0,
            as_of: now,
            full_since: Timestamp::ZERO,
            lost: 0,
            drawn: 0,
            pace: Pace {
                level: 0,
                as_of: now,
            },
        };
        bucket.level = bucket.capacity(Duration::ZERO);
        bucket.pace.level = bucket.pace_capacity();
        bucket
    }

    pub(crate) fn set_count(&mut self, count: u64, now: Timestamp) {
        self.advance(now);
        // The part that is used stays used.
        let used = self.capacity(Duration::ZERO) - self.level;
        self.count = count;
        self.level = self.capacity(Duration::ZERO) - used;
        self.pace.level = self.pace.level.min(self.pace_capacity());
    }

    /// The depth in level units; `margin` worth of refill is left out of it, because calls
    /// that arrive closer together than they were sent would overdraw the provider's bucket.
    fn capacity(&self, margin: Duration) -> i128 {
        self.capacity_of(self.count, margin)
    }

    fn capacity_of(&self, count: u64, margin: Duration) -> i128 {
        let margin = i128::try_from(margin.as_nanos()).unwrap_or(i128::MAX / 4);
        let ns = (i128::from(self.depth_ns) - margin).max(i128::from(self.depth_ns) / 2);
        // Never less than one unit, else a limit of a few an hour could never be used.
        (ns * i128::from(count)).max(i128::from(self.period_ns))
    }

    /// What the pace regains in a nanosecond, in level units.
    fn pace_rate(&self) -> i128 {
        let deeper = (i128::from(self.depth_ns) / PACE_DEPTH_NS).max(1);
        i128::from(self.count) * PACE_RATE * deeper
    }

    fn pace_capacity(&self) -> i128 {
        (self.capacity(Duration::ZERO) / PACE_SHARE).max(i128::from(self.period_ns))
    }

    fn in_level(&self, amount: u64) -> i128 {
        i128::from(amount) * i128::from(self.period_ns)
    }

    pub(crate) fn advance(&mut self, now: Timestamp) {
        let elapsed = i128::try_from((now - self.as_of).as_nanos()).unwrap_or(i128::MAX / 4);
        let full = self.capacity(Duration::ZERO);
        let level = self.level + elapsed.saturating_mul(i128::from(self.count));
        if level >= full && self.level < full {
            self.full_since = self.full_at();
        }
        self.level = level.min(full);
        self.lost = self.lost.saturating_add((level - full).max(0));
        self.as_of = self.as_of.max(now);
        let elapsed = i128::try_from((now - self.pace.as_of).as_nanos()).unwrap_or(i128::MAX / 4);
        self.pace.level =
            (self.pace.level + elapsed.saturating_mul(self.pace_rate())).min(self.pace_capacity());
        self.pace.as_of = self.pace.as_of.max(now);
    }

    /// What is left, as of the last `advance`; negative in debt.
    pub(crate) fn remaining(&self) -> i64 {
        i64::try_from(self.level.div_euclid(i128::from(self.period_ns))).unwrap_or(i64::MIN)
    }

    /// The most the bucket can hold.
    pub(crate) fn depth(&self) -> u64 {
        u64::try_from(self.capacity(Duration::ZERO) / i128::from(self.period_ns))
            .unwrap_or(u64::MAX)
    }

    /// The same for a bucket of another count, rounded up: against it, use that a provider rounds
    /// up is never overstated.
    pub(crate) fn depth_of(&self, count: u64) -> u64 {
        let units = self.capacity_of(count, Duration::ZERO) + i128::from(self.period_ns) - 1;
        u64::try_from(units / i128::from(self.period_ns)).unwrap_or(u64::MAX)
    }

    /// Whether `cost` fits beside `held`, of which `unsent` has been granted and will be taken
    /// when it is sent; call `advance` first.
    pub(crate) fn check(
        &self,
        cost: u64,
        held: u64,
        unsent: u64,
        margin: Duration,
    ) -> Result<(), Denied> {
        let capacity = self.capacity(margin);
        // The margin lies at the bottom: with this much left, the provider may see none left.
        let floor = self.capacity(Duration::ZERO) - capacity;
        let need = self.in_level(cost).min(capacity) + floor + self.in_level(held);
        let pace_need = self.in_level(cost).min(self.pace_capacity()) + self.in_level(unsent);
        let full = self.capacity(Duration::ZERO);
        if need > full || pace_need > self.pace_capacity() {
            return Err(Denied::OnRelease);
        }
        // A call that needs the whole bucket must find it full at the provider's too, where
        // what was used arrived a margin later.
        let whole = if need == full {
            self.full_since() + margin
        } else {
            self.as_of
        };
        if self.level >= need && self.pace.level >= pace_need && whole <= self.as_of {
            return Ok(());
        }
        let refill = self.time_to(need - self.level, i128::from(self.count));
        let pace = self.time_to(pace_need - self.pace.level, self.pace_rate());
        Err(Denied::Until(
            (self.as_of + refill).max(self.pace.as_of + pace).max(whole),
        ))
    }

    /// Rounded up, so that the call really passes at the instant named.
    #[expect(clippy::unused_self, reason = "reads as a property of the bucket")]
    fn time_to(&self, missing: i128, rate: i128) -> Duration {
        let nanos = if missing <= 0 {
            0
        } else {
            (missing + rate - 1) / rate
        };
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Takes `amount` (gives back, if negative); call `advance` first.
    pub(crate) fn take(&mut self, amount: i64) {
        let change = i128::from(amount) * i128::from(self.period_ns);
        self.level = (self.level - change).min(self.capacity(Duration::ZERO));
        if amount > 0 {
            self.pace.level -= change.min(self.pace_capacity());
            self.drawn = self.drawn.saturating_add(amount.unsigned_abs());
        }
    }

    /// Where it stands now, for [`Bucket::correct`]; call `advance` first.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            drawn: self.drawn,
            lost: self.lost_whole(),
        }
    }

    fn lost_whole(&self) -> u64 {
        u64::try_from(self.lost / i128::from(self.period_ns)).unwrap_or(u64::MAX)
    }

    /// Takes `amount` more (gives back, if negative) for a call that ended at `mark`, as far as
    /// that still makes a difference; call `advance` first.
    pub(crate) fn correct(&mut self, amount: i64, mark: Mark) {
        let asked = amount.unsigned_abs();
        if amount > 0 {
            // While this one was full, the provider's, which had less, went on refilling.
            let refilled = self.lost_whole().saturating_sub(mark.lost);
            self.level -= self.in_level(asked.saturating_sub(refilled));
            self.drawn = self.drawn.saturating_add(asked);
        } else {
            // It had at least this much room since the mark. What is beyond it, the provider's,
            // which had more, may have been too full to take in.
            let drawn = self.in_level(self.drawn.saturating_sub(mark.drawn));
            let room = self.capacity(Duration::ZERO) - self.level - drawn;
            self.level += self.in_level(asked).min(room).max(0);
        }
    }

    /// Empties the bucket as of `at`, to refill from there.
    pub(crate) fn exhaust(&mut self, at: Timestamp) {
        self.level = self.level.min(0);
        self.as_of = at;
    }

    /// Since when the bucket has been full, or from when on it will be.
    fn full_since(&self) -> Timestamp {
        if self.level >= self.capacity(Duration::ZERO) {
            self.full_since
        } else {
            self.full_at()
        }
    }

    /// When the bucket will be full again.
    pub(crate) fn full_at(&self) -> Timestamp {
        let missing = self.capacity(Duration::ZERO) - self.level;
        self.as_of + self.time_to(missing, i128::from(self.count))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn secs(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn a_year_at_a_hundred_and_eighty_million_a_minute_drifts_by_nothing() {
        let mut bucket = Bucket::new(180_000_000, MINUTE, MINUTE, Timestamp::ZERO);
        bucket.take(180_000_000);
        let mut taken: u64 = 0;
        // Steps of an odd length, so that every division would leave a rest.
        let step = Duration::from_nanos(7_777_777_777);
        let mut now = Timestamp::ZERO;
        while now < secs(365 * 86_400) {
            now = now + step;
            bucket.advance(now);
            let left = bucket.remaining();
            bucket.take(left);
            taken += u64::try_from(left).unwrap();
        }
        let exact = u128::from(now.as_nanos()) * 180_000_000 / 60_000_000_000;
        assert!(
            u128::from(taken).abs_diff(exact) <= 1,
            "{taken} against {exact}"
        );
    }

    #[test]
    fn debt_is_paid_before_anything_passes() {
        let mut bucket = Bucket::new(60, MINUTE, MINUTE, Timestamp::ZERO);
        bucket.take(90);
        assert_eq!(bucket.remaining(), -30);
        assert_eq!(
            bucket.check(1, 0, 0, Duration::ZERO),
            Err(Denied::Until(secs(31)))
        );
    }

    #[test]
    fn a_cost_above_the_depth_waits_for_a_full_bucket() {
        let mut bucket = Bucket::new(60, MINUTE, Duration::from_secs(10), Timestamp::ZERO);
        assert_eq!(bucket.depth(), 10);
        bucket.advance(secs(100));
        assert_eq!(bucket.check(40, 0, 0, Duration::ZERO), Ok(()));
        bucket.take(40);
        assert_eq!(bucket.remaining(), -30);
        assert_eq!(
            bucket.check(40, 0, 0, Duration::ZERO),
            Err(Denied::Until(secs(140)))
        );
    }

    #[test]
    fn a_full_bucket_is_spent_over_a_tenth_of_its_depth() {
        let mut bucket = Bucket::new(6_000, MINUTE, MINUTE, Timestamp::ZERO);
        let mut now = Timestamp::ZERO;
        for _ in 0..6_000 {
            if let Err(Denied::Until(at)) = bucket.check(1, 0, 0, Duration::ZERO) {
                now = at;
                bucket.advance(now);
            }
            bucket.take(1);
        }
        let spent = now - Timestamp::ZERO;
        assert!(
            spent > Duration::from_millis(5_900) && spent < Duration::from_millis(6_100),
            "{spent:?}"
        );
    }

    #[test]
    fn a_call_that_needs_the_whole_bucket_leaves_the_provider_time_to_fill_its_own() {
        // What was used arrived up to a margin later than it was sent, and was refilled so much
        // later: the large call met a bucket that was a token short of full.
        let margin = Duration::from_millis(2);
        let mut bucket = Bucket::new(60, MINUTE, Duration::from_secs(10), Timestamp::ZERO);
        bucket.advance(secs(100));
        assert_eq!(bucket.check(30, 0, 0, margin), Ok(()));
        bucket.take(1);
        assert_eq!(
            bucket.check(30, 0, 0, margin),
            Err(Denied::Until(secs(101) + margin))
        );
        bucket.advance(secs(101) + margin);
        assert_eq!(bucket.check(30, 0, 0, margin), Ok(()));
    }

    /// A run of ten thousand rows under a day's limit went out at one row a second, although
    /// the whole day's budget was there.
    #[test]
    fn a_days_bucket_is_spent_as_fast_as_a_minutes() {
        let day = Duration::from_secs(86_400);
        let mut bucket = Bucket::new(10_000, day, day, Timestamp::ZERO);
        let mut now = Timestamp::ZERO;
        for _ in 0..10_000 {
            if let Err(Denied::Until(at)) = bucket.check(1, 0, 0, Duration::ZERO) {
                now = at;
                bucket.advance(now);
            }
            bucket.take(1);
        }
        let spent = now - Timestamp::ZERO;
        assert!(
            spent > Duration::from_secs(5) && spent < Duration::from_secs(7),
            "{spent:?}"
        );
    }

    proptest! {
        #[test]
        fn a_call_passes_exactly_at_the_instant_named(
            count in 1u64..1_000_000,
            period_ms in 1u64..100_000,
            costs in proptest::collection::vec(1u64..2_000_000, 1..50),
        ) {
            let period = Duration::from_millis(period_ms);
            let mut bucket = Bucket::new(count, period, period, Timestamp::ZERO);
            let mut now = Timestamp::ZERO;
            for cost in costs {
                if let Err(Denied::Until(at)) = bucket.check(cost, 0, 0, Duration::ZERO) {
                    prop_assert!(at > now);
                    let mut early = bucket.clone();
                    early.advance(at.before(Duration::from_nanos(1)));
                    prop_assert!(early.check(cost, 0, 0, Duration::ZERO).is_err());
                    now = at;
                    bucket.advance(now);
                }
                prop_assert_eq!(bucket.check(cost, 0, 0, Duration::ZERO), Ok(()));
                bucket.take(i64::try_from(cost).unwrap());
            }
        }
    }
}
