//! How a job is taken in: started at once where there is room, and left in its lane otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;

use llmq_dispatch::Call;
use llmq_store::{
    EnqueueError, Enqueued, Health, Job, JobId, Lane, NewJob, Place, Position, StoreError,
};

use super::runner::{Inner, Runs};
use crate::Grant;

/// A job that was handed in.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// Its id, or that of the one that its idempotency key made before.
    pub id: JobId,
    /// The job as it was accepted; none where there was one before.
    pub new: Option<Job>,
    /// Where it stood in its queue then, if it came to stand there.
    pub position: Option<Position>,
}

impl Accepted {
    fn waits(enqueued: &Enqueued, job: Job) -> Self {
        Self {
            id: enqueued.job,
            new: enqueued.is_new.then_some(job),
            position: enqueued.position,
        }
    }
}

impl Inner {
    /// Whether the store is to be asked to take work in, which may have been handed in before by
    /// its keys.
    pub(super) fn takes(&self, has_keys: bool) -> Result<(), StoreError> {
        let health = self.store.health();
        if self.stopping.is_cancelled() {
            return Err(StoreError::Closed);
        }
        match health {
            Health::Ready => Ok(()),
            // Their keys may have made them before: the store knows, and refuses what is new.
            Health::ReserveOnly { .. } if has_keys => Ok(()),
            Health::ReserveOnly { reason } | Health::Unavailable { reason } => {
                Err(StoreError::Unavailable {
                    reason,
                    source: None,
                })
            }
        }
    }

    /// [`Runner::accept`](super::Runner::accept).
    pub(super) async fn accept(
        self: Arc<Self>,
        job: NewJob,
        runs: Runs,
    ) -> Result<Accepted, EnqueueError> {
        let lane = Arc::new(job.lane());
        let now = self.now();
        let told = job.accepted(now.wall);
        let enqueued = if let Some(grant) = self.at_once(&job, &lane) {
            let (id, start) = (job.id, self.start_of(job.id, &grant));
            // Before the store knows it: whoever cancels it as soon as it is there finds it here.
            let is_held = self.table().hold(id, Arc::clone(&lane));
            let enqueued = self.store.enqueue_started(job, start, now).await;
            if let Ok((enqueued, Some(started))) = enqueued {
                let new = Some(started.job.clone());
                self.tasks
                    .spawn(Arc::clone(&self).go_on(grant, started, runs));
                return Ok(Accepted {
                    id: enqueued.job,
                    new,
                    position: None,
                });
            }
            if is_held {
                self.release(id);
            }
            enqueued?.0
        } else {
            // A store answers for each job that it was given.
            let enqueued = self.store.enqueue(vec![job], now).await?;
            let first = enqueued.first().copied();
            first.ok_or(EnqueueError::Store(StoreError::Closed))?
        };
        self.came_first(lane, enqueued.place);
        Ok(Accepted::waits(&enqueued, told))
    }

    /// [`Runner::accept_many`](super::Runner::accept_many).
    pub(super) async fn accept_many(
        self: Arc<Self>,
        jobs: Vec<NewJob>,
    ) -> Result<Vec<Accepted>, EnqueueError> {
        let now = self.now();
        let told: Vec<Job> = jobs.iter().map(|job| job.accepted(now.wall)).collect();
        let lanes: Vec<Lane> = jobs.iter().map(NewJob::lane).collect();
        let enqueued = self.store.enqueue(jobs, now).await?;
        let mut first: BTreeMap<Lane, Place> = BTreeMap::new();
        for (lane, enqueued) in lanes.into_iter().zip(&enqueued) {
            if let Some(place) = enqueued.place {
                let first = first.entry(lane).or_insert(place);
                *first = place.min(*first);
            }
        }
        for (lane, place) in first {
            self.came_first(Arc::new(lane), Some(place));
        }
        let accepted = enqueued.iter().zip(told);
        let accepted = accepted.map(|(enqueued, job)| Accepted::waits(enqueued, job));
        Ok(accepted.collect())
    }

    /// Leave to send a job at once, if there is room and nobody of its lane waits.
    fn at_once(&self, job: &NewJob, lane: &Lane) -> Option<Grant> {
        let waits = job.not_before.is_some() || !*self.open.borrow();
        if waits || !self.table().is_free(lane) {
            return None;
        }
        let call = Call {
            size: job.size,
            bytes: job.body.len() as u64,
            ..self.call(lane)?
        };
        let mut ticket = self.line_up(lane, call)?;
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match ticket.poll_granted(&mut context) {
            Poll::Ready(Ok(grant)) => Some(grant),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }
}
