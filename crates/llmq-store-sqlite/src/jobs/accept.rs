//! Accepting jobs.

use std::collections::{HashMap, HashSet};

use llmq_core::{Now, Status};
use llmq_store::{
    Capacity, ENQUEUE_MAX, EnqueueError, Enqueued, JobId, NewJob, Place, Start, Started,
    StoreError, note_positions,
};
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::blobs;
use super::desk::{Desk, Done, Fault};
use super::row::{CALENDAR, HAS_KEY, JobRow, Noted, NotedMember};
use crate::sums::expect_whole;

/// Where a new row belongs beside its lane.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Within {
    pub(crate) stage: Option<i64>,
    pub(crate) batch: Option<i64>,
    /// What its time to live is counted from, in steady time; now if there is none.
    pub(crate) began_at: Option<i64>,
}

impl Desk<'_> {
    pub(crate) fn enqueue(
        &mut self,
        jobs: &[NewJob],
        now: Now,
    ) -> Done<Vec<Enqueued>, EnqueueError> {
        let (mut answers, new) = self.look_up(jobs, now)?;
        let (jobs, bytes) = self.take_room(&new)?;
        let mut rows = Vec::with_capacity(new.len());
        for job in new {
            let row = self.insert(job, Within::default(), now)?;
            let Some(row) = row else {
                self.take_back(&rows)?;
                self.index.capacity.give_back(jobs, bytes);
                return Err(Fault::Refused(EnqueueError::DuplicateId { job: job.id }));
            };
            if let Some(key) = &job.idempotency {
                self.remember_key(&row, &key.key, key.request_hash, now)?;
            }
            rows.push(row);
        }
        let mut positions = Vec::with_capacity(rows.len());
        for row in &rows {
            self.appear(row, now)?;
            let position = self.index.order.position(&self.index.lane(row), row.place);
            positions.push((row.place, Some(position)));
        }
        note_positions(&mut answers, positions);
        Ok(answers)
    }

    pub(crate) fn enqueue_started(
        &mut self,
        job: &NewJob,
        start: &Start,
        now: Now,
    ) -> Done<(Enqueued, Option<Started>), EnqueueError> {
        let enqueued = self.enqueue(std::slice::from_ref(job), now)?.remove(0);
        if !enqueued.is_new {
            return Ok((enqueued, None));
        }
        let started = match self.start(start, now) {
            Ok(started) => Some(started),
            Err(Fault::Refused(_)) => None,
            Err(Fault::Store(error)) => return Err(Fault::Store(error)),
            Err(Fault::Broken(error)) => return Err(Fault::Broken(error)),
        };
        Ok((enqueued, started))
    }

    /// What each job is, a new one or one that its key made before, and the new ones; nothing is
    /// changed.
    pub(crate) fn look_up<'a>(
        &mut self,
        jobs: &'a [NewJob],
        now: Now,
    ) -> Done<(Vec<Enqueued>, Vec<&'a NewJob>), EnqueueError> {
        if jobs.len() > ENQUEUE_MAX {
            return Err(Fault::Refused(EnqueueError::TooMany { count: jobs.len() }));
        }
        let mut ids = HashSet::new();
        let mut keys = HashMap::new();
        let mut answers = Vec::with_capacity(jobs.len());
        let mut new = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.iter().enumerate() {
            if let Some(key) = &job.idempotency {
                let scope = (job.tenant.clone(), key.key.clone());
                let used = match keys.get(&scope) {
                    Some(used) => Some(*used),
                    None => self.used_key(&job.tenant, &key.key, now)?,
                };
                match used {
                    Some((hash, existing)) if hash == key.request_hash => {
                        answers.push(Enqueued::existing(existing));
                        continue;
                    }
                    Some((_, existing)) => {
                        return Err(Fault::Refused(EnqueueError::Conflict { index, existing }));
                    }
                    None => keys.insert(scope, (key.request_hash, job.id)),
                };
            }
            // Only now: what a key made before is found whatever is refused.
            self.takes_work()?;
            if self.index.drains(&job.queue) {
                let queue = job.queue.clone();
                return Err(Fault::Refused(EnqueueError::Draining { queue }));
            }
            if !ids.insert(job.id) {
                return Err(Fault::Refused(EnqueueError::DuplicateId { job: job.id }));
            }
            answers.push(Enqueued::new(job.id));
            new.push(job);
        }
        Ok((answers, new))
    }

    /// Takes the room for new jobs, which whoever fails afterwards gives back.
    pub(crate) fn take_room(&mut self, jobs: &[&NewJob]) -> Done<(u64, u64), EnqueueError> {
        let bytes = jobs.iter().map(|job| Capacity::bytes_of(job)).sum();
        let count = jobs.len() as u64;
        let capacity = &mut self.index.capacity;
        let taken = capacity.take(count, bytes, &self.index.settings);
        taken.map_err(Fault::Refused)?;
        Ok((count, bytes))
    }

    /// New jobs are not accepted, none is started and no file grows while the results of what
    /// runs may need all the room there is.
    pub(crate) fn takes_work<E>(&self) -> Done<(), E> {
        match &self.index.health {
            Some(llmq_store::Health::ReserveOnly { reason }) => {
                Err(Fault::Store(StoreError::Unavailable {
                    reason: reason.clone(),
                    source: None,
                }))
            }
            _ => Ok(()),
        }
    }

    fn used_key(
        &self,
        tenant: &str,
        key: &str,
        now: Now,
    ) -> rusqlite::Result<Option<([u8; 32], JobId)>> {
        let Some(tenant) = self.index.names.find(tenant) else {
            return Ok(None);
        };
        let kept = self.index.settings.keep_idempotency;
        let oldest = self.index.steady(now).before(kept).as_micros();
        let mut query = self.connection.prepare_cached(
            "SELECT hash, job, sum IS checksum(tenant, key, hash, job, used_at), used_at > ?3
             FROM idempotency WHERE tenant = ?1 AND key = ?2",
        )?;
        let used = query.query_row(params![tenant, key, oldest], |row| {
            // Before it is known how old it is: that may be what is damaged.
            expect_whole(row, 2, "idempotency")?;
            let job = Uuid::from_bytes(row.get(1)?);
            let is_kept: bool = row.get(3)?;
            Ok(is_kept.then_some((row.get(0)?, JobId::from_uuid(job))))
        });
        Ok(used.optional()?.flatten())
    }

    fn remember_key(
        &self,
        row: &JobRow,
        key: &str,
        request_hash: [u8; 32],
        now: Now,
    ) -> rusqlite::Result<()> {
        let mut insert = self.connection.prepare_cached(
            "INSERT OR REPLACE INTO idempotency (tenant, key, hash, job, used_at, sum)
             VALUES (?1, ?2, ?3, ?4, ?5, checksum(?1, ?2, ?3, ?4, ?5))",
        )?;
        let id = row.id.as_uuid();
        let used_at = self.index.steady(now).as_micros();
        insert.execute(params![
            row.tenant,
            key,
            request_hash,
            id.as_bytes(),
            used_at
        ])?;
        Ok(())
    }

    /// Writes a new job's row and body. `None` when its id is not new.
    pub(crate) fn insert(
        &mut self,
        new: &NewJob,
        within: Within,
        now: Now,
    ) -> rusqlite::Result<Option<JobRow>> {
        let queue = self.index.names.number(self.connection, &new.queue)?;
        let tenant = self.index.names.number(self.connection, &new.tenant)?;
        let from = within.began_at.map(llmq_core::WallTime::from_micros);
        let from = from.unwrap_or_else(|| self.index.steady(now));
        let stood = self.index.stood(queue);
        let calendar = new.not_before.map_or(0, |_| CALENDAR);
        let key = new.idempotency.as_ref().map_or(0, |_| HAS_KEY);
        let noted = Noted {
            details: new.details.clone(),
            member: new.member.as_ref().map(|member| NotedMember {
                batch: member.batch,
                custom_id: member.custom_id.clone(),
            }),
        };
        let details = serde_json::to_string(&noted)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        self.index.last_number += 1;
        self.index.last_blob += 1;
        self.index.last_place += 1;
        let row = JobRow {
            number: self.index.last_number,
            id: new.id,
            status: Status::Queued,
            queue,
            tenant,
            priority: new.priority,
            place: Place(self.index.last_place),
            size: new.size,
            attempts: 0,
            max_attempts: new.max_attempts,
            throttles: 0,
            flags: calendar | key,
            bytes: Capacity::bytes_of(new).cast_signed(),
            token: 0,
            created_at: now.wall.as_micros(),
            deadline: new.ttl.map(|ttl| stood.deadline(ttl, from).as_micros()),
            not_before: new.not_before.map(llmq_core::WallTime::as_micros),
            started_at: None,
            finished_at: None,
            stage: within.stage,
            batch: within.batch,
            line: new.member.as_ref().map(|member| i64::from(member.line)),
            body: self.index.last_blob,
            answer: None,
            details,
            outcome: None,
        };
        if !row.insert(self.connection)? {
            return Ok(None);
        }
        blobs::put(self.connection, row.body, &new.body)?;
        Ok(Some(row))
    }

    /// A job that was written comes to wait and is told of.
    fn appear(&mut self, row: &JobRow, now: Now) -> Done<(), EnqueueError> {
        self.index.wait(row);
        let bytes = row.bytes.cast_unsigned();
        self.index.count(row.queue, |counts| {
            counts.queued += 1;
            counts.bytes += bytes;
        });
        self.tell_of(row, now)
    }

    /// Rows that were written do not count after all.
    fn take_back(&mut self, rows: &[JobRow]) -> Done<(), EnqueueError> {
        for row in rows {
            self.delete(row.number, row.body, row.answer)?;
            let delete = "DELETE FROM idempotency WHERE job = ?1";
            let id = row.id.as_uuid();
            self.connection
                .prepare_cached(delete)?
                .execute([id.as_bytes().as_slice()])?;
        }
        Ok(())
    }

    /// Removes a row and what it points to.
    pub(crate) fn delete(
        &self,
        number: i64,
        body: i64,
        answer: Option<i64>,
    ) -> rusqlite::Result<()> {
        blobs::delete(self.connection, body)?;
        if let Some(answer) = answer {
            blobs::delete(self.connection, answer)?;
        }
        let delete = "DELETE FROM jobs WHERE number = ?1";
        self.connection.prepare_cached(delete)?.execute([number])?;
        Ok(())
    }
}
