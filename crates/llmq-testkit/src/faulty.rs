//! A store that fails or is slow when a test wants it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use llmq_core::Now;
use llmq_store::{
    Attempted, Batch, BatchId, BatchUpdate, Batches, Cancelled, Counts, Delivery, DeliveryId, Due,
    Endpoint, EndpointId, EnqueueError, Enqueued, EventId, EventPage, Events, FileId, Files,
    Filter, Health, Job, JobId, Jobs, Lane, LaneDepth, Lease, Lines, Moved, NewEvent, NewJob, Page,
    Place, Position, Queue, QueueState, Reads, Report, ReportError, Start, StartError, Started,
    Store, StoreError, StoredAnswer, StoredFile, Take, Tended, Webhooks, Window, Worker,
};
use tokio::sync::{Notify, Semaphore, watch};
use uuid::Uuid;

/// A store that fails or is slow when a test wants it, by the name of a method.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    faults: Mutex<HashMap<&'static str, Faults>>,
}

#[derive(Default)]
struct Faults {
    /// So many calls fail before the store hears of them.
    fail: usize,
    /// The next answer waits for this.
    hold: Option<Arc<Gate>>,
}

#[derive(Debug)]
struct Gate {
    came: Notify,
    go: Semaphore,
}

/// A call that was carried out and whose answer does not come until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Held {
    gate: Arc<Gate>,
}

impl Held {
    /// Waits until the store has carried the call out.
    pub async fn reached(&self) {
        self.gate.came.notified().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gate.go.add_permits(1);
    }
}

impl FaultyStore {
    /// A store that does what `inner` does.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            faults: Mutex::default(),
        })
    }

    /// The next `calls` of a method fail: nothing is done.
    pub fn fails(&self, method: &'static str, calls: usize) {
        self.faults().entry(method).or_default().fail = calls;
    }

    /// How many calls of a method are still to fail.
    #[must_use]
    pub fn fails_left(&self, method: &'static str) -> usize {
        self.faults().get(method).map_or(0, |faults| faults.fail)
    }

    /// The next call of a method is carried out, and its answer is held back.
    pub fn holds(&self, method: &'static str) -> Held {
        let gate = Arc::new(Gate {
            came: Notify::new(),
            go: Semaphore::new(0),
        });
        self.faults().entry(method).or_default().hold = Some(Arc::clone(&gate));
        Held { gate }
    }

    fn faults(&self) -> MutexGuard<'_, HashMap<&'static str, Faults>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn before(&self, method: &'static str) -> Result<(), StoreError> {
        let mut faults = self.faults();
        match faults.get_mut(method) {
            Some(faults) if faults.fail > 0 => {
                faults.fail -= 1;
                Err(StoreError::Unavailable {
                    reason: format!("the test has {method} fail"),
                    source: None,
                })
            }
            _ => Ok(()),
        }
    }

    async fn after(&self, method: &'static str) {
        let hold = self
            .faults()
            .get_mut(method)
            .and_then(|faults| faults.hold.take());
        if let Some(gate) = hold {
            gate.came.notify_one();
            // It is never closed.
            let _ = gate.go.acquire().await;
        }
    }
}

/// Each method as the store behind it has it, but for faults; those behind a `+` are written out.
macro_rules! passes_on {
    ($($part:ident {
        $($method:ident($($name:ident: $type:ty),*) -> $result:ty;)*
        $(+ { $($own:tt)* })?
    })*) => { $(
        #[async_trait]
        impl $part for FaultyStore {
            $(
                async fn $method(&self, $($name: $type),*) -> $result {
                    self.before(stringify!($method))?;
                    let answer = self.inner.$method($($name),*).await;
                    self.after(stringify!($method)).await;
                    answer
                }
            )*
            $($($own)*)?
        }
    )* };
}

type Sure<T> = Result<T, StoreError>;

passes_on! {
    Jobs {
        enqueue(jobs: Vec<NewJob>, now: Now) -> Result<Vec<Enqueued>, EnqueueError>;
        enqueue_started(job: NewJob, start: Start, now: Now)
            -> Result<(Enqueued, Option<Started>), EnqueueError>;
        start(starts: Vec<Start>, now: Now) -> Sure<Vec<Result<Started, StartError>>>;
        extend(leases: Vec<Lease>, now: Now) -> Sure<Vec<Lease>>;
        cancel(job: JobId, now: Now) -> Sure<Cancelled>;
        recover(worker: &Worker, now: Now) -> Sure<Vec<Moved>>;
        tend(now: Now) -> Sure<Tended>;
        + {
            async fn report(
                &self,
                lease: Lease,
                report: Report,
                now: Now,
            ) -> Result<Job, ReportError> {
                let job = lease.job;
                let failed = |source| ReportError::Store { job, source };
                self.before("report").map_err(failed)?;
                let answer = self.inner.report(lease, report, now).await;
                self.after("report").await;
                answer
            }
        }
    }
    Lines {
        lanes(now: Now) -> Sure<Vec<LaneDepth>>;
        next(lane: &Lane, after: Option<Place>, n: usize, now: Now) -> Sure<Window>;
        positions(jobs: Vec<JobId>) -> Sure<Vec<Option<Position>>>;
        set_queue(queue: &str, state: QueueState, now: Now) -> Sure<QueueState>;
        queues() -> Sure<Vec<Queue>>;
    }
    Reads {
        job(job: JobId) -> Sure<Option<Job>>;
        body(job: JobId) -> Sure<Option<Bytes>>;
        answer(job: JobId) -> Sure<Option<StoredAnswer>>;
        list(filter: &Filter, after: Option<JobId>, limit: usize) -> Sure<Page<Job>>;
        counts() -> Sure<Counts>;
    }
    Webhooks {
        put_endpoint(endpoint: Endpoint, event: Option<NewEvent>, now: Now) -> Sure<()>;
        delete_endpoint(endpoint: EndpointId) -> Sure<bool>;
        endpoints() -> Sure<Vec<Endpoint>>;
        due_deliveries(take: Take, now: Now) -> Sure<Due>;
        delivered(attempts: Vec<Attempted>, now: Now) -> Sure<()>;
        delivery(delivery: DeliveryId) -> Sure<Option<Delivery>>;
        deliveries(endpoint: Option<EndpointId>, after: Option<DeliveryId>, limit: usize)
            -> Sure<Vec<Delivery>>;
        redeliver(delivery: DeliveryId, now: Now) -> Sure<bool>;
    }
    Batches {
        create_batch(batch: Batch) -> Sure<()>;
        stage(jobs: Vec<NewJob>, now: Now) -> Result<(), EnqueueError>;
        publish_batch(batch: BatchId, update: BatchUpdate, now: Now) -> Sure<Option<Batch>>;
        update_batch(batch: BatchId, update: BatchUpdate, now: Now) -> Sure<Option<Batch>>;
        batch(batch: BatchId) -> Sure<Option<Batch>>;
        batches(tenant: Option<&str>, after: Option<BatchId>, limit: usize) -> Sure<Vec<Batch>>;
        members(batch: BatchId, after_line: u32, limit: usize) -> Sure<Vec<Job>>;
    }
    Files {
        create_file(file: StoredFile) -> Sure<()>;
        append_file(file: FileId, chunk: Bytes) -> Sure<Option<u64>>;
        describe_file(file: StoredFile) -> Sure<bool>;
        publish_file(file: FileId) -> Sure<Option<StoredFile>>;
        file(file: FileId) -> Sure<Option<StoredFile>>;
        read_file(file: FileId, chunk: u32) -> Sure<Option<Bytes>>;
        files(tenant: Option<&str>, after: Option<FileId>, limit: usize) -> Sure<Vec<StoredFile>>;
        delete_file(file: FileId) -> Sure<bool>;
    }
    Events {
        publish(events: Vec<NewEvent>, now: Now) -> Sure<()>;
        events(after: EventId, max: usize) -> Sure<EventPage>;
        + {
            fn newest_event(&self) -> watch::Receiver<EventId> {
                self.inner.newest_event()
            }
        }
    }
    Store {
        close() -> Sure<()>;
        + {
            fn id(&self) -> Uuid {
                self.inner.id()
            }

            fn health(&self) -> Health {
                self.inner.health()
            }
        }
    }
}
