use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use llmq_core::WallTime;

/// A time zone, as far as days are concerned.
///
/// The zone database is the one compiled in, so the answer does not depend on the machine.
///
/// ```
/// use llmq_core::WallTime;
/// use llmq_limit::DayZone;
/// let noon = WallTime::from_micros(1_735_732_800_000_000); // 2025-01-01 12:00 UTC
/// let turn = DayZone::named("UTC").unwrap().next_turn(noon);
/// assert_eq!(turn.since(noon).as_secs(), 12 * 3_600);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayZone(TimeZone);

impl DayZone {
    /// By its IANA name, in any case; `None` when there is no such zone.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        TimeZoneDatabase::bundled().get(name).ok().map(Self)
    }

    /// America/Los_Angeles, where Gemini's day turns (rate-limits page, autumn 2026).
    #[must_use]
    pub fn pacific() -> Self {
        Self::named("America/Los_Angeles").unwrap_or(Self(TimeZone::UTC))
    }

    /// The date in this zone.
    pub(super) fn date(&self, at: WallTime) -> Date {
        self.0.to_datetime(instant(at)).date()
    }

    /// The first instant of the day after `at`: midnight, or what stands in for it where the
    /// clocks skip it.
    #[must_use]
    pub fn next_turn(&self, at: WallTime) -> WallTime {
        let tomorrow = self.date(at).tomorrow();
        let start = tomorrow.and_then(|date| date.to_zoned(self.0.clone()));
        start.map_or(at, |start| {
            WallTime::from_micros(start.timestamp().as_microsecond())
        })
    }
}

/// The instant, or the nearest one that has a date.
fn instant(at: WallTime) -> Timestamp {
    let nearest = if at.as_micros() < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    Timestamp::from_microsecond(at.as_micros()).unwrap_or(nearest)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The wall time of an RFC 3339 instant.
    pub(in crate::quota) fn wall(text: &str) -> WallTime {
        WallTime::from_micros(text.parse::<Timestamp>().unwrap().as_microsecond())
    }

    fn turn(zone: &str, at: &str) -> String {
        let turn = DayZone::named(zone).unwrap().next_turn(wall(at));
        instant(turn).to_string()
    }

    #[test]
    fn a_day_turns_at_the_zones_midnight_in_summer_and_winter() {
        for (zone, at, expected) in [
            ("UTC", "2026-01-01T23:59:59Z", "2026-01-02T00:00:00Z"),
            ("UTC", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            (
                "Europe/Berlin",
                "2026-01-01T12:00:00Z",
                "2026-01-01T23:00:00Z",
            ),
            (
                "Europe/Berlin",
                "2026-07-01T12:00:00Z",
                "2026-07-01T22:00:00Z",
            ),
            // A day of 23 hours and one of 25.
            (
                "Europe/Berlin",
                "2026-03-28T23:00:00Z",
                "2026-03-29T22:00:00Z",
            ),
            (
                "Europe/Berlin",
                "2026-10-24T22:00:00Z",
                "2026-10-25T23:00:00Z",
            ),
            (
                "America/Los_Angeles",
                "2026-11-22T07:59:59Z",
                "2026-11-22T08:00:00Z",
            ),
            // Midnight is skipped: the day begins at one.
            (
                "America/Sao_Paulo",
                "2018-11-03T12:00:00Z",
                "2018-11-04T03:00:00Z",
            ),
            (
                "Asia/Kathmandu",
                "2026-01-01T12:00:00Z",
                "2026-01-01T18:15:00Z",
            ),
        ] {
            assert_eq!(turn(zone, at), expected, "{zone} {at}");
        }
        assert_eq!(
            DayZone::pacific(),
            DayZone::named("America/Los_Angeles").unwrap()
        );
    }

    #[test]
    fn unknown_zones_are_refused() {
        for name in ["", "Mars/Olympus", "../etc/passwd", "europe"] {
            assert_eq!(DayZone::named(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn the_turn_is_the_first_instant_of_another_date(
            which in 0usize..5,
            micros in 0i64..4_000_000_000_000_000,
        ) {
            let names = ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Beirut"];
            let zone = DayZone::named(names[which]).unwrap();
            let at = WallTime::from_micros(micros);
            let turn = zone.next_turn(at);
            let last = WallTime::from_micros(turn.as_micros() - 1);
            prop_assert!(turn > at);
            prop_assert_eq!(zone.date(at), zone.date(last));
            prop_assert!(zone.date(turn) > zone.date(at));
        }

        #[test]
        fn no_instant_panics(micros in any::<i64>()) {
            let zone = DayZone::named("Europe/Berlin").unwrap();
            let at = WallTime::from_micros(micros);
            prop_assert!(zone.next_turn(at) >= at || micros < 0);
        }
    }
}
