//! Batches.

use std::collections::BTreeSet;

use llmq_core::{Now, WallTime};
use llmq_store::{
    Batch, BatchId, BatchStatus, BatchUpdate, Capacity, EnqueueError, EventKind, Job, NewEvent,
    NewJob, STAGE_MAX, StoreError, Subject,
};
use rusqlite::{Connection, OptionalExtension, params};

use super::accept::Within;
use super::desk::{Desk, Done, Fault};
use super::index::{BatchEntry, Index, NEVER, Stage, Staged, second_of};
use super::outbox::{is_of_value, parsed, written};
use super::row::{Checked, JobRow, select_jobs};
use super::unreadable::Spot;
use crate::sums::expect_whole;

/// How many batches are kept in memory before those that ended are dropped from it.
const BATCHES_MAX: usize = 1024;

/// Lets go of batches that ended long enough ago and whose members are gone.
pub(crate) fn let_go(
    connection: &Connection,
    index: &mut Index,
    before: WallTime,
    max: usize,
) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM batches WHERE number IN
           (SELECT number FROM batches WHERE ended <= ?1
              AND sum IS checksum(number, id, tenant, stage, ended, data)
              AND NOT EXISTS (SELECT 1 FROM jobs WHERE batch = batches.number) LIMIT ?2)
         RETURNING number",
    )?;
    let gone = delete.query_map(params![before.as_micros(), max as i64], |row| row.get(0))?;
    for number in gone {
        index.batches.remove(&number?);
    }
    Ok(())
}

/// What is wrong with a row that is left out; `None` if the transaction is to be taken back.
fn damage_of(fault: &Fault<std::convert::Infallible>) -> Option<StoreError> {
    match fault {
        Fault::Store(damage) => Some(damage.clone()),
        Fault::Broken(error) => is_of_value(error),
        Fault::Refused(never) => match *never {},
    }
}

impl Desk<'_> {
    pub(crate) fn create_batch(&mut self, batch: &Batch) -> Done<()> {
        self.takes_work()?;
        let stage = self.begin_stage(self.index.now)?;
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO batches (number, id, tenant, stage, data, sum)
             VALUES (?1, ?2, ?3, ?4, ?5, checksum(?1, ?2, ?3, ?4, NULL, ?5))",
        )?;
        self.index.last_batch += 1;
        let number = self.index.last_batch;
        let id = batch.id.as_uuid();
        let json = written(batch)?;
        insert.execute(params![number, id.as_bytes(), batch.tenant, stage, json])?;
        self.keep_batch(number, batch.clone(), stage);
        Ok(())
    }

    /// Begins an insert of several transactions.
    pub(crate) fn begin_stage(&mut self, now: Now) -> rusqlite::Result<i64> {
        self.index.last_stage += 1;
        let number = self.index.last_stage;
        let insert = "INSERT INTO stages (number, published_at, shift, sum)
                      VALUES (?1, NULL, 0, checksum(?1, NULL, 0))";
        self.connection.prepare_cached(insert)?.execute([number])?;
        let stage = Stage {
            began_at: self.index.steady(now).as_micros(),
            ..Stage::default()
        };
        self.index.stages.insert(number, stage);
        Ok(number)
    }

    /// Adds a row to a stage. Whether its id was new.
    pub(crate) fn insert_staged(
        &mut self,
        job: &NewJob,
        stage: i64,
        batch: Option<i64>,
        now: Now,
    ) -> rusqlite::Result<bool> {
        let began_at = self.index.stages.get(&stage).map(|stage| stage.began_at);
        let within = Within {
            stage: Some(stage),
            batch,
            began_at,
        };
        let Some(row) = self.insert(job, within, now)? else {
            return Ok(false);
        };
        let staged = Staged {
            number: row.number,
            id: row.id,
            lane: job.lane(),
            place: row.place,
            due: row.due(),
            deadline: row.deadline,
            bytes: row.bytes.cast_unsigned(),
            body: row.body,
        };
        let bytes = staged.bytes;
        self.index.count(row.queue, |counts| counts.bytes += bytes);
        if let Some(stage) = self.index.stages.get_mut(&stage) {
            stage.waiting.push(staged);
        }
        Ok(true)
    }

    /// All rows of a stage count from now on. Answers them.
    pub(crate) fn publish_stage(
        &mut self,
        number: i64,
        now: Now,
        shifts: bool,
    ) -> Done<Vec<Staged>> {
        let steady = self.index.steady(now).as_micros();
        let Some(stage) = self.index.stages.get_mut(&number) else {
            return Ok(Vec::new());
        };
        stage.is_published = true;
        stage.shift = if shifts { steady - stage.began_at } else { 0 };
        let shift = stage.shift;
        let waiting = std::mem::take(&mut stage.waiting);
        stage.rows = waiting.len() as u64;
        let mut update = self.connection.prepare_cached(
            "UPDATE stages SET published_at = ?2, shift = ?3, sum = checksum(?1, ?2, ?3)
                 WHERE number = ?1",
        )?;
        update.execute(params![number, now.wall.as_micros(), shift])?;
        for staged in &waiting {
            let queue = self
                .index
                .names
                .number(self.connection, &staged.lane.queue)?;
            let ends = staged
                .deadline
                .map_or(NEVER, |deadline| second_of(deadline + shift));
            self.index.wait_in(
                &staged.lane,
                queue,
                staged.place,
                staged.number,
                ends,
                staged.due,
            );
            self.index.count(queue, |counts| counts.queued += 1);
        }
        Ok(waiting)
    }

    /// Removes all rows of a stage, and the stage.
    pub(crate) fn discard_stage<E>(&mut self, number: i64) -> Done<(), E> {
        let Some(stage) = self.index.stages.get_mut(&number) else {
            return Ok(());
        };
        let waiting = std::mem::take(&mut stage.waiting);
        self.remove_staged(&waiting)?;
        self.forget_stage(number)
    }

    /// Removes the rows of `jobs` from a stage.
    fn unstage<E>(&mut self, number: i64, jobs: &[&NewJob]) -> Done<(), E> {
        let Some(stage) = self.index.stages.get_mut(&number) else {
            return Ok(());
        };
        let is_of_call = |staged: &Staged| jobs.iter().any(|job| job.id == staged.id);
        let (removed, kept) = std::mem::take(&mut stage.waiting)
            .into_iter()
            .partition(is_of_call);
        stage.waiting = kept;
        self.remove_staged(&removed)
    }

    fn remove_staged<E>(&mut self, staged: &[Staged]) -> Done<(), E> {
        for staged in staged {
            self.remove_staged_row(staged)?;
            self.index.capacity.give_back(1, staged.bytes);
        }
        Ok(())
    }

    pub(crate) fn stage(&mut self, jobs: &[NewJob], now: Now) -> Done<(), EnqueueError> {
        self.takes_work()?;
        if jobs.len() > STAGE_MAX {
            return Err(Fault::Refused(EnqueueError::TooMany { count: jobs.len() }));
        }
        let mut places = Vec::with_capacity(jobs.len());
        let mut new = Vec::with_capacity(jobs.len());
        for job in jobs {
            if self.index.drains(&job.queue) {
                let queue = job.queue.clone();
                return Err(Fault::Refused(EnqueueError::Draining { queue }));
            }
            let batch = job.member.as_ref().map(|member| member.batch);
            let entry = match batch {
                Some(batch) => self.batch_by_id(batch)?,
                None => None,
            };
            let open = entry.filter(|(_, entry)| entry.batch.status == BatchStatus::Validating);
            let Some((number, entry)) = open else {
                return Err(Fault::Store(StoreError::Unavailable {
                    reason: "its batch is not one that members are added to".to_owned(),
                    source: None,
                }));
            };
            let stage = entry.stage;
            // Whoever reads its input again finds what was staged the first time.
            if !self.is_staged(number, job)? {
                places.push((number, stage));
                new.push(job);
            }
        }
        let jobs = new;
        self.take_room(&jobs)?;
        let stages: BTreeSet<_> = places.iter().map(|(_, stage)| *stage).collect();
        for (written, (job, (batch, stage))) in jobs.iter().zip(places).enumerate() {
            if !self.insert_staged(job, stage, Some(batch), now)? {
                for stage in stages {
                    self.unstage(stage, &jobs)?;
                }
                let missing = jobs.len() - written;
                let rest = jobs
                    .iter()
                    .rev()
                    .take(missing)
                    .map(|job| Capacity::bytes_of(job))
                    .sum();
                self.index.capacity.give_back(missing as u64, rest);
                return Err(Fault::Refused(EnqueueError::DuplicateId { job: job.id }));
            }
        }
        Ok(())
    }

    /// Whether a batch has the line that a job comes from.
    fn is_staged(&self, batch: i64, job: &NewJob) -> rusqlite::Result<bool> {
        let line = job.member.as_ref().map(|member| member.line);
        let mut query = self
            .connection
            .prepare_cached("SELECT 1 FROM jobs WHERE batch = ?1 AND line = ?2")?;
        query.exists(params![batch, line])
    }

    /// Whether a job is one of a batch whose output is still to be written.
    pub(crate) fn is_awaited<E>(&mut self, row: &JobRow) -> Done<bool, E> {
        let of = self.batch_of(row)?;
        Ok(of.is_some_and(|(_, entry)| !entry.batch.status.is_final()))
    }

    /// The batch that a job is a member of. The end of a job whose batch cannot be read counts all
    /// the same, and nothing will be written of that batch: it is as if it had none.
    pub(crate) fn batch_of<E>(&mut self, row: &JobRow) -> Done<Option<(i64, &mut BatchEntry)>, E> {
        let Some(number) = row.batch else {
            return Ok(None);
        };
        match self.batch_by_number(number) {
            Ok(entry) => Ok(entry.map(|entry| (number, entry))),
            Err(Fault::Store(_)) => Ok(None),
            Err(Fault::Broken(error)) if is_of_value(&error).is_some() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    pub(crate) fn publish_batch(
        &mut self,
        id: BatchId,
        update: &BatchUpdate,
        now: Now,
    ) -> Done<Option<Batch>> {
        let Some((number, entry)) = self.batch_by_id(id)? else {
            return Ok(None);
        };
        if entry.batch.status != BatchStatus::Validating || update.from != entry.batch.status {
            return Ok(None);
        }
        let stage = entry.stage;
        let members = self.publish_stage(stage, now, true)?.len();
        if members == 0 {
            self.forget_stage::<std::convert::Infallible>(stage)?;
        }
        if let Some(entry) = self.index.batches.get_mut(&number) {
            entry.batch.counts.total = u32::try_from(members).unwrap_or(u32::MAX);
        }
        let batch = self.update_batch(id, update, now)?;
        self.tell_if_done::<std::convert::Infallible>(number, now)?;
        Ok(batch)
    }

    pub(crate) fn update_batch(
        &mut self,
        id: BatchId,
        update: &BatchUpdate,
        now: Now,
    ) -> Done<Option<Batch>> {
        let Some((number, entry)) = self.batch_by_id(id)? else {
            return Ok(None);
        };
        if entry.batch.status != update.from {
            return Ok(None);
        }
        entry.batch.status = update.to;
        entry.batch.details = update.details.clone();
        entry.batch.changed_at = now.wall;
        let (batch, stage) = (entry.batch.clone(), entry.stage);
        self.index.dirty_batches.insert(number);
        if update.from == BatchStatus::Validating && update.to.is_final() {
            self.give_up_stage::<std::convert::Infallible>(stage)?;
        }
        for file in &update.files {
            self.publish_file(*file)?;
        }
        if let Some(event) = &update.event {
            self.tell(event, now)?;
        }
        Ok(Some(batch))
    }

    pub(crate) fn members(&self, id: BatchId, after_line: u32, limit: usize) -> Done<Vec<Job>> {
        let mut jobs = Vec::new();
        self.each_member(id, after_line, |row| {
            jobs.extend(self.job(&row));
            jobs.len() < limit
        })?;
        Ok(jobs)
    }

    /// Visible members by line, until `more` says that it has enough.
    fn each_member(
        &self,
        id: BatchId,
        after_line: u32,
        mut more: impl FnMut(JobRow) -> bool,
    ) -> Done<()> {
        let mut take = |row: Checked| match row {
            Ok(mut row) => !self.index.settle(&mut row) || more(row),
            // A damaged one is no reason to lose the others.
            Err(_) => true,
        };
        let id = id.as_uuid();
        let which = params![id.as_bytes(), after_line];
        if !self.index.unreadable.is_empty() {
            let mut query = self.connection.prepare_cached(
                "SELECT number FROM jobs INDEXED BY jobs_of_batch
                 WHERE batch = (SELECT number FROM batches WHERE id = ?1) AND line > ?2
                 ORDER BY line",
            )?;
            let mut numbers = query.query(which)?;
            while let Some(number) = numbers.next()? {
                if self.row(number.get(0)?)?.is_some_and(|row| !take(row)) {
                    break;
                }
            }
            return Ok(());
        }
        let mut query = self.connection.prepare_cached(select_jobs!(
            "WHERE batch = (SELECT number FROM batches WHERE id = ?1) AND line > ?2 ORDER BY line"
        ))?;
        let mut rows = query.query(which)?;
        while let Some(row) = rows.next()? {
            if !take(JobRow::read(row)?) {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn batch(&mut self, id: BatchId) -> Done<Option<Batch>> {
        let entry = self.batch_by_id(id)?;
        Ok(entry.map(|(_, entry)| entry.batch.clone()))
    }

    pub(crate) fn batches(
        &mut self,
        tenant: Option<&str>,
        after: Option<BatchId>,
        limit: usize,
    ) -> Done<Vec<Batch>> {
        // What this transaction has counted so far is not in the rows yet.
        self.flush_batches()?;
        let before = after.map_or([0xff; 16], |after| *after.as_uuid().as_bytes());
        // Which there are is in the index of ids too, and each is read by itself: one that cannot be
        // read is left out.
        let mut query = self.connection.prepare_cached(
            "SELECT number FROM batches INDEXED BY sqlite_autoindex_batches_1
             WHERE id < ?1 ORDER BY id DESC",
        )?;
        let mut numbers = query.query([before])?;
        let mut batches = Vec::new();
        while batches.len() < limit
            && let Some(number) = numbers.next()?
        {
            let found = self.read_batch(number.get(0)?, tenant);
            if let Some(damage) = found.as_ref().err().and_then(damage_of) {
                tracing::error!(error = %damage, "a list leaves a batch out");
            } else {
                batches.extend(found?.map(|(batch, _)| batch));
            }
        }
        Ok(batches)
    }

    pub(crate) fn tell_if_done<E>(&mut self, number: i64, now: Now) -> Done<(), E> {
        let Some(entry) = self.batch_by_number(number)? else {
            return Ok(());
        };
        if !entry.batch.counts.all_ended() {
            return Ok(());
        }
        let event = NewEvent {
            kind: EventKind::BATCH_WORK_DONE.to_owned(),
            tenant: Some(entry.batch.tenant.clone()),
            subject: Subject::Batch(entry.batch.id),
            data: serde_json::Value::Null,
        };
        self.tell(&event, now)
    }

    fn batch_by_id<E>(&mut self, id: BatchId) -> Done<Option<(i64, &mut BatchEntry)>, E> {
        let mut query = self
            .connection
            .prepare_cached("SELECT number FROM batches WHERE id = ?1")?;
        let number = query.query_row([id.as_uuid().as_bytes()], |row| row.get(0));
        match number.optional()? {
            Some(number) => {
                let entry = self.batch_by_number(number)?;
                Ok(entry.map(|entry| (number, entry)))
            }
            None => Ok(None),
        }
    }

    pub(crate) fn batch_by_number<E>(&mut self, number: i64) -> Done<Option<&mut BatchEntry>, E> {
        if !self.index.batches.contains_key(&number)
            && let Some((batch, stage)) = self.read_batch(number, None)?
        {
            self.keep_batch(number, batch, stage);
        }
        Ok(self.index.batches.get_mut(&number))
    }

    /// The row of a batch, and its stage; `None` where it is another tenant's than the one asked
    /// for.
    fn read_batch<E>(
        &mut self,
        number: i64,
        tenant: Option<&str>,
    ) -> Done<Option<(Batch, i64)>, E> {
        let spot = Spot::Batch(number);
        if self.index.unreadable.avoids(spot) {
            let what = format!("batch {number}: its page cannot be read");
            return Err(StoreError::damaged(what).into());
        }
        let mut query = self.connection.prepare_cached(
            "SELECT data, stage, sum IS checksum(number, id, tenant, stage, ended, data)
             FROM batches WHERE number = ?1 AND (?2 IS NULL OR tenant = ?2)",
        )?;
        let found = query.query_row(params![number, tenant], |row| {
            expect_whole(row, 2, "batches")?;
            Ok((parsed(&row.get::<_, String>(0)?)?, row.get(1)?))
        });
        Ok(self.unless_damaged(spot, found.optional())?)
    }

    fn keep_batch(&mut self, number: i64, batch: Batch, stage: i64) {
        if self.index.batches.len() >= BATCHES_MAX {
            let dirty = &self.index.dirty_batches;
            self.index
                .batches
                .retain(|number, entry| dirty.contains(number) || !entry.batch.status.is_final());
        }
        let entry = BatchEntry { batch, stage };
        self.index.batches.insert(number, entry);
    }

    pub(crate) fn flush_batches(&mut self) -> rusqlite::Result<()> {
        let mut update = self.connection.prepare_cached(
            "UPDATE batches SET data = ?2, ended = ?3,
                   sum = checksum(number, ?4, ?5, ?6, ?3, ?2) WHERE number = ?1",
        )?;
        while let Some(number) = self.index.dirty_batches.pop_first() {
            if let Some(entry) = self.index.batches.get(&number) {
                let batch = &entry.batch;
                let ended = batch
                    .status
                    .is_final()
                    .then(|| batch.changed_at.as_micros());
                let updated = update.execute(params![
                    number,
                    written(batch)?,
                    ended,
                    batch.id.as_uuid().as_bytes(),
                    batch.tenant,
                    entry.stage
                ]);
                self.unless_damaged(Spot::Batch(number), updated)?;
            }
        }
        Ok(())
    }
}
