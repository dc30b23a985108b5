use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use llmq_core::{Event, Now, Status, Timestamp, WallTime, transition};

use super::outbox::Outbox;
use crate::capacity::Capacity;
use crate::order::{DueAt, Order};
use crate::steady::{Steady, Stood};
use crate::{
    Batch, BatchId, Counts, EXAMINED_MAX, Endpoint, EndpointId, EventId, EventKind, FileId, Filter,
    Idempotency, Job, JobId, Lane, LaneDepth, Lease, LeaseToken, NewEvent, PAGE_MAX, Page, Place,
    Position, Queue, QueueState, Settings, StoredAnswer, StoredEvent, StoredFile, Subject, Waiting,
    Window, Worker,
};

#[derive(Debug)]
pub(super) struct State {
    pub(super) closed: bool,
    pub(super) settings: Settings,
    /// Begins with the first change.
    pub(super) steady: Option<Steady>,
    /// When the last change was.
    pub(super) now: Now,
    pub(super) jobs: BTreeMap<JobId, Row>,
    pub(super) order: Order<JobId>,
    pub(super) queues: BTreeMap<String, QueueRow>,
    pub(super) capacity: Capacity,
    pub(super) leases: HashMap<JobId, Held>,
    /// Deadlines of waiting jobs in their queue's time.
    pub(super) deadlines: BTreeMap<String, BTreeSet<(WallTime, JobId)>>,
    /// Ended jobs in the order in which they ended, in steady time.
    pub(super) ended: BTreeSet<(WallTime, JobId)>,
    pub(super) keys: HashMap<(String, String), UsedKey>,
    /// Keys in the order in which they were used, in steady time.
    pub(super) keys_by_age: VecDeque<(WallTime, (String, String), JobId)>,
    pub(super) last_place: u64,
    pub(super) last_token: u64,
    pub(super) last_event: u64,
    pub(super) events: VecDeque<StoredEvent>,
    pub(super) endpoints: BTreeMap<EndpointId, Endpoint>,
    pub(super) outbox: Outbox,
    pub(super) batches: BTreeMap<BatchId, Batch>,
    /// Members of each batch, by line.
    pub(super) members: BTreeMap<(BatchId, u32), JobId>,
    pub(super) files: BTreeMap<FileId, FileRow>,
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) job: Job,
    pub(super) body: Bytes,
    pub(super) answer: Option<StoredAnswer>,
    pub(super) bytes: u64,
    pub(super) place: Place,
    pub(super) due: DueAt,
    pub(super) ttl: Option<Duration>,
    /// In its queue's time.
    pub(super) deadline: Option<WallTime>,
    pub(super) key: Option<Idempotency>,
    pub(super) staged: bool,
}

#[derive(Debug, Default)]
pub(super) struct QueueRow {
    pub(super) state: QueueState,
    pub(super) stood: Stood,
    pub(super) counts: Counts,
}

/// A lease that is out.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) token: LeaseToken,
    pub(super) worker: Worker,
    pub(super) length: Duration,
    pub(super) alive_at: Timestamp,
}

#[derive(Debug)]
pub(super) struct UsedKey {
    pub(super) request_hash: [u8; 32],
    pub(super) job: JobId,
}

#[derive(Debug)]
pub(super) struct FileRow {
    pub(super) file: StoredFile,
    pub(super) chunks: Vec<Bytes>,
    pub(super) published: bool,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            closed: false,
            settings,
            steady: None,
            now: Now::default(),
            jobs: BTreeMap::new(),
            order: Order::default(),
            queues: BTreeMap::new(),
            capacity: Capacity::default(),
            leases: HashMap::new(),
            deadlines: BTreeMap::new(),
            ended: BTreeSet::new(),
            keys: HashMap::new(),
            keys_by_age: VecDeque::new(),
            last_place: 0,
            last_token: 0,
            last_event: 0,
            events: VecDeque::new(),
            endpoints: BTreeMap::new(),
            outbox: Outbox::default(),
            batches: BTreeMap::new(),
            members: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    /// The store's clock begins with the first thing that is asked of it.
    pub(super) fn comes_to(&mut self, now: Now) {
        self.steady.get_or_insert_with(|| Steady::new(now));
        self.now = now;
    }

    pub(super) fn clock(&self, now: Now) -> Steady {
        self.steady.unwrap_or_else(|| Steady::new(now))
    }

    /// A job that may be seen.
    pub(super) fn visible(&self, id: JobId) -> Option<&Row> {
        self.jobs.get(&id).filter(|row| !row.staged)
    }

    pub(super) fn job(&self, id: JobId) -> Option<Job> {
        self.visible(id).map(|row| self.shown(row))
    }

    /// A job as it is shown: with the end of its time as things stood at the last change.
    pub(super) fn shown(&self, row: &Row) -> Job {
        let mut job = row.job.clone();
        job.expires_at = row.deadline.map(|deadline| {
            let queue = self.queues.get(&job.queue);
            let stood = queue.map(|queue| queue.stood).unwrap_or_default();
            let clock = self.clock(self.now);
            let expires = deadline + stood.until(clock.at(self.now));
            clock.on_the_wall(expires, self.now)
        });
        job
    }

    pub(super) fn queue(&mut self, name: &str) -> &mut QueueRow {
        self.queues.entry(name.to_owned()).or_default()
    }

    /// Moves a job by [`transition`], with all that follows from its new status: order, counts,
    /// capacity, deadline, batch and the event. `None` when the transition is not legal.
    pub(super) fn move_job(&mut self, id: JobId, event: Event, now: Now) -> Option<Status> {
        let steady = self.clock(now).at(now);
        let row = self.jobs.get_mut(&id)?;
        let from = row.job.status;
        let to = transition(from, event).ok()?;
        row.job.status = to;
        if to.is_final() {
            row.job.finished_at = Some(now.wall);
            row.job.not_before = None;
            self.ended.insert((steady, id));
        }
        let (lane, bytes) = (row.job.lane(), row.bytes);
        let (place, due, deadline) = (row.place, row.due, row.deadline);
        if from == Status::Queued {
            self.order.remove(&lane, place, due);
            if let Some(deadline) = deadline {
                self.deadlines(&lane.queue).remove(&(deadline, id));
            }
        }
        if to == Status::Queued {
            self.wait(&lane, id);
        }
        let counts = &mut self.queue(&lane.queue).counts;
        *of_status(counts, from) -= 1;
        *of_status(counts, to) += 1;
        if to.is_final() {
            counts.bytes -= bytes;
            self.capacity.give_back(1, bytes);
            self.leases.remove(&id);
        }
        self.tell_of(id, now);
        if to.is_final() {
            self.forget_key_if_curable(id);
            self.count_member(id, to, now);
        }
        Some(to)
    }

    /// A job takes its place in its lane.
    pub(super) fn wait(&mut self, lane: &Lane, id: JobId) {
        let Some(row) = self.jobs.get(&id) else {
            return;
        };
        let (place, due, deadline) = (row.place, row.due, row.deadline);
        self.order.insert(lane, place, id, due);
        if let Some(deadline) = deadline {
            self.deadlines(&lane.queue).insert((deadline, id));
        }
    }

    /// A waiting job stands where its time says: it was due, and the wall was set back since.
    pub(super) fn wait_again(&mut self, id: JobId) {
        let Some(row) = self.jobs.get(&id) else {
            return;
        };
        let lane = row.job.lane();
        self.order.remove(&lane, row.place, row.due);
        self.wait(&lane, id);
    }

    fn deadlines(&mut self, queue: &str) -> &mut BTreeSet<(WallTime, JobId)> {
        self.deadlines.entry(queue.to_owned()).or_default()
    }

    /// Records the event of where a job stands now.
    pub(super) fn tell_of(&mut self, id: JobId, now: Now) {
        let Some(row) = self.jobs.get(&id) else {
            return;
        };
        let job = &row.job;
        let kind = match job.status {
            Status::Queued if job.started_at.is_none() => EventKind::QUEUED,
            Status::Queued => EventKind::REQUEUED,
            Status::Processing => EventKind::STARTED,
            ended => EventKind::of_end(ended).unwrap_or_default(),
        };
        let event = NewEvent {
            kind: kind.to_owned(),
            tenant: Some(job.tenant.clone()),
            subject: Subject::Job {
                id,
                queue: job.queue.clone(),
                status: job.status,
                attempts: job.attempts,
            },
            data: serde_json::Value::Null,
        };
        self.tell(event, Some(id), now);
    }

    pub(super) fn newest_event(&self) -> EventId {
        EventId(self.last_event)
    }

    /// Whether `lease` is the job's newest.
    pub(super) fn holds(&self, lease: Lease) -> bool {
        let held = self.leases.get(&lease.job);
        held.is_some_and(|held| held.token == lease.token)
    }

    pub(super) fn lanes(&mut self, now: Now) -> Vec<LaneDepth> {
        let steady = self.clock(now);
        self.order.lanes(steady, now)
    }

    pub(super) fn next(&mut self, lane: &Lane, after: Option<Place>, n: usize, now: Now) -> Window {
        let steady = self.clock(now);
        let (first, due_at) = self.order.next(lane, after, n, steady, now);
        let stood = self.queue(&lane.queue).stood;
        let waiting = |(place, id): (Place, JobId)| {
            let row = self.jobs.get(&id)?;
            let job = &row.job;
            let left = row
                .deadline
                .map(|deadline| deadline.since(stood.queue_time(steady.at(now))));
            Some(Waiting {
                job: id,
                place,
                size: job.size,
                attempts: job.attempts,
                max_attempts: job.max_attempts,
                throttles: job.throttles,
                expires_at: left.map(|left| now.mono + left),
            })
        };
        let jobs = first.into_iter().filter_map(waiting).collect();
        Window { jobs, due_at }
    }

    pub(super) fn position(&self, id: JobId) -> Option<Position> {
        let row = self.visible(id)?;
        let waits = row.job.status == Status::Queued;
        waits.then(|| self.order.position(&row.job.lane(), row.place))
    }

    pub(super) fn set_queue(&mut self, name: &str, new: QueueState, now: Now) -> QueueState {
        let steady = self.clock(now).at(now);
        let queue = self.queue(name);
        let before = std::mem::replace(&mut queue.state, new);
        queue.stood.set(new.stands(), steady);
        if before.paused != new.paused {
            let kind = if new.paused {
                EventKind::PAUSED
            } else {
                EventKind::RESUMED
            };
            let event = NewEvent {
                kind: kind.to_owned(),
                tenant: None,
                subject: Subject::Queue(name.to_owned()),
                data: serde_json::Value::Null,
            };
            self.tell(event, None, now);
        }
        before
    }

    pub(super) fn queues(&self) -> Vec<Queue> {
        let queue = |(name, row): (&String, &QueueRow)| Queue {
            name: name.clone(),
            state: row.state,
            counts: row.counts,
        };
        self.queues.iter().map(queue).collect()
    }

    pub(super) fn counts(&self) -> Counts {
        let mut total = Counts::default();
        for counts in self.queues.values().map(|queue| queue.counts) {
            for status in Status::ALL {
                *of_status(&mut total, status) += *of_status(&mut counts.clone(), status);
            }
            total.bytes += counts.bytes;
        }
        total
    }

    pub(super) fn list(&self, filter: &Filter, after: Option<JobId>, limit: usize) -> Page<Job> {
        let limit = limit.min(PAGE_MAX);
        let mut items = Vec::new();
        let mut last = None;
        let rows = self.jobs.iter().rev();
        let rows = rows.filter(|(id, row)| !row.staged && after.is_none_or(|after| **id < after));
        for (examined, (id, row)) in rows.enumerate() {
            if items.len() == limit || examined == EXAMINED_MAX {
                return Page { items, next: last };
            }
            last = Some(*id);
            if filter.passes(&row.job) {
                items.push(self.shown(row));
            }
        }
        Page { items, next: None }
    }

    pub(super) fn members_of(
        &self,
        batch: BatchId,
        after_line: u32,
    ) -> impl Iterator<Item = (u32, JobId)> {
        let range = (batch, after_line.saturating_add(1))..=(batch, u32::MAX);
        self.members
            .range(range)
            .map(|((_, line), id)| (*line, *id))
    }
}

pub(super) fn of_status(counts: &mut Counts, status: Status) -> &mut u64 {
    match status {
        Status::Queued => &mut counts.queued,
        Status::Processing => &mut counts.processing,
        Status::Completed => &mut counts.completed,
        Status::Failed => &mut counts.failed,
        Status::Expired => &mut counts.expired,
        Status::Cancelled => &mut counts.cancelled,
    }
}
