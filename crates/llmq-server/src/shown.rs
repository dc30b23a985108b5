//! How instants and amounts are shown.

use llmq_core::WallTime;

/// An instant as people and JSON write it, to the millisecond, such as `2026-01-01T00:00:09.500Z`.
pub(crate) fn instant(at: WallTime) -> String {
    // Every instant that a clock shows has a date; another one is shown as the first of all.
    let at = jiff::Timestamp::from_microsecond(at.as_micros()).unwrap_or_default();
    format!("{at:.3}")
}

/// Billionths of a dollar in dollars.
#[expect(
    clippy::cast_precision_loss,
    reason = "shown to people, to a millionth"
)]
pub(crate) fn usd(nano_usd: u64) -> f64 {
    nano_usd as f64 / 1e9
}
