//! What the writer knows without asking the file: the order of waiting jobs, leases, counts.
//!
//! All of it follows from the file and is rebuilt from it when the store is opened, and when a
//! transaction failed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use llmq_core::{Now, Status, Timestamp, WallTime};
use llmq_store::{
    Batch, BatchCounts, Capacity, Counts, DueAt, Endpoint, EndpointId, Health, JobId, Lane,
    LeaseToken, Order, QueueState, Settings, Steady, Stood, Worker,
};

use super::backlog::Backlog;
use super::load::NOT_STARTED;
use super::names::Names;
use super::row::{Instants, JobRow, UNREADABLE};
use super::unreadable::{Lost, Unreadable};

/// How long a lease lasts that was out when the store was opened, unless its node takes it back.
const LEASE_AFTER_OPEN: Duration = Duration::from_secs(60);

/// A waiting job, in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) number: i64,
    /// The whole second in which its time ends, in its queue's time; [`NEVER`] without an end.
    pub(crate) ends: u32,
}

/// Of a job without a time to live.
pub(crate) const NEVER: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(crate) struct QueueEntry {
    pub(crate) state: QueueState,
    pub(crate) stood: Stood,
    pub(crate) counts: Counts,
    /// How many waiting jobs' time ends in which second.
    pub(crate) ends: BTreeMap<u32, u32>,
    pub(crate) late: Late,
    pub(crate) is_dirty: bool,
}

/// Waiting jobs whose time ends in a second that has come, by when it does; some may have been
/// started since. Found at once, so that a walk over all that wait is for all of them.
#[derive(Debug, Default)]
pub(crate) struct Late {
    pub(crate) jobs: BTreeSet<(i64, i64)>,
    /// The last second of those that were looked for.
    pub(crate) until: u32,
}

impl QueueEntry {
    /// A job whose time ends in this second waits no more.
    pub(crate) fn ends_no_more(&mut self, ends: u32) {
        if let Some(count) = self.ends.get_mut(&ends) {
            *count -= 1;
            if *count == 0 {
                self.ends.remove(&ends);
            }
        }
    }

    /// How many jobs are to be looked for whose time ends up to `second`, and have not been.
    pub(crate) fn to_look_for(&self, second: u32) -> usize {
        let from = self.late.until.saturating_add(1);
        if from > second {
            return 0;
        }
        let counts = self.ends.range(from..=second);
        counts.map(|(_, count)| *count as usize).sum()
    }
}

impl Late {
    /// Those up to `second` were looked for, and `found`.
    pub(crate) fn found(&mut self, second: u32, found: impl IntoIterator<Item = (i64, i64)>) {
        self.until = second;
        self.jobs.extend(found);
    }

    /// All before it were looked for; those whose time ends before `until` have been found.
    pub(crate) fn from(&self) -> u32 {
        self.until.saturating_add(1)
    }
}

/// A lease that is out.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) token: LeaseToken,
    /// `None`: it was out when the store was opened.
    pub(crate) worker: Option<Worker>,
    pub(crate) length: Duration,
    pub(crate) alive_at: Timestamp,
    /// The job's row as it is: nothing changes it while the lease is out.
    pub(crate) row: JobRow,
}

/// Rows that were written as one insert in several transactions.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    pub(crate) is_published: bool,
    /// It never will be: what waits in it is removed, and counts no more.
    pub(crate) is_given_up: bool,
    /// Added to the deadlines of its rows, in microseconds.
    pub(crate) shift: i64,
    /// When it began, in steady time: what the deadlines of its rows were counted from.
    pub(crate) began_at: i64,
    /// Rows that still name it.
    pub(crate) rows: u64,
    /// What comes into the order when it is published.
    pub(crate) waiting: Vec<Staged>,
}

/// A staged row.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) number: i64,
    pub(crate) id: JobId,
    pub(crate) lane: Lane,
    pub(crate) place: llmq_store::Place,
    pub(crate) due: DueAt,
    pub(crate) deadline: Option<i64>,
    pub(crate) bytes: u64,
    pub(crate) body: i64,
}

#[derive(Debug)]
pub(crate) struct BatchEntry {
    pub(crate) batch: Batch,
    pub(crate) stage: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) settings: Settings,
    pub(crate) health: Option<Health>,
    pub(crate) steady: Option<Steady>,
    pub(crate) names: Names,
    pub(crate) order: Order<Entry>,
    pub(crate) queues: HashMap<i64, QueueEntry>,
    pub(crate) capacity: Capacity,
    pub(crate) leases: HashMap<JobId, Held>,
    /// Rows that nobody can read.
    pub(crate) unreadable: Unreadable,
    /// Those of them that have not ended.
    pub(crate) lost: Lost,
    /// Leases that end with the transaction that is being made.
    pub(crate) given_up: HashMap<LeaseToken, Held>,
    pub(crate) stages: HashMap<i64, Stage>,
    pub(crate) endpoints: BTreeMap<EndpointId, Endpoint>,
    pub(crate) backlog: Backlog,
    pub(crate) last_delivery: i64,
    /// By number; those that were looked at since the store was opened.
    pub(crate) batches: HashMap<i64, BatchEntry>,
    pub(crate) dirty_batches: BTreeSet<i64>,
    pub(crate) last_number: i64,
    pub(crate) last_blob: i64,
    pub(crate) last_place: u64,
    pub(crate) last_token: u64,
    pub(crate) last_stage: i64,
    pub(crate) last_batch: i64,
    pub(crate) last_event: u64,
    pub(crate) oldest_event: u64,
    /// Events of the transaction that is being made.
    pub(crate) told: super::events::Packed,
    /// The last row that the purge looked at.
    pub(crate) purged_to: i64,
    pub(crate) now: Now,
}

impl Index {
    /// The store's clock begins with the first thing that is asked of it.
    pub(crate) fn comes_to(&mut self, now: Now) {
        self.now = now;
        if self.steady.is_none() {
            self.steady = Some(Steady::new(now));
            for held in self.leases.values_mut() {
                held.alive_at = now.mono;
            }
        }
    }

    pub(crate) fn clock(&self) -> Steady {
        self.steady.unwrap_or_else(|| Steady::new(self.now))
    }

    /// Keeps what does not follow from the file.
    pub(crate) fn survive(&mut self, before: &mut Self) {
        self.steady = before.steady;
        self.now = before.now;
        self.settings = before.settings.clone();
        self.health = before.health.take();
        self.backlog.survive(&mut before.backlog);
        for job in self.lost.since(&before.lost) {
            tracing::error!(job, "{UNREADABLE}: {NOT_STARTED}");
        }
        for (job, held) in &mut self.leases {
            let known = before.leases.remove(job);
            let known = known.filter(|known| known.token == held.token);
            match known.or_else(|| before.given_up.remove(&held.token)) {
                Some(known) => *held = known,
                None => held.alive_at = before.now.mono,
            }
        }
        for (number, stage) in &mut self.stages {
            if let Some(known) = before.stages.get(number) {
                stage.began_at = known.began_at;
            }
        }
        for (number, queue) in &mut self.queues {
            if let Some(known) = before.queues.get(number) {
                queue.state.parked = known.state.parked;
                if known.state.parked {
                    // When the file was read, it was taken to go again.
                    queue.stood = known.stood;
                }
            }
        }
    }

    /// The store's time at `now`.
    pub(crate) fn steady(&self, now: Now) -> WallTime {
        self.clock().at(now)
    }

    /// The earlier of the store's time and the wall's: what the wall dates is not old before both
    /// say so, as either may have run ahead.
    pub(crate) fn no_later(&self, now: Now) -> WallTime {
        self.steady(now).min(now.wall)
    }

    pub(crate) fn queue(&mut self, queue: i64) -> &mut QueueEntry {
        self.queues.entry(queue).or_default()
    }

    pub(crate) fn stood(&self, queue: i64) -> Stood {
        self.queues
            .get(&queue)
            .map(|queue| queue.stood)
            .unwrap_or_default()
    }

    pub(crate) fn lane(&self, row: &JobRow) -> Lane {
        Lane {
            queue: self.names.name(row.queue).to_string(),
            priority: row.priority,
            tenant: self.names.name(row.tenant).to_string(),
            key: row.key(),
        }
    }

    /// A job comes to wait.
    pub(crate) fn wait(&mut self, row: &JobRow) {
        let lane = self.lane(row);
        let ends = row.deadline.map_or(NEVER, second_of);
        self.wait_in(&lane, row.queue, row.place, row.number, ends, row.due());
    }

    pub(crate) fn wait_in(
        &mut self,
        lane: &Lane,
        queue: i64,
        place: llmq_store::Place,
        number: i64,
        ends: u32,
        due: DueAt,
    ) {
        let entry = Entry { number, ends };
        self.order.insert(lane, place, entry, due);
        if ends != NEVER {
            let queue = self.queue(queue);
            *queue.ends.entry(ends).or_default() += 1;
            // One that comes so late is looked for again.
            queue.late.until = queue.late.until.min(ends.saturating_sub(1));
        }
    }

    /// A job waits no more.
    pub(crate) fn leave(&mut self, row: &JobRow) {
        let lane = self.lane(row);
        self.order.remove(&lane, row.place, row.due());
        let ends = row.deadline.map_or(NEVER, second_of);
        self.queue(row.queue).ends_no_more(ends);
    }

    /// A due job of a lane is not to be met any more: its row cannot be read.
    pub(crate) fn drop_waiting(&mut self, lane: &Lane, place: llmq_store::Place, entry: Entry) {
        self.order.remove(lane, place, DueAt::Now);
        if let Some(queue) = self.names.find(&lane.queue) {
            self.queue(queue).ends_no_more(entry.ends);
        }
    }

    /// A lease that was out when the store was opened.
    pub(crate) fn found_leased(&mut self, row: JobRow) {
        let job = row.id;
        let held = Held {
            token: LeaseToken(row.token.cast_unsigned()),
            worker: None,
            length: LEASE_AFTER_OPEN,
            alive_at: self.now.mono,
            row,
        };
        self.leases.insert(job, held);
    }

    /// A lease ends, unless the transaction fails in which it does.
    pub(crate) fn give_up(&mut self, job: JobId) {
        if let Some(held) = self.leases.remove(&job) {
            self.given_up.insert(held.token, held);
        }
    }

    /// Whether a queue takes nothing new.
    pub(crate) fn drains(&self, queue: &str) -> bool {
        let queue = self.names.find(queue);
        let queue = queue.and_then(|queue| self.queues.get(&queue));
        queue.is_some_and(|queue| queue.state.drains)
    }

    /// A queue's counts change.
    pub(crate) fn count(&mut self, queue: i64, change: impl FnOnce(&mut Counts)) {
        let queue = self.queue(queue);
        queue.is_dirty = true;
        change(&mut queue.counts);
    }

    /// Whether a row may be seen. Then it is brought to how it would be if it had not been staged,
    /// but for its stage: the row leaves that when it moves.
    pub(crate) fn settle(&self, row: &mut JobRow) -> bool {
        let Some(number) = row.stage else {
            return true;
        };
        match self.stages.get(&number) {
            Some(stage) if stage.is_published => {
                row.deadline = row.deadline.map(|deadline| deadline + stage.shift);
                true
            }
            Some(_) => false,
            // A stage that nobody remembers was published long ago.
            None => true,
        }
    }

    /// Instants of a row as they are shown now.
    pub(crate) fn instants(&self, row: &JobRow) -> Instants {
        let (clock, now) = (self.clock(), self.now);
        let stood = self.stood(row.queue).until(clock.at(now));
        Instants {
            not_before: match row.due() {
                DueAt::Now => None,
                DueAt::After(at) => Some(clock.on_the_wall(at, now)),
                DueAt::On(at) => Some(at),
            },
            expires_at: row
                .deadline
                .map(|deadline| clock.on_the_wall(WallTime::from_micros(deadline) + stood, now)),
        }
    }

    pub(crate) fn total(&self) -> Counts {
        let mut total = Counts::default();
        for counts in self.queues.values().map(|queue| &queue.counts) {
            total.queued += counts.queued;
            total.processing += counts.processing;
            total.completed += counts.completed;
            total.failed += counts.failed;
            total.expired += counts.expired;
            total.cancelled += counts.cancelled;
            total.bytes += counts.bytes;
        }
        total
    }
}

/// The second in which an instant lies; instants before 1970 count as its first.
pub(crate) fn second_of(micros: i64) -> u32 {
    let seconds = micros.div_euclid(1_000_000).max(0);
    u32::try_from(seconds).map_or(NEVER - 1, |seconds| seconds.min(NEVER - 1))
}

pub(crate) fn of_status(counts: &mut Counts, status: Status) -> &mut u64 {
    match status {
        Status::Queued => &mut counts.queued,
        Status::Processing => &mut counts.processing,
        Status::Completed => &mut counts.completed,
        Status::Failed => &mut counts.failed,
        Status::Expired => &mut counts.expired,
        Status::Cancelled => &mut counts.cancelled,
    }
}

pub(crate) fn of_end(counts: &mut BatchCounts, status: Status) -> Option<&mut u32> {
    match status {
        Status::Completed => Some(&mut counts.completed),
        Status::Failed => Some(&mut counts.failed),
        Status::Expired => Some(&mut counts.expired),
        Status::Cancelled => Some(&mut counts.cancelled),
        Status::Queued | Status::Processing => None,
    }
}
