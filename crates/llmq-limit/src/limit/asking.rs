//! What a call costs a limit, and whether there is room for it: nothing is touched here.

use std::time::Duration;

use llmq_core::{CallSize, Timestamp};

use super::{Cost, Limit, Meter, float};
use crate::Denied;
use crate::charge::{InputCharge, OutputCharge};
use crate::margin::within;

/// So many standard deviations of what calls without a word may stray are held back; refusals
/// add to it.
const DEVIATIONS: f64 = 1.0;

impl Limit {
    /// What a call of `size` costs; `mean_output` is what answers of its kind took so far.
    #[must_use]
    pub fn cost(&self, size: &CallSize, mean_output: u64) -> Cost {
        let arrival = self.rule.on_arrival(size);
        let later = self.rule.held(size, mean_output);
        // The documented charge is a floor: the larger of estimate and cap is never undercut.
        let floor = match self.rule.output {
            OutputCharge::Cap { default } => {
                let input = match self.rule.input {
                    InputCharge::Tokens | InputCharge::Uncached => u64::from(size.input_tokens),
                    InputCharge::None | InputCharge::Call => 0,
                };
                size.output_cap(default).max(input)
            }
            OutputCharge::None | OutputCharge::Produced | OutputCharge::Place => 0,
        };
        let charged = if self.rule.is_estimate() {
            self.factor.apply(arrival).max(floor)
        } else {
            arrival
        };
        Cost {
            arrival: charged,
            later,
            stated: arrival,
        }
    }

    /// Whether a call of `cost` may start at `now`. `keep_back` of the limit is left alone (the
    /// share reserved for higher priorities).
    ///
    /// # Errors
    ///
    /// The earliest instant, an event to wait for, or never; see [`Denied`].
    pub fn check(
        &mut self,
        cost: Cost,
        keep_back: u64,
        now: Timestamp,
        margin: Duration,
    ) -> Result<(), Denied> {
        if cost.stated > self.believed && !matches!(self.meter, Meter::Places) {
            return Err(Denied::Never {
                limit: self.believed,
            });
        }
        if self.allowed().is_some_and(|left| cost.total() > left) {
            self.short = self.short.max(cost.total());
            return Err(Denied::OnRelease);
        }
        let margin = within(margin, self.spec.period);
        // What is left alone for others never keeps a call from an unused limit: a large one
        // would wait for ever.
        let room = self.whole(margin).saturating_sub(cost.total());
        let aside = keep_back
            .min(self.spec.count - self.spec.count / 16)
            .saturating_add(self.others(now))
            .saturating_add(self.stray(cost))
            .min(room);
        let beside = self.held.saturating_add(aside);
        self.advance(now);
        match &self.meter {
            Meter::Sliding(window) => window.check(cost.total(), beside),
            Meter::Bucket(bucket) => bucket.check(cost.total(), beside, self.unsent, margin),
            Meter::Fixed(window) => window.check(cost.total(), beside, now, margin),
            Meter::Places if beside + cost.later <= self.spec.count => Ok(()),
            Meter::Places => Err(Denied::OnRelease),
        }
    }

    /// How far the calls of which the provider has not spoken yet, this one among them, may be
    /// charged more than we think.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a charge that is not negative"
    )]
    fn stray(&self, cost: Cost) -> u64 {
        let stray = DEVIATIONS * self.learner.stray() + self.caution.value();
        if stray == 0.0 {
            return 0;
        }
        let own = float(cost.stated);
        let mut squares = self.squares_open;
        if self.heard.any && self.learns_from_words() {
            // Of those sent before the call of the last word, that word spoke.
            let since = self.squares - self.heard.squares + self.squares_unsent;
            squares = squares.min(since);
        }
        let squares = squares.max(0.0) + own * own;
        // Where the documented charge is above what is expected, that much is spare.
        let spare = float(cost.arrival) - self.factor.value() * own;
        (stray * squares.sqrt() - spare.max(0.0)).max(0.0) as u64
    }

    /// Whether a call of `cost` would be one bet too many: the limit counts tokens as the provider
    /// sees them, and more than a tenth of it would be charged to calls without an answer.
    #[must_use]
    pub fn is_bold(&self, cost: Cost) -> bool {
        self.is_estimate()
            && self.unanswered > 0
            && self.unanswered.saturating_add(cost.total()) > self.whole(Duration::ZERO) / 10
    }
}
