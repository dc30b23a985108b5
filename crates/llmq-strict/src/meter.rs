use std::time::Duration;

use llmq_core::{Algorithm, LimitKind, LimitSpec, Timestamp};

use crate::bucket::TokenBucket;
use crate::fixed::FixedWindow;
use crate::sliding::SlidingLog;

/// What has been used of one limit, and when it comes back.
#[derive(Debug, Clone)]
pub(crate) enum Meter {
    Sliding(SlidingLog),
    Bucket(TokenBucket),
    Fixed(FixedWindow),
    /// Calls in flight.
    InFlight(u64),
}

/// When a limit has room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Now,
    After(Duration),
    /// When a call in flight ends.
    Unknown,
    Never,
}

impl Meter {
    pub(crate) fn new(spec: &LimitSpec, wall_at_zero: Duration, now: Timestamp) -> Self {
        if spec.kind == LimitKind::Concurrency {
            return Self::InFlight(0);
        }
        let (count, period) = (spec.count, spec.period);
        match spec.algorithm {
            Algorithm::Sliding => Self::Sliding(SlidingLog::new(count, period)),
            Algorithm::Bucket { depth } => {
                Self::Bucket(TokenBucket::new(count, period, depth, now))
            }
            Algorithm::Fixed => Self::Fixed(FixedWindow::new(count, period, wall_at_zero)),
        }
    }

    /// When `needed` fits into what `count` leaves.
    pub(crate) fn room_for(&self, needed: u64, count: u64, now: Timestamp) -> Room {
        if needed > count {
            return Room::Never;
        }
        let wait = match self {
            Self::Sliding(log) => log.wait(needed, now),
            Self::Bucket(bucket) => bucket.wait(needed, now),
            Self::Fixed(window) => window.wait(needed, now),
            Self::InFlight(calls) if calls + needed > count => return Room::Unknown,
            Self::InFlight(_) => return Room::Now,
        };
        if wait.is_zero() {
            Room::Now
        } else {
            Room::After(wait)
        }
    }

    pub(crate) fn charge(&mut self, amount: u64, now: Timestamp) {
        match self {
            Self::Sliding(log) => log.charge(amount, now),
            Self::Bucket(bucket) => bucket.charge(amount, now),
            Self::Fixed(window) => window.charge(amount, now),
            Self::InFlight(calls) => *calls += amount,
        }
    }

    /// A call has ended.
    pub(crate) fn release(&mut self) {
        if let Self::InFlight(calls) = self {
            *calls = calls.saturating_sub(1);
        }
    }

    /// Rounded up; above the count when overdrawn.
    pub(crate) fn used(&self, now: Timestamp) -> u64 {
        match self {
            Self::Sliding(log) => log.used(now),
            Self::Bucket(bucket) => bucket.used(now),
            Self::Fixed(window) => window.used(now),
            Self::InFlight(calls) => *calls,
        }
    }

    /// The most that can be charged now without overdrawing.
    pub(crate) fn room(&self, count: u64, now: Timestamp) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.room(now),
            Self::Sliding(_) | Self::Fixed(_) | Self::InFlight(_) => {
                count.saturating_sub(self.used(now))
            }
        }
    }

    /// How long until nothing is used any more; zero for calls in flight, since nobody knows.
    pub(crate) fn full_in(&self, now: Timestamp) -> Duration {
        match self {
            Self::Sliding(log) => log.full_in(now),
            Self::Bucket(bucket) => bucket.full_in(now),
            Self::Fixed(window) => window.full_in(now),
            Self::InFlight(_) => Duration::ZERO,
        }
    }

    /// What a provider's reset header says; see [`Book::reset`](crate::Book::reset).
    pub(crate) fn reset(&self, spec: &LimitSpec, now: Timestamp) -> Duration {
        match self {
            Self::Sliding(log) => share(spec.period, log.used(now), spec.count),
            Self::Bucket(_) | Self::Fixed(_) | Self::InFlight(_) => self.full_in(now),
        }
    }
}

/// `period × used ÷ count`, rounded up to a nanosecond.
fn share(period: Duration, used: u64, count: u64) -> Duration {
    let nanos = (period.as_nanos() * u128::from(used)).div_ceil(u128::from(count.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
