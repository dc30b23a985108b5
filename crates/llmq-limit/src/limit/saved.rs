//! What a limit has used, from one process to the next.

use std::time::Duration;

use llmq_core::Timestamp;

use super::{Limit, Meter};
use crate::sliding::signed;

impl Limit {
    /// Takes the whole limit as used at `at`: what is not known to be free is not free. For a
    /// start after a crash, with `at` the last sign of life.
    pub fn exhaust(&mut self, at: Timestamp, now: Timestamp) {
        let count = signed(self.spec.count);
        match &mut self.meter {
            Meter::Sliding(window) => window.add(count - window.used(), at),
            Meter::Bucket(bucket) => bucket.exhaust(at),
            Meter::Fixed(window) => window.add(count, at, at),
            Meter::Places => {}
        }
        self.advance(now);
    }

    /// The dated use of the limit as (age, amount), oldest first, in at most 64 parts: what a
    /// later process must count. A bucket's is one part of age zero.
    #[must_use]
    pub fn saved(&mut self, now: Timestamp) -> Vec<(Duration, u64)> {
        self.advance(now);
        let parts: Vec<(Duration, u64)> = match &self.meter {
            Meter::Sliding(window) => window
                .content(now)
                .filter_map(|(age, used)| Some((age, u64::try_from(used).ok()?)))
                .collect(),
            Meter::Bucket(bucket) => {
                let used = signed(bucket.depth()) - bucket.remaining();
                vec![(Duration::ZERO, u64::try_from(used).unwrap_or(0))]
            }
            Meter::Fixed(window) => {
                vec![(
                    Duration::ZERO,
                    u64::try_from(window.used(now, Duration::ZERO)).unwrap_or(0),
                )]
            }
            Meter::Places => Vec::new(),
        };
        // Parts are merged into the younger: that keeps them longer, never shorter.
        let step = parts.len().div_ceil(64).max(1);
        let merge = |part: &[(Duration, u64)]| {
            part.last()
                .map(|(age, _)| (*age, part.iter().map(|(_, used)| used).sum()))
        };
        parts.chunks(step).filter_map(merge).collect()
    }

    /// Counts what an earlier process had used, as [`Limit::saved`] told, `gone` ago.
    pub fn restore(&mut self, parts: &[(Duration, u64)], gone: Duration, now: Timestamp) {
        for (age, used) in parts {
            let at = now.before(*age).before(gone);
            match &mut self.meter {
                Meter::Bucket(bucket) => {
                    let refilled = u128::from(self.spec.count) * gone.as_nanos()
                        / self.spec.period.as_nanos().max(1);
                    let left = u128::from(*used).saturating_sub(refilled);
                    bucket.take(signed(u64::try_from(left).unwrap_or(u64::MAX)));
                }
                Meter::Sliding(_) | Meter::Fixed(_) | Meter::Places => {
                    self.charge(signed(*used), at, at);
                }
            }
        }
        self.advance(now);
    }

    /// Lets `more` be taken from now on before the books must be written again; `None` lifts
    /// the rule.
    pub fn allow(&mut self, more: Option<u64>) {
        self.allow_to(0, more.unwrap_or(0));
        self.allowance = more.map(|more| self.reach(more));
    }

    /// How much will have been taken in all, from the beginning, when `more` is taken from now.
    #[must_use]
    pub fn reach(&self, more: u64) -> u64 {
        self.taken.saturating_add(more)
    }

    /// Lets be taken what the books on disk say may be: as much as brings all that was taken up
    /// to `reach`, which was [`Limit::reach`] of `portion` when they were written. Nothing that
    /// was taken since then is allowed again.
    pub fn allow_to(&mut self, reach: u64, portion: u64) {
        self.allowance = Some(reach);
        self.portion = portion;
        self.portion_told = false;
        self.short = 0;
    }

    /// How much to write ahead: `least`, or more where a call needs more to start.
    #[must_use]
    pub fn portion(&self, least: u64) -> u64 {
        least.max(self.short)
    }

    /// Whether half of what may be taken has been, or a call needs more than is left of it; told
    /// once for each [`Limit::allow`].
    pub fn is_portion_low(&mut self) -> bool {
        let is_low = |left: u64| left <= self.portion / 2 || self.short > 0;
        let low = self.allowed().is_some_and(is_low) && !self.portion_told;
        self.portion_told |= low;
        low
    }

    /// How much may still be taken before the books must be written; `None`: any amount.
    #[must_use]
    pub fn allowed(&self) -> Option<u64> {
        self.allowance
            .map(|allowance| allowance.saturating_sub(self.taken))
    }
}
