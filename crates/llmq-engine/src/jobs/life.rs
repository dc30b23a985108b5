//! One job, from its place in line to its end.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::{FailureClass, Timestamp};
use llmq_dispatch::{Call, NoGrant, QueueId};
use llmq_store::{
    GiveBack, JobError, JobId, Lane, Lease, Report, ReportError, StartError, Started, StoreError,
    Waiting,
};
use tokio_util::sync::CancellationToken;

use super::NotHeld;
use super::attempt::{Attempted, Course, Ended, Outcome};
use super::runner::{Inner, Runs};
use crate::{AfterFailure, Grant, Ticket, outcome};

/// After the store could not record something, it is asked again.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(2);

/// A job whose budget could not be recorded waits for so long.
const HOLD_AGAIN: Duration = Duration::from_millis(500);

/// Why a job was not started.
enum NotStarted {
    /// The store could not record it.
    Again,
    /// It is not due as the store sees it.
    Later,
    /// It has ended, or somebody else has it.
    Gone,
}

/// How a started job is left by the task that carried it.
enum Left {
    /// It is not to be looked for in the store any more.
    Over,
    /// It may wait there.
    Waits,
}

/// What follows a recorded attempt.
enum Next {
    Attempt(Ticket),
    Leave(Left),
}

/// What a job's attempts in this process have shown.
#[derive(Default)]
struct Tries {
    /// The failure to tell, where an earlier one tells more.
    first: Option<Box<Ended>>,
    /// The models with larger contexts that it was not given to yet, once it needs one.
    larger: Option<std::vec::IntoIter<QueueId>>,
}

impl Tries {
    fn failed(&mut self, ended: Box<Ended>) {
        self.first = Some(telling(self.first.take(), ended));
    }
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
            // From here on nothing is broken off: the store may start it. Whoever stops the
            // process sees that, or this sees that it stops.
            let runs = Runs::new(&self);
            if self.stopping.is_cancelled() {
                break;
            }
            let begun = match granted {
                // Boxed, so that the thousands in line hold no room for what comes after.
                Err(refused) => match Box::pin(self.refuse(job, &refused)).await {
                    Ok(()) => break,
                    Err(why) => Err(why),
                },
                Ok(grant) => Box::pin(self.begin(job, grant)).await,
            };
            match begun {
                Ok((started, grant)) => {
                    return Box::pin(self.go_on(grant, started, runs)).await;
                }
                Err(NotStarted::Again) => {}
                Err(NotStarted::Later) => return self.give_back(job, lane),
                Err(NotStarted::Gone) => break,
            }
        }
        self.release(job);
    }

    /// The call of a lane, once something serves its model.
    async fn served(&self, lane: &Lane) -> Call {
        // Before the look, so that a change behind it is seen.
        let mut models = self.models.subscribe();
        loop {
            models.mark_unchanged();
            if let Some(call) = self.call(lane) {
                return call;
            }
            // One word is enough for all of a queue's jobs.
            if self.unserved().insert(lane.queue.clone()) {
                tracing::warn!(
                    queue = lane.queue,
                    "nothing serves this model: its jobs wait"
                );
            }
            // It cannot fail: its sender is here.
            let _ = models.changed().await;
        }
    }

    /// Waits for leave to send.
    async fn granted(&self, lane: &Lane, waiting: &Waiting) -> Result<Grant, NoGrant> {
        loop {
            self.until_open().await;
            let call = self.served(lane).await;
            let call = Call {
                size: waiting.size,
                attempts: waiting.attempts,
                throttles: waiting.throttles,
                ..call
            };
            // What was accepted is not refused; only the model's line may be another's since.
            if let Some(ticket) = self.line_up(lane, call) {
                self.table().lined_up(waiting.job, ticket.id());
                return ticket.granted().await;
            }
            tokio::time::sleep(AGAIN_FIRST).await;
        }
    }

    /// Starts a job in the store; nothing was sent before that.
    async fn begin(&self, job: JobId, grant: Grant) -> Result<(Started, Grant), NotStarted> {
        let start = self.start_of(job, &grant);
        let started = self.start(start).await?;
        Ok((started, grant))
    }

    async fn start(&self, start: llmq_store::Start) -> Result<Started, NotStarted> {
        let job = start.job;
        let started = match self.store.start(vec![start], self.now()).await {
            Ok(mut started) => started.pop(),
            // Of this job alone; whoever looks for it again does so later.
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(%job, %error, "a job cannot be started");
                return Err(NotStarted::Gone);
            }
            Err(error) => {
                tracing::warn!(%job, %error, "a job could not be started");
                self.shut();
                return Err(NotStarted::Again);
            }
        };
        match started {
            Some(Ok(started)) => Ok(started),
            Some(Err(StartError::Expired { .. } | StartError::Damaged { .. })) => {
                if let Ok(Some(job)) = self.store.job(job).await {
                    self.ended(&job, None);
                }
                Err(NotStarted::Gone)
            }
            Some(Err(StartError::NotDue { .. })) => Err(NotStarted::Later),
            // Somebody else has it, or it has ended.
            Some(Err(_)) | None => Err(NotStarted::Gone),
        }
    }

    /// A job that can never be sent fails.
    async fn refuse(&self, job: JobId, refused: &NoGrant) -> Result<(), NotStarted> {
        let start = llmq_store::Start {
            job,
            worker: self.worker.clone(),
            lease: self.lease,
            upstream: None,
        };
        let started = self.start(start).await?;
        self.holds(started.lease);
        let class = match refused {
            NoGrant::NoUpstream => FailureClass::RowFault,
            _ => FailureClass::TooLarge,
        };
        let error = JobError {
            class: Some(class),
            ..JobError::new(class.as_str(), refused.to_string())
        };
        self.fail(started.lease, error).await;
        Ok(())
    }

    /// A started job fails without an answer.
    async fn fail(&self, lease: Lease, error: JobError) {
        let report = Report::Failed {
            error,
            answer: None,
            cost_nano_usd: None,
        };
        self.record(lease, report, None, None, &mut None).await;
    }

    /// Carries a started job on to its end, or until it is given back.
    pub(super) async fn go_on(self: Arc<Self>, grant: Grant, started: Started, _runs: Runs) {
        let (job, lane) = (started.lease.job, Arc::new(started.job.lane()));
        match self.attempts(grant, started).await {
            Left::Over => self.release(job),
            Left::Waits => self.give_back(job, lane),
        }
    }

    async fn attempts(&self, mut grant: Grant, mut started: Started) -> Left {
        let job = started.lease.job;
        // Before anything is waited for, so that its lease is kept alive meanwhile.
        self.holds(started.lease);
        let mut held = match self.directory.hold(&started.job).await {
            Ok(held) => held,
            Err(why) => {
                drop(grant);
                return self.not_held(started.lease, why).await;
            }
        };
        let mut tries = Tries::default();
        loop {
            let leave = self.holds(started.lease);
            let attempted = tokio::select! {
                biased;
                // Cancelled, or its lease was lost: what comes of it is worth nothing.
                () = leave.cancelled() => return Left::Over,
                attempted = self.attempt(grant, &started, &mut held) => attempted,
            };
            let ticket = match self.settle(&started, attempted, &mut tries).await {
                Next::Attempt(ticket) => ticket,
                Next::Leave(left) => return left,
            };
            self.table().requeued(job, ticket.id());
            let granted = tokio::select! {
                biased;
                // It has ended; or its lease was taken for lost before it was known here that it
                // waits again, and then it is found in the store.
                () = leave.cancelled() => return Left::Waits,
                () = self.stopping.cancelled() => {
                    // Who waits for its end learns that none comes here.
                    self.ends.ended(job);
                    return Left::Over;
                }
                granted = ticket.granted() => granted,
            };
            let begun = match granted {
                Ok(granted) => self.begin(job, granted).await,
                Err(refused) => match self.refuse(job, &refused).await {
                    Ok(()) => return Left::Over,
                    Err(why) => Err(why),
                },
            };
            match begun {
                Ok(begun) => (started, grant) = begun,
                Err(NotStarted::Gone) => return Left::Over,
                // It is found again from the store: when that can record, when it is due.
                Err(NotStarted::Again | NotStarted::Later) => return Left::Waits,
            }
        }
    }

    /// A job is started: its lease is known here, and what ends that is told.
    fn holds(&self, lease: Lease) -> CancellationToken {
        let (leave, again) = self.table().started(lease.job, lease);
        if let Some(lane) = again {
            self.dirty(lane);
        }
        leave
    }

    /// A started job that may not cost anything is not sent.
    async fn not_held(&self, lease: Lease, why: NotHeld) -> Left {
        let error = match why {
            NotHeld::Refused(error) => {
                self.fail(lease, error).await;
                return Left::Over;
            }
            NotHeld::Later(error) => error,
        };
        tracing::warn!(job = %lease.job, %error, "a budget could not be recorded: its job waits");
        let report = Report::GivenBack {
            why: GiveBack::NotSent,
            error: None,
            after: HOLD_AGAIN,
        };
        match self.record(lease, report, None, None, &mut None).await {
            true => Left::Waits,
            false => Left::Over,
        }
    }

    /// Records how an attempt ended.
    async fn settle(&self, started: &Started, attempted: Attempted, tries: &mut Tries) -> Next {
        let (course, lease) = (Some(attempted.course), started.lease);
        let report = match attempted.outcome {
            Outcome::Report(report) => report,
            Outcome::Declined(_, AfterFailure::Again(ticket)) => {
                let report = Report::GivenBack {
                    why: GiveBack::NotSent,
                    error: None,
                    after: Duration::ZERO,
                };
                return self.requeue(lease, report, None, course, ticket).await;
            }
            Outcome::Declined(reason, AfterFailure::GivenUp { .. }) => {
                let class = FailureClass::RowFault;
                let (error, answer) = match tries.first.take() {
                    Some(first) => (first.error, first.answer),
                    None => {
                        let error = JobError::new(class.as_str(), reason);
                        let class = Some(class);
                        (JobError { class, ..error }, None)
                    }
                };
                Report::Failed {
                    error,
                    answer,
                    cost_nano_usd: None,
                }
            }
            Outcome::Failed(ended, AfterFailure::Again(ticket)) => {
                let (report, due_at) = self.again(started, &ended, &ticket);
                tries.failed(ended);
                return self.requeue(lease, report, due_at, course, ticket).await;
            }
            Outcome::Failed(ended, AfterFailure::GivenUp { .. }) => {
                if ended.exceeds_context
                    && let Some(ticket) = self.in_a_larger_context(started, tries)
                {
                    let report = Report::Retry {
                        error: ended.error.clone(),
                        after: Duration::ZERO,
                        may_have_been_sent: false,
                    };
                    tries.failed(ended);
                    return self.requeue(lease, report, None, course, ticket).await;
                }
                let told = telling(tries.first.take(), ended);
                Report::Failed {
                    error: told.error,
                    answer: told.answer,
                    cost_nano_usd: None,
                }
            }
        };
        let waits = matches!(report, Report::Retry { .. } | Report::GivenBack { .. });
        let recorded = self.record(lease, report, None, course, &mut None).await;
        Next::Leave(if recorded && waits {
            Left::Waits
        } else {
            Left::Over
        })
    }

    /// A place in the line of the next model with a larger context; none: there is none that
    /// takes it. The store knows nothing of it: who finds the job there again asks its own model
    /// first, whose refusal costs nothing.
    fn in_a_larger_context(&self, started: &Started, tries: &mut Tries) -> Option<Ticket> {
        let job = &started.job;
        let larger = || self.directory.larger_contexts(&job.queue).into_iter();
        let larger = tries.larger.get_or_insert_with(larger);
        let call = Call {
            size: job.size,
            attempts: job.attempts,
            ..self.call(&job.lane())?
        };
        larger.find_map(|queue| self.hub.submit(Call { queue, ..call }).ok())
    }

    /// What the store is told of a failed attempt that another follows.
    fn again(
        &self,
        started: &Started,
        ended: &Ended,
        ticket: &Ticket,
    ) -> (Report, Option<Timestamp>) {
        let standing = self.hub.with(|dispatcher| dispatcher.standing(ticket.id()));
        let counted = standing.is_none_or(|standing| standing.attempts >= started.job.attempts);
        let report = if counted {
            Report::Retry {
                error: ended.error.clone(),
                after: Duration::ZERO,
                may_have_been_sent: ended.may_have_been_sent,
            }
        } else {
            let throttles = standing.as_ref().map_or(0, |standing| standing.throttles);
            let why = if throttles > started.job.throttles {
                GiveBack::Throttled
            } else {
                GiveBack::FoundDown
            };
            Report::GivenBack {
                why,
                error: Some(ended.error.clone()),
                after: Duration::ZERO,
            }
        };
        (report, standing.and_then(|standing| standing.not_before))
    }

    /// Records an attempt that another follows, whose place in line is `ticket`.
    async fn requeue(
        &self,
        lease: Lease,
        report: Report,
        due_at: Option<Timestamp>,
        course: Option<Course>,
        ticket: Ticket,
    ) -> Next {
        let mut place = Some(ticket);
        let recorded = self.record(lease, report, due_at, course, &mut place).await;
        match (recorded, place) {
            (true, Some(ticket)) => Next::Attempt(ticket),
            // It is found again from the store.
            (true, None) => Next::Leave(Left::Waits),
            (false, _) => Next::Leave(Left::Over),
        }
    }

    /// Records a report, again and again until the store can. A job that waits then does so until
    /// `due_at`, however long that takes; its `place` in line is given up when the store cannot at
    /// once, since what is granted before it can would be held unused. Whether it counted: not for
    /// a job that was cancelled or lost meanwhile, or when this process ends before.
    async fn record(
        &self,
        lease: Lease,
        mut report: Report,
        due_at: Option<Timestamp>,
        course: Option<Course>,
        place: &mut Option<Ticket>,
    ) -> bool {
        let mut wait = AGAIN_FIRST;
        loop {
            let now = self.now();
            if let (Some(at), Report::Retry { after, .. } | Report::GivenBack { after, .. }) =
                (due_at, &mut report)
            {
                *after = at.since(now.mono);
            }
            match self.store.report(lease, report.clone(), now).await {
                Ok(job) => {
                    self.ended(&job, course.as_ref());
                    return true;
                }
                Err(ReportError::LeaseLost { job }) => {
                    tracing::debug!(%job, "the end of an attempt came too late to count");
                    return false;
                }
                Err(ReportError::Store {
                    job,
                    source: error @ (StoreError::Damaged { .. } | StoreError::Closed),
                }) => {
                    tracing::error!(%job, %error, "the end of an attempt cannot be recorded");
                    return false;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the end of an attempt could not be recorded yet");
                    *place = None;
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

/// Of two failures of a job the one to tell.
fn telling(first: Option<Box<Ended>>, next: Box<Ended>) -> Box<Ended> {
    let is_consequence = |first: &Ended| {
        let class = next.error.class;
        class.is_some_and(|class| outcome::is_consequence(&first.upstream, &next.upstream, class))
    };
    match first {
        Some(first) if is_consequence(&first) => first,
        _ => next,
    }
}
