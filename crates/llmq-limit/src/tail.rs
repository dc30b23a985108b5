use std::time::Duration;

use llmq_core::Timestamp;

/// The calls sent last, each within a margin of the one before it.
///
/// They may have arrived in any order; but once each of them was answered with a word of what was
/// used, no more than the highest of those words was used after all of them. Nothing was sent
/// since, so it still is so, but for what their answers and others on the account have used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tail {
    number: u64,
    first: Timestamp,
    last: Timestamp,
    /// Calls of it of which no word has come.
    silent: u64,
    /// When the last word on one of them counted.
    heard_at: Timestamp,
    highest: i64,
    /// The word on a call that has not ended yet, and the tail it belongs to.
    pending: Option<(u64, i64)>,
    /// What calls have been charged since, for their answers …
    since: i64,
    /// … and when the last of it was.
    charged_at: Timestamp,
}

impl Tail {
    /// A call was sent between `at` and `now`; returns the number of the tail it belongs to.
    pub(crate) fn sent(&mut self, at: Timestamp, now: Timestamp, margin: Duration) -> u64 {
        // We may be told of it only after words on calls that arrived after it.
        let after_words = at >= self.heard_at;
        if (self.silent == 0 && after_words) || at - self.last > margin {
            self.number += 1;
            self.first = at;
            self.silent = 0;
            self.highest = i64::MIN;
        }
        if after_words && at >= self.charged_at {
            self.since = 0;
        }
        self.first = self.first.min(at);
        self.last = self.last.max(now);
        self.silent += 1;
        self.number
    }

    /// The provider has said with the answer to a call what was used at most.
    pub(crate) fn heard(&mut self, number: u64, used: i64) {
        self.pending = Some((number, used));
    }

    /// A call has ended; a word that came with it counts now, once.
    pub(crate) fn ended(&mut self, now: Timestamp) {
        let Some((number, used)) = self.pending.take() else {
            return;
        };
        self.heard_at = self.heard_at.max(now);
        if number == self.number {
            self.silent = self.silent.saturating_sub(1);
            self.highest = self.highest.max(used);
        }
    }

    /// Calls were charged `amount` more.
    pub(crate) fn charged(&mut self, amount: i64, now: Timestamp) {
        if amount > 0 {
            self.since = self.since.saturating_add(amount);
            self.charged_at = self.charged_at.max(now);
        }
    }

    /// What was used at most after all of them, and what has been charged since; none where a
    /// word is missing.
    pub(crate) fn used(&self) -> Option<(i64, i64)> {
        (self.number > 0 && self.silent == 0).then_some((self.highest, self.since))
    }

    /// When the first and the last call of it were sent.
    pub(crate) fn span(&self) -> (Timestamp, Timestamp) {
        (self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARGIN: Duration = Duration::from_millis(2);

    fn ms(ms: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn calls_close_together_count_once_each_has_been_answered() {
        let mut tail = Tail::default();
        assert_eq!(tail.used(), None);
        let number = tail.sent(ms(100), ms(100), MARGIN);
        assert_eq!(tail.sent(ms(101), ms(101), MARGIN), number);
        tail.heard(number, 70);
        // Its head and its end may both tell.
        tail.heard(number, 70);
        tail.ended(ms(104));
        tail.ended(ms(104));
        assert_eq!(tail.used(), None, "one of two");
        tail.heard(number, 50);
        tail.ended(ms(104));
        assert_eq!(tail.used(), Some((70, 0)));
        tail.charged(20, ms(105));
        tail.charged(-30, ms(105));
        assert_eq!(tail.used(), Some((70, 20)));
    }

    #[test]
    fn what_came_before_a_margin_matters_no_more() {
        let mut tail = Tail::default();
        let lost = tail.sent(ms(100), ms(100), MARGIN);
        let last = tail.sent(ms(103), ms(103), MARGIN);
        tail.heard(lost, 1);
        tail.ended(ms(104));
        assert_eq!(tail.used(), None);
        tail.heard(last, 9);
        tail.ended(ms(104));
        assert_eq!(
            (tail.used(), tail.span()),
            (Some((9, 0)), (ms(103), ms(103)))
        );
    }

    #[test]
    fn a_call_that_is_told_of_late_does_not_come_after_words() {
        let mut tail = Tail::default();
        let number = tail.sent(ms(100), ms(100), MARGIN);
        tail.heard(number, 8);
        tail.ended(ms(110));
        tail.charged(2, ms(110));
        assert_eq!(tail.sent(ms(99), ms(111), MARGIN), number);
        tail.heard(number, 3);
        tail.ended(ms(112));
        assert_eq!(tail.used(), Some((8, 2)));
    }

    /// What another call streamed while the telling was on its way was forgotten, and given back
    /// when nothing was under way any more.
    #[test]
    fn what_was_charged_before_the_telling_is_not_in_the_word() {
        let mut tail = Tail::default();
        tail.charged(100, ms(55));
        let number = tail.sent(ms(50), ms(60), MARGIN);
        tail.heard(number, 3);
        tail.ended(ms(70));
        assert_eq!(tail.used(), Some((3, 100)));
    }
}
