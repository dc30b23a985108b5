//! One job, from its place in line to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use llmq_core::{Clock, FailureClass};
use llmq_dispatch::{Call, NoGrant};
use llmq_store::{
    GiveBack, JobError, JobId, Lane, Lease, Report, ReportError, ReturnTo, StartError, Started,
    Waiting,
};
use tokio_util::sync::CancellationToken;

use super::attempt::{Attempted, Ended, Outcome};
use super::runner::Inner;
use crate::{AfterFailure, Grant, Ticket};

/// After the store could not record something, it is asked again.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(2);
/// A model that nothing serves now may be served after the configuration has changed.
const UNSERVED: Duration = Duration::from_secs(10);

/// Whether a job was started.
enum Begun {
    Started(Box<Started>, Grant),
    /// The store could not record it; it stands in line again.
    Again,
    /// It is not to be started: it ended, or is not due.
    Gone,
}

impl Inner {
    /// Takes a waiting job through its line and its attempts.
    pub(super) async fn live(
        self: Arc<Self>,
        lane: Arc<Lane>,
        waiting: Waiting,
        leave: CancellationToken,
    ) {
        let job = waiting.job;
        loop {
            let granted = tokio::select! {
                biased;
                () = leave.cancelled() => break,
                () = self.stopping.cancelled() => break,
                granted = self.granted(&lane, &waiting) => granted,
            };
            // From here on nothing is broken off: the store may start it.
            match granted {
                None => break,
                Some(Err(refused)) => {
                    self.refuse(job, &refused).await;
                    break;
                }
                Some(Ok(grant)) => match self.begin(job, grant).await {
                    Begun::Started(started, grant) => return self.go_on(grant, *started).await,
                    Begun::Again => {}
                    Begun::Gone => break,
                },
            }
        }
        self.release(job);
    }

    /// Waits for leave to send; none where the line takes nothing.
    async fn granted(&self, lane: &Lane, waiting: &Waiting) -> Option<Result<Grant, NoGrant>> {
        self.until_open().await;
        let call = loop {
            match self.call(lane) {
                Some(call) => break call,
                None => {
                    tracing::warn!(
                        queue = lane.queue,
                        "nothing serves this model: its jobs wait"
                    );
                    tokio::time::sleep(UNSERVED).await;
                }
            }
        };
        let call = Call {
            size: waiting.size,
            attempts: waiting.attempts,
            throttles: waiting.throttles,
            ..call
        };
        // What was accepted is not refused.
        let ticket = self.hub.submit(call).ok()?;
        self.table().lined_up(waiting.job, ticket.id());
        Some(ticket.granted().await)
    }

    /// Starts a job in the store; nothing was sent before that.
    async fn begin(&self, job: JobId, grant: Grant) -> Begun {
        let start = self.start_of(job, &grant);
        match self.start(start).await {
            Ok(Some(started)) => Begun::Started(Box::new(started), grant),
            Ok(None) => Begun::Gone,
            Err(()) => Begun::Again,
        }
    }

    /// The attempt, none if the job is not to be started; an error where the store cannot record.
    async fn start(&self, start: llmq_store::Start) -> Result<Option<Started>, ()> {
        let job = start.job;
        let started = match self.store.start(vec![start], self.now()).await {
            Ok(mut started) => started.pop(),
            Err(error) => {
                tracing::warn!(%job, %error, "a job could not be started");
                self.shut();
                return Err(());
            }
        };
        Ok(match started {
            Some(Ok(started)) => Some(started),
            Some(Err(StartError::Expired { .. } | StartError::Damaged { .. })) => {
                if let Ok(Some(job)) = self.store.job(job).await {
                    self.ended(&job, None);
                }
                None
            }
            // Somebody else has it, it has ended, or comes due later.
            Some(Err(_)) | None => None,
        })
    }

    /// A job that can never be sent fails.
    async fn refuse(&self, job: JobId, refused: &NoGrant) {
        let start = llmq_store::Start {
            job,
            worker: self.worker.clone(),
            lease: self.lease,
            upstream: None,
        };
        let Ok(Some(started)) = self.start(start).await else {
            return;
        };
        let error = JobError {
            class: Some(FailureClass::TooLarge),
            ..JobError::new(FailureClass::TooLarge.as_str(), refused.to_string())
        };
        let report = Report::Failed {
            error,
            answer: None,
            cost_nano_usd: None,
        };
        self.record(started.lease, report, None).await;
    }

    /// Carries a started job on to its end, or until it is given back.
    pub(super) async fn go_on(self: Arc<Self>, grant: Grant, started: Started) {
        let _runs = Runs::new(&self);
        let job = started.lease.job;
        let (mut grant, mut started) = (grant, started);
        let mut first = None;
        loop {
            let (leave, again) = self.table().started(job, started.lease);
            if let Some(lane) = again {
                self.dirty(lane);
            }
            let attempted = tokio::select! {
                biased;
                // Cancelled, or its lease was lost: what comes of it is worth nothing.
                () = leave.cancelled() => break,
                attempted = self.attempt(grant, &started) => attempted,
            };
            let Some(ticket) = self.settle(&started, attempted, &mut first).await else {
                break;
            };
            self.table().requeued(job, ticket.id());
            let granted = tokio::select! {
                biased;
                () = leave.cancelled() => break,
                () = self.stopping.cancelled() => break,
                granted = ticket.granted() => granted,
            };
            let begun = match granted {
                Ok(granted) => self.begin(job, granted).await,
                Err(refused) => {
                    self.refuse(job, &refused).await;
                    break;
                }
            };
            match begun {
                Begun::Started(next, leave_to_send) => (grant, started) = (leave_to_send, *next),
                Begun::Gone => break,
                // It is found again from the store, when that can record.
                Begun::Again => {
                    self.release(job);
                    return self.came(Arc::new(started.job.lane()), true);
                }
            }
        }
        self.release(job);
    }

    /// Records how an attempt ended; the ticket is for the next one, if there is one. `first` is
    /// the failure to tell, where an earlier one tells more.
    async fn settle(
        &self,
        started: &Started,
        attempted: Attempted,
        first: &mut Option<Box<Ended>>,
    ) -> Option<Ticket> {
        let took = Some(attempted.took);
        let (report, next) = match attempted.outcome {
            Outcome::Report(report) => (report, None),
            Outcome::Failed(ended, AfterFailure::Again(ticket)) => {
                let report = self.again(started, &ended, &ticket);
                *first = Some(telling(first.take(), ended));
                (report, Some(ticket))
            }
            Outcome::Failed(ended, AfterFailure::GivenUp { .. }) => {
                let told = telling(first.take(), ended);
                let report = Report::Failed {
                    error: told.error,
                    answer: told.answer,
                    cost_nano_usd: None,
                };
                (report, None)
            }
        };
        let recorded = self.record(started.lease, report, took).await;
        next.filter(|_| recorded)
    }

    /// What the store is told of a failed attempt that another follows.
    fn again(&self, started: &Started, ended: &Ended, ticket: &Ticket) -> Report {
        let standing = self.hub.with(|dispatcher| dispatcher.standing(ticket.id()));
        let counted = standing.is_none_or(|standing| standing.attempts >= started.job.attempts);
        let now = self.clock.now().mono;
        let not_before = standing.and_then(|standing| standing.not_before);
        let after = not_before.map_or(Duration::ZERO, |at| at.since(now));
        if counted {
            Report::Retry {
                error: ended.error.clone(),
                after,
                may_have_been_sent: ended.may_have_been_sent,
            }
        } else {
            Report::GivenBack {
                why: GiveBack::Throttled,
                after,
                place: ReturnTo::ItsPlace,
            }
        }
    }

    /// Records a report, again and again until the store can. Whether it counted: not for a job
    /// that was cancelled or lost meanwhile, or when this process ends before.
    pub(super) async fn record(
        &self,
        lease: Lease,
        report: Report,
        took: Option<Duration>,
    ) -> bool {
        let mut wait = AGAIN_FIRST;
        loop {
            match self.store.report(lease, report.clone(), self.now()).await {
                Ok(job) => {
                    self.ended(&job, took);
                    return true;
                }
                Err(ReportError::LeaseLost { job }) => {
                    tracing::debug!(%job, "the end of an attempt came too late to count");
                    return false;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the end of an attempt could not be recorded yet");
                    self.shut();
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(AGAIN_MOST),
                () = self.giving_back.cancelled() => return false,
            }
        }
    }

    /// Nothing is started until the store can record again.
    fn shut(&self) {
        self.open.send_replace(false);
    }

    async fn until_open(&self) {
        // The sender lives as long as this does.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

/// Of two failures of a job the one to tell: what another upstream says after the first is often
/// only a consequence of being asked at all, such as its 400 for a prompt it cannot take.
fn telling(first: Option<Box<Ended>>, next: Box<Ended>) -> Box<Ended> {
    match first {
        Some(first)
            if first.upstream != next.upstream
                && next.error.class == Some(FailureClass::RowFault) =>
        {
            first
        }
        _ => next,
    }
}

/// Counts an attempt that runs.
struct Runs<'a>(&'a Inner);

impl<'a> Runs<'a> {
    fn new(inner: &'a Inner) -> Self {
        inner.running.fetch_add(1, Ordering::AcqRel);
        Self(inner)
    }
}

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.nothing_runs.notify_waiters();
        }
    }
}
