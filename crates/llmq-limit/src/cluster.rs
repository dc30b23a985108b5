use std::time::Duration;

use llmq_core::Timestamp;

/// The calls sent last, within a margin of each other: they may have arrived in any order.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Cluster {
    number: u64,
    first: Timestamp,
    last: Timestamp,
    sent: u32,
    answered: u32,
    /// The call heard last, so that two words on it count once.
    heard: u64,
    told: Whole,
    is_spoilt: bool,
    is_taken: bool,
}

/// What the answers to a whole group said.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Whole {
    /// What was left after all of its calls.
    pub(crate) lowest: i64,
    pub(crate) rounding: i64,
    pub(crate) margin: Duration,
    pub(crate) refused: Refused,
}

/// Calls that were refused, summed up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Refused {
    pub(crate) charged: u64,
    pub(crate) stated: f64,
    pub(crate) squares: f64,
}

/// A group that takes longer than this many margins is none: windows move on meanwhile.
const LONGEST: u32 = 4;

impl Cluster {
    /// A call is sent; returns the number of its group.
    pub(crate) fn sent(&mut self, now: Timestamp, margin: Duration) -> u64 {
        if self.sent == 0 || now - self.last > margin {
            *self = Self {
                number: self.number + 1,
                first: now,
                told: Whole {
                    lowest: i64::MAX,
                    ..Whole::default()
                },
                ..Self::default()
            };
        }
        self.last = self.last.max(now);
        self.is_spoilt |= now - self.first > margin * LONGEST;
        self.sent = self.sent.saturating_add(1);
        self.number
    }

    /// The provider said with the answer to a call, named by the total when it was sent, that
    /// so much was `left`. Whether it is the first word on this group.
    pub(crate) fn heard(
        &mut self,
        number: u64,
        call: u64,
        left: i64,
        rounding: i64,
        margin: Duration,
    ) -> bool {
        if number != self.number || call == self.heard {
            return false;
        }
        self.heard = call;
        self.answered = self.answered.saturating_add(1);
        self.told.lowest = self.told.lowest.min(left);
        self.told.rounding = rounding;
        self.told.margin = margin;
        self.answered == 1
    }

    /// A call of the group was refused.
    pub(crate) fn refused(&mut self, number: u64, charged: u64, stated: f64) {
        if number == self.number {
            let refused = &mut self.told.refused;
            refused.charged = refused.charged.saturating_add(charged);
            refused.stated += stated;
            refused.squares += stated * stated;
        }
    }

    /// What was said of the whole group, once, when each of several calls was answered.
    pub(crate) fn take_whole(&mut self) -> Option<Whole> {
        let is_whole = self.answered == self.sent && self.sent > 1;
        if !is_whole || self.is_spoilt || self.is_taken {
            return None;
        }
        self.is_taken = true;
        Some(self.told)
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
    fn the_lowest_word_counts_once_all_of_a_group_are_answered() {
        let mut cluster = Cluster::default();
        let first = cluster.sent(ms(10), MARGIN);
        assert_eq!(cluster.sent(ms(11), MARGIN), first);
        assert!(cluster.heard(first, 1, 70, 0, MARGIN));
        assert!(!cluster.heard(first, 1, 60, 0, MARGIN), "the same call");
        assert_eq!(cluster.take_whole(), None);
        assert!(!cluster.heard(first, 2, 80, 0, MARGIN));
        assert_eq!(cluster.take_whole().map(|whole| whole.lowest), Some(70));
        assert_eq!(cluster.take_whole(), None, "told once");
    }

    #[test]
    fn a_later_call_begins_another_group_and_one_alone_is_none() {
        let mut cluster = Cluster::default();
        let first = cluster.sent(ms(10), MARGIN);
        let second = cluster.sent(ms(13), MARGIN);
        assert_ne!(first, second);
        assert!(!cluster.heard(first, 1, 70, 0, MARGIN));
        assert!(cluster.heard(second, 2, 60, 0, MARGIN));
        assert_eq!(cluster.take_whole(), None);
    }

    #[test]
    fn calls_that_follow_each_other_without_end_are_no_group() {
        let mut cluster = Cluster::default();
        for number in 0..6 {
            let group = cluster.sent(ms(10 + number * 2), MARGIN);
            cluster.heard(group, number + 1, 70, 0, MARGIN);
        }
        assert_eq!(cluster.take_whole(), None);
    }
}
