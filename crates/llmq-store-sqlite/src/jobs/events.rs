//! The log of events. Those of one transaction are one row, and an event of a job takes 46 bytes
//! of it: at full speed there are three for each job.

use llmq_core::{Status, WallTime};
use llmq_store::{EventId, EventKind, EventPage, JobId, NewEvent, StoredEvent, Subject};
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::index::Index;
use super::names::Names;
use super::row::{JobRow, status_number, status_of};

/// Events on their way into the log.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    bytes: Vec<u8>,
    count: u64,
}

/// The events of jobs, by their number in the log.
const JOB_KINDS: [&str; 7] = [
    EventKind::QUEUED,
    EventKind::STARTED,
    EventKind::REQUEUED,
    "request.completed",
    "request.failed",
    "request.expired",
    "request.cancelled",
];

/// How long the event of a job is: kind, time, status, attempts, queue, tenant and id.
const JOB_EVENT_BYTES: usize = 1 + 8 + 1 + 4 + 8 + 8 + 16;

/// Marks an event that is kept as JSON.
const AS_JSON: u8 = 255;

/// The event of where a job stands now, by its number.
pub(crate) fn kind_of(row: &JobRow) -> usize {
    match row.status {
        Status::Queued if row.started_at.is_none() => 0,
        Status::Queued => 2,
        Status::Processing => 1,
        Status::Completed => 3,
        Status::Failed => 4,
        Status::Expired => 5,
        Status::Cancelled => 6,
    }
}

/// An event of a job, as it is packed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobEvent {
    pub(crate) kind: usize,
    pub(crate) status: Status,
    pub(crate) attempts: u32,
    pub(crate) queue: i64,
    pub(crate) tenant: i64,
    pub(crate) id: JobId,
}

impl From<&JobRow> for JobEvent {
    fn from(row: &JobRow) -> Self {
        Self {
            kind: kind_of(row),
            status: row.status,
            attempts: row.attempts,
            queue: row.queue,
            tenant: row.tenant,
            id: row.id,
        }
    }
}

impl JobEvent {
    pub(crate) fn unpacked(self, names: &Names) -> NewEvent {
        NewEvent {
            kind: JOB_KINDS
                .get(self.kind)
                .copied()
                .unwrap_or_default()
                .to_owned(),
            tenant: Some(names.name(self.tenant).to_string()),
            subject: Subject::Job {
                id: self.id,
                queue: names.name(self.queue).to_string(),
                status: self.status,
                attempts: self.attempts,
            },
            data: serde_json::Value::Null,
        }
    }
}

impl Packed {
    pub(crate) fn push_job(&mut self, event: JobEvent, at: WallTime) {
        let kind = u8::try_from(event.kind).unwrap_or(AS_JSON);
        self.bytes.push(kind);
        self.bytes.extend_from_slice(&at.as_micros().to_le_bytes());
        self.bytes.push(status_number(event.status));
        self.bytes.extend_from_slice(&event.attempts.to_le_bytes());
        self.bytes.extend_from_slice(&event.queue.to_le_bytes());
        self.bytes.extend_from_slice(&event.tenant.to_le_bytes());
        self.bytes.extend_from_slice(event.id.as_uuid().as_bytes());
        self.count += 1;
    }

    pub(crate) fn push(&mut self, event: &NewEvent, at: WallTime) {
        let json = serde_json::to_vec(event).unwrap_or_default();
        let length = u32::try_from(json.len()).unwrap_or(0);
        self.bytes.push(AS_JSON);
        self.bytes.extend_from_slice(&at.as_micros().to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&json);
        self.count += 1;
    }

    /// Writes them as one row that ends with event `last`.
    pub(crate) fn write(
        &mut self,
        connection: &Connection,
        last: u64,
        at: WallTime,
    ) -> rusqlite::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let last = last.cast_signed();
        let mut insert = connection.prepare_cached(
            "INSERT INTO event_log (last, count, at, packed, sum)
             VALUES (?1, ?2, ?3, ?4, checksum(?1, ?2, ?3, ?4))",
        )?;
        insert.execute(params![
            last,
            self.count.cast_signed(),
            at.as_micros(),
            self.bytes
        ])?;
        self.bytes.clear();
        self.count = 0;
        Ok(())
    }
}

/// The first `max` events behind `after`.
pub(crate) fn read(
    connection: &Connection,
    index: &Index,
    after: EventId,
    max: usize,
) -> rusqlite::Result<EventPage> {
    if after.0 + 1 < index.oldest_event {
        let oldest = EventId(index.oldest_event);
        return Ok(EventPage::Gap { oldest });
    }
    let mut events = Vec::new();
    let mut query = connection.prepare_cached(
        "SELECT last, count, packed, sum IS checksum(last, count, at, packed) FROM event_log
         WHERE last > ?1 ORDER BY last",
    )?;
    let mut rows = query.query([after.0.cast_signed()])?;
    while events.len() < max
        && let Some(row) = rows.next()?
    {
        let last: i64 = row.get(0)?;
        let first = (last - row.get::<_, i64>(1)? + 1).cast_unsigned();
        let packed = row.get_ref(2)?.as_blob()?;
        let is_whole: bool = row.get(3)?;
        let wanted = max - events.len();
        let unpacked = is_whole.then(|| unpack(packed, first, after, wanted, &index.names));
        let Some(unpacked) = unpacked.flatten() else {
            if !events.is_empty() {
                break;
            }
            // Whoever listens hears that some are lost.
            tracing::error!(up_to = last, "events are damaged: the checksum is wrong");
            let oldest = EventId(last.cast_unsigned() + 1);
            return Ok(EventPage::Gap { oldest });
        };
        events.extend(unpacked);
    }
    Ok(EventPage::Events(events))
}

/// All events that are kept, oldest first; of a row that is not what was written, its number.
pub(crate) fn all(
    connection: &Connection,
    names: &Names,
) -> rusqlite::Result<Vec<Result<StoredEvent, i64>>> {
    let mut events = Vec::new();
    let mut query = connection.prepare(
        "SELECT last, count, packed, sum IS checksum(last, count, at, packed) FROM event_log
             ORDER BY last",
    )?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let last: i64 = row.get(0)?;
        let first = (last - row.get::<_, i64>(1)? + 1).cast_unsigned();
        let packed = row.get_ref(2)?.as_blob()?;
        let is_whole: bool = row.get(3)?;
        let unpacked = is_whole.then(|| unpack(packed, first, EventId(0), usize::MAX, names));
        match unpacked.flatten() {
            Some(unpacked) => events.extend(unpacked.into_iter().map(Ok)),
            None => events.push(Err(last)),
        }
    }
    Ok(events)
}

/// The first `max` events behind `after` of a row that begins with event `first`. Those before are
/// passed over and not made: a row may hold ten thousand, and is read page by page.
fn unpack(
    mut packed: &[u8],
    first: u64,
    after: EventId,
    max: usize,
    names: &Names,
) -> Option<Vec<StoredEvent>> {
    let mut events = Vec::new();
    let mut id = EventId(first);
    while !packed.is_empty() && events.len() < max {
        let is_passed = id <= after;
        let kind = take::<1>(&mut packed)?[0];
        if kind != AS_JSON && is_passed {
            packed = packed.get(JOB_EVENT_BYTES - 1..)?;
        } else {
            let at = WallTime::from_micros(i64::from_le_bytes(take(&mut packed)?));
            let event = if kind == AS_JSON {
                let length = u32::from_le_bytes(take(&mut packed)?);
                let (json, rest) = packed.split_at_checked(usize::try_from(length).ok()?)?;
                packed = rest;
                let parsed = || serde_json::from_slice(json).ok();
                if is_passed { None } else { Some(parsed()?) }
            } else {
                let event = JobEvent {
                    kind: usize::from(kind),
                    status: status_of(take::<1>(&mut packed)?[0])?,
                    attempts: u32::from_le_bytes(take(&mut packed)?),
                    queue: i64::from_le_bytes(take(&mut packed)?),
                    tenant: i64::from_le_bytes(take(&mut packed)?),
                    id: JobId::from_uuid(Uuid::from_bytes(take(&mut packed)?)),
                };
                Some(event.unpacked(names))
            };
            events.extend(event.map(|event| StoredEvent { id, at, event }));
        }
        id.0 += 1;
    }
    Some(events)
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*taken)
}

/// Lets go of events that were kept long enough, but for the newest row: it says how far the
/// numbers have come. A damaged row stays, and those behind go without it. How many rows.
pub(crate) fn let_go(
    connection: &Connection,
    index: &mut Index,
    before: WallTime,
    rows_max: usize,
) -> rusqlite::Result<usize> {
    let surplus = index.last_event.saturating_sub(index.settings.max_events);
    let mut query = connection.prepare_cached(
        "SELECT last, count, at FROM event_log
         WHERE sum IS checksum(last, count, at, packed) ORDER BY last LIMIT ?1",
    )?;
    let mut rows = query.query([rows_max as i64 + 1])?;
    let mut let_go = None;
    while let Some(row) = rows.next()? {
        let last: i64 = row.get(0)?;
        let at: i64 = row.get(2)?;
        let is_old = at <= before.as_micros() || last.cast_unsigned() <= surplus;
        if !is_old || last.cast_unsigned() == index.last_event {
            index.oldest_event = (last - row.get::<_, i64>(1)? + 1).cast_unsigned();
            break;
        }
        let_go = Some(last);
        index.oldest_event = last.cast_unsigned() + 1;
    }
    if let Some(last) = let_go {
        let mut delete = connection.prepare_cached(
            "DELETE FROM event_log
             WHERE last <= ?1 AND sum IS checksum(last, count, at, packed)",
        )?;
        return delete.execute([last]);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job_event(attempts: u32) -> JobEvent {
        JobEvent {
            kind: 0,
            status: Status::Queued,
            attempts,
            queue: 1,
            tenant: 2,
            id: JobId::new(),
        }
    }

    /// Each page of a row of ten thousand made all of them, on the writer's thread.
    #[test]
    fn a_page_of_a_large_row_makes_no_more_events_than_it_has() {
        let (at, names) = (WallTime::from_micros(7), Names::default());
        let other = NewEvent {
            kind: "queue.paused".to_owned(),
            tenant: None,
            subject: Subject::Queue("m".to_owned()),
            data: serde_json::json!({"a": 1}),
        };
        let mut packed = Packed::default();
        for n in 0..1_000 {
            match n % 10 {
                3 => packed.push(&other, at),
                _ => packed.push_job(job_event(n), at),
            }
        }
        let all = unpack(&packed.bytes, 50, EventId(0), usize::MAX, &names).unwrap();
        assert_eq!(all.len(), 1_000);
        let mut paged = Vec::new();
        let mut after = EventId(0);
        loop {
            let page = unpack(&packed.bytes, 50, after, 256, &names).unwrap();
            assert!(page.len() <= 256);
            let Some(last) = page.last() else { break };
            after = last.id;
            paged.extend(page);
        }
        assert_eq!(paged, all);
        // Nor is what stands behind a page looked at.
        let mut behind = packed.bytes.clone();
        let last = behind.len() - 1;
        behind.truncate(last);
        assert!(unpack(&behind, 50, EventId(0), usize::MAX, &names).is_none());
        let page = unpack(&behind, 50, EventId(0), 256, &names);
        assert_eq!(page.unwrap(), all[..256]);
        let ids: Vec<u64> = all.iter().map(|event| event.id.0).collect();
        assert_eq!(ids, (50..1_050).collect::<Vec<_>>());
        // What is passed over of a row that is cut is damage too.
        let cut = &packed.bytes[..packed.bytes.len() - 1];
        assert_eq!(unpack(cut, 50, EventId(10_000), 256, &names), None);
    }
}
