use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use llmq_core::WallTime;

/// Until the next midnight in California, when Gemini's daily quotas start anew (Gemini API
/// docs, "Rate limits"). `None` only for instants outside the calendar.
pub(crate) fn until_pacific_midnight(wall: WallTime) -> Option<Duration> {
    let zone = TimeZone::get("America/Los_Angeles").ok()?;
    let now = Timestamp::from_microsecond(wall.as_micros()).ok()?;
    let midnight = now.to_zoned(zone).tomorrow().ok()?.start_of_day().ok()?;
    now.duration_until(midnight.timestamp()).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours_until_midnight(instant: &str) -> f64 {
        let instant: Timestamp = instant.parse().unwrap();
        let wall = WallTime::from_micros(instant.as_microsecond());
        until_pacific_midnight(wall).unwrap().as_secs_f64() / 3_600.0
    }

    #[test]
    fn the_day_turns_at_californias_midnight_in_summer_and_winter() {
        assert_eq!(hours_until_midnight("2026-01-10T07:00:00Z"), 1.0);
        assert_eq!(hours_until_midnight("2026-07-10T06:30:00Z"), 0.5);
        assert_eq!(hours_until_midnight("2026-07-10T07:00:00Z"), 24.0);
        // The night in which the clock is set back has 25 hours.
        assert_eq!(hours_until_midnight("2026-11-01T07:00:00Z"), 25.0);
    }
}
