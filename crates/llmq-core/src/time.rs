use std::ops::{Add, Sub};
use std::time::Duration;

/// An instant on a monotonic clock, in nanoseconds since an epoch of the clock's own.
///
/// Every wait and every window is measured with it. 2^64 ns are 584 years, so additions
/// saturate without ever being reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The clock's epoch.
    pub const ZERO: Self = Self(0);
    /// Later than every instant a clock shows.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// From nanoseconds since the clock's epoch.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's epoch.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this instant; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This instant moved back by `span`, not before the epoch.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(span)))
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }
}

impl Sub<Timestamp> for Timestamp {
    type Output = Duration;

    fn sub(self, earlier: Timestamp) -> Duration {
        self.since(earlier)
    }
}

/// An instant on the wall clock, in microseconds since 1970-01-01 00:00 UTC.
///
/// Only for what is stored, shown or tied to a calendar: it may jump either way.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct WallTime(i64);

impl WallTime {
    /// From microseconds since 1970-01-01 00:00 UTC.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970-01-01 00:00 UTC.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to this instant; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This instant moved back by `span`.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)),
        )
    }
}

impl Add<Duration> for WallTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)),
        )
    }
}

/// Both times of one moment, read once per decision and passed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For every wait and window.
    pub mono: Timestamp,
    /// For what is stored, shown or tied to a calendar.
    pub wall: WallTime,
}

impl Now {
    /// The moment `span` later on both clocks.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self {
            mono: self.mono + span,
            wall: self.wall + span,
        }
    }

    /// The monotonic instant at which the wall clock will show `wall`, if it does not jump
    /// meanwhile; now if it has passed.
    #[must_use]
    pub fn when(self, wall: WallTime) -> Timestamp {
        self.mono + wall.since(self.wall)
    }

    /// What the wall clock will show at `mono`, if it does not jump meanwhile.
    #[must_use]
    pub fn wall_at(self, mono: Timestamp) -> WallTime {
        if mono >= self.mono {
            self.wall + (mono - self.mono)
        } else {
            self.wall.before(self.mono - mono)
        }
    }
}

/// Where the time comes from: the system, paused tokio time, or virtual time.
pub trait Clock: Send + Sync {
    /// The present moment on both clocks.
    fn now(&self) -> Now;
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn now(&self) -> Now {
        (**self).now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_instant_in_the_past_is_due_now() {
        let now = Now {
            mono: Timestamp::from_nanos(5),
            wall: WallTime::from_micros(1_000),
        };
        assert_eq!(now.when(WallTime::from_micros(1)), now.mono);
        assert_eq!(
            now.when(WallTime::from_micros(1_002)),
            Timestamp::from_nanos(2_005)
        );
        assert_eq!(
            now.wall_at(Timestamp::from_nanos(2_005)),
            WallTime::from_micros(1_002)
        );
    }

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        assert_eq!(Timestamp::FAR_FUTURE + Duration::MAX, Timestamp::FAR_FUTURE);
        assert_eq!(
            Timestamp::ZERO.before(Duration::from_secs(1)),
            Timestamp::ZERO
        );
        assert_eq!(Timestamp::ZERO - Timestamp::FAR_FUTURE, Duration::ZERO);
        assert_eq!(
            WallTime::from_micros(i64::MAX) + Duration::MAX,
            WallTime::from_micros(i64::MAX)
        );
    }
}
