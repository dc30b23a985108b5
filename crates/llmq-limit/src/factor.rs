/// How much more or less the provider charges than our rule says, learned per limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factor {
    value: f64,
    samples: u32,
}

/// No learned factor leaves this range: beyond it something else than an estimate is wrong.
const RANGE: std::ops::RangeInclusive<f64> = 0.25..=4.0;
/// How far one answer can move it upwards …
const UP: f64 = 0.2;
/// … and downwards, where a mistake would cost a 429.
const DOWN: f64 = 0.05;
const MILLION: f64 = 1e6;
/// This many answers calibrate an upstream.
const CALIBRATED: u32 = 50;

impl Default for Factor {
    fn default() -> Self {
        Self {
            value: 1.0,
            samples: 0,
        }
    }
}

impl Factor {
    /// A factor learned earlier.
    #[must_use]
    pub fn remembered(value: f64) -> Self {
        let value = if value.is_finite() {
            value.clamp(*RANGE.start(), *RANGE.end())
        } else {
            1.0
        };
        Self {
            value,
            samples: CALIBRATED,
        }
    }

    /// The same, of what is charged for a million: for books that hold whole numbers.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "clamped to a few millions")]
    pub fn from_millionths(millionths: u64) -> Self {
        Self::remembered(millionths as f64 / MILLION)
    }

    /// What is charged for a million.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few millions at most, and positive"
    )]
    pub fn millionths(&self) -> u64 {
        (self.value * MILLION).round() as u64
    }

    /// The factor, 0.25 to 4.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.value
    }

    /// Whether enough answers have been seen to trust it.
    #[must_use]
    pub fn is_calibrated(&self) -> bool {
        self.samples >= CALIBRATED
    }

    /// `charge` as the provider is expected to charge it, rounded up.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "charges are at most 10^15 and the factor is positive"
    )]
    pub fn apply(&self, charge: u64) -> u64 {
        if self.value == 1.0 {
            charge
        } else {
            (charge as f64 * self.value).ceil() as u64
        }
    }

    /// Takes over what was learned from many answers.
    pub(crate) fn follow(&mut self, value: f64) {
        self.samples = self.samples.saturating_add(1);
        if value.is_finite() {
            self.value = value.clamp(*RANGE.start(), *RANGE.end());
        }
    }

    /// An answer showed that the provider charged `ratio` times what we did.
    pub fn learn(&mut self, ratio: f64) {
        self.samples = self.samples.saturating_add(1);
        if !ratio.is_finite() || ratio <= 0.0 {
            return;
        }
        let gain = if ratio > 1.0 { UP } else { DOWN };
        let moved = self.value * (1.0 + gain * (ratio.clamp(0.5, 2.0) - 1.0));
        self.value = moved.clamp(*RANGE.start(), *RANGE.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_converges_on_what_the_provider_charges() {
        for truth in [0.7, 1.0, 1.3] {
            let mut factor = Factor::default();
            for _ in 0..400 {
                factor.learn(truth / factor.value());
            }
            assert!(
                (factor.value() - truth).abs() < 0.01,
                "{truth}: {}",
                factor.value()
            );
        }
    }

    #[test]
    fn nonsense_moves_nothing_out_of_range() {
        let mut factor = Factor::default();
        for ratio in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, 1e300, 1e300] {
            factor.learn(ratio);
        }
        assert!(RANGE.contains(&factor.value()));
        assert_eq!(Factor::remembered(f64::NAN).value(), 1.0);
        assert_eq!(Factor::from_millionths(u64::MAX).value(), 4.0);
        assert_eq!(Factor::from_millionths(1_234_567).millionths(), 1_234_567);
    }

    #[test]
    fn an_unlearned_factor_changes_no_charge() {
        assert_eq!(Factor::default().apply(12_345), 12_345);
        assert_eq!(Factor::remembered(1.5).apply(3), 5);
    }
}
