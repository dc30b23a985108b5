//! A store that lives as long as its process: the rules of [`Store`] in the plainest way, one
//! lock around one state.

mod events;
mod jobs;
mod kept;
mod outbox;
mod state;

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use llmq_core::Now;
use tokio::sync::watch;
use uuid::Uuid;

use self::state::State;
use crate::{
    Attempted, Batch, BatchId, BatchUpdate, Batches, Cancelled, Counts, Delivery, DeliveryId, Due,
    Endpoint, EndpointId, EnqueueError, Enqueued, EventId, EventPage, Events, FileId, Files,
    Filter, Health, Job, JobId, Jobs, Lane, LaneDepth, Lease, Lines, Moved, NewEvent, NewJob, Page,
    Place, Position, Queue, QueueState, Reads, Report, ReportError, Settings, Start, StartError,
    Started, Store, StoreError, StoredAnswer, StoredFile, Take, Tended, Webhooks, Window, Worker,
};

/// How many jobs one slice of housekeeping moves or removes.
const SLICE: usize = 500;

/// A store in memory, for tests, for trying things out and for programs that keep nothing.
#[derive(Debug)]
pub struct MemoryStore {
    id: Uuid,
    state: Mutex<State>,
    newest_event: watch::Sender<EventId>,
}

impl MemoryStore {
    /// An empty one.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            id: Uuid::new_v4(),
            state: Mutex::new(State::new(settings)),
            newest_event: watch::Sender::new(EventId::default()),
        }
    }

    fn read<T>(&self, look: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let mut state = self.lock();
        if state.closed {
            return Err(StoreError::Closed);
        }
        Ok(look(&mut state))
    }

    /// Changes the state, and tells those who watch.
    fn write<T>(&self, now: Now, change: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let (result, newest) = {
            let mut state = self.lock();
            if state.closed {
                return Err(StoreError::Closed);
            }
            state.comes_to(now);
            (change(&mut state), state.newest_event())
        };
        self.newest_event
            .send_if_modified(|seen| std::mem::replace(seen, newest) != newest);
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug; the state is whole between two statements all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn id(&self) -> Uuid {
        self.id
    }

    fn health(&self) -> Health {
        if self.lock().closed {
            let reason = StoreError::Closed.to_string();
            return Health::Unavailable { reason };
        }
        Health::Ready
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.lock().closed = true;
        Ok(())
    }
}

#[async_trait]
impl Jobs for MemoryStore {
    async fn enqueue(&self, jobs: Vec<NewJob>, now: Now) -> Result<Vec<Enqueued>, EnqueueError> {
        self.write(now, |state| state.enqueue(jobs, now))?
    }

    async fn enqueue_started(
        &self,
        job: NewJob,
        start: Start,
        now: Now,
    ) -> Result<(Enqueued, Option<Started>), EnqueueError> {
        self.write(now, |state| {
            let enqueued = state.enqueue(vec![job], now)?.remove(0);
            let started = enqueued.is_new.then(|| state.start(&start, now).ok());
            let started = started.flatten();
            Ok((enqueued, started))
        })?
    }

    async fn start(
        &self,
        starts: Vec<Start>,
        now: Now,
    ) -> Result<Vec<Result<Started, StartError>>, StoreError> {
        self.write(now, |state| {
            starts.iter().map(|start| state.start(start, now)).collect()
        })
    }

    async fn extend(&self, leases: Vec<Lease>, now: Now) -> Result<Vec<Lease>, StoreError> {
        self.write(now, |state| state.extend(leases, now))
    }

    async fn report(&self, lease: Lease, report: Report, now: Now) -> Result<Job, ReportError> {
        let recorded = self.write(now, |state| state.report(lease, report, now));
        recorded.unwrap_or_else(|source| {
            Err(ReportError::Store {
                job: lease.job,
                source,
            })
        })
    }

    async fn cancel(&self, job: JobId, now: Now) -> Result<Cancelled, StoreError> {
        self.write(now, |state| state.cancel(job, now))
    }

    async fn recover(&self, worker: &Worker, now: Now) -> Result<Vec<Moved>, StoreError> {
        self.write(now, |state| state.recover(worker, now))
    }

    async fn tend(&self, now: Now) -> Result<Tended, StoreError> {
        self.write(now, |state| state.tend(SLICE, now))
    }
}

#[async_trait]
impl Lines for MemoryStore {
    async fn lanes(&self, now: Now) -> Result<Vec<LaneDepth>, StoreError> {
        self.write(now, |state| state.lanes(now))
    }

    async fn next(
        &self,
        lane: &Lane,
        after: Option<Place>,
        n: usize,
        now: Now,
    ) -> Result<Window, StoreError> {
        self.write(now, |state| state.next(lane, after, n, now))
    }

    async fn positions(&self, jobs: Vec<JobId>) -> Result<Vec<Option<Position>>, StoreError> {
        self.read(|state| jobs.iter().map(|job| state.position(*job)).collect())
    }

    async fn set_queue(
        &self,
        queue: &str,
        new: QueueState,
        now: Now,
    ) -> Result<QueueState, StoreError> {
        self.write(now, |state| state.set_queue(queue, new, now))
    }

    async fn queues(&self) -> Result<Vec<Queue>, StoreError> {
        self.read(|state| state.queues())
    }
}

#[async_trait]
impl Reads for MemoryStore {
    async fn job(&self, job: JobId) -> Result<Option<Job>, StoreError> {
        self.read(|state| state.job(job))
    }

    async fn body(&self, job: JobId) -> Result<Option<Bytes>, StoreError> {
        self.read(|state| state.visible(job).map(|row| row.body.clone()))
    }

    async fn answer(&self, job: JobId) -> Result<Option<StoredAnswer>, StoreError> {
        self.read(|state| state.visible(job).and_then(|row| row.answer.clone()))
    }

    async fn list(
        &self,
        filter: &Filter,
        after: Option<JobId>,
        limit: usize,
    ) -> Result<Page<Job>, StoreError> {
        self.read(|state| state.list(filter, after, limit))
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.read(|state| state.counts())
    }
}

#[async_trait]
impl Events for MemoryStore {
    async fn publish(&self, events: Vec<NewEvent>, now: Now) -> Result<(), StoreError> {
        self.write(now, |state| {
            for event in events {
                state.tell(event, None, now);
            }
        })
    }

    async fn events(&self, after: EventId, max: usize) -> Result<EventPage, StoreError> {
        self.read(|state| state.events(after, max))
    }

    fn newest_event(&self) -> watch::Receiver<EventId> {
        self.newest_event.subscribe()
    }
}

#[async_trait]
impl Webhooks for MemoryStore {
    async fn put_endpoint(
        &self,
        endpoint: Endpoint,
        event: Option<NewEvent>,
        now: Now,
    ) -> Result<(), StoreError> {
        self.write(now, |state| state.put_endpoint(endpoint, event, now))
    }

    async fn delete_endpoint(&self, endpoint: EndpointId) -> Result<bool, StoreError> {
        self.read(|state| state.delete_endpoint(endpoint))
    }

    async fn endpoints(&self) -> Result<Vec<Endpoint>, StoreError> {
        self.read(|state| state.endpoints.values().cloned().collect())
    }

    async fn due_deliveries(&self, take: Take, now: Now) -> Result<Due, StoreError> {
        self.write(now, |state| {
            let steady = state.clock(now).at(now);
            state.outbox.take(&take, &state.endpoints, steady, now)
        })
    }

    async fn delivered(&self, attempts: Vec<Attempted>, now: Now) -> Result<(), StoreError> {
        self.write(now, |state| {
            let steady = state.clock(now).at(now);
            for attempt in attempts {
                state.outbox.attempted(attempt, steady, now);
            }
        })
    }

    async fn delivery(&self, delivery: DeliveryId) -> Result<Option<Delivery>, StoreError> {
        self.read(|state| {
            let clock = state.clock(state.now);
            state.outbox.get(delivery, clock, state.now)
        })
    }

    async fn deliveries(
        &self,
        endpoint: Option<EndpointId>,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        self.read(|state| {
            let (clock, now) = (state.clock(state.now), state.now);
            state.outbox.list(endpoint, after, limit, clock, now)
        })
    }

    async fn redeliver(&self, delivery: DeliveryId, now: Now) -> Result<bool, StoreError> {
        self.write(now, |state| {
            let steady = state.clock(now).at(now);
            state.outbox.again(delivery, steady)
        })
    }
}

#[async_trait]
impl Batches for MemoryStore {
    async fn create_batch(&self, batch: Batch) -> Result<(), StoreError> {
        self.read(|state| {
            state.batches.insert(batch.id, batch);
        })
    }

    async fn stage(&self, jobs: Vec<NewJob>, now: Now) -> Result<(), EnqueueError> {
        self.write(now, |state| state.stage(jobs, now))?
    }

    async fn publish_batch(
        &self,
        batch: BatchId,
        update: BatchUpdate,
        now: Now,
    ) -> Result<Option<Batch>, StoreError> {
        self.write(now, |state| state.publish_batch(batch, update, now))
    }

    async fn update_batch(
        &self,
        batch: BatchId,
        update: BatchUpdate,
        now: Now,
    ) -> Result<Option<Batch>, StoreError> {
        self.write(now, |state| state.update_batch(batch, update, now))
    }

    async fn batch(&self, batch: BatchId) -> Result<Option<Batch>, StoreError> {
        self.read(|state| state.batches.get(&batch).cloned())
    }

    async fn batches(
        &self,
        tenant: Option<&str>,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<Batch>, StoreError> {
        self.read(|state| {
            let mine = |batch: &&Batch| tenant.is_none_or(|tenant| batch.tenant == tenant);
            let behind = |batch: &&Batch| after.is_none_or(|after| batch.id < after);
            let batches = state.batches.values().rev();
            let batches = batches.filter(mine).filter(behind);
            batches.take(limit).cloned().collect()
        })
    }

    async fn members(
        &self,
        batch: BatchId,
        after_line: u32,
        limit: usize,
    ) -> Result<Vec<Job>, StoreError> {
        self.read(|state| state.members(batch, after_line, limit))
    }
}

#[async_trait]
impl Files for MemoryStore {
    async fn create_file(&self, file: StoredFile) -> Result<(), StoreError> {
        self.read(|state| state.create_file(file))
    }

    async fn append_file(&self, file: FileId, chunk: Bytes) -> Result<Option<u64>, StoreError> {
        self.read(|state| state.append_file(file, chunk))
    }

    async fn describe_file(&self, file: StoredFile) -> Result<bool, StoreError> {
        self.read(|state| state.describe_file(file))
    }

    async fn publish_file(&self, file: FileId) -> Result<Option<StoredFile>, StoreError> {
        self.read(|state| state.publish_file(file))
    }

    async fn file(&self, file: FileId) -> Result<Option<StoredFile>, StoreError> {
        self.read(|state| state.file(file))
    }

    async fn read_file(&self, file: FileId, chunk: u32) -> Result<Option<Bytes>, StoreError> {
        self.read(|state| state.read_file(file, chunk))
    }

    async fn files(
        &self,
        tenant: Option<&str>,
        after: Option<FileId>,
        limit: usize,
    ) -> Result<Vec<StoredFile>, StoreError> {
        self.read(|state| state.list_files(tenant, after, limit))
    }

    async fn delete_file(&self, file: FileId) -> Result<bool, StoreError> {
        self.read(|state| state.files.remove(&file).is_some())
    }
}
