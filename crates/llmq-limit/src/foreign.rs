use std::time::Duration;

/// What others seem to use of the same limit: how much a second, and in what lumps.
///
/// They come at instants that nobody knows, so beside the mean a part is kept back for how far
/// chance strays from it. From each word of the provider to the next, what was used that was not
/// ours is one sample. Old samples fade.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Foreign {
    period_s: f64,
    /// How long was looked at, and what was used meanwhile.
    seconds: f64,
    used: f64,
    /// The squares of what was more or less than expected.
    squares: f64,
}

/// In so many periods two thirds of a sample have faded.
const MEMORY: f64 = 2.0;
/// It is believed beforehand that nobody else used anything for this share of a period.
const BELIEF: f64 = 0.125;
/// Where less than this part of a lump is expected, none is.
const RARE: f64 = 0.000_1;

impl Foreign {
    /// Nobody else was seen yet on a limit of this period.
    pub(crate) fn new(period: Duration) -> Self {
        Self {
            period_s: period.as_secs_f64().max(1e-9),
            seconds: 0.0,
            used: 0.0,
            squares: 0.0,
        }
    }

    /// Over `seconds`, `amount` was used that was not ours.
    pub(crate) fn learn(&mut self, amount: f64, seconds: f64) {
        if !(amount.is_finite() && seconds >= 0.0) {
            return;
        }
        let fade = (-seconds / (MEMORY * self.period_s)).exp();
        let more = amount - self.per_second() * seconds;
        self.seconds = self.seconds * fade + seconds;
        self.used = self.used * fade + amount.max(0.0);
        self.squares = self.squares * fade + more * more;
    }

    /// So much of what was seen was nobody's use after all.
    pub(crate) fn unlearn(&mut self, amount: f64) {
        if self.used > 0.0 && amount.is_finite() {
            let kept = (1.0 - amount / self.used).clamp(0.0, 1.0);
            self.used *= kept;
            self.squares *= kept;
        }
    }

    fn looked_at(&self) -> f64 {
        self.seconds + BELIEF * self.period_s
    }

    fn per_second(&self) -> f64 {
        self.used / self.looked_at()
    }

    /// What others may have used at most within `seconds`: so many standard deviations above the
    /// mean, in whole lumps.
    pub(crate) fn most(&self, seconds: f64, deviations: f64) -> f64 {
        // Lumps that come by chance are as large as the variance of their sum is over its mean.
        let lump = self.squares / self.used;
        if !(lump.is_finite() && lump > 0.0) {
            return 0.0;
        }
        let mean = self.per_second() * seconds / lump;
        if mean < RARE {
            return 0.0;
        }
        // The mean itself is only known from the time that was looked at.
        let variance = mean * (1.0 + seconds / self.looked_at());
        // Few lumps are not spread evenly round their mean (Cornish and Fisher's term).
        let uneven = (deviations * deviations - 1.0) / 6.0;
        lump * (mean + deviations * variance.sqrt() + uneven).floor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(10);

    #[test]
    fn nobody_else_keeps_nothing_back() {
        let mut foreign = Foreign::new(PERIOD);
        for _ in 0..100 {
            foreign.learn(0.0, 0.1);
        }
        assert_eq!(foreign.most(5.0, 4.0), 0.0);
    }

    /// Lumps of 7, one a second on average, at random, and a word four times a second.
    #[test]
    fn what_is_kept_back_is_seldom_exceeded_and_not_much_too_large() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut foreign = Foreign::new(PERIOD);
        let mut lumps = || {
            let mut count = 0;
            let mut at = -rng.f64().ln();
            while at < 0.25 {
                count += 1;
                at -= rng.f64().ln();
            }
            f64::from(count) * 7.0
        };
        let mut above = 0;
        for _ in 0..4_000 {
            let used = lumps();
            above += u32::from(used > foreign.most(0.25, 3.0));
            foreign.learn(used, 0.25);
        }
        assert!(above <= 20, "{above}");
        // Ten lumps are expected, and more than 21 come once in a thousand times.
        let kept = foreign.most(10.0, 3.0) / 7.0;
        assert!((15.0..32.0).contains(&kept), "{kept}");
    }

    #[test]
    fn a_long_silence_is_believed() {
        let mut foreign = Foreign::new(PERIOD);
        foreign.learn(100.0, 1.0);
        assert!(foreign.most(1.0, 3.0) > 100.0);
        for _ in 0..200 {
            foreign.learn(0.0, 1.0);
        }
        assert_eq!(foreign.most(1.0, 3.0), 0.0);
    }

    #[test]
    fn what_was_nobodys_use_is_forgotten() {
        let mut foreign = Foreign::new(PERIOD);
        foreign.learn(100.0, 1.0);
        let before = foreign.most(1.0, 3.0);
        foreign.unlearn(40.0);
        assert!(foreign.most(1.0, 3.0) < before);
        foreign.unlearn(1_000.0);
        assert_eq!(foreign.most(1.0, 3.0), 0.0);
    }

    #[test]
    fn nonsense_keeps_nothing_back() {
        let mut foreign = Foreign::new(Duration::ZERO);
        for (amount, seconds) in [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (1.0, -1.0)] {
            foreign.learn(amount, seconds);
        }
        assert_eq!(foreign.most(1.0, 4.0), 0.0);
    }
}
