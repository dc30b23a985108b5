//! How instants and amounts are shown.

use llmq_core::WallTime;

/// An instant as people and JSON write it, to the millisecond, such as `2026-01-01T00:00:09.500Z`.
pub(crate) fn instant(at: WallTime) -> String {
    // Every instant that a clock shows has a date; another one is shown as the first of all.
    let at = jiff::Timestamp::from_microsecond(at.as_micros()).unwrap_or_default();
    format!("{at:.3}")
}

/// The end of a time, which is told no earlier than it is: nothing that is done in time looks late.
pub(crate) fn deadline(at: WallTime) -> String {
    let micros = at.as_micros();
    let up = (1_000 - micros.rem_euclid(1_000)) % 1_000;
    instant(WallTime::from_micros(micros.saturating_add(up)))
}

/// Billionths of a dollar in dollars.
#[expect(
    clippy::cast_precision_loss,
    reason = "shown to people, to a millionth"
)]
pub(crate) fn usd(nano_usd: u64) -> f64 {
    nano_usd as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_is_told_no_earlier_and_what_was_no_later() {
        let at = WallTime::from_micros;
        for (micros, was, ends) in [
            (0, "00.000", "00.000"),
            (1, "00.000", "00.001"),
            (999, "00.000", "00.001"),
            (1_000, "00.001", "00.001"),
            (9_500_001, "09.500", "09.501"),
        ] {
            let told = |seconds: &str| format!("1970-01-01T00:00:{seconds}Z");
            assert_eq!(instant(at(micros)), told(was));
            assert_eq!(deadline(at(micros)), told(ends));
        }
        assert_eq!(deadline(at(i64::MAX)), instant(at(i64::MAX)));
    }
}
