//! Housekeeping, in slices short enough to stand between other work.

use llmq_core::{Event, Now, Status, WallTime};
use llmq_store::{Moved, Tended};
use rusqlite::params;

use super::desk::{Desk, Done};
use super::index::{NEVER, of_status, second_of};
use super::row::{self, HAS_KEY, JobRow, select_jobs};
use super::{batches, blobs, events, outbox};

/// How many jobs one slice moves or removes.
const SLICE: usize = 500;

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
        let steady = self.index.steady(now);
        let before = steady.before(self.index.settings.keep_results);
        let keys = self.forget_old_keys(steady.before(self.index.settings.keep_idempotency))?;
        let oldest = steady.before(self.index.settings.keep_events);
        let events = events::let_go(self.connection, self.index, oldest, SLICE)?;
        let deliveries = outbox::let_go(self.connection, before, SLICE)?;
        batches::let_go(self.connection, self.index, before, SLICE)?;
        let parts = self.remove_files(now)?;
        let is_full = |count: usize| count >= SLICE;
        Ok(Tended {
            more: [moved.len(), purged, keys, deliveries, events]
                .into_iter()
                .any(is_full)
                || parts,
            moved,
            purged,
        })
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

    /// Waiting jobs whose time to start has passed expire. The lanes are looked at only in a
    /// second in which somebody's time can end.
    fn expire(&mut self, moved: &mut Vec<Moved>, now: Now) -> Done<()> {
        let steady = self.index.steady(now);
        let queues = self.index.queues.iter();
        let due = queues.filter_map(|(number, queue)| {
            let second = second_of(queue.stood.queue_time(steady).as_micros());
            (queue.earliest_end <= second).then_some((*number, second))
        });
        for (queue, second) in due.collect::<Vec<_>>() {
            let name = self.index.names.name(queue);
            let mut earliest = NEVER;
            let mut late = Vec::new();
            for entry in self.index.order.of_queue(&name) {
                if entry.ends <= second && late.len() + moved.len() < SLICE {
                    late.push(entry.number);
                } else {
                    earliest = earliest.min(entry.ends);
                }
            }
            for number in late {
                let Some(Ok(mut row)) = row::by_number(self.connection, number)? else {
                    continue;
                };
                if !self.index.settle(&mut row) {
                    continue;
                }
                if !self.is_late(&row, now) {
                    earliest = earliest.min(row.deadline.map_or(NEVER, second_of));
                    continue;
                }
                let job = row.id;
                let status = self.move_row(&mut row, Event::TtlPassed, now)?;
                let at = now.wall;
                moved.extend(status.map(|status| Moved { job, status, at }));
            }
            self.index.queue(queue).earliest_end = earliest;
        }
        Ok(())
    }

    /// Removes jobs that ended long enough ago, in the order in which they came: one that was
    /// accepted since cannot have ended before. What a batch is still to write is kept, and so is
    /// a job whose key may be used again.
    fn purge(&mut self, now: Now) -> Done<usize> {
        let settings = &self.index.settings;
        let (results, keys) = (settings.keep_results, settings.keep_idempotency);
        let here = self.index.steady(now).min(now.wall);
        let before = here.before(results);
        let before_keys = here.before(results.max(keys));
        let (rows, is_end) = self.next_old_rows(before, now)?;
        let mut purged = 0;
        for row in rows {
            let has_key = row.flags & HAS_KEY != 0;
            let before = if has_key { before_keys } else { before };
            let is_old = row.finished_at.is_some_and(|at| at <= before.as_micros());
            if is_old && !self.is_awaited(&row) {
                self.delete(row.number, row.body, row.answer)?;
                let status = row.status;
                self.index.count(row.queue, |counts| {
                    let count = of_status(counts, status);
                    *count = count.saturating_sub(1);
                });
                purged += 1;
            }
            self.index.purged_to = row.number;
        }
        if is_end {
            self.index.purged_to = 0;
        }
        Ok(purged)
    }

    /// The next rows that may be old enough, and whether there are no more.
    fn next_old_rows(&self, before: WallTime, now: Now) -> rusqlite::Result<(Vec<JobRow>, bool)> {
        // Accepted by a clock that ran ahead: it says nothing of those behind.
        let is_possible = |at: i64| at <= now.wall.as_micros();

        let mut query = self
            .connection
            .prepare_cached(select_jobs!("WHERE number > ?1 ORDER BY number LIMIT ?2"))?;
        let mut found = query.query(params![self.index.purged_to, SLICE as i64])?;
        let mut rows = Vec::new();
        let mut seen = 0;
        while let Some(row) = found.next()? {
            seen += 1;
            // A damaged row stays for whoever looks into it.
            let Ok(row) = JobRow::read(row)? else {
                continue;
            };
            if row.created_at > before.as_micros() && is_possible(row.created_at) {
                return Ok((rows, true));
            }
            rows.push(row);
        }
        Ok((rows, seen < SLICE))
    }

    fn forget_old_keys(&self, before: WallTime) -> rusqlite::Result<usize> {
        let mut delete = self.connection.prepare_cached(
            "DELETE FROM idempotency WHERE (tenant, key) IN
               (SELECT tenant, key FROM idempotency WHERE used_at <= ?1 ORDER BY used_at LIMIT ?2)",
        )?;
        delete.execute(params![before.as_micros(), SLICE as i64])
    }

    /// Removes parts of files that are to be removed. Whether there are more.
    fn remove_files(&mut self, now: Now) -> Done<bool> {
        let mut expire = self.connection.prepare_cached(
            "UPDATE files SET state = 2, sum = checksum(id, tenant, 2, expires_at, data)
                 WHERE state = 1 AND expires_at <= ?1",
        )?;
        expire.execute([now.wall.as_micros()])?;
        let mut query = self.connection.prepare_cached(
            "SELECT files.id, chunk, blob FROM files
             LEFT JOIN file_chunks ON file_chunks.file = files.id WHERE state = 2 LIMIT ?1",
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

/// Whether a status is one of a job that has not ended.
pub(crate) fn is_open(status: Status) -> bool {
    !status.is_final()
}
