//! Whether room lies idle while work waits.

use std::time::Duration;

use llmq_core::Timestamp;
use llmq_limit::BreakerState;

use super::{Waits, World};
use crate::judge::Room;

impl World<'_> {
    /// Adds the time from the last step to `until` to what it belongs to.
    pub(super) fn account(&mut self, until: Timestamp) {
        let waits = self.waits;
        if !waits.waiting {
            return;
        }
        let span = until - waits.since;
        if waits.by_breaker {
            self.report.breaker += span;
            return;
        }
        self.report.waiting += span;
        let idle = |room: Option<Timestamp>| {
            room.map_or(Duration::ZERO, |room| until - room.max(waits.since))
        };
        self.report.idle += idle(waits.room.plain);
        self.report.idle_unpaced += idle(waits.room.paced);
    }

    /// Sees whether work waits, and since when there is room for the call to be sent next.
    ///
    /// Between two steps nothing changes but the time, so the instant at which room comes is
    /// known exactly. Where several lines are equally urgent, there is room when there is for
    /// the head of each of them.
    pub(super) fn look(&mut self) {
        let mut waits = Waits {
            since: self.now,
            ..Waits::default()
        };
        let mut room: Option<Room> = None;
        for head in self.books.heads() {
            waits.waiting = true;
            let arrival = self.arrival(head);
            let may_be = self.may_be(head);
            let mut ways = Room::default();
            let mut all_broken = true;
            for index in 0..self.upstreams.len() {
                let view = self.dispatcher.upstream_view(self.upstreams[index]);
                if view.breaker != BreakerState::Closed {
                    continue;
                }
                all_broken = false;
                if self.providers[index].outage(self.now).is_none() {
                    ways = ways.or(self.ideals[index].room_for(&arrival, may_be, self.now));
                }
            }
            waits.by_breaker |= all_broken;
            room = Some(room.map_or(ways, |room| room.and(ways)));
        }
        waits.room = room.unwrap_or_default();
        self.waits = waits;
    }

    /// The most that the call's input may be, as far as its estimate tells once it is known by
    /// what share all estimates are off.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a token count that is not negative"
    )]
    fn may_be(&self, index: usize) -> u64 {
        let plan = &self.calls[index].plan;
        let estimates = self.scenario.estimates;
        if estimates.noise == 0.0 {
            return plan.usage.input_tokens;
        }
        let middle = f64::from(plan.size.input_tokens) / (1.0 + estimates.bias);
        (middle / (1.0 - estimates.noise)).ceil() as u64
    }
}
