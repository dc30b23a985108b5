//! Queues: what was decided about them, and their counts.

use std::time::Duration;

use llmq_core::{Now, WallTime};
use llmq_store::{Counts, EventKind, NewEvent, Queue, QueueState, Stood, Subject};
use rusqlite::{Connection, params};

use super::desk::{Desk, Done};
use super::index::QueueEntry;

pub(crate) fn write(
    connection: &Connection,
    number: i64,
    queue: &QueueEntry,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT OR REPLACE INTO queues (queue, paused, drains, stood, stands_since, queued,
           processing, completed, failed, expired, cancelled, bytes, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12,
           checksum(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12))",
    )?;
    let counts = &queue.counts;
    let stood = i64::try_from(queue.stood.total.as_micros()).unwrap_or(i64::MAX);
    statement.execute(params![
        number,
        queue.state.paused,
        queue.state.drains,
        stood,
        queue.stood.since.map(WallTime::as_micros),
        counts.queued.cast_signed(),
        counts.processing.cast_signed(),
        counts.completed.cast_signed(),
        counts.failed.cast_signed(),
        counts.expired.cast_signed(),
        counts.cancelled.cast_signed(),
        counts.bytes.cast_signed(),
    ])?;
    Ok(())
}

/// All queues, and whether their rows are whole. One that stood because of a quota goes again, and its time until now has stood.
pub(crate) fn load(
    connection: &Connection,
    now: WallTime,
) -> rusqlite::Result<Vec<(i64, QueueEntry, bool)>> {
    let mut query = connection.prepare(
        "SELECT queue, paused, drains, stood, stands_since, queued, processing, completed, failed,
           expired, cancelled, bytes,
           sum IS checksum(queue, paused, drains, stood, stands_since, queued, processing,
             completed, failed, expired, cancelled, bytes)
         FROM queues",
    )?;
    let rows = query.query_map([], |row| {
        let count = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        let state = QueueState {
            paused: row.get(1)?,
            parked: false,
            drains: row.get(2)?,
        };
        let mut stood = Stood {
            total: Duration::from_micros(count(3)?),
            since: row.get::<_, Option<i64>>(4)?.map(WallTime::from_micros),
        };
        stood.set(state.stands(), now);
        let counts = Counts {
            queued: count(5)?,
            processing: count(6)?,
            completed: count(7)?,
            failed: count(8)?,
            expired: count(9)?,
            cancelled: count(10)?,
            bytes: count(11)?,
        };
        let queue = QueueEntry {
            state,
            stood,
            counts,
            ..QueueEntry::default()
        };
        Ok((row.get(0)?, queue, row.get(12)?))
    })?;
    rows.collect()
}

impl Desk<'_> {
    pub(crate) fn set_queue(&mut self, name: &str, new: QueueState, now: Now) -> Done<QueueState> {
        let number = self.index.names.number(self.connection, name)?;
        let steady = self.index.steady(now);
        let queue = self.index.queue(number);
        let before = std::mem::replace(&mut queue.state, new);
        queue.stood.set(new.stands(), steady);
        queue.is_dirty = true;
        if before.paused != new.paused {
            let kind = if new.paused {
                EventKind::PAUSED
            } else {
                EventKind::RESUMED
            };
            let event = NewEvent {
                kind: kind.to_owned(),
                tenant: None,
                subject: Subject::Queue(name.to_owned()),
                data: serde_json::Value::Null,
            };
            self.tell(&event, now)?;
        }
        Ok(before)
    }

    pub(crate) fn queues(&self) -> Vec<Queue> {
        let queue = |(number, queue): (&i64, &QueueEntry)| Queue {
            name: self.index.names.name(*number).to_string(),
            state: queue.state,
            counts: queue.counts,
        };
        let mut queues: Vec<_> = self.index.queues.iter().map(queue).collect();
        queues.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        queues
    }
}
