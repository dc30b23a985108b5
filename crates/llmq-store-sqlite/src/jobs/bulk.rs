//! Inserts too large for one transaction: written in slices between other work, and published by
//! one small transaction at their end.

use std::sync::Arc;

use llmq_core::Now;
use llmq_store::{EnqueueError, Enqueued, NewJob, note_positions};
use tokio::sync::oneshot;

use super::desk::{Desk, Done, Fault};
use super::events::JobEvent;
use super::index::Staged;

/// What one slice takes at most, so that other work need not wait long.
const SLICE_JOBS: usize = 500;
const SLICE_BYTES: usize = 1 << 20;

/// Whether jobs are so many or so large that they are written in slices. Those with idempotency
/// keys are not: a key must not name a job that is not there yet.
pub(crate) fn is_bulk(jobs: &[NewJob]) -> bool {
    let bytes = || jobs.iter().map(|job| job.body.len()).sum::<usize>();
    (jobs.len() > SLICE_JOBS || bytes() > SLICE_BYTES)
        && jobs.len() > 1
        && jobs.iter().all(|job| job.idempotency.is_none())
}

/// A large insert under way.
#[derive(Debug)]
pub(crate) struct Bulk {
    begun: Begun,
    jobs: Arc<[NewJob]>,
    /// How many of them are written.
    written: usize,
    /// How many are if the transaction fails that is being made.
    committed: usize,
    now: Now,
    answer: oneshot::Sender<Result<Vec<Enqueued>, EnqueueError>>,
}

/// What there is of a large insert when it begins: the room for all of it is taken.
#[derive(Debug)]
pub(crate) struct Begun {
    answers: Vec<Enqueued>,
    stage: i64,
}

/// What came of a slice.
pub(crate) enum Slice {
    /// There is more to write.
    More,
    /// It is done when this transaction is.
    Done(Result<(), EnqueueError>),
}

impl Begun {
    /// Takes the room for all of `jobs`, and begins.
    pub(crate) fn begin(
        desk: &mut Desk<'_>,
        jobs: &[NewJob],
        now: Now,
    ) -> Done<Self, EnqueueError> {
        let (answers, new) = desk.look_up(jobs, now)?;
        desk.take_room(&new)?;
        Ok(Self {
            answers,
            stage: desk.begin_stage(now)?,
        })
    }
}

impl Bulk {
    /// `begun` is on disk.
    pub(crate) fn new(
        begun: Begun,
        jobs: Arc<[NewJob]>,
        now: Now,
        answer: oneshot::Sender<Result<Vec<Enqueued>, EnqueueError>>,
    ) -> Self {
        Self {
            begun,
            jobs,
            written: 0,
            committed: 0,
            now,
            answer,
        }
    }

    /// Writes the next slice, and publishes all of it after the last one.
    pub(crate) fn step(&mut self, desk: &mut Desk<'_>) -> rusqlite::Result<Slice> {
        let mut bytes = 0;
        let stage = self.begun.stage;
        for job in self.jobs[self.written..].iter().take(SLICE_JOBS) {
            if !desk.insert_staged(job, stage, None, self.now)? {
                let (jobs, bytes) = self.rest();
                desk.index.capacity.give_back(jobs, bytes);
                undone(desk.discard_stage::<EnqueueError>(stage))?;
                return Ok(Slice::Done(Err(EnqueueError::DuplicateId { job: job.id })));
            }
            self.written += 1;
            bytes += job.body.len();
            if bytes > SLICE_BYTES {
                break;
            }
        }
        if self.written < self.jobs.len() {
            return Ok(Slice::More);
        }
        let published = undone(desk.publish_stage(stage, self.now, false))?;
        desk.tell_of_staged(&published, self.now)?;
        let stand = |staged: &Staged| (staged.lane.clone(), staged.place);
        let lined_up: Vec<_> = published.iter().map(stand).collect();
        let positions = desk.index.order.positions(&lined_up).into_iter().map(Some);
        let places = lined_up.iter().map(|(_, place)| *place);
        note_positions(&mut self.begun.answers, places.zip(positions));
        Ok(Slice::Done(Ok(())))
    }

    /// What it wrote is on disk.
    pub(crate) fn is_committed(&mut self) {
        self.committed = self.written;
    }

    /// The transaction failed: what it wrote in it is written again.
    pub(crate) fn fell_back(&mut self) {
        self.written = self.committed;
    }

    /// The stage of its rows.
    pub(crate) fn stage(&self) -> i64 {
        self.begun.stage
    }

    /// The jobs that are not written yet, and their bytes.
    pub(crate) fn rest(&self) -> (u64, u64) {
        let rest = &self.jobs[self.written..];
        let bytes = rest.iter().map(llmq_store::Capacity::bytes_of).sum();
        (rest.len() as u64, bytes)
    }

    /// Tells whoever asked.
    pub(crate) fn finish(self, result: Result<(), EnqueueError>) {
        let _ = self.answer.send(result.map(|()| self.begun.answers));
    }

    /// Whether the next slice may be the last.
    pub(crate) fn is_near_its_end(&self) -> bool {
        self.jobs.len() - self.written <= SLICE_JOBS
    }
}

impl Desk<'_> {
    /// Records the events of jobs that were published together.
    fn tell_of_staged(&mut self, published: &[Staged], now: Now) -> rusqlite::Result<()> {
        for staged in published {
            let event = JobEvent {
                kind: 0,
                status: llmq_core::Status::Queued,
                attempts: 0,
                queue: self
                    .index
                    .names
                    .number(self.connection, &staged.lane.queue)?,
                tenant: self
                    .index
                    .names
                    .number(self.connection, &staged.lane.tenant)?,
                id: staged.id,
            };
            self.index.last_event += 1;
            self.index.told.push_job(event, now.wall);
        }
        Ok(())
    }
}

/// Work that is refused by nothing, with the errors of SQLite alone.
fn undone<T, E>(done: Done<T, E>) -> rusqlite::Result<T> {
    match done {
        Ok(value) => Ok(value),
        Err(Fault::Broken(error)) => Err(error),
        Err(Fault::Refused(_) | Fault::Store(_)) => Err(rusqlite::Error::InvalidQuery),
    }
}
