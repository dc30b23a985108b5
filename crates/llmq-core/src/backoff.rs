use std::time::Duration;

use crate::{FailureClass, Wait};

/// Doubling waits from `base` to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait.
    pub base: Duration,
    /// No wait is longer, jitter apart.
    pub max: Duration,
}

impl Backoff {
    /// The wait after the failure number `failures` (1 is the first), without jitter.
    ///
    /// ```
    /// use llmq_core::Backoffs;
    /// let server = Backoffs::default().server;
    /// let millis: Vec<u128> = (1..=5).map(|n| server.delay(n).as_millis()).collect();
    /// assert_eq!(millis, [500, 1000, 2000, 4000, 4000]);
    /// ```
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }
}

/// How long to wait after each kind of failure (`[retry]` in the configuration).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoffs {
    /// Faults of the server and the network.
    pub server: Backoff,
    /// A limit per minute, when the provider gave no time.
    pub rate_limit: Backoff,
    /// A limit per day or money, when the provider gave no time.
    pub quota: Backoff,
    /// The share that is added at random, 0 to 1; what is no number is none. Waits are never
    /// shorter than asked.
    pub jitter: f64,
}

/// A provider that names a day gets at most this much on top: ten per cent of a day would
/// be hours in which a limit lies idle.
const JITTER_ON_TOLD_MAX: Duration = Duration::from_secs(1);

impl Default for Backoffs {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            server: Backoff {
                base: Duration::from_millis(500),
                max: secs(4),
            },
            rate_limit: Backoff {
                base: secs(60),
                max: secs(300),
            },
            quota: Backoff {
                base: secs(300),
                max: secs(3600),
            },
            jitter: 0.1,
        }
    }
}

impl Backoffs {
    /// How long to wait after the failure number `failures` in a row of `class`; `None` when
    /// there is no next attempt.
    ///
    /// `told` is the provider's own time: it is never shortened, and then no backoff applies.
    /// `random` is drawn evenly from 0 to 1 by the caller.
    #[must_use]
    pub fn wait(
        &self,
        class: FailureClass,
        told: Option<Duration>,
        failures: u32,
        random: f64,
    ) -> Option<Duration> {
        let backoff = match class.rule().wait {
            Wait::Never => return None,
            Wait::RateLimit => self.rate_limit,
            Wait::Quota => self.quota,
            Wait::Server => self.server,
        };
        let jitter = match self.jitter.is_nan() {
            true => 0.0,
            false => self.jitter.clamp(0.0, 1.0),
        };
        let share = jitter * random.clamp(0.0, 1.0);
        Some(match told {
            Some(told) => told.saturating_add(told.mul_f64(share).min(JITTER_ON_TOLD_MAX)),
            None => {
                let delay = backoff.delay(failures);
                delay.saturating_add(delay.mul_f64(share))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(class: FailureClass, failures: u32) -> f64 {
        Backoffs::default()
            .wait(class, None, failures, 0.0)
            .unwrap()
            .as_secs_f64()
    }

    #[test]
    fn each_class_waits_as_its_row_says() {
        let six = |class| [1, 2, 3, 4, 5, 6].map(|n| seconds(class, n));
        assert_eq!(
            six(FailureClass::QuotaWindow),
            [60.0, 120.0, 240.0, 300.0, 300.0, 300.0]
        );
        assert_eq!(
            six(FailureClass::Money),
            [300.0, 600.0, 1200.0, 2400.0, 3600.0, 3600.0]
        );
        assert_eq!(six(FailureClass::Transient), [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]);
        assert_eq!(
            Backoffs::default().wait(FailureClass::RowFault, None, 1, 0.5),
            None
        );
    }

    /// It panicked under the dispatcher's lock, and the call's place was never free again.
    #[test]
    fn a_jitter_that_is_no_number_is_none() {
        let backoffs = Backoffs {
            jitter: f64::NAN,
            ..Backoffs::default()
        };
        let wait = backoffs.wait(FailureClass::Transient, None, 1, 0.5);
        assert_eq!(wait, Some(Duration::from_millis(500)));
    }

    proptest! {
        #[test]
        fn no_wait_is_shorter_than_asked_nor_a_tenth_longer(
            told in proptest::option::of(0u64..200_000_000_000),
            failures in 0u32..1000,
            random in 0.0f64..1.0,
        ) {
            let backoffs = Backoffs::default();
            let told = told.map(Duration::from_micros);
            for class in FailureClass::ALL {
                let Some(wait) = backoffs.wait(class, told, failures, random) else { continue };
                let asked = told.unwrap_or_else(|| backoffs.wait(class, None, failures, 0.0).unwrap());
                prop_assert!(wait >= asked);
                prop_assert!(wait <= asked + asked.mul_f64(0.1) + Duration::from_nanos(1));
            }
        }
    }
}
