use std::time::Duration;

/// The windows that providers use.
const WINDOWS_S: [f64; 5] = [1.0, 10.0, 60.0, 3_600.0, 86_400.0];
/// Below it, a reset cut to whole milliseconds is off by more than a tenth.
const RESET_MIN: Duration = Duration::from_millis(10);
/// How far a computed window may be from the one it is taken for. Rounding explains a tenth;
/// what is further off did not come from a bucket, and guessing would take a day for a minute.
const TOLERANCE: f64 = 1.25;

/// The window of a limit whose use drains continuously, from one header triple; `None` when the
/// numbers do not tell.
///
/// In a bucket the reset is the time until it is full again, so that
/// `window = reset × limit ÷ (limit − remaining)`, taken for the nearest of 1 s, 10 s, 1 min, 1 h
/// and 1 day on a logarithmic scale. Nothing is inferred from a full bucket or from a reset under
/// 10 ms.
///
/// ```
/// use llmq_limit::infer_window;
/// use std::time::Duration;
/// // One of 10,000 requests used and 8.64 s to go: 10,000 are a day's, not a minute's.
/// let window = infer_window(10_000, 9_999, Duration::from_millis(8_640));
/// assert_eq!(window, Some(Duration::from_secs(86_400)));
/// ```
#[must_use]
pub fn infer_window(limit: u64, remaining: u64, reset: Duration) -> Option<Duration> {
    infer_rounded(limit, remaining, reset, Duration::from_millis(1))
}

/// The same for a reset that is only exact to `step`, such as a whole number of seconds: there
/// must be ten steps of it for the answer to mean anything.
pub(crate) fn infer_rounded(
    limit: u64,
    remaining: u64,
    reset: Duration,
    step: Duration,
) -> Option<Duration> {
    let used = limit.checked_sub(remaining).filter(|used| *used > 0)?;
    if reset < RESET_MIN.max(step * 10) {
        return None;
    }
    let window_s = reset.as_secs_f64() * limit as f64 / used as f64;
    let distance = |candidate: f64| (window_s / candidate).ln().abs();
    let nearest = WINDOWS_S
        .into_iter()
        .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))?;
    (distance(nearest) <= TOLERANCE.ln()).then(|| Duration::from_secs_f64(nearest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window_s(limit: u64, remaining: u64, reset: &str) -> Option<u64> {
        let reset = llmq_core::parse_duration(reset).unwrap();
        infer_window(limit, remaining, reset).map(|window| window.as_secs())
    }

    #[test]
    fn every_published_triple_gives_its_window() {
        for (limit, remaining, reset, expected) in [
            (10_000, 9_481, "3.114s", Some(60)),
            (10_000, 9_999, "8.64s", Some(86_400)),
            (500, 499, "120ms", Some(60)),
            (200_000, 199_978, "6ms", None),
            (1_500_000, 43_244, "23h18m29.144s", Some(86_400)),
            (1_500_000, 1_482_750, "16m33.562s", Some(86_400)),
            (5_000, 5_000, "0s", None),
            (60, 30, "500ms", Some(1)),
        ] {
            assert_eq!(
                window_s(limit, remaining, reset),
                expected,
                "{limit} {remaining} {reset}"
            );
        }
    }

    #[test]
    fn numbers_that_no_bucket_gives_are_not_guessed_at() {
        assert_eq!(
            window_s(100, 99, "60s"),
            None,
            "a window that ends in a minute"
        );
        assert_eq!(window_s(100, 200, "5s"), None, "more left than there is");
        assert_eq!(window_s(0, 0, "5s"), None);
        assert_eq!(window_s(100, 50, "0s"), None);
        assert_eq!(window_s(u64::MAX, 0, "2000w"), None);
    }

    proptest! {
        #[test]
        fn a_bucket_gives_its_window_back(
            which in 0usize..5,
            limit in 1u64..10_000_000,
            share in 0.0f64..1.0,
        ) {
            let window = WINDOWS_S[which];
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss,
                reason = "a share of a count")]
            let used = ((limit as f64 * share) as u64).max(1);
            let reset_s = window * used as f64 / limit as f64;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss,
                reason = "at most a day")]
            let printed = Duration::from_millis((reset_s * 1_000.0) as u64);
            let inferred = infer_window(limit, limit - used, printed);
            if printed < RESET_MIN {
                prop_assert_eq!(inferred, None);
            } else {
                prop_assert_eq!(inferred, Some(Duration::from_secs_f64(window)));
            }
        }
    }
}
