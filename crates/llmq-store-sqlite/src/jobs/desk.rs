//! Where the writer works: the file and what it knows of it, in one transaction.

use bytes::Bytes;
use llmq_core::{Event, Now, Status, transition};
use llmq_store::{DueAt, EventId, Job, JobId, NewEvent, StoreError, StoredEvent, targets};
use rusqlite::Connection;

use super::events::{JobEvent, kind_of};
use super::index::{Index, of_end, of_status};
use super::row::{self, Checked, Damage, HAS_KEY, JobRow};
use super::unreadable::Spot;
use super::{blobs, unreadable};
use crate::error::is_damage;

/// The file, and what the writer knows of it.
pub(crate) struct Desk<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) index: &'a mut Index,
}

/// Why something was not done.
#[derive(Debug)]
pub(crate) enum Fault<E> {
    /// It is not legal, or not possible now; nothing was changed.
    Refused(E),
    /// The store knows that it cannot; nothing was changed.
    Store(StoreError),
    /// SQLite could not: the whole transaction is taken back.
    Broken(rusqlite::Error),
}

/// What came of work at a desk.
pub(crate) type Done<T, E = std::convert::Infallible> = Result<T, Fault<E>>;

impl<E> From<rusqlite::Error> for Fault<E> {
    fn from(error: rusqlite::Error) -> Self {
        Self::Broken(error)
    }
}

impl<E> From<StoreError> for Fault<E> {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<E> From<Damage> for Fault<E> {
    fn from(damage: Damage) -> Self {
        Self::Store(damage.into())
    }
}

impl Desk<'_> {
    /// A job that may be seen.
    pub(crate) fn find<E>(&self, id: JobId) -> Done<Option<JobRow>, E> {
        if !self.index.unreadable.is_empty()
            && let Some(number) = unreadable::number_of(self.connection, id)?
            && self.index.unreadable.holds(number)
        {
            return Err(Damage::unreadable(number, Some(id)).into());
        }
        let Some(found) = row::by_id(self.connection, id)? else {
            return Ok(None);
        };
        let mut found = found?;
        Ok(self.index.settle(&mut found).then_some(found))
    }

    /// The row of that number.
    pub(crate) fn row(&self, number: i64) -> rusqlite::Result<Option<Checked>> {
        if self.index.unreadable.holds(number) {
            return Ok(Some(Err(Damage::unreadable(number, None))));
        }
        row::by_number(self.connection, number)
    }

    /// A row that cannot be changed, for it lies beside a damaged page, is left as it is from then on.
    pub(crate) fn unless_stuck<T>(
        &mut self,
        number: i64,
        changed: rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        if changed.as_ref().is_err_and(is_damage) {
            self.index.unreadable.is_stuck(number);
        }
        changed
    }

    /// The large value with this number, or what is wrong with it. One on a damaged page has the
    /// transaction fail once, and costs nobody but those who want it from then on.
    pub(crate) fn blob(&mut self, number: i64) -> rusqlite::Result<Result<Bytes, StoreError>> {
        let spot = Spot::Blob(number);
        if self.index.unreadable.avoids(spot) {
            let what = format!("blob {number}: its page cannot be read");
            return Ok(Err(StoreError::damaged(what)));
        }
        let found = blobs::get(self.connection, number);
        self.unless_damaged(spot, found)
    }

    /// A row as the job that is shown.
    pub(crate) fn job(&self, row: &JobRow) -> Result<Job, Damage> {
        row.to_job(&self.index.names, &self.index.instants(row))
    }

    /// Moves a job by [`transition`], with all that follows from its new status: its row, order,
    /// counts, capacity, lease, batch, and who is told. `None` when the transition is not legal.
    pub(crate) fn move_row<E>(
        &mut self,
        row: &mut JobRow,
        event: Event,
        now: Now,
    ) -> Done<Option<Status>, E> {
        let from = row.status;
        let Ok(to) = transition(from, event) else {
            return Ok(None);
        };
        if from == Status::Queued {
            self.index.leave(row);
        }
        row.status = to;
        if to.is_final() {
            row.finished_at = Some(now.wall.as_micros());
            row.not_before = None;
        }
        if let Some(stage) = row.stage.take() {
            self.leave_stage(stage)?;
        }
        let updated = row.update(self.connection);
        self.unless_stuck(row.number, updated)?;
        if to == Status::Queued {
            self.index.wait(row);
        }
        let bytes = row.bytes.cast_unsigned();
        self.index.count(row.queue, |counts| {
            *of_status(counts, from) = of_status(counts, from).saturating_sub(1);
            *of_status(counts, to) += 1;
            if to.is_final() {
                counts.bytes = counts.bytes.saturating_sub(bytes);
            }
        });
        self.tell_of(row, now)?;
        if to.is_final() {
            self.index.capacity.give_back(1, bytes);
            self.index.give_up(row.id);
            self.forget_key_if_curable(row)?;
            self.count_member(row, to, now)?;
        }
        Ok(Some(to))
    }

    /// Records the event of where a job stands now.
    pub(crate) fn tell_of<E>(&mut self, row: &JobRow, now: Now) -> Done<(), E> {
        let event = JobEvent::from(row);
        self.index.last_event += 1;
        self.index.told.push_job(event, now.wall);
        // Only the four that end a job are told to webhooks, and few jobs have somebody to tell.
        let is_offered = kind_of(row) > 2 && row.batch.is_none();
        let has_target = !self.index.endpoints.is_empty() || row.details.contains("\"callback\"");
        if is_offered && has_target {
            let job = self.job(row)?;
            let event = event.unpacked(&self.index.names);
            self.deliver(&event, Some(&job), now)?;
        }
        Ok(())
    }

    /// Records an event that is about no job.
    pub(crate) fn tell<E>(&mut self, event: &NewEvent, now: Now) -> Done<(), E> {
        self.index.last_event += 1;
        self.index.told.push(event, now.wall);
        self.deliver(event, None, now)
    }

    fn deliver<E>(&mut self, event: &NewEvent, job: Option<&Job>, now: Now) -> Done<(), E> {
        let targets = targets(event, job, self.index.endpoints.values());
        if targets.is_empty() {
            return Ok(());
        }
        let event = StoredEvent {
            id: EventId(self.index.last_event),
            at: now.wall,
            event: event.clone(),
        };
        for target in targets {
            self.deliver_to(&target, &event, now)?;
        }
        Ok(())
    }

    /// A row names its stage no more.
    pub(crate) fn leave_stage<E>(&mut self, number: i64) -> Done<(), E> {
        let Some(stage) = self.index.stages.get_mut(&number) else {
            return Ok(());
        };
        stage.rows = stage.rows.saturating_sub(1);
        if stage.rows == 0 {
            self.forget_stage(number)?;
        }
        Ok(())
    }

    /// No row names a stage any more.
    pub(crate) fn forget_stage<E>(&mut self, number: i64) -> Done<(), E> {
        self.index.stages.remove(&number);
        let delete = "DELETE FROM stages WHERE number = ?1";
        self.connection.prepare_cached(delete)?.execute([number])?;
        Ok(())
    }

    /// What another attempt may cure may be asked for again.
    fn forget_key_if_curable<E>(&mut self, row: &JobRow) -> Done<(), E> {
        let curable = match row.status {
            Status::Expired => true,
            Status::Failed => {
                let class = row.known()?.error.and_then(|error| error.class);
                class.is_some_and(|class| self.index.settings.frees_key(class))
            }
            _ => false,
        };
        let spot = Spot::KeyOf(row.number);
        if curable && row.flags & HAS_KEY != 0 && !self.index.unreadable.avoids(spot) {
            let delete = "DELETE FROM idempotency WHERE job = ?1";
            let id = row.id.as_uuid();
            let mut delete = self.connection.prepare_cached(delete)?;
            self.unless_damaged(spot, delete.execute([id.as_bytes().as_slice()]))?;
        }
        Ok(())
    }

    /// What came of going to a place: one on a damaged page has the transaction fail once, and is
    /// avoided from then on.
    pub(crate) fn unless_damaged<T>(
        &mut self,
        spot: Spot,
        done: rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        if let Err(error) = &done {
            self.index.unreadable.met(spot, error);
        }
        done
    }

    /// A member has ended: its batch counts it, and may have been waiting for it alone.
    fn count_member<E>(&mut self, row: &JobRow, status: Status, now: Now) -> Done<(), E> {
        let Some((number, entry)) = self.batch_of(row)? else {
            return Ok(());
        };
        if let Some(count) = of_end(&mut entry.batch.counts, status) {
            *count += 1;
        }
        self.index.dirty_batches.insert(number);
        self.tell_if_done(number, now)
    }

    /// When a row may start, as a monotonic instant.
    pub(crate) fn due_at(&self, row: &JobRow, now: Now) -> llmq_core::Timestamp {
        match row.due() {
            DueAt::Now => now.mono,
            DueAt::After(at) => self.index.clock().when(at, now),
            DueAt::On(at) => now.when(at),
        }
    }

    /// Whether a row's time to start has passed.
    pub(crate) fn is_late(&self, row: &JobRow, now: Now) -> bool {
        let stood = self.index.stood(row.queue);
        let time = stood.queue_time(self.index.steady(now));
        row.deadline
            .is_some_and(|deadline| time.as_micros() >= deadline)
    }

    /// Writes what the transaction is still to hold: the events, and the counts that changed.
    pub(crate) fn flush(&mut self) -> rusqlite::Result<()> {
        let Index {
            told,
            last_event,
            now,
            queues,
            ..
        } = self.index;
        told.write(self.connection, *last_event, now.wall)?;
        for (number, queue) in queues.iter_mut().filter(|(_, queue)| queue.is_dirty) {
            queue.is_dirty = false;
            super::queues::write(self.connection, *number, queue)?;
        }
        self.flush_batches()
    }
}
