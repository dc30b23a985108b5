use std::time::Duration;

/// A span as Go prints it (`time.Duration.String`), in whole milliseconds rounded down, as
/// OpenAI's reset headers show it: `0s`, `6ms`, `3.114s`, `4m12.172s`, `23h18m29.144s`.
pub(super) fn go_duration(span: Duration) -> String {
    let millis = span.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1_000 {
        return format!("{millis}ms");
    }
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, rest) = (millis / 1_000 % 60, millis % 1_000);
    let mut text = String::new();
    if hours > 0 {
        text.push_str(&format!("{hours}h"));
    }
    if hours > 0 || minutes > 0 {
        text.push_str(&format!("{minutes}m"));
    }
    let fraction = format!(".{rest:03}");
    text.push_str(&format!(
        "{seconds}{}s",
        fraction.trim_end_matches('0').trim_end_matches('.')
    ));
    text
}

/// The same, rounded up to at least a millisecond: a time to wait is never told too short.
pub(super) fn go_wait(span: Duration) -> String {
    let millis = span.as_nanos().div_ceil(1_000_000).max(1);
    go_duration(Duration::from_millis(
        u64::try_from(millis).unwrap_or(u64::MAX),
    ))
}

/// Whole seconds for `Retry-After` (RFC 9110 §10.2.3), rounded up, at least 1.
pub(super) fn retry_after_seconds(span: Duration) -> u64 {
    let up = u64::from(span.subsec_nanos() > 0);
    span.as_secs().saturating_add(up).max(1)
}

/// An instant, given as the time since 1970, in RFC 3339 with whole seconds, rounded up.
pub(super) fn rfc3339(since_1970: Duration) -> String {
    let up = u64::from(since_1970.subsec_nanos() > 0);
    let seconds = since_1970.as_secs().saturating_add(up);
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a number of days since 1970-01-01, by counting from 0000-03-01 in
/// eras of 400 years (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_look_as_they_do_in_seen_headers() {
        let rows = [
            (0, "0s"),
            (6, "6ms"),
            (120, "120ms"),
            (1_000, "1s"),
            (3_114, "3.114s"),
            (8_640, "8.64s"),
            (360_000, "6m0s"),
            (252_172, "4m12.172s"),
            (993_562, "16m33.562s"),
            (83_909_144, "23h18m29.144s"),
            (86_400_000, "24h0m0s"),
        ];
        for (millis, text) in rows {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(go_duration(Duration::from_micros(6_600)), "6ms");
        assert_eq!(go_wait(Duration::from_micros(6_600)), "7ms");
        assert_eq!(go_wait(Duration::from_nanos(1)), "1ms");
    }

    #[test]
    fn retry_after_is_never_too_short() {
        let seconds = |millis| retry_after_seconds(Duration::from_millis(millis));
        assert_eq!(
            [seconds(0), seconds(1), seconds(1_000), seconds(1_001)],
            [1, 1, 1, 2]
        );
    }

    #[test]
    fn instants_are_those_of_the_calendar() {
        assert_eq!(rfc3339(Duration::ZERO), "1970-01-01T00:00:00Z");
        assert_eq!(
            rfc3339(Duration::from_millis(1_736_723_518_001)),
            "2025-01-12T23:11:59Z"
        );
        assert_eq!(
            rfc3339(Duration::from_secs(1_709_164_800)),
            "2024-02-29T00:00:00Z"
        );
        assert_eq!(
            rfc3339(Duration::from_secs(4_107_542_400)),
            "2100-03-01T00:00:00Z"
        );
    }
}
