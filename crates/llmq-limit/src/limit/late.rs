use std::time::Duration;

use llmq_core::Timestamp;

/// The longest that we were told of a sending late, in the present and the last span: calls leave
/// our window so much later than the provider's.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Late {
    most: [Duration; 2],
    since: Timestamp,
}

impl Late {
    /// A call was told of so late. What was two periods ago matters no more: once stopped for a
    /// minute, a process is not late for ever.
    pub(super) fn seen(&mut self, late: Duration, now: Timestamp, period: Duration) {
        if now - self.since > period * 2 {
            self.most = [Duration::ZERO; 2];
            self.since = now;
        } else if now - self.since > period {
            self.most = [Duration::ZERO, self.most[0]];
            self.since = now;
        }
        self.most[0] = self.most[0].max(late);
    }

    pub(super) fn most(&self) -> Duration {
        self.most[0].max(self.most[1])
    }
}

#[cfg(test)]
mod tests {
    use llmq_core::{CallSize, Host};

    use super::super::tests::{MARGIN, at, limit, send};
    use super::super::{Limit, Verdict};
    use super::*;

    /// A call that is written at one instant and told of at another.
    fn told_late(limit: &mut Limit, written: u64, told: u64) -> super::super::Entry {
        let cost = limit.cost(&CallSize::default(), 0);
        let mut entry = limit.take(cost);
        limit.sent(&mut entry, at(written), at(told), MARGIN);
        entry
    }

    /// What comes back of a limit between the write and the telling was taken for others' use.
    #[test]
    fn what_came_back_before_the_telling_is_nobodys_use() {
        for (text, calls, before, written, told, left) in [
            ("requests=1000/1s:bucket", 50, 0, 1, 31, 950),
            ("requests=100/1s", 10, 0, 999, 1_020, 89),
            // The next window begins at 20 s.
            ("requests=100/1m:fixed", 99, 10_000, 19_999, 20_030, 0),
        ] {
            let mut limit = limit(text, Host::Unknown);
            for _ in 0..calls {
                let entry = send(&mut limit, &CallSize::default(), at(before));
                limit.settle(entry, None, at(before));
            }
            let late = told_late(&mut limit, written, told);
            let said = limit.observe(&late, left, 1, at(told + 1), MARGIN);
            assert_eq!(said, Verdict::Inside, "{text}");
            assert_eq!(limit.corrected, 0, "{text}");
            assert_eq!(limit.others(at(told + 100)), 0, "{text}");
        }
    }

    /// Calls that we were told of late leave the provider's window before ours. Two words that it
    /// had more gave them back, and they left a second time.
    #[test]
    fn what_leaves_the_providers_window_earlier_is_not_given_back() {
        let mut limit = limit("tokens=10000/10s", Host::Mock);
        let size = super::super::tests::call(90, 10);
        let cost = limit.cost(&size, 100);
        for _ in 0..50 {
            let mut entry = limit.take(cost);
            limit.sent(&mut entry, at(0), at(90), MARGIN);
            limit.failed(entry, at(95));
        }
        for (left, ms) in [(9_900, 10_030), (9_800, 10_050)] {
            let entry = send(&mut limit, &size, at(ms));
            limit.observe(&entry, left, 1, at(ms + 2), MARGIN);
        }
        assert_eq!(limit.returned, 0);
    }

    #[test]
    fn a_process_that_stood_still_once_is_not_late_for_ever() {
        let mut late = Late::default();
        let [second, minute] = [1, 60].map(Duration::from_secs);
        late.seen(minute, at(0), second);
        late.seen(Duration::ZERO, at(1_500), second);
        assert_eq!(late.most(), minute);
        late.seen(Duration::ZERO, at(3_000), second);
        assert_eq!(late.most(), Duration::ZERO);
    }
}
