use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Clock, Status, WallTime};
use llmq_engine::config::{Settings, StoreSettings};
use llmq_engine::jobs::{Accepted, Runner, RunnerOptions};
use llmq_engine::webhooks::{DeliveryClient, Endpoints, Outbox, Reach};
use llmq_engine::{SystemClock, Tasks};
use llmq_store::{EnqueueError, FullOf, Job, JobId, NewJob, Position, Store, StoreError};
use serde_json::json;

use super::catalog::Catalog;
use crate::Problem;

/// Where requests are handed in and asked for.
pub(crate) struct Desk {
    pub(crate) runner: Runner,
    pub(crate) endpoints: Endpoints,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) reach: Reach,
    pub(crate) clock: SystemClock,
    pub(crate) settings: StoreSettings,
    /// For what is to end well although its caller goes.
    pub(crate) tasks: Tasks,
}

impl Desk {
    /// Opens it: what an earlier process left begins to move.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or the system's certificate authorities cannot.
    pub(crate) async fn open(
        settings: &Settings,
        store: Arc<dyn Store>,
        catalog: Catalog,
        tasks: &Tasks,
    ) -> Result<Self, StoreError> {
        let clock = catalog.clock.clone();
        let reach = Reach::new(settings.webhooks.allow.clone());
        let client = DeliveryClient::new(reach.clone())
            .map_err(|error| StoreError::unavailable("no certificate authorities", error))?;
        let endpoints = Endpoints::new(Arc::clone(&store), clock.clone());
        let outbox = Arc::new(Outbox::new(
            Arc::clone(&store),
            endpoints.clone(),
            client,
            clock.clone(),
        ));
        let hub = Arc::clone(&catalog.hub);
        let options = RunnerOptions::new(store, hub, clock.clone(), Arc::new(catalog));
        let options = RunnerOptions {
            lost_attempt: crate::store_settings(settings).lost_attempt,
            ..options
        };
        let runner = Runner::open(options, tasks).await?;
        tasks.spawn(Arc::clone(&outbox).keep_sending(tasks.clone()));
        Ok(Self {
            runner,
            endpoints,
            outbox,
            reach,
            clock,
            settings: settings.store.clone(),
            tasks: tasks.clone(),
        })
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        self.runner.store()
    }

    pub(crate) fn wall(&self) -> WallTime {
        self.clock.now().wall
    }

    /// Hands one in, and tells how it stands then.
    pub(crate) async fn accept(&self, job: NewJob) -> Result<Standing, Problem> {
        let accepted = self.runner.accept(job).await;
        self.standing(accepted.map_err(|error| refusal(&error))?)
            .await
    }

    /// Hands many in: all or none.
    pub(crate) async fn accept_many(&self, jobs: Vec<NewJob>) -> Result<Vec<Standing>, Problem> {
        let accepted = self.runner.accept_many(jobs).await;
        let accepted = accepted.map_err(|error| refusal(&error))?;
        let mut standing = Vec::with_capacity(accepted.len());
        for one in accepted {
            standing.push(self.standing(one).await?);
        }
        Ok(standing)
    }

    /// A new job needs no look at the store: what it is was told with its acceptance.
    async fn standing(&self, accepted: Accepted) -> Result<Standing, Problem> {
        if let Some(job) = accepted.new {
            let position = accepted.position;
            return Ok(Standing { job, position });
        }
        match self.job(accepted.id).await? {
            Some(job) => Ok(self.placed(vec![job]).await.remove(0)),
            // Its results may be kept for no time.
            None => Err(gone(accepted.id)),
        }
    }

    /// Jobs, and where those that wait stand.
    pub(crate) async fn placed(&self, jobs: Vec<Job>) -> Vec<Standing> {
        let waiting = jobs.iter().filter(|job| job.status == Status::Queued);
        let waiting: Vec<JobId> = waiting.map(|job| job.id).collect();
        // What cannot be told now is not told; the rest is.
        let positions = match waiting.is_empty() {
            true => Vec::new(),
            false => self.store().positions(waiting).await.unwrap_or_default(),
        };
        let mut positions = positions.into_iter();
        let placed = jobs.into_iter().map(|job| {
            let waits = job.status == Status::Queued;
            let position = if waits {
                positions.next().flatten()
            } else {
                None
            };
            Standing { job, position }
        });
        placed.collect()
    }

    /// A job, whosever it is.
    pub(crate) async fn job(&self, id: JobId) -> Result<Option<Job>, Problem> {
        self.store()
            .job(id)
            .await
            .map_err(|error| unavailable(&error))
    }

    /// A job, after its end or at most `wait`.
    pub(crate) async fn ended(&self, id: JobId, wait: Duration) -> Result<Option<Job>, Problem> {
        let job = self.runner.ended(id, wait).await;
        job.map_err(|error| unavailable(&error))
    }
}

/// A job, and where it stands in its queue if it waits there.
pub(crate) struct Standing {
    pub(crate) job: Job,
    pub(crate) position: Option<Position>,
}

/// There is no job of this id, any more or at all.
pub(crate) fn gone(id: JobId) -> Problem {
    Problem::not_found("request_not_found", format!("request {id} is removed"))
}

/// When there may be room in a full queue: it empties at the pace of its limits, and nobody knows
/// better.
pub(crate) const COME_AGAIN: Duration = Duration::from_secs(10);

/// Why a job was not accepted.
pub(crate) fn refusal(error: &EnqueueError) -> Problem {
    let message = error.to_string();
    match error {
        EnqueueError::Full { what, waiting } => {
            let what = match what {
                FullOf::Jobs => "jobs",
                FullOf::Bytes => "bytes",
            };
            Problem::unavailable("queue_full", message)
                .with_details(json!({"full_of": what, "waiting": waiting}))
                .with_retry_after(COME_AGAIN)
        }
        EnqueueError::Conflict { index, existing } => {
            let message = "the idempotency key was used for another request";
            Problem::conflict(message).with_details(json!({"index": index, "queue_id": existing}))
        }
        EnqueueError::DuplicateId { .. } => Problem::conflict(message),
        EnqueueError::TooMany { .. } => Problem::invalid(message),
        EnqueueError::Draining { .. } => Problem::unavailable("draining", message),
        EnqueueError::Store(error) => unavailable(error),
        _ => Problem::unavailable("store_unavailable", "the store cannot be used now"),
    }
}

/// What the store says for people; the source is for the log.
pub(crate) fn unavailable(error: &StoreError) -> Problem {
    tracing::error!(error = error as &dyn std::error::Error, "the store refused");
    Problem::unavailable("store_unavailable", error.to_string())
        .with_retry_after(Duration::from_secs(5))
}

/// Whether a job can be handed in again.
pub(crate) fn can_be_retried(status: Status) -> bool {
    matches!(status, Status::Failed | Status::Expired | Status::Cancelled)
}
