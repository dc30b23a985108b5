//! Days and months, as budgets count them: in the time zone of the settings.

use std::fmt;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use llmq_core::WallTime;

/// A day or a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeriodKind {
    /// From one midnight to the next.
    Day,
    /// From the first of a calendar month to that of the next.
    Month,
}

impl fmt::Display for PeriodKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Day => "day",
            Self::Month => "month",
        })
    }
}

/// One particular day or month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Period {
    pub(super) kind: PeriodKind,
    first: Date,
}

/// The day and the month of one instant.
pub(super) type Periods = [Period; 2];

/// The periods of `at` in `zone`.
pub(super) fn periods_at(at: WallTime, zone: &TimeZone) -> Periods {
    let date = zone.to_datetime(instant(at)).date();
    [
        Period {
            kind: PeriodKind::Day,
            first: date,
        },
        Period {
            kind: PeriodKind::Month,
            first: date.first_of_month(),
        },
    ]
}

impl Period {
    /// What the store calls it: `2026-01-31` or `2026-01`.
    pub(super) fn name(self) -> String {
        let (year, month) = (self.first.year(), self.first.month());
        match self.kind {
            PeriodKind::Day => format!("{year:04}-{month:02}-{:02}", self.first.day()),
            PeriodKind::Month => format!("{year:04}-{month:02}"),
        }
    }

    /// The period of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (kind, day) = match name.len() {
            10 => (PeriodKind::Day, name.to_owned()),
            7 => (PeriodKind::Month, format!("{name}-01")),
            _ => return None,
        };
        let first = day.parse().ok()?;
        Some(Self { kind, first })
    }

    /// The same kind of period, `count` of them earlier.
    pub(super) fn before(self, count: i32) -> Self {
        let span = match self.kind {
            PeriodKind::Day => count.days(),
            PeriodKind::Month => count.months(),
        };
        let first = self.first.saturating_sub(span);
        Self { first, ..self }
    }

    /// The first instant after it.
    pub(super) fn end(self, zone: &TimeZone) -> WallTime {
        let span = match self.kind {
            PeriodKind::Day => 1.day(),
            PeriodKind::Month => 1.month(),
        };
        let next = self.first.saturating_add(span);
        let start = next.to_zoned(zone.clone()).map(|start| start.timestamp());
        WallTime::from_micros(start.unwrap_or(Timestamp::MAX).as_microsecond())
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
mod tests {
    use super::*;

    fn wall(text: &str) -> WallTime {
        WallTime::from_micros(text.parse::<Timestamp>().unwrap().as_microsecond())
    }

    #[test]
    fn days_and_months_turn_at_the_zones_midnight() {
        let check = |zone: TimeZone, at, names: [&str; 2], ends: [&str; 2]| {
            let periods = periods_at(wall(at), &zone);
            assert_eq!(periods.map(Period::name), names);
            assert_eq!(periods.map(|period| period.end(&zone)), ends.map(wall));
            for period in periods {
                assert_eq!(Period::named(&period.name()), Some(period));
            }
        };
        check(
            TimeZone::UTC,
            "2026-12-31T23:59:59.999999Z",
            ["2026-12-31", "2026-12"],
            ["2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"],
        );
        let tokyo = TimeZone::fixed(jiff::tz::offset(9));
        check(
            tokyo,
            "2026-01-31T15:00:00Z",
            ["2026-02-01", "2026-02"],
            ["2026-02-01T15:00:00Z", "2026-02-28T15:00:00Z"],
        );
    }

    #[test]
    fn names_of_nothing_are_refused() {
        for name in ["", "2026", "2026-13", "2026-02-30", "20260230xx"] {
            assert_eq!(Period::named(name), None, "{name}");
        }
    }

    #[test]
    fn earlier_periods_are_counted_by_the_calendar() {
        let march = Period::named("2026-03").unwrap();
        assert_eq!(march.before(14).name(), "2025-01");
        let day = Period::named("2026-03-01").unwrap();
        assert_eq!(day.before(1).name(), "2026-02-28");
    }
}
