//! When a message that was not taken is sent again.

use std::time::Duration;

/// Waits before each try, from the one that first made it due.
const WAITS: [Duration; 8] = [
    Duration::ZERO,
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3_600),
    Duration::from_secs(5 * 3_600),
    Duration::from_secs(10 * 3_600),
    Duration::from_secs(10 * 3_600),
];
/// Endpoints that were away together are not to come back together.
const JITTER: f64 = 0.2;
/// An endpoint that wants to be left alone for longer is asked again all the same.
const ASKED_WAIT_MAX: Duration = Duration::from_secs(24 * 3_600);

/// How long to wait after `tries` that failed; none: nobody tries any more. `random` is 0 to 1.
/// What the endpoint asked for (`Retry-After`) is not shortened below 24 h.
pub(super) fn wait(tries: u32, asked: Option<Duration>, random: f64) -> Option<Duration> {
    let wait = WAITS.get(usize::try_from(tries).unwrap_or(usize::MAX))?;
    let wait = wait.mul_f64(1.0 - JITTER + 2.0 * JITTER * random.clamp(0.0, 1.0));
    Some(wait.max(asked.unwrap_or_default().min(ASKED_WAIT_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_eight_times_within_a_day_and_a_half() {
        let waits: Vec<u64> = (0..9)
            .map_while(|tries| wait(tries, None, 0.5))
            .map(|wait| wait.as_secs())
            .collect();
        assert_eq!(waits, [0, 5, 300, 1_800, 7_200, 18_000, 36_000, 36_000]);
    }

    #[test]
    fn each_wait_is_a_fifth_shorter_or_longer_and_never_below_what_was_asked() {
        let second = |random| wait(1, None, random).unwrap();
        assert_eq!(second(0.0), Duration::from_secs(4));
        assert_eq!(second(1.0), Duration::from_secs(6));
        let asked = Some(Duration::from_secs(600));
        assert_eq!(wait(1, asked, 0.0), asked);
        let asked = Some(Duration::MAX);
        assert_eq!(wait(1, asked, 0.0), Some(ASKED_WAIT_MAX));
        assert_eq!(wait(8, asked, 0.0), None);
    }
}
