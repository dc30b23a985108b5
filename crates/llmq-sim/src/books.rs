//! The run's own books of every call, and the laws that hold after every step.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use llmq_core::{Priority, Timestamp};

/// One queue, one priority, one tenant; the most urgent lane comes first.
pub(crate) type LaneKey = (Reverse<Priority>, usize, usize);

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not submitted, or refused.
    Outside,
    /// In its lane.
    Waiting,
    /// Out of its lane until then.
    Delayed(Timestamp),
    /// Started.
    Running,
    /// At its one end.
    Over,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    lane: LaneKey,
    place: Place,
    /// It has never come back, so nothing may pass it.
    fresh: bool,
    submitted: Timestamp,
    ttl: Option<Duration>,
    /// The time its queue had stood still when it was submitted.
    stopped: Duration,
}

#[derive(Debug, Default)]
struct LaneBooks {
    /// Everything that waits, in the order of submission.
    waiting: BTreeSet<usize>,
    /// Those of them that never came back.
    fresh: BTreeSet<usize>,
    /// When it last started something or began to wait.
    progress: Timestamp,
}

#[derive(Debug, Clone, Copy, Default)]
struct QueueBooks {
    running: u64,
    inside: u64,
    paused: Option<Timestamp>,
    stopped: Duration,
    /// A quota may have parked it, so that its own clock is not known here.
    parked: bool,
}

/// Every call's place, and what was found wrong.
#[derive(Debug)]
pub(crate) struct Books {
    calls: Vec<Entry>,
    lanes: BTreeMap<LaneKey, LaneBooks>,
    queues: Vec<QueueBooks>,
    aging: Duration,
    /// How long a lane that has risen as far as it can may still wait.
    patience: Duration,
    /// Lanes that started something in this step, and how long they had waited.
    started: Vec<(LaneKey, Duration)>,
    faults: Vec<String>,
}

const FAULTS_MAX: usize = 5;

impl Books {
    pub(crate) fn new(queues: usize, aging: Duration, patience: Duration) -> Self {
        Self {
            calls: Vec::new(),
            lanes: BTreeMap::new(),
            queues: vec![QueueBooks::default(); queues],
            aging,
            patience,
            started: Vec::new(),
            faults: Vec::new(),
        }
    }

    pub(crate) fn fault(&mut self, now: Timestamp, text: &str) {
        if self.faults.len() < FAULTS_MAX {
            let at = now.as_nanos() / 1_000;
            self.faults.push(format!("at {at} µs: {text}"));
        }
    }

    pub(crate) fn into_faults(self) -> Vec<String> {
        self.faults
    }

    /// Makes room for a call with this lane; it is outside until [`Books::submitted`].
    pub(crate) fn expect(&mut self, lane: LaneKey, ttl: Option<Duration>) {
        self.calls.push(Entry {
            lane,
            place: Place::Outside,
            fresh: true,
            submitted: Timestamp::ZERO,
            ttl,
            stopped: Duration::ZERO,
        });
    }

    pub(crate) fn place(&self, call: usize) -> Place {
        self.calls[call].place
    }

    /// It is about to be submitted.
    pub(crate) fn submitted(&mut self, call: usize, now: Timestamp) {
        let entry = &mut self.calls[call];
        let queue = &mut self.queues[entry.lane.1];
        entry.submitted = now;
        entry.stopped = queue.stopped_by(now);
        queue.inside += 1;
        self.enter(call, now);
    }

    fn enter(&mut self, call: usize, now: Timestamp) {
        let entry = &mut self.calls[call];
        entry.place = Place::Waiting;
        let lane = self.lanes.entry(entry.lane).or_default();
        if lane.waiting.is_empty() {
            lane.progress = now;
        }
        lane.waiting.insert(call);
        if entry.fresh {
            lane.fresh.insert(call);
        }
    }

    fn leave(&mut self, call: usize) {
        let entry = &self.calls[call];
        if let Some(lane) = self.lanes.get_mut(&entry.lane) {
            lane.waiting.remove(&call);
            lane.fresh.remove(&call);
        }
    }

    /// The dispatcher starts it.
    pub(crate) fn start(&mut self, call: usize, now: Timestamp) {
        let entry = self.calls[call];
        match entry.place {
            Place::Waiting => {}
            Place::Delayed(at) if at <= now => self.enter(call, now),
            other => self.fault(now, &format!("call {call} was started while {other:?}")),
        }
        let mut waited = Duration::ZERO;
        if let Some(lane) = self.lanes.get_mut(&entry.lane) {
            let first = lane.fresh.first().copied();
            waited = now - lane.progress;
            lane.progress = now;
            if entry.fresh && first != Some(call) {
                let text = format!("call {call} passed call {first:?} of its own line");
                self.fault(now, &text);
            }
        }
        self.check_ttl(call, now);
        self.leave(call);
        self.calls[call].place = Place::Running;
        let queue = &mut self.queues[entry.lane.1];
        queue.running += 1;
        if queue.paused.is_some() {
            self.fault(now, &format!("call {call} was started in a paused queue"));
        }
        self.started.push((entry.lane, waited));
    }

    fn check_ttl(&mut self, call: usize, now: Timestamp) {
        let entry = self.calls[call];
        let queue = &self.queues[entry.lane.1];
        let Some(ttl) = entry.ttl.filter(|_| !queue.parked) else {
            return;
        };
        let stood_still = queue.stopped_by(now).saturating_sub(entry.stopped);
        let age = (now - entry.submitted).saturating_sub(stood_still);
        if age > ttl {
            self.fault(
                now,
                &format!("call {call} was started at the age of {age:?}"),
            );
        }
    }

    /// The dispatcher puts it back in line, from `at` on.
    pub(crate) fn requeue(&mut self, call: usize, at: Timestamp, now: Timestamp) {
        if self.calls[call].place != Place::Running {
            let place = self.calls[call].place;
            self.fault(now, &format!("call {call} came back while {place:?}"));
        }
        let entry = &mut self.calls[call];
        entry.fresh = false;
        self.queues[entry.lane.1].running -= 1;
        if at > now {
            entry.place = Place::Delayed(at);
        } else {
            self.enter(call, now);
        }
    }

    /// A delay is over.
    pub(crate) fn due(&mut self, call: usize, now: Timestamp) {
        if matches!(self.calls[call].place, Place::Delayed(at) if at <= now) {
            self.enter(call, now);
        }
    }

    /// It has come to its end.
    pub(crate) fn end(&mut self, call: usize, now: Timestamp) {
        let entry = self.calls[call];
        let queue = &mut self.queues[entry.lane.1];
        match entry.place {
            Place::Running => queue.running -= 1,
            Place::Waiting | Place::Delayed(_) => {}
            Place::Outside | Place::Over => {
                let place = entry.place;
                return self.fault(now, &format!("call {call} ended while {place:?}"));
            }
        }
        self.queues[entry.lane.1].inside -= 1;
        self.leave(call);
        self.calls[call].place = Place::Over;
    }

    pub(crate) fn pause(&mut self, queue: usize, now: Timestamp) {
        self.queues[queue].paused = Some(now);
    }

    pub(crate) fn resume(&mut self, queue: usize, now: Timestamp) {
        let books = &mut self.queues[queue];
        books.stopped = books.stopped_by(now);
        books.paused = None;
        for (key, lane) in &mut self.lanes {
            if key.1 == queue {
                lane.progress = now;
            }
        }
    }

    /// A quota has closed an upstream: times to live may stand still from now on.
    pub(crate) fn quota_closed(&mut self) {
        for queue in &mut self.queues {
            queue.parked = true;
        }
    }

    /// The heads of all lanes that wait and are not paused, the most urgent first.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (LaneKey, usize)> {
        let lanes = self
            .lanes
            .iter()
            .filter(|(key, _)| self.queues[key.1].paused.is_none());
        lanes.filter_map(|(key, lane)| Some((*key, lane.waiting.first().copied()?)))
    }

    /// Jobs and running calls of a queue, as they should be.
    pub(crate) fn counts(&self, queue: usize) -> (u64, u64) {
        (self.queues[queue].inside, self.queues[queue].running)
    }

    /// Checks what can only be seen when a step is over.
    pub(crate) fn check_step(&mut self, now: Timestamp) {
        let started = std::mem::take(&mut self.started);
        for (lane, waited) in started {
            // A lane that has risen is behind no more.
            if waited < self.aging {
                self.check_order(lane, now);
            }
            self.check_starvation(lane, now);
        }
    }

    /// Nothing was started over the head of a more urgent line of the same queue and tenant.
    fn check_order(&mut self, started: LaneKey, now: Timestamp) {
        let passed = self.lanes.iter().find(|(key, lane)| {
            key.0 < started.0
                && (key.1, key.2) == (started.1, started.2)
                && !lane.waiting.is_empty()
                && lane.progress < now
        });
        if let Some(passed) = passed.map(|(key, _)| *key) {
            let text = format!("priority {} went before {}", started.0.0, passed.0.0);
            self.fault(now, &text);
        }
    }

    /// Nobody waits for ever while others of at most `high` start.
    fn check_starvation(&mut self, started: LaneKey, now: Timestamp) {
        let bound = self.aging * 2 + self.patience;
        let starved = self.lanes.iter().find(|(key, lane)| {
            key.1 == started.1
                && **key != started
                && !lane.waiting.is_empty()
                && now - lane.progress > bound
        });
        let starved = starved.map(|(key, lane)| (*key, now - lane.progress));
        if let Some((lane, since)) = starved.filter(|_| started.0.0 <= Priority::HIGH) {
            let text = format!("priority {} has waited for {since:?}", lane.0.0);
            self.fault(now, &text);
        }
    }

    /// Checks what must hold when all is done.
    pub(crate) fn check_end(&mut self, now: Timestamp) {
        let left = self.calls.iter().position(|call| call.place != Place::Over);
        if let Some(call) = left {
            let place = self.calls[call].place;
            self.fault(now, &format!("call {call} is left {place:?}"));
        }
    }
}

impl QueueBooks {
    fn stopped_by(&self, now: Timestamp) -> Duration {
        self.stopped + self.paused.map_or(Duration::ZERO, |since| now - since)
    }
}
