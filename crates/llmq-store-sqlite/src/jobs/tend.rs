//! Housekeeping, in slices short enough to stand between other work. It removes no row that is not
//! what was written: whoever looks into the damage finds it.

use llmq_core::{Event, Now, WallTime};
use llmq_store::{Moved, Tended};
use rusqlite::params;

use super::desk::{Desk, Done, Fault};
use super::index::{of_status, second_of};
use super::row::{HAS_KEY, JobRow, select_jobs};
use super::unreadable::Spot;
use super::{batches, blobs, events};

/// How many jobs one slice moves or removes.
const SLICE: usize = 500;

/// How many numbers one slice of the purge looks for where pages are damaged.
const NUMBERS: i64 = 4_000;

/// How many parts of removed files one slice removes: they have up to 1 MiB each.
const FILE_PARTS: i64 = 16;

impl Desk<'_> {
    pub(crate) fn tend(&mut self, now: Now) -> Done<Tended> {
        let mut moved = Vec::new();
        for job in self.silent(now) {
            moved.extend(self.lose(job, now)?);
        }
        self.expire(&mut moved, now)?;
        let purged = self.purge(now)?;
        let (steady, here) = (self.index.steady(now), self.index.no_later(now));
        let keys = steady.before(self.index.settings.keep_idempotency);
        let keys = self.part("idempotency", |desk| Ok(desk.forget_old_keys(keys)?))?;
        let oldest = here.before(self.index.settings.keep_events);
        let events = self.part("event_log", |desk| {
            let let_go = events::let_go(desk.connection, desk.index, oldest, SLICE);
            Ok(let_go?)
        })?;
        let deliveries = self.part("deliveries", |desk| desk.let_go_of_deliveries(SLICE, now))?;
        let before = here.before(self.index.settings.keep_results);
        self.part("batches", |desk| {
            batches::let_go(desk.connection, desk.index, before, SLICE)?;
            Ok(())
        })?;
        let parts = self.part("files", |desk| desk.remove_files(now))?;
        let staged = self.part("stages", Self::tend_given_up)?;
        let is_full = |count: usize| count >= SLICE;
        // Some of a slice may have to stay; if most of it can go, those behind do not wait.
        let purges_on = purged >= SLICE / 2;
        Ok(Tended {
            more: [moved.len(), keys, events].into_iter().any(is_full)
                || purges_on
                || deliveries
                || parts
                || staged,
            moved,
            purged,
        })
    }

    /// One part of housekeeping, by the table that it goes through. One that met a damaged page is
    /// left out from then on, and keeps no other from being done.
    fn part<T: Default>(
        &mut self,
        table: &'static str,
        tend: impl FnOnce(&mut Self) -> Done<T>,
    ) -> Done<T> {
        let spot = Spot::Tended(table);
        if self.index.unreadable.avoids(spot) {
            return Ok(T::default());
        }
        let done = tend(self);
        if let Err(Fault::Broken(error)) = &done {
            self.index.unreadable.met(spot, error);
            if self.index.unreadable.avoids(spot) {
                tracing::error!(
                    table,
                    "a page is damaged: nothing old is removed from there"
                );
            }
        }
        done
    }

    /// Leases without a sign of life for their length, as many as a slice takes.
    fn silent(&self, now: Now) -> Vec<llmq_store::JobId> {
        let leases = self.index.leases.iter();
        let silent = leases.filter(|(_, held)| now.mono - held.alive_at >= held.length);
        let mut jobs: Vec<_> = silent.map(|(job, _)| *job).collect();
        jobs.sort_unstable();
        jobs.truncate(SLICE);
        jobs
    }

    /// Waiting jobs whose time to start has passed expire, as many as a slice takes.
    fn expire(&mut self, moved: &mut Vec<Moved>, now: Now) -> Done<()> {
        let steady = self.index.steady(now);
        let queues: Vec<i64> = self.index.queues.keys().copied().collect();
        for queue in queues {
            let time = self.index.stood(queue).queue_time(steady).as_micros();
            self.find_late(queue, second_of(time))?;
            while moved.len() < SLICE
                && let Some((deadline, number)) = self.index.queue(queue).late.jobs.first().copied()
                && deadline <= time
            {
                self.index.queue(queue).late.jobs.pop_first();
                let Some(Ok(mut row)) = self.row(number)? else {
                    continue;
                };
                // It may have been started since, or stand in another second again.
                if !self.index.settle(&mut row) || !self.is_late(&row, now) {
                    continue;
                }
                let job = row.id;
                let status = self.move_row(&mut row, Event::TtlPassed, now)?;
                let at = now.wall;
                moved.extend(status.map(|status| Moved { job, status, at }));
            }
        }
        Ok(())
    }

    /// Looks once for all whose time ends in a second that has come; the order is walked no
    /// further than to the last of them.
    fn find_late(&mut self, queue: i64, second: u32) -> Done<()> {
        let Some(entry) = self.index.queues.get(&queue) else {
            return Ok(());
        };
        let count = entry.to_look_for(second);
        if count == 0 {
            return Ok(());
        }
        let wanted = entry.late.from()..=second;
        let name = self.index.names.name(queue);
        let waiting = self.index.order.of_queue(&name);
        let late = waiting.filter(|entry| wanted.contains(&entry.ends));
        let late: Vec<_> = late.take(count).collect();
        let mut found = Vec::with_capacity(late.len());
        for entry in late {
            // In a second that has not passed, the row says when exactly.
            let deadline = if entry.ends < second {
                i64::from(entry.ends) * 1_000_000
            } else {
                match self.row(entry.number)? {
                    Some(Ok(mut row)) => {
                        self.index.settle(&mut row);
                        row.deadline.unwrap_or(i64::MAX)
                    }
                    _ => continue,
                }
            };
            found.push((deadline, entry.number));
        }
        self.index.queue(queue).late.found(second, found);
        Ok(())
    }

    /// Removes jobs that ended long enough ago, in the order in which they came: one that was
    /// accepted since cannot have ended before. What a batch is still to write is kept, and so is
    /// a job whose key may be used again.
    fn purge(&mut self, now: Now) -> Done<usize> {
        let settings = &self.index.settings;
        let (results, keys) = (settings.keep_results, settings.keep_idempotency);
        let here = self.index.no_later(now);
        let before = here.before(results);
        let before_keys = here.before(results.max(keys));
        let (rows, to) = self.next_old_rows(before, now)?;
        let mut purged = 0;
        for row in rows {
            let has_key = row.flags & HAS_KEY != 0;
            let before = if has_key { before_keys } else { before };
            let is_old = row.finished_at.is_some_and(|at| at <= before.as_micros());
            if is_old && !self.is_awaited(&row)? {
                let deleted = self.delete(row.number, row.body, row.answer);
                self.unless_stuck(row.number, deleted)?;
                let status = row.status;
                self.index.count(row.queue, |counts| {
                    let count = of_status(counts, status);
                    *count = count.saturating_sub(1);
                });
                purged += 1;
            }
        }
        self.index.purged_to = to.unwrap_or(0);
        Ok(purged)
    }

    /// The next rows that may be old enough, and the number behind which the next slice begins;
    /// none if there are no more.
    fn next_old_rows(
        &self,
        before: WallTime,
        now: Now,
    ) -> rusqlite::Result<(Vec<JobRow>, Option<i64>)> {
        // Accepted by a clock that ran ahead: it says nothing of those behind.
        let is_possible = |at: i64| at <= now.wall.as_micros();
        let is_young =
            |row: &JobRow| row.created_at > before.as_micros() && is_possible(row.created_at);
        let (mut rows, mut to) = (Vec::new(), self.index.purged_to);
        if !self.index.unreadable.is_empty() {
            // No step leads from a row to one on a damaged page.
            let last = self.index.last_number;
            let end = last.min(to + NUMBERS);
            while to < end && rows.len() < SLICE {
                to += 1;
                match self.row(to)? {
                    Some(Ok(row)) if is_young(&row) => return Ok((rows, None)),
                    Some(Ok(row)) => rows.push(row),
                    _ => {}
                }
            }
            return Ok((rows, (to < last).then_some(to)));
        }
        let mut query = self
            .connection
            .prepare_cached(select_jobs!("WHERE number > ?1 ORDER BY number LIMIT ?2"))?;
        let mut found = query.query(params![to, SLICE as i64])?;
        let mut seen = 0;
        while let Some(row) = found.next()? {
            seen += 1;
            to = row.get(0)?;
            // A damaged row stays for whoever looks into it.
            let Ok(row) = JobRow::read(row)? else {
                continue;
            };
            if is_young(&row) {
                return Ok((rows, None));
            }
            rows.push(row);
        }
        Ok((rows, (seen == SLICE).then_some(to)))
    }

    fn forget_old_keys(&self, before: WallTime) -> rusqlite::Result<usize> {
        let mut delete = self.connection.prepare_cached(
            "DELETE FROM idempotency WHERE (tenant, key) IN
               (SELECT tenant, key FROM idempotency
                WHERE used_at <= ?1 AND sum IS checksum(tenant, key, hash, job, used_at)
                ORDER BY used_at LIMIT ?2)",
        )?;
        delete.execute(params![before.as_micros(), SLICE as i64])
    }

    /// Removes parts of files that are to be removed. Whether there are more.
    fn remove_files(&mut self, now: Now) -> Done<bool> {
        let mut expire = self.connection.prepare_cached(
            "UPDATE files SET state = 2, sum = checksum(id, tenant, 2, expires_at, data)
                 WHERE state = 1 AND expires_at <= ?1
                   AND sum IS checksum(id, tenant, state, expires_at, data)",
        )?;
        expire.execute([self.index.no_later(now).as_micros()])?;
        let mut query = self.connection.prepare_cached(
            "SELECT files.id, chunk, blob FROM files
             LEFT JOIN file_chunks ON file_chunks.file = files.id
             WHERE state = 2
               AND files.sum IS checksum(files.id, files.tenant, state, expires_at, files.data)
             LIMIT ?1",
        )?;
        let parts = query.query_map([FILE_PARTS], |row| {
            Ok((
                row.get::<_, [u8; 16]>(0)?,
                row.get::<_, Option<i64>>(1)?,
                row.get::<_, Option<i64>>(2)?,
            ))
        })?;
        let parts = parts.collect::<rusqlite::Result<Vec<_>>>()?;
        for (file, chunk, blob) in &parts {
            if let (Some(chunk), Some(blob)) = (chunk, blob) {
                let delete = "DELETE FROM file_chunks WHERE file = ?1 AND chunk = ?2";
                let mut delete = self.connection.prepare_cached(delete)?;
                delete.execute(params![file, chunk])?;
                blobs::delete(self.connection, *blob)?;
            } else {
                let delete = "DELETE FROM files WHERE id = ?1";
                self.connection.prepare_cached(delete)?.execute([file])?;
            }
        }
        Ok(!parts.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use llmq_store::{Jobs as _, NewJob, Reads as _};

    use super::*;
    use crate::writer::Access;
    use crate::{Place, Store};

    /// How many were found late and wait for their slice, and how many are to be looked for.
    async fn late(store: &Store, now: Now) -> (usize, usize) {
        let late = store.desk(Access::Read, move |desk| -> Done<(usize, usize)> {
            let second = second_of(desk.index.steady(now).as_micros());
            let queues = desk.index.queues.values();
            let late = queues.map(|queue| (queue.late.jobs.len(), queue.to_look_for(second)));
            Ok(late.fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1)))
        });
        let Ok(late) = late.await.unwrap();
        late
    }

    #[tokio::test]
    async fn one_walk_finds_all_whose_time_has_passed() {
        let now = Now::default().after(Duration::from_secs(77));
        let store = Store::open(&Place::Memory, now.wall).unwrap();
        let mortal = |n: usize| NewJob {
            ttl: (!n.is_multiple_of(3)).then_some(Duration::from_millis(10_500 + n as u64 % 3)),
            ..NewJob::new("m", "t", "{}")
        };
        store
            .enqueue((0..1800).map(mortal).collect(), now)
            .await
            .unwrap();
        let early = now.after(Duration::from_millis(10_499));
        assert!(store.tend(early).await.unwrap().moved.is_empty());
        assert_eq!(late(&store, early).await, (1200, 0), "all of that second");
        let passed = now.after(Duration::from_secs(60));
        let tended = store.tend(passed).await.unwrap();
        assert_eq!((tended.moved.len(), tended.more), (500, true));
        assert_eq!(
            late(&store, passed).await,
            (700, 0),
            "nothing is walked again"
        );
        for left in [200, 0, 0] {
            store.tend(passed).await.unwrap();
            assert_eq!(late(&store, passed).await, (left, 0));
        }
        let counts = store.counts().await.unwrap();
        assert_eq!((counts.expired, counts.queued), (1200, 600));
        // One that is handed in with less time than there is left of its second.
        let mut job = NewJob::new("m", "t", "{}");
        job.ttl = Some(Duration::from_millis(1));
        store.enqueue(vec![job], passed).await.unwrap();
        let tended = store.tend(passed.after(Duration::from_millis(1))).await;
        assert_eq!(tended.unwrap().moved.len(), 1);
    }
}
