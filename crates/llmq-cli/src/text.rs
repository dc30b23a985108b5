//! Figures as people read them.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use llmq_core::{WallTime, parse_duration};
pub(crate) use llmq_engine::grouped;

/// A number of rows: `1 row`, `42,888 rows`.
pub(crate) fn rows(count: u64) -> String {
    match count {
        1 => "1 row".to_owned(),
        _ => format!("{} rows", grouped(count)),
    }
}

/// About how much: `812`, `12.3k`, `1.2M`.
pub(crate) fn about(amount: f64) -> String {
    match amount {
        amount if amount >= 999_950_000.0 => format!("{:.1}G", amount / 1e9),
        amount if amount >= 999_950.0 => format!("{:.1}M", amount / 1e6),
        amount if amount >= 9_999.5 => format!("{:.1}k", amount / 1e3),
        amount if amount >= 100.0 || amount.fract() == 0.0 => format!("{amount:.0}"),
        amount => format!("{amount:.1}"),
    }
}

/// A length of time in its two largest units: `2 h 5 min`, `1.4 s`.
pub(crate) fn span(time: Duration) -> String {
    let secs = time.as_secs();
    let two = |large: u64, small: u64, large_unit: &str, small_unit: &str| match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    };
    match secs {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{secs} s"),
        60..3_600 => two(secs / 60, secs % 60, "min", "s"),
        3_600..86_400 => two(secs / 3_600, secs % 3_600 / 60, "h", "min"),
        _ => two(secs / 86_400, secs % 86_400 / 3_600, "d", "h"),
    }
}

/// Seconds as a length of time.
pub(crate) fn seconds(secs: f64) -> String {
    Duration::try_from_secs_f64(secs).map_or_else(|_| "–".to_owned(), span)
}

/// An instant on the clock of whoever looks: `18:05`, or with its day when it is not today.
pub(crate) fn local_time(at: WallTime) -> String {
    match Timestamp::from_microsecond(at.as_micros()) {
        Ok(at) => local_time_seen(&at.to_zoned(TimeZone::system()), &Zoned::now()),
        Err(_) => "an unknown time".to_owned(),
    }
}

fn local_time_seen(at: &Zoned, now: &Zoned) -> String {
    let form = if at.date() == now.date() {
        "%H:%M"
    } else {
        "%a %d %b %H:%M"
    };
    at.strftime(form).to_string()
}

/// US dollars.
pub(crate) fn dollars(amount: f64) -> String {
    if amount < 1.0 {
        format!("${amount:.4}")
    } else {
        format!("${amount:.2}")
    }
}

/// Where to listen, as a flag says it.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    llmq_engine::config::parse_address(text)
}

/// A length of time of a flag.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .ok_or_else(|| format!("`{text}` is not a length of time: write it like 500ms, 20s or 10m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_rounded_where_nobody_looks() {
        let texts = [0.0, 0.25, 99.96, 812.4, 12_345.0, 999_960.0, 3.2e9].map(about);
        assert_eq!(texts, ["0", "0.2", "100.0", "812", "12.3k", "1.0M", "3.2G"]);
    }

    #[test]
    fn spans_have_two_units() {
        let texts = [1_400, 59_000, 60_000, 125_000, 7_500_000, 90_000_000]
            .map(|millis| span(Duration::from_millis(millis)));
        assert_eq!(
            texts,
            [
                "1.4 s",
                "59 s",
                "1 min",
                "2 min 5 s",
                "2 h 5 min",
                "1 d 1 h"
            ]
        );
    }

    #[test]
    fn an_instant_of_another_day_is_shown_with_it() {
        let zoned = |text: &str| text.parse::<Zoned>().unwrap();
        let now = zoned("2026-01-05T10:00[Europe/Berlin]");
        let texts = [
            "2026-01-05T18:05[Europe/Berlin]",
            "2026-01-06T00:00[Europe/Berlin]",
        ]
        .map(|at| local_time_seen(&zoned(at), &now));
        assert_eq!(texts, ["18:05", "Tue 06 Jan 00:00"]);
    }
}
