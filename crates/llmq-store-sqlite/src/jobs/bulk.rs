//! Inserts too large for one transaction: written in slices between other work, and published by
//! one small transaction at their end.

use std::collections::VecDeque;

use llmq_core::Now;
use llmq_store::{EnqueueError, Enqueued, NewJob, StoreError, note_positions};
use tokio::sync::oneshot;

use super::desk::{Desk, Fault};
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
    jobs: VecDeque<NewJob>,
    answers: Vec<Enqueued>,
    stage: i64,
    now: Now,
    answer: oneshot::Sender<Result<Vec<Enqueued>, EnqueueError>>,
}

/// What came of a slice.
pub(crate) enum Slice {
    /// There is more to write.
    More,
    /// It is done when this transaction is.
    Done(Result<(), EnqueueError>),
}

impl Bulk {
    /// Takes the room for all of it, and begins.
    pub(crate) fn begin(
        desk: &mut Desk<'_>,
        jobs: Vec<NewJob>,
        now: Now,
        answer: oneshot::Sender<Result<Vec<Enqueued>, EnqueueError>>,
    ) -> Result<Option<Self>, rusqlite::Error> {
        let begun = desk.look_up(jobs, now).and_then(|(answers, jobs)| {
            desk.take_room(&jobs)?;
            Ok((answers, jobs))
        });
        let error = match begun {
            Ok((answers, jobs)) => {
                return Ok(Some(Self {
                    jobs: jobs.into(),
                    answers,
                    stage: desk.begin_stage(now)?,
                    now,
                    answer,
                }));
            }
            Err(Fault::Refused(error)) => error,
            Err(Fault::Store(error)) => error.into(),
            Err(Fault::Broken(error)) => return Err(error),
        };
        let _ = answer.send(Err(error));
        Ok(None)
    }

    /// Writes the next slice, and publishes all of it after the last one.
    pub(crate) fn step(&mut self, desk: &mut Desk<'_>) -> rusqlite::Result<Slice> {
        let mut bytes = 0;
        for _ in 0..SLICE_JOBS {
            let Some(job) = self.jobs.pop_front() else {
                break;
            };
            bytes += job.body.len();
            if !desk.insert_staged(&job, self.stage, None, self.now)? {
                let (jobs, bytes) = desk.room_of(&self.jobs, &job);
                desk.index.capacity.give_back(jobs, bytes);
                undone(desk.discard_stage::<EnqueueError>(self.stage))?;
                return Ok(Slice::Done(Err(EnqueueError::DuplicateId { job: job.id })));
            }
            if bytes > SLICE_BYTES {
                break;
            }
        }
        if !self.jobs.is_empty() {
            return Ok(Slice::More);
        }
        let published = undone(desk.publish_stage(self.stage, self.now, false))?;
        desk.tell_of_staged(&published, self.now)?;
        // Counted from the end of the line, where they are: the way to each is short.
        let order = &desk.index.order;
        let positions = published.iter().map(|staged| {
            let position = order.position(&staged.lane, staged.place);
            (staged.place, Some(position))
        });
        note_positions(&mut self.answers, positions);
        Ok(Slice::Done(Ok(())))
    }

    /// Tells whoever asked.
    pub(crate) fn finish(self, result: Result<(), EnqueueError>) {
        let _ = self.answer.send(result.map(|()| self.answers));
    }

    /// A transaction that it had a part in failed.
    pub(crate) fn fail(self, error: StoreError) {
        let _ = self.answer.send(Err(error.into()));
    }

    /// Whether the next slice may be the last.
    pub(crate) fn is_near_its_end(&self) -> bool {
        self.jobs.len() <= SLICE_JOBS
    }
}

impl Desk<'_> {
    /// The room of jobs that are not written yet.
    fn room_of(&self, rest: &VecDeque<NewJob>, and: &NewJob) -> (u64, u64) {
        let bytes = rest.iter().chain([and]).map(llmq_store::Capacity::bytes_of);
        (rest.len() as u64 + 1, bytes.sum())
    }

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
fn undone<T, E>(done: super::desk::Done<T, E>) -> rusqlite::Result<T> {
    match done {
        Ok(value) => Ok(value),
        Err(Fault::Broken(error)) => Err(error),
        Err(Fault::Refused(_) | Fault::Store(_)) => Err(rusqlite::Error::InvalidQuery),
    }
}
