use std::time::Duration;

use llmq_core::{Now, Timestamp};

/// What is refused is refused within this time, by almost any provider: a call that was sent
/// longer ago was most likely taken, also where its answer takes minutes.
const STEP: Duration = Duration::from_secs(1);
/// After so many steps as many calls were let through as wait anywhere, and nothing is held back.
const STEPS: u32 = 12;

/// Lets calls through little by little after a 429 that no known limit explains: the limit that
/// refused may have room for one call by now, or for thousands, and only an answer can tell.
///
/// One call goes first. Each that the provider takes lets two more through, so that their number
/// doubles with each round of answers; where answers are slow it doubles every second instead.
/// A further 429 ends this one, and another begins.
///
/// ```
/// use llmq_core::Now;
/// use llmq_limit::SlowStart;
/// use std::time::Duration;
/// let now = Now::default();
/// let mut slow = SlowStart::new(now);
/// assert_eq!(slow.check(now), Ok(()));
/// slow.started();
/// let second = Duration::from_secs(1);
/// assert_eq!(slow.check(now), Err(now.mono + second));
/// slow.taken();
/// assert_eq!(slow.check(now), Ok(()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowStart {
    since: Timestamp,
    /// Calls started since.
    started: u64,
    /// Those of them that the provider has taken.
    taken: u64,
}

impl SlowStart {
    /// Begins now.
    #[must_use]
    pub fn new(now: Now) -> Self {
        Self {
            since: now.mono,
            started: 0,
            taken: 0,
        }
    }

    /// Whether a call may start now.
    ///
    /// # Errors
    ///
    /// The instant at which it may start, if the provider takes no other one before.
    pub fn check(&self, now: Now) -> Result<(), Timestamp> {
        let steps = now.mono.since(self.since).as_secs() / STEP.as_secs();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let let_through = self.taken.saturating_mul(2).saturating_add(1);
        if steps >= STEPS || self.started < let_through.max(1 << steps) {
            return Ok(());
        }
        Err(self.since + STEP * (self.started.ilog2() + 1).min(STEPS))
    }

    /// A call starts.
    pub fn started(&mut self) {
        self.started += 1;
    }

    /// A call that was started since has not been sent after all.
    pub fn given_back(&mut self) {
        self.started = self.started.saturating_sub(1);
    }

    /// The provider has taken a call that was started since: it did not refuse it.
    pub fn taken(&mut self) {
        self.taken += 1;
    }

    /// When it began: calls that were started before are none of its own.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Now {
        Now::default().after(Duration::from_millis(millis))
    }

    /// Starts all that may start now.
    fn start_all(slow: &mut SlowStart, now: Now) -> u64 {
        let before = slow.started;
        while slow.started < 5_000 && slow.check(now).is_ok() {
            slow.started();
        }
        slow.started - before
    }

    #[test]
    fn one_call_goes_first_and_each_round_of_answers_doubles() {
        let mut slow = SlowStart::new(at(0));
        for round in [1, 2, 4, 8, 16, 32] {
            assert_eq!(start_all(&mut slow, at(0)), round);
            for _ in 0..round {
                slow.taken();
            }
        }
    }

    #[test]
    fn without_answers_all_that_was_let_through_doubles_each_second() {
        let mut slow = SlowStart::new(at(0));
        let each = [0, 999, 1_000, 2_000, 2_500, 3_000].map(|ms| start_all(&mut slow, at(ms)));
        assert_eq!(each, [1, 0, 1, 2, 0, 4]);
        start_all(&mut slow, at(12_000));
        assert_eq!(slow.started, 5_000, "nothing is held back any more");
    }

    proptest! {
        /// The instant that is named is the first one: not an instant later, and none before.
        #[test]
        fn a_call_passes_exactly_when_it_was_told(
            taken in 0_u64..300,
            millis in 0_u64..15_000,
        ) {
            let mut slow = SlowStart::new(at(0));
            slow.taken = taken;
            start_all(&mut slow, at(millis));
            if let Err(passes) = slow.check(at(millis)) {
                let wait = passes - at(millis).mono;
                prop_assert!(wait > Duration::ZERO);
                prop_assert_eq!(slow.check(at(millis).after(wait)), Ok(()));
                let just_before = wait - Duration::from_nanos(1);
                prop_assert!(slow.check(at(millis).after(just_before)).is_err());
            }
        }
    }
}
