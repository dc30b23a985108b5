use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmq_core::{Clock, Status, Timestamp, Verdict};
use llmq_dispatch::{Call, CallKind, Why};
use llmq_store::{
    Cancelled, EnqueueError, Health, Job, JobId, Lane, NewJob, Place, Start, Store, StoreError,
    Worker,
};
use rustc_hash::FxHashSet;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Directory;
use super::accept::Accepted;
use super::attempt::Course;
use super::ends::Ends;
use super::live::{Listening, Lives};
use super::table::{Came, Table};
use super::tend::KnownQueues;
use crate::{Grant, Hub, SystemClock, Tasks, Ticket};

/// How a runner is to work.
pub struct RunnerOptions {
    /// Where jobs are kept.
    pub store: Arc<dyn Store>,
    /// The dispatcher that decides when they start.
    pub hub: Arc<Hub>,
    /// The time.
    pub clock: SystemClock,
    /// The models.
    pub directory: Arc<dyn Directory>,
    /// The name of this process's place, the same after a restart.
    pub node: String,
    /// How long an attempt may run without a sign of life of its process.
    pub lease: Duration,
    /// What becomes of a job whose attempt was sent and is not waited for any longer, since this
    /// process ends. As in [`Settings::lost_attempt`](llmq_store::Settings), which is for those
    /// that died.
    pub lost_attempt: Verdict,
}

/// An attempt's process may be silent for so long.
pub(super) const LEASE: Duration = Duration::from_secs(30);

impl RunnerOptions {
    /// With the usual lease, for a store that this process alone has.
    pub fn new(
        store: Arc<dyn Store>,
        hub: Arc<Hub>,
        clock: SystemClock,
        directory: Arc<dyn Directory>,
    ) -> Self {
        Self {
            store,
            hub,
            clock,
            directory,
            node: "local".to_owned(),
            lease: LEASE,
            lost_attempt: Verdict::Retry,
        }
    }
}

/// Accepts jobs and finishes them. Cheap to clone.
///
/// What it has accepted is in its store when [`Runner::accept`] returns, and is finished once, by
/// this process or by the next one. A job goes to its provider through the same dispatcher as
/// every other call, in its place by priority.
#[derive(Clone)]
pub struct Runner {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) store: Arc<dyn Store>,
    pub(super) hub: Arc<Hub>,
    pub(super) clock: SystemClock,
    pub(super) directory: Arc<dyn Directory>,
    pub(super) worker: Worker,
    pub(super) lease: Duration,
    pub(super) lost_attempt: Verdict,
    pub(super) tasks: Tasks,
    table: Mutex<Table>,
    dirty: Mutex<FxHashSet<Arc<Lane>>>,
    pub(super) to_fill: Notify,
    pub(super) ends: Ends,
    pub(super) lives: Arc<Lives>,
    /// Whether the store can record: nothing is started while it cannot.
    pub(super) open: watch::Sender<bool>,
    /// Nothing is started any more.
    pub(super) stopping: CancellationToken,
    /// What runs is to be given back.
    pub(super) giving_back: CancellationToken,
    pub(super) running: AtomicUsize,
    pub(super) nothing_runs: Notify,
    /// The models that are served have changed.
    pub(super) models: watch::Sender<()>,
    /// Queues of which it was said since that nothing serves them.
    unserved: Mutex<BTreeSet<String>>,
    pub(super) queues: tokio::sync::Mutex<KnownQueues>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

/// What a waiting job waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Look {
    /// What stands in its way, such as `tpm openai/gpt-4o-mini`.
    pub waiting_for: Option<String>,
    /// When its line may move next.
    pub until: Option<Timestamp>,
}

impl Runner {
    /// Takes back what an earlier process held, and begins to start what waits.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn open(options: RunnerOptions, tasks: &Tasks) -> Result<Self, StoreError> {
        let runner = Self {
            inner: Arc::new(Inner {
                worker: Worker::new(options.node),
                store: options.store,
                hub: options.hub,
                clock: options.clock,
                directory: options.directory,
                lease: options.lease,
                lost_attempt: options.lost_attempt,
                tasks: tasks.clone(),
                table: Mutex::default(),
                dirty: Mutex::default(),
                to_fill: Notify::new(),
                ends: Ends::default(),
                lives: Arc::default(),
                open: watch::Sender::new(true),
                stopping: CancellationToken::new(),
                giving_back: CancellationToken::new(),
                running: AtomicUsize::new(0),
                nothing_runs: Notify::new(),
                models: watch::Sender::new(()),
                unserved: Mutex::default(),
                queues: tokio::sync::Mutex::default(),
            }),
        };
        let inner = &runner.inner;
        let moved = inner.store.recover(&inner.worker, inner.now()).await?;
        if !moved.is_empty() {
            tracing::info!(
                jobs = moved.len(),
                "an earlier process held jobs: taken back"
            );
        }
        inner.restore_queues().await?;
        inner.look_again().await?;
        tasks.spawn(Arc::clone(inner).keep_filled());
        tasks.spawn(Arc::clone(inner).keep_tended());
        Ok(runner)
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Accepts a job. One that finds room is started in the same commit.
    ///
    /// # Errors
    ///
    /// [`EnqueueError`]; it was not accepted then.
    ///
    /// # Cancel safety
    ///
    /// A job whose future is dropped may have been accepted, and then is finished.
    pub async fn accept(&self, job: NewJob) -> Result<Accepted, EnqueueError> {
        // Before it is asked whether it stops: whoever stops it waits for what was let in.
        let runs = Runs::new(&self.inner);
        self.inner.takes(job.idempotency.is_some())?;
        let accepting = Arc::clone(&self.inner).accept(job, runs);
        // A caller that goes must not leave a started job to nobody.
        let accepted = self.inner.tasks.spawn(accepting).await;
        accepted.unwrap_or(Err(EnqueueError::Store(StoreError::Closed)))
    }

    /// Accepts many: all of them, or none. In their order.
    ///
    /// # Errors
    ///
    /// [`EnqueueError`]; none was accepted then.
    ///
    /// # Cancel safety
    ///
    /// Jobs whose future is dropped may have been accepted, and then are finished.
    pub async fn accept_many(&self, jobs: Vec<NewJob>) -> Result<Vec<Accepted>, EnqueueError> {
        let have_keys = jobs.iter().all(|job| job.idempotency.is_some());
        self.inner.takes(have_keys)?;
        let accepting = Arc::clone(&self.inner).accept_many(jobs);
        let accepted = self.inner.tasks.spawn(accepting).await;
        accepted.unwrap_or(Err(EnqueueError::Store(StoreError::Closed)))
    }

    /// Whether it takes work in: it does not end, and its store can record.
    ///
    /// # Errors
    ///
    /// [`StoreError`], which says why not.
    pub fn takes_work(&self) -> Result<(), StoreError> {
        self.inner.takes(false)
    }

    /// Listens to the stream of a job that is about to be handed in. What it hears is what will be
    /// stored, but for the end, and comes while this process runs the attempt.
    #[must_use]
    pub fn listen(&self, job: JobId) -> Listening {
        self.inner.lives.listen(job)
    }

    /// The models that are served have changed: jobs of one that nothing served may go on. To be
    /// called after [`Directory::queue`] began to answer otherwise.
    pub fn models_changed(&self) {
        self.inner.unserved().clear();
        self.inner.models.send_replace(());
    }

    /// Looks what waits in the store. To be called after jobs came into it in another way, such as
    /// by the publication of a batch.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn look_again(&self) -> Result<(), StoreError> {
        self.inner.look_again().await
    }

    /// Ends a job that nobody wants any more; an attempt that runs is broken off.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    ///
    /// # Cancel safety
    ///
    /// A job may be cancelled even if the future is dropped; an attempt is broken off then too.
    pub async fn cancel(&self, id: JobId) -> Result<Cancelled, StoreError> {
        let inner = Arc::clone(&self.inner);
        let cancelling = async move {
            let cancelled = inner.store.cancel(id, inner.now()).await?;
            if let Cancelled::Now(job) = &cancelled {
                inner.ended(job, None);
            }
            Ok(cancelled)
        };
        let cancelled = self.inner.tasks.spawn(cancelling).await;
        cancelled.unwrap_or(Err(StoreError::Closed))
    }

    /// Waits until a job has ended, for at most `wait`. Answers it as it is then; none where there
    /// is no such job. When the process stops it waits no longer for one that does not run, or is
    /// given back.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ended(&self, id: JobId, wait: Duration) -> Result<Option<Job>, StoreError> {
        let inner = &self.inner;
        let until = tokio::time::Instant::now() + wait;
        loop {
            let watch = inner.ends.watch(id);
            let notified = watch.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let job = inner.store.job(id).await?;
            let status = job.as_ref().map(|job| job.status);
            if status.is_none_or(Status::is_final) {
                return Ok(job);
            }
            let is_queued = status == Some(Status::Queued);
            tokio::select! {
                () = notified => {}
                // It may have moved meanwhile.
                () = tokio::time::sleep_until(until) => return inner.store.job(id).await,
                // What runs may end yet.
                () = inner.stopping.cancelled(), if is_queued => return Ok(job),
                () = inner.giving_back.cancelled() => return Ok(job),
            }
        }
    }

    /// What a job that waits in the window waits for.
    #[must_use]
    pub fn look(&self, id: JobId) -> Option<Look> {
        let ticket = self.inner.table().get(id)?.ticket?;
        let now = self.inner.now();
        let (why, outlook) = self.inner.hub.with(|dispatcher| {
            let why: Option<Why> = dispatcher.why(ticket);
            (why, dispatcher.outlook(ticket, now))
        });
        Some(Look {
            waiting_for: why?.blockers.first().map(ToString::to_string),
            until: outlook?.start,
        })
    }

    /// Whether the store can record now, and if not, why.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.store.health()
    }

    /// Starts nothing more, lets what runs end for at most `grace`, and gives back what has not.
    /// The store is not closed.
    pub async fn stop(&self, grace: Duration) {
        let inner = &self.inner;
        inner.stopping.cancel();
        let all_ended = inner.all_ended(grace).await;
        if !all_ended {
            tracing::warn!(
                jobs = inner.running.load(Ordering::SeqCst),
                "accepted jobs did not end in time: they are given back"
            );
        }
        inner.giving_back.cancel();
        inner.all_ended(GIVEN_BACK_WITHIN).await;
    }

    /// Takes note of queues that were paused, drained or resumed, and has the store do the same.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn queues_changed(&self) -> Result<(), StoreError> {
        self.inner.follow_queues().await
    }
}

/// To record that an attempt is given back takes a commit, or fails.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(5);

impl Inner {
    pub(super) fn unserved(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> llmq_core::Now {
        self.clock.now()
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stored call of a lane; none where nothing serves its model.
    pub(super) fn call(&self, lane: &Lane) -> Option<Call> {
        let queue = self.directory.queue(&lane.queue)?;
        Some(Call {
            priority: lane.priority,
            kind: CallKind::Stored,
            accepted: true,
            ..Call::new(queue, self.directory.tenant(&lane.tenant, lane.key))
        })
    }

    /// Puts a call of a lane in line; none where its queue is not its model's any more. A model that
    /// nobody configured may be let go and its queue be another's, until a call of it is there.
    pub(super) fn line_up(&self, lane: &Lane, call: Call) -> Option<Ticket> {
        let ticket = self.hub.submit(call).ok()?;
        (self.directory.queue(&lane.queue) == Some(call.queue)).then_some(ticket)
    }

    pub(super) fn start_of(&self, job: JobId, grant: &Grant) -> Start {
        let upstream = self.directory.route(grant.start().upstream);
        Start {
            job,
            worker: self.worker.clone(),
            lease: self.lease,
            upstream: upstream.map(|route| route.name.to_string()),
        }
    }

    /// Somebody came into a lane.
    pub(super) fn came(&self, lane: Arc<Lane>, came: Came) {
        self.table().came(&lane, came);
        self.dirty(lane);
    }

    /// Jobs were accepted into a lane, the first of them at `place`, if any is new.
    pub(super) fn came_first(&self, lane: Arc<Lane>, place: Option<Place>) {
        if let Some(place) = place {
            self.came(lane, Came::At(place));
        }
    }

    pub(super) fn dirty(&self, lane: Arc<Lane>) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.insert(lane);
        drop(dirty);
        self.to_fill.notify_one();
    }

    pub(super) fn take_dirty(&self) -> Vec<Arc<Lane>> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.drain().collect()
    }

    pub(super) async fn look_again(&self) -> Result<(), StoreError> {
        for depth in self.store.lanes(self.now()).await? {
            self.came(Arc::new(depth.lane), Came::Somewhere);
        }
        Ok(())
    }

    /// A job is done with here.
    pub(super) fn release(&self, job: JobId) {
        let again = self.table().release(job);
        if let Some(lane) = again {
            self.dirty(lane);
        }
    }

    /// A job is done with here, and may still wait in the store.
    pub(super) fn give_back(&self, job: JobId, lane: Arc<Lane>) {
        self.release(job);
        self.came(lane, Came::Somewhere);
    }

    /// What is done for a job here is to end.
    pub(super) fn leave(&self, job: JobId) {
        self.table().leave(job);
    }

    /// A job came to its end in the store.
    pub(super) fn ended(&self, job: &Job, course: Option<&Course>) {
        if job.status != Status::Queued && job.status != Status::Processing {
            self.leave(job.id);
            self.lives.forget(job.id);
            self.ends.ended(job.id);
            self.directory.told(super::Told::Ended {
                job,
                took: course.map(|course| course.took),
                answer: course.and_then(|course| course.answer.as_ref()),
            });
        }
    }

    async fn all_ended(&self, grace: Duration) -> bool {
        let ended = async {
            loop {
                let notified = self.nothing_runs.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if self.running.load(Ordering::SeqCst) == 0 {
                    return;
                }
                notified.await;
            }
        };
        tokio::time::timeout(grace, ended).await.is_ok()
    }
}

/// Counts what the end of the process waits for: an attempt, and a job that may be about to start.
pub(super) struct Runs(Arc<Inner>);

impl Runs {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        inner.running.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(inner))
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.nothing_runs.notify_waiters();
        }
    }
}
