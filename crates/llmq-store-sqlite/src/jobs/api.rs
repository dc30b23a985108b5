//! The [`Store`](llmq_store::Store) of the embedded store: each method is work for the writer.

use async_trait::async_trait;
use bytes::Bytes;
use llmq_core::Now;
use llmq_store::{
    Attempted, Batch, BatchId, BatchUpdate, Batches, Cancelled, Counts, Delivery, DeliveryId, Due,
    Endpoint, EndpointId, EnqueueError, Enqueued, EventId, EventPage, Events, FileId, Files,
    Filter, Health, Job, JobId, Jobs, Lane, LaneDepth, Lease, Lines, Moved, NewEvent, NewJob, Page,
    Place, Position, Queue, QueueState, Reads, Report, ReportError, Start, StartError, Started,
    StoreError, StoredAnswer, StoredFile, Take, Tended, Webhooks, Window, Worker,
};
use tokio::sync::watch;
use uuid::Uuid;

use super::bulk::is_bulk;
use super::desk::{Desk, Done, Fault};
use super::events;
use crate::Store;
use crate::writer::Access::{Read, Write};

/// What nothing refuses.
type Sure<T> = Result<T, StoreError>;

impl Store {
    /// Looks at jobs, in one consistent state that holds all that was recorded before.
    async fn look<T: Send + 'static>(
        &self,
        ask: impl Fn(&mut Desk<'_>) -> Done<T> + Send + 'static,
    ) -> Sure<T> {
        self.desk(Read, ask).await.map(sure)
    }

    /// Changes jobs.
    async fn change<T: Send + 'static>(
        &self,
        now: Now,
        ask: impl Fn(&mut Desk<'_>) -> Done<T> + Send + 'static,
    ) -> Sure<T> {
        let done = self.desk(Write, move |desk| {
            desk.index.comes_to(now);
            ask(desk)
        });
        done.await.map(sure)
    }
}

fn sure<T>(done: Result<T, std::convert::Infallible>) -> T {
    match done {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

#[async_trait]
impl llmq_store::Store for Store {
    fn id(&self) -> Uuid {
        self.seen_id()
    }

    fn health(&self) -> Health {
        self.seen_health()
    }

    async fn close(&self) -> Sure<()> {
        self.close_and_wait().await
    }
}

#[async_trait]
impl Jobs for Store {
    async fn enqueue(&self, jobs: Vec<NewJob>, now: Now) -> Result<Vec<Enqueued>, EnqueueError> {
        if is_bulk(&jobs) {
            return self.enqueue_bulk(jobs, now).await;
        }
        let done = self.desk(Write, move |desk| {
            desk.index.comes_to(now);
            desk.enqueue(&jobs, now)
        });
        done.await?
    }

    async fn enqueue_started(
        &self,
        job: NewJob,
        start: Start,
        now: Now,
    ) -> Result<(Enqueued, Option<Started>), EnqueueError> {
        let done = self.desk(Write, move |desk| {
            desk.index.comes_to(now);
            desk.enqueue_started(&job, &start, now)
        });
        done.await?
    }

    async fn start(&self, starts: Vec<Start>, now: Now) -> Sure<Vec<Result<Started, StartError>>> {
        self.change(now, move |desk| {
            desk.takes_work()?;
            let started = starts.iter().map(|start| match desk.start(start, now) {
                Ok(started) => Ok(Ok(started)),
                Err(Fault::Refused(error)) => Ok(Err(error)),
                // The others may start all the same.
                Err(Fault::Store(_)) => Ok(Err(StartError::Damaged { job: start.job })),
                Err(Fault::Broken(error)) => Err(Fault::Broken(error)),
            });
            started.collect()
        })
        .await
    }

    async fn extend(&self, leases: Vec<Lease>, now: Now) -> Sure<Vec<Lease>> {
        // Leases are in memory: there is nothing to write.
        self.look(move |desk| {
            desk.index.comes_to(now);
            Ok(desk.extend(&leases, now))
        })
        .await
    }

    async fn report(&self, lease: Lease, report: Report, now: Now) -> Result<Job, ReportError> {
        let job = lease.job;
        let done = self.desk(Write, move |desk| {
            desk.index.comes_to(now);
            desk.report(lease, &report, now)
        });
        match done.await {
            Ok(Ok(job)) => Ok(job),
            Ok(Err(_)) => Err(ReportError::LeaseLost { job }),
            Err(source) => Err(ReportError::Store { job, source }),
        }
    }

    async fn cancel(&self, job: JobId, now: Now) -> Sure<Cancelled> {
        self.change(now, move |desk| desk.cancel(job, now)).await
    }

    async fn recover(&self, worker: &Worker, now: Now) -> Sure<Vec<Moved>> {
        let worker = worker.clone();
        self.change(now, move |desk| desk.recover(&worker, now))
            .await
    }

    async fn tend(&self, now: Now) -> Sure<Tended> {
        self.change(now, move |desk| desk.tend(now)).await
    }
}

#[async_trait]
impl Lines for Store {
    async fn lanes(&self, now: Now) -> Sure<Vec<LaneDepth>> {
        self.look(move |desk| {
            desk.index.comes_to(now);
            let clock = desk.index.clock();
            Ok(desk.index.order.lanes(clock, now))
        })
        .await
    }

    async fn next(&self, lane: &Lane, after: Option<Place>, n: usize, now: Now) -> Sure<Window> {
        let lane = lane.clone();
        self.look(move |desk| {
            desk.index.comes_to(now);
            desk.next(&lane, after, n, now)
        })
        .await
    }

    async fn positions(&self, jobs: Vec<JobId>) -> Sure<Vec<Option<Position>>> {
        self.look(move |desk| desk.positions(&jobs)).await
    }

    async fn set_queue(&self, queue: &str, state: QueueState, now: Now) -> Sure<QueueState> {
        let queue = queue.to_owned();
        self.change(now, move |desk| desk.set_queue(&queue, state, now))
            .await
    }

    async fn queues(&self) -> Sure<Vec<Queue>> {
        self.look(|desk| Ok(desk.queues())).await
    }
}

#[async_trait]
impl Reads for Store {
    async fn job(&self, job: JobId) -> Sure<Option<Job>> {
        self.look(move |desk| desk.read_job(job)).await
    }

    async fn body(&self, job: JobId) -> Sure<Option<Bytes>> {
        self.look(move |desk| desk.read_body(job)).await
    }

    async fn answer(&self, job: JobId) -> Sure<Option<StoredAnswer>> {
        self.look(move |desk| desk.read_answer(job)).await
    }

    async fn list(&self, filter: &Filter, after: Option<JobId>, limit: usize) -> Sure<Page<Job>> {
        let filter = filter.clone();
        self.look(move |desk| desk.list(&filter, after, limit))
            .await
    }

    async fn counts(&self) -> Sure<Counts> {
        self.look(|desk| Ok(desk.index.total())).await
    }
}

#[async_trait]
impl Events for Store {
    async fn publish(&self, events: Vec<NewEvent>, now: Now) -> Sure<()> {
        self.change(now, move |desk| {
            events.iter().try_for_each(|event| desk.tell(event, now))
        })
        .await
    }

    async fn events(&self, after: EventId, max: usize) -> Sure<EventPage> {
        self.look(move |desk| Ok(events::read(desk.connection, desk.index, after, max)?))
            .await
    }

    fn newest_event(&self) -> watch::Receiver<EventId> {
        self.seen_events()
    }
}

#[async_trait]
impl Webhooks for Store {
    async fn put_endpoint(
        &self,
        endpoint: Endpoint,
        event: Option<NewEvent>,
        now: Now,
    ) -> Sure<()> {
        self.change(now, move |desk| {
            desk.put_endpoint(endpoint.clone(), event.as_ref(), now)
        })
        .await
    }

    async fn delete_endpoint(&self, endpoint: EndpointId) -> Sure<bool> {
        self.desk(Write, move |desk| desk.delete_endpoint(endpoint))
            .await
            .map(sure)
    }

    async fn endpoints(&self) -> Sure<Vec<Endpoint>> {
        self.look(|desk| Ok(desk.index.endpoints.values().cloned().collect()))
            .await
    }

    async fn due_deliveries(&self, take: Take, now: Now) -> Sure<Due> {
        self.look(move |desk| {
            desk.index.comes_to(now);
            desk.due_deliveries(&take, now)
        })
        .await
    }

    async fn delivered(&self, attempts: Vec<Attempted>, now: Now) -> Sure<()> {
        self.change(now, move |desk| desk.delivered(&attempts, now))
            .await
    }

    async fn delivery(&self, delivery: DeliveryId) -> Sure<Option<Delivery>> {
        self.look(move |desk| desk.delivery(delivery)).await
    }

    async fn deliveries(
        &self,
        endpoint: Option<EndpointId>,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Sure<Vec<Delivery>> {
        self.look(move |desk| desk.deliveries(endpoint, after, limit))
            .await
    }

    async fn redeliver(&self, delivery: DeliveryId, now: Now) -> Sure<bool> {
        self.change(now, move |desk| desk.redeliver(delivery, now))
            .await
    }
}

#[async_trait]
impl Batches for Store {
    async fn create_batch(&self, batch: Batch) -> Sure<()> {
        self.desk(Write, move |desk| desk.create_batch(&batch))
            .await
            .map(sure)
    }

    async fn stage(&self, jobs: Vec<NewJob>, now: Now) -> Result<(), EnqueueError> {
        let done = self.desk(Write, move |desk| {
            desk.index.comes_to(now);
            desk.stage(&jobs, now)
        });
        done.await?
    }

    async fn publish_batch(
        &self,
        batch: BatchId,
        update: BatchUpdate,
        now: Now,
    ) -> Sure<Option<Batch>> {
        self.change(now, move |desk| desk.publish_batch(batch, &update, now))
            .await
    }

    async fn update_batch(
        &self,
        batch: BatchId,
        update: BatchUpdate,
        now: Now,
    ) -> Sure<Option<Batch>> {
        self.change(now, move |desk| desk.update_batch(batch, &update, now))
            .await
    }

    async fn batch(&self, batch: BatchId) -> Sure<Option<Batch>> {
        self.look(move |desk| desk.batch(batch)).await
    }

    async fn batches(
        &self,
        tenant: Option<&str>,
        after: Option<BatchId>,
        limit: usize,
    ) -> Sure<Vec<Batch>> {
        let tenant = tenant.map(str::to_owned);
        self.look(move |desk| desk.batches(tenant.as_deref(), after, limit))
            .await
    }

    async fn members(&self, batch: BatchId, after_line: u32, limit: usize) -> Sure<Vec<Job>> {
        self.look(move |desk| desk.members(batch, after_line, limit))
            .await
    }
}

#[async_trait]
impl Files for Store {
    async fn create_file(&self, file: StoredFile) -> Sure<()> {
        self.desk(Write, move |desk| desk.create_file(&file))
            .await
            .map(sure)
    }

    async fn append_file(&self, file: FileId, chunk: Bytes) -> Sure<Option<u64>> {
        self.desk(Write, move |desk| desk.append_file(file, &chunk))
            .await
            .map(sure)
    }

    async fn describe_file(&self, file: StoredFile) -> Sure<bool> {
        self.desk(Write, move |desk| desk.describe_file(&file))
            .await
            .map(sure)
    }

    async fn publish_file(&self, file: FileId) -> Sure<Option<StoredFile>> {
        self.desk(Write, move |desk| desk.publish_file(file))
            .await
            .map(sure)
    }

    async fn file(&self, file: FileId) -> Sure<Option<StoredFile>> {
        self.look(move |desk| desk.file(file)).await
    }

    async fn read_file(&self, file: FileId, chunk: u32) -> Sure<Option<Bytes>> {
        self.look(move |desk| desk.read_file(file, chunk)).await
    }

    async fn files(
        &self,
        tenant: Option<&str>,
        after: Option<FileId>,
        limit: usize,
    ) -> Sure<Vec<StoredFile>> {
        let tenant = tenant.map(str::to_owned);
        self.look(move |desk| desk.files(tenant.as_deref(), after, limit))
            .await
    }

    async fn delete_file(&self, file: FileId) -> Sure<bool> {
        self.desk(Write, move |desk| desk.delete_file(file))
            .await
            .map(sure)
    }
}
