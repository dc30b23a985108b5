use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Now, Status, Timestamp, WallTime};

use crate::{
    Enqueued, EventId, EventPage, Job, JobId, Lane, Lease, NewJob, Report, ReportError, Settings,
    Start, StartError, Started, Store, StoredAnswer, StoredEvent, Worker,
};

/// How long the leases of these tests last.
pub(super) const LEASE: Duration = Duration::from_secs(30);

type Opening = Pin<Box<dyn Future<Output = Arc<dyn Store>> + Send>>;

/// A store, the time, and a worker.
pub struct World {
    pub(super) store: Arc<dyn Store>,
    pub(super) now: Now,
    pub(super) worker: Worker,
    make: Box<dyn Fn(Settings) -> Opening + Send + Sync>,
}

impl World {
    /// An empty store at some moment.
    pub async fn new<F, S>(fresh: &F) -> Self
    where
        F: Fn(Settings) -> S + Clone + Send + Sync + 'static,
        S: Future<Output = Arc<dyn Store>> + Send + 'static,
    {
        let fresh = fresh.clone();
        let make = move |settings| {
            let store: Opening = Box::pin(fresh(settings));
            store
        };
        let store = make(Settings::default()).await;
        Self {
            store,
            now: Now {
                mono: Timestamp::from_nanos(77_000_000_000),
                // 2026-01-01 00:00 UTC.
                wall: WallTime::from_micros(1_767_225_600_000_000),
            },
            worker: Worker::new("here"),
            make: Box::new(make),
        }
    }

    /// The same with an empty store of other settings.
    pub(super) async fn with(mut self, settings: Settings) -> Self {
        self.store = (self.make)(settings).await;
        self
    }

    pub(super) fn advance(&mut self, span: Duration) {
        self.now = self.now.after(span);
    }

    pub(super) async fn accept(&self, job: NewJob) -> JobId {
        let accepted = self.store.enqueue(vec![job], self.now).await.unwrap();
        accepted[0].job
    }

    /// A plain job of queue `m` and tenant `t`.
    pub(super) async fn job(&self) -> JobId {
        self.accept(new_job()).await
    }

    pub(super) fn start_of(&self, job: JobId) -> Start {
        Start {
            job,
            worker: self.worker.clone(),
            lease: LEASE,
            upstream: Some("openai".to_owned()),
        }
    }

    pub(super) async fn try_start(&self, job: JobId) -> Result<Started, StartError> {
        let started = self.store.start(vec![self.start_of(job)], self.now).await;
        started.unwrap().remove(0)
    }

    pub(super) async fn start(&self, job: JobId) -> Lease {
        self.try_start(job).await.unwrap().lease
    }

    pub(super) async fn report(&self, lease: Lease, report: Report) -> Result<Job, ReportError> {
        self.store.report(lease, report, self.now).await
    }

    /// Starts a job and completes it.
    pub(super) async fn finish(&self, job: JobId) -> Job {
        let lease = self.start(job).await;
        self.report(lease, completed()).await.unwrap()
    }

    pub(super) async fn status(&self, job: JobId) -> Status {
        self.show(job).await.status
    }

    pub(super) async fn show(&self, job: JobId) -> Job {
        self.store.job(job).await.unwrap().unwrap()
    }

    /// The ids that wait in a lane and are due.
    pub(super) async fn waiting(&self, lane: &Lane) -> Vec<JobId> {
        let window = self.store.next(lane, None, 1000, self.now).await.unwrap();
        window.jobs.iter().map(|waiting| waiting.job).collect()
    }

    pub(super) async fn events(&self, after: EventId) -> Vec<StoredEvent> {
        match self.store.events(after, 100_000).await.unwrap() {
            EventPage::Events(events) => events,
            EventPage::Gap { oldest } => panic!("events before {oldest:?} are gone"),
        }
    }

    /// Housekeeping until nothing is due.
    pub(super) async fn tend(&self) -> Vec<crate::Moved> {
        let mut moved = Vec::new();
        // A store may need some slices; one that always has more is a store that never rests.
        for _ in 0..1000 {
            let tended = self.store.tend(self.now).await.unwrap();
            moved.extend(tended.moved);
            if !tended.more {
                return moved;
            }
        }
        panic!("housekeeping has no end");
    }
}

pub(super) fn new_job() -> NewJob {
    NewJob::new("m", "t", r#"{"model":"m"}"#)
}

pub(super) fn completed() -> Report {
    Report::Completed {
        answer: answer(),
        usage: None,
        cost_nano_usd: Some(7),
    }
}

pub(super) fn answer() -> StoredAnswer {
    StoredAnswer {
        status: 200,
        headers: vec![("content-type".into(), "application/json".into())],
        body: r#"{"choices":[]}"#.into(),
    }
}

pub(super) fn ids(accepted: &[Enqueued]) -> Vec<JobId> {
    accepted.iter().map(|accepted| accepted.job).collect()
}

pub(super) fn lane(queue: &str, tenant: &str) -> Lane {
    NewJob::new(queue, tenant, "").lane()
}
