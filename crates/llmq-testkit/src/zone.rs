use std::time::{SystemTime, UNIX_EPOCH};

/// A time zone whose day does not end for hours, for tests of what holds for a day: in any fixed
/// zone such a test meets midnight, once a day.
///
/// ```
/// let zone = llmq_testkit::zone_far_from_midnight();
/// assert!(["UTC", "Etc/GMT+6"].contains(&zone));
/// ```
#[must_use]
#[expect(clippy::disallowed_methods, reason = "it is about the real day")]
pub fn zone_far_from_midnight() -> &'static str {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    match since.as_secs() / 3_600 % 24 {
        ..12 => "UTC",
        // Six hours behind, whatever the sign in its name says.
        _ => "Etc/GMT+6",
    }
}
