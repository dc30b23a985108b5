use std::time::Duration;

use llmq_core::{Now, Timestamp};

/// OpenAI's rule of thumb for rising traffic (rate-limits guide, autumn 2026): at most half as
/// much again in a quarter of an hour.
const GROWTH: f64 = 1.5;
const GROWTH_TIME: Duration = Duration::from_secs(15 * 60);
/// No rate is held below this share of what it was, however often the provider objects.
const SHARE_MIN: f64 = 1.0 / 64.0;

/// Holds the rate down after the provider said that it rose too fast (`slow_down`,
/// `ramp_limit_exceeded`, Azure's peak load): to a half, then half as much again every 15 minutes
/// until it is whole.
///
/// ```
/// use llmq_core::Now;
/// use llmq_limit::RampGuard;
/// use std::time::Duration;
/// let mut guard = RampGuard::default();
/// let now = Now::default();
/// guard.slow_down(now.mono, now);
/// assert_eq!(guard.share(now), 0.5);
/// assert_eq!(guard.share(now.after(Duration::from_secs(900))), 0.75);
/// assert_eq!(guard.share(now.after(Duration::from_secs(1800))), 1.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RampGuard {
    held: Option<Held>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    share: f64,
    since: Timestamp,
}

impl RampGuard {
    /// The provider refused a call, sent at `sent`, for rising too fast. Whether the rate was
    /// halved: calls sent before the last halving say nothing about the rate after it.
    pub fn slow_down(&mut self, sent: Timestamp, now: Now) -> bool {
        if self.held.is_some_and(|held| sent < held.since) {
            return false;
        }
        let share = (self.share(now) / 2.0).max(SHARE_MIN);
        self.held = Some(Held {
            share,
            since: now.mono,
        });
        true
    }

    /// The share of every rate that may be used now, above 0 and at most 1.
    #[must_use]
    pub fn share(&self, now: Now) -> f64 {
        let Some(held) = self.held else { return 1.0 };
        let quarters = now.mono.since(held.since).as_secs_f64() / GROWTH_TIME.as_secs_f64();
        (held.share * GROWTH.powf(quarters)).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> Now {
        Now::default().after(Duration::from_secs(secs))
    }

    #[test]
    fn a_burst_of_refusals_halves_once_and_a_later_one_again() {
        let mut guard = RampGuard::default();
        assert_eq!(guard.share(at(0)), 1.0);
        assert!(guard.slow_down(at(1).mono, at(2)));
        assert!(!guard.slow_down(at(1).mono, at(3)));
        assert!(guard.slow_down(at(3).mono, at(4)));
        assert!((guard.share(at(4)) - 0.25).abs() < 0.001);
    }

    proptest! {
        #[test]
        fn no_quarter_of_an_hour_grows_by_more_than_half(
            slow in proptest::collection::vec(0u64..7_200, 0..10),
            from in 0u64..10_000,
        ) {
            let mut guard = RampGuard::default();
            let mut slow = slow;
            slow.sort_unstable();
            for second in slow {
                guard.slow_down(at(second).mono, at(second));
                prop_assert!(guard.share(at(second)) > 0.0);
            }
            let (before, after) = (guard.share(at(7_200 + from)), guard.share(at(8_100 + from)));
            prop_assert!(after <= before * 1.500_001 && after >= before && after <= 1.0);
        }
    }
}
