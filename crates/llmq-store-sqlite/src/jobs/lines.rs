//! Looking at jobs: the lines of those that wait, lists, and single ones.

use std::cmp::Reverse;

use bytes::Bytes;
use llmq_core::{Now, Status, WallTime};
use llmq_store::{
    EXAMINED_MAX, Filter, Job, JobId, Lane, PAGE_MAX, Page, Place, Position, StoreError,
    StoredAnswer, Waiting, Window,
};
use rusqlite::params;
use uuid::Uuid;

use super::blobs;
use super::desk::{Desk, Done};
use super::row::{Checked, Damage, JobRow, select_jobs};

/// A page of a list that is being made.
struct Listing<'a> {
    filter: &'a Filter,
    limit: usize,
    items: Vec<Job>,
    examined: usize,
    last: Option<JobId>,
    has_more: bool,
}

impl Listing<'_> {
    /// Whether another row is too many for it.
    fn is_full(&mut self) -> bool {
        self.has_more = self.items.len() == self.limit || self.examined == EXAMINED_MAX;
        self.has_more
    }
}

impl Desk<'_> {
    pub(crate) fn next(
        &mut self,
        lane: &Lane,
        after: Option<Place>,
        n: usize,
        now: Now,
    ) -> Done<Window> {
        let clock = self.index.clock();
        let (mut jobs, mut after) = (Vec::new(), after);
        loop {
            let wanted = n - jobs.len();
            let (first, due_at) = self.index.order.next(lane, after, wanted, clock, now);
            let is_end = first.len() < wanted;
            after = first.last().map(|(place, _)| *place).or(after);
            for (place, entry) in first {
                match self.row(entry.number)? {
                    Some(Ok(mut row)) => {
                        self.index.settle(&mut row);
                        jobs.push(self.waiting(&row, now));
                    }
                    // It cannot be started, and must not be met again each time. Whoever reads it
                    // is told; `llmq store check` finds it.
                    Some(Err(damage)) => {
                        tracing::error!(
                            row = damage.number,
                            what = damage.what,
                            queue = lane.queue,
                            "the row of a waiting job is damaged: it is not started"
                        );
                        self.index.drop_waiting(lane, place, entry);
                    }
                    None => self.index.drop_waiting(lane, place, entry),
                }
            }
            // A window that is not full says that nobody stands behind it.
            if is_end || jobs.len() >= n {
                return Ok(Window { jobs, due_at });
            }
        }
    }

    fn waiting(&self, row: &JobRow, now: Now) -> Waiting {
        let time = self
            .index
            .stood(row.queue)
            .queue_time(self.index.steady(now));
        let left = |deadline| WallTime::from_micros(deadline).since(time);
        Waiting {
            job: row.id,
            place: row.place,
            size: row.size,
            attempts: row.attempts,
            max_attempts: row.max_attempts,
            throttles: row.throttles,
            expires_at: row.deadline.map(|deadline| now.mono + left(deadline)),
        }
    }

    pub(crate) fn positions(&self, jobs: &[JobId]) -> Done<Vec<Option<Position>>> {
        let mut waiting = Vec::with_capacity(jobs.len());
        let mut waits = Vec::with_capacity(jobs.len());
        for job in jobs {
            let row = self.find(*job)?;
            let row = row.filter(|row| row.status == Status::Queued);
            waits.push(row.is_some());
            waiting.extend(row.map(|row| (self.index.lane(&row), row.place)));
        }
        let mut positions = self.index.order.positions(&waiting).into_iter();
        let of = |waits| if waits { positions.next() } else { None };
        Ok(waits.into_iter().map(of).collect())
    }

    pub(crate) fn read_job(&self, job: JobId) -> Done<Option<Job>> {
        match self.find(job)? {
            Some(row) => Ok(Some(self.job(&row)?)),
            None => Ok(None),
        }
    }

    pub(crate) fn read_body(&mut self, job: JobId) -> Done<Option<Bytes>> {
        match self.find(job)? {
            Some(row) => Ok(Some(self.blob(row.body)??)),
            None => Ok(None),
        }
    }

    pub(crate) fn read_answer(&mut self, job: JobId) -> Done<Option<StoredAnswer>> {
        let row = self.find(job)?;
        let Some(number) = row.and_then(|row| row.answer) else {
            return Ok(None);
        };
        let packed = self.blob(number)??;
        let answer = blobs::unpack(&packed);
        let damaged = || StoreError::damaged(format!("blob {number} holds no answer"));
        Ok(Some(answer.ok_or_else(damaged)?))
    }

    pub(crate) fn list(
        &self,
        filter: &Filter,
        after: Option<JobId>,
        limit: usize,
    ) -> Done<Page<Job>> {
        let mut listing = Listing {
            filter,
            limit: limit.min(PAGE_MAX),
            items: Vec::new(),
            examined: 0,
            last: None,
            has_more: false,
        };
        // No id is above this one; version 7 has fewer bits set.
        let after = after.map_or([0xff; 16], |after| *after.as_uuid().as_bytes());
        if self.index.unreadable.is_empty() {
            self.list_rows(&mut listing, after)?;
        } else {
            self.list_numbers(&mut listing, after)?;
        }
        Ok(Page {
            next: listing.last.filter(|_| listing.has_more),
            items: listing.items,
        })
    }

    fn list_rows(&self, listing: &mut Listing<'_>, after: [u8; 16]) -> rusqlite::Result<()> {
        let batch = listing.filter.batch;
        let mut query = match batch {
            None => self
                .connection
                .prepare_cached(select_jobs!("WHERE id < ?1 ORDER BY id DESC LIMIT ?2"))?,
            Some(_) => self.connection.prepare_cached(select_jobs!(
                "WHERE id < ?1 AND batch = (SELECT number FROM batches WHERE id = ?3)
                 ORDER BY id DESC LIMIT ?2"
            ))?,
        };
        let examined_max = EXAMINED_MAX as i64 + 1;
        let mut rows = match batch {
            None => query.query(params![after, examined_max])?,
            Some(batch) => query.query(params![after, examined_max, batch.as_uuid().as_bytes()])?,
        };
        while let Some(row) = rows.next()? {
            if listing.is_full() {
                break;
            }
            let row = JobRow::read(row)?;
            self.consider(listing, row);
        }
        Ok(())
    }

    /// The same by the indexes alone: some rows cannot be read.
    fn list_numbers(&self, listing: &mut Listing<'_>, after: [u8; 16]) -> rusqlite::Result<()> {
        let Some(batch) = listing.filter.batch else {
            let mut query = self.connection.prepare_cached(
                "SELECT number, id FROM jobs INDEXED BY sqlite_autoindex_jobs_1 WHERE id < ?1
                 ORDER BY id DESC LIMIT ?2",
            )?;
            let mut numbers = query.query(params![after, EXAMINED_MAX as i64 + 1])?;
            while let Some(row) = numbers.next()? {
                if listing.is_full() {
                    break;
                }
                let id = JobId::from_uuid(Uuid::from_bytes(row.get(1)?));
                listing.last = Some(id);
                match self.row(row.get(0)?)? {
                    Some(Err(damage)) => {
                        let id = damage.id.or(Some(id));
                        self.consider(listing, Err(Damage { id, ..damage }));
                    }
                    Some(row) => self.consider(listing, row),
                    None => {}
                }
            }
            return Ok(());
        };
        let mut query = self.connection.prepare_cached(
            "SELECT number FROM jobs INDEXED BY jobs_of_batch
             WHERE batch = (SELECT number FROM batches WHERE id = ?1)",
        )?;
        let mut numbers = query.query([batch.as_uuid().as_bytes()])?;
        let mut rows = Vec::new();
        while let Some(number) = numbers.next()? {
            rows.extend(self.row(number.get(0)?)?);
        }
        rows.sort_by_key(|row| row.as_ref().ok().map(|row| Reverse(row.id)));
        let is_behind = |row: &Checked| match row {
            Ok(row) => *row.id.as_uuid().as_bytes() < after,
            Err(_) => true,
        };
        for row in rows.into_iter().filter(is_behind) {
            if listing.is_full() {
                break;
            }
            self.consider(listing, row);
        }
        Ok(())
    }

    /// Takes a row into a list that is to be in it. A damaged one keeps nobody from the others;
    /// whoever asks for it by its id is told.
    fn consider(&self, listing: &mut Listing<'_>, row: Checked) {
        listing.examined += 1;
        let left_out = |damage: Damage| {
            let error = StoreError::from(damage);
            tracing::error!(%error, "a list leaves a row out");
        };
        let mut row = match row {
            Ok(row) => row,
            Err(damage) => return left_out(damage),
        };
        listing.last = Some(row.id);
        if !self.index.settle(&mut row) || !self.may_pass(listing.filter, &row) {
            return;
        }
        match self.job(&row) {
            Ok(job) if listing.filter.passes(&job) => listing.items.push(job),
            Ok(_) => {}
            Err(damage) => left_out(damage),
        }
    }

    /// Whether a row is worth turning into a job for this filter.
    fn may_pass(&self, filter: &Filter, row: &JobRow) -> bool {
        let is = |wanted: &Option<String>, number| {
            wanted
                .as_ref()
                .is_none_or(|wanted| self.index.names.find(wanted) == Some(number))
        };
        filter.status.is_none_or(|status| status == row.status)
            && is(&filter.queue, row.queue)
            && is(&filter.tenant, row.tenant)
            && filter
                .priority
                .is_none_or(|priority| priority == row.priority)
    }
}
