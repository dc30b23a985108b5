use llmq_core::Timestamp;

/// What the words of a provider say about how it charges: how many times as much as calls
/// state, and how far single calls stray from that.
///
/// Least squares over `used = factor × stated`, each sample weighed by how many calls it speaks
/// of. Old samples fade, so that a provider may change its ways. Only what was stated and used
/// enters, no charge of ours: so a correction of the books cannot swing the factor back.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Learner {
    stated_stated: f64,
    used_stated: f64,
    strayed: f64,
    strayed_weight: f64,
    factor: f64,
}

/// What was used from one word to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// What our calls in between stated.
    pub(crate) stated: f64,
    /// The sum of the squares of what each of them stated.
    pub(crate) squares: f64,
    /// What was really used.
    pub(crate) used: f64,
    /// By how much the order of arrival may have changed that.
    pub(crate) unsure: f64,
}

/// After about so many calls a sample is forgotten.
const MEMORY: f64 = 400.0;
/// So many calls' worth of belief in the factor that was known before.
const BELIEF: f64 = 0.5;
/// A sample whose order is unsure by this share of a call's charge counts half.
const STRAY: f64 = 0.2;

impl Learner {
    /// Begins with a factor that is known.
    pub(crate) fn new(factor: f64) -> Self {
        Self {
            stated_stated: BELIEF,
            used_stated: BELIEF * factor,
            factor,
            ..Self::default()
        }
    }

    /// Learns from a sample, of which only this `share` was in no sample before, 0 to 1.
    pub(crate) fn learn(&mut self, sample: &Sample, share: f64) {
        let Sample {
            stated,
            squares,
            used,
            unsure,
        } = *sample;
        if stated <= 0.0 || squares <= 0.0 || !used.is_finite() || share <= 0.0 {
            return;
        }
        // What the order of arrival may have made explains itself.
        let expected = self.factor * stated;
        let off = used - expected;
        let off = off.signum() * (off.abs() - unsure).max(0.0);
        let used = expected + off;
        let weight = share / (squares + (unsure / STRAY).powi(2));
        if unsure * 20.0 <= squares.sqrt() || off != 0.0 {
            let fade = 1.0 - share / 100.0;
            self.strayed = self.strayed * fade + share * (off * off / squares).min(1.0);
            self.strayed_weight = self.strayed_weight * fade + share;
        }
        let fade = (-share * (stated * stated / squares) / MEMORY).exp();
        let add = |sum: &mut f64, more: f64| *sum = *sum * fade + weight * more;
        add(&mut self.stated_stated, stated * stated);
        add(&mut self.used_stated, used * stated);
        let factor = self.used_stated / self.stated_stated;
        self.factor = factor.clamp(0.25, 4.0);
    }

    pub(crate) fn factor(&self) -> f64 {
        self.factor
    }

    /// By what share of its charge a call strays from it: one standard deviation.
    pub(crate) fn stray(&self) -> f64 {
        if self.strayed_weight < 1.0 {
            return 0.0;
        }
        (self.strayed / self.strayed_weight).sqrt()
    }
}

/// How much more is held back than estimates alone would ask for: it grows with each refusal
/// and shrinks with each call that is admitted, so that refusals become as rare as is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Caution {
    value: f64,
    since: Timestamp,
}

/// By how much one refusal adds, as a share of a call's charge.
const STEP: f64 = 0.1;
/// So rare refusals are to be.
const RARE: f64 = 0.000_5;
const MOST: f64 = 1.0;

impl Caution {
    pub(crate) fn value(&self) -> f64 {
        self.value
    }

    /// A call sent at `sent_at` was refused. Those that were sent before that was known teach
    /// nothing new.
    pub(crate) fn refused(&mut self, sent_at: Timestamp, now: Timestamp) {
        if sent_at >= self.since {
            self.value = (self.value + STEP).min(MOST);
            self.since = now;
        }
    }

    pub(crate) fn admitted(&mut self) {
        self.value = (self.value - STEP * RARE).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(stated: f64, used: f64, unsure: f64) -> Sample {
        Sample {
            stated,
            squares: stated * stated,
            used,
            unsure,
        }
    }

    #[test]
    fn it_finds_what_the_provider_charges_and_how_far_calls_stray() {
        for truth in [0.7, 1.0, 1.17] {
            let mut learner = Learner::new(1.0);
            for number in 0..600 {
                let stray = if number % 2 == 0 { 0.05 } else { -0.05 };
                learner.learn(&sample(100.0, 100.0 * (truth + stray), 0.0), 1.0);
            }
            assert!((learner.factor() - truth).abs() < 0.01, "{truth}");
            assert!((learner.stray() - 0.05).abs() < 0.01, "{truth}");
        }
    }

    #[test]
    fn what_the_order_of_arrival_explains_teaches_nothing() {
        let mut learner = Learner::new(1.0);
        for _ in 0..50 {
            learner.learn(&sample(100.0, 150.0, 60.0), 1.0);
            learner.learn(&sample(100.0, 50.0, 60.0), 1.0);
        }
        assert_eq!((learner.factor(), learner.stray()), (1.0, 0.0));
    }

    #[test]
    fn nonsense_leaves_the_factor_in_its_range() {
        let mut learner = Learner::new(1.0);
        for used in [f64::NAN, f64::INFINITY, -1e300, 1e300, 0.0] {
            learner.learn(&sample(100.0, used, 0.0), 1.0);
            learner.learn(&sample(0.0, used, 0.0), 1.0);
            assert!((0.25..=4.0).contains(&learner.factor()), "{used}");
        }
    }

    #[test]
    fn refusals_that_were_on_their_way_count_once_and_are_forgotten_slowly() {
        let at = |ms| Timestamp::ZERO + std::time::Duration::from_millis(ms);
        let mut caution = Caution::default();
        caution.refused(at(10), at(20));
        caution.refused(at(11), at(21));
        assert_eq!(caution.value(), STEP);
        for _ in 0..2_001 {
            caution.admitted();
        }
        assert!(caution.value() < 1e-9);
        for number in 1..100 {
            caution.refused(at(number * 100), at(number * 100 + 1));
        }
        assert_eq!(caution.value(), MOST);
    }
}
