use std::collections::BTreeSet;
use std::time::Duration;

use llmq_core::{Priority, Timestamp};
use rustc_hash::FxHashSet;

use crate::events::Refusal;
use crate::ids::{LaneId, TicketId};
use crate::late::Remembered;
use crate::setup::{Capacity, QueueSetup};

/// A queue's own state: what waits, whether it refuses, whether it stands still.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) setup: QueueSetup,
    pub(crate) content: Content,
    pub(crate) running: u64,
    pub(crate) paused: bool,
    pub(crate) draining: bool,
    /// Whether a person drained it before it was retired: then it is drained again when it is back.
    pub(crate) was_draining: bool,
    /// It is not configured any more.
    pub(crate) retired: bool,
    /// Stands still by a quota: every route is closed until a day turns or a person acts.
    pub(crate) parked: bool,
    /// Time to live runs on the queue's own clock, which stands still while it does.
    stopped_total: Duration,
    stopped_since: Option<Timestamp>,
    /// Deadlines on that clock, in ns.
    pub(crate) deadlines: BTreeSet<(u64, TicketId)>,
    pub(crate) lanes: FxHashSet<LaneId>,
    /// When its next deadline is looked at.
    pub(crate) deadline_timer: Option<Timestamp>,
    /// For usage that is told late.
    pub(crate) remembered: Remembered,
}

/// How much is inside of something that has a capacity.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Content {
    pub(crate) jobs: u64,
    pub(crate) bytes: u64,
    refusing: bool,
}

impl Content {
    /// Whether one more call of `bytes` may come in.
    pub(crate) fn accepts(&mut self, bytes: u64, capacity: &Capacity) -> Result<(), Refusal> {
        let above = |share: f64| {
            exceeds(self.jobs.saturating_add(1), capacity.jobs, share)
                || exceeds(self.bytes.saturating_add(bytes), capacity.bytes, share)
        };
        let mark = if self.refusing {
            capacity.low_watermark
        } else {
            capacity.high_watermark
        };
        self.refusing = above(mark);
        if self.refusing {
            return Err(Refusal::Full {
                jobs: self.jobs,
                bytes: self.bytes,
            });
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.jobs += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(crate) fn remove(&mut self, bytes: u64) {
        self.jobs = self.jobs.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Queue {
    pub(crate) fn new(setup: QueueSetup) -> Self {
        Self {
            setup,
            content: Content::default(),
            running: 0,
            paused: false,
            draining: false,
            was_draining: false,
            retired: false,
            parked: false,
            stopped_total: Duration::ZERO,
            stopped_since: None,
            deadlines: BTreeSet::new(),
            lanes: FxHashSet::default(),
            deadline_timer: None,
            remembered: Remembered::default(),
        }
    }

    /// Whether one more call of `bytes` may come in.
    pub(crate) fn accepts(&mut self, bytes: u64) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        self.content.accepts(bytes, &self.setup.capacity)
    }

    /// The queue's own clock, which stands still while nothing may start.
    pub(crate) fn clock(&self, now: Timestamp) -> u64 {
        let still = self
            .stopped_since
            .map_or(Duration::ZERO, |since| now - since);
        now.before(self.stopped_total).before(still).as_nanos()
    }

    /// Takes note of whether it stands still from `now` on.
    pub(crate) fn update_clock(&mut self, now: Timestamp) {
        match (self.paused || self.parked, self.stopped_since) {
            (true, None) => self.stopped_since = Some(now),
            (false, Some(since)) => {
                self.stopped_total += now - since;
                self.stopped_since = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// When the next deadline passes; none while the clock stands still.
    pub(crate) fn next_deadline(&self, now: Timestamp) -> Option<Timestamp> {
        if self.stopped_since.is_some() {
            return None;
        }
        let (deadline, _) = self.deadlines.first()?;
        Some(now + Duration::from_nanos(deadline.saturating_sub(self.clock(now))))
    }

    /// The share of a limit's `count` that calls of `priority` leave alone.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a count below 10^15"
    )]
    pub(crate) fn keep_back(&self, priority: Priority, count: u64) -> u64 {
        let share: f64 = self
            .setup
            .reserve
            .iter()
            .filter(|reserve| priority < reserve.priority)
            .map(|reserve| reserve.share.clamp(0.0, 0.5))
            .sum();
        (count as f64 * share.min(0.5)) as u64
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of a bound")]
fn exceeds(value: u64, bound: u64, share: f64) -> bool {
    bound != u64::MAX && value as f64 > bound as f64 * share
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UpstreamId;

    fn queue(jobs: u64) -> Queue {
        let mut setup = QueueSetup::to("m", UpstreamId(0));
        setup.capacity = Capacity {
            jobs,
            ..Capacity::default()
        };
        Queue::new(setup)
    }

    #[test]
    fn a_full_queue_refuses_until_it_is_below_the_low_watermark() {
        let mut queue = queue(10);
        for _ in 0..8 {
            assert_eq!(queue.accepts(0), Ok(()));
            queue.content.add(0);
        }
        assert!(queue.accepts(0).is_err());
        queue.content.jobs = 6;
        assert!(queue.accepts(0).is_err(), "still above the low mark");
        queue.content.jobs = 5;
        assert_eq!(queue.accepts(0), Ok(()));
    }

    #[test]
    fn a_queues_clock_stands_still_while_it_does() {
        let at = |secs| Timestamp::ZERO + Duration::from_secs(secs);
        let mut queue = queue(10);
        assert_eq!(queue.clock(at(5)), 5_000_000_000);
        queue.paused = true;
        queue.update_clock(at(5));
        assert_eq!(queue.clock(at(100)), 5_000_000_000);
        queue.paused = false;
        queue.update_clock(at(100));
        assert_eq!(queue.clock(at(101)), 6_000_000_000);
    }
}
