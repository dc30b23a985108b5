//! What the writer knows, rebuilt from the file.

use std::collections::{HashMap, HashSet};

use llmq_core::{Priority, Status, WallTime};
use llmq_store::{Counts, Lane, Settings};
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::backlog::Backlog;
use super::index::{Index, NEVER, Stage, Staged, of_status, second_of};
use super::names::Names;
use super::row::{self, Checked, JobRow, UNREADABLE, select_jobs};
use super::unreadable::{Lost, Unreadable};
use super::{blobs, outbox, queues, unreadable};
use crate::error::is_damage;
use crate::sums::expect_whole;

/// What was found when a store was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opened {
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that ran when the store was last used.
    pub processing: u64,
    /// Rows of inserts that were never finished, and were removed.
    pub unpublished: u64,
    /// What is wrong with the file, in words for people, each with what follows from it.
    pub findings: Vec<String>,
}

/// How many findings are kept word for word.
const FINDINGS_MAX: usize = 20;

/// The layouts from which on a store has an id, and a sum of it.
const HAS_ID: u32 = 2;
const HAS_SUM_OF_ID: u32 = 6;

/// What follows for a job that waits or runs and cannot be read.
pub(crate) const NOT_STARTED: &str = "it is not started, and whoever asks for it is told";

impl Opened {
    pub(crate) fn find(&mut self, finding: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else if self.findings.len() == FINDINGS_MAX {
            self.findings
                .push("and more: run `llmq store check`".to_owned());
        }
    }
}

/// What a row says of its lane.
type LaneOf = (i64, i64, Priority, Option<Uuid>);

/// What comes of the jobs that are read.
struct Reading<'a> {
    counts: &'a mut HashMap<i64, Counts>,
    opened: &'a mut Opened,
    unpublished: Vec<JobRow>,
    /// Neighbours are mostly of one lane, and a name is not looked up a million times.
    lane: Option<(LaneOf, Lane)>,
}

impl Index {
    /// Reads all that has not ended, checks each row of it, and removes what was never published.
    /// A damaged page costs the rows on it alone; `unreadable` are those that are known already.
    ///
    /// `under_way` are the stages of large inserts that go on though a transaction failed; `None`
    /// when the store is opened. Their rows are kept, and the staged members of batches as long as
    /// their process lives.
    pub(crate) fn load(
        connection: &Connection,
        settings: Settings,
        under_way: Option<&[i64]>,
        unreadable: Unreadable,
        now: WallTime,
    ) -> rusqlite::Result<(Self, Opened)> {
        // In no transaction: one in which damage was met cannot be written to any more.
        let loaded = match Self::read_all(connection, settings.clone(), unreadable.clone(), now) {
            Err(error) if is_damage(&error) => {
                let found = Unreadable::look(connection)?;
                if found.is_empty() {
                    return Err(error);
                }
                let unreadable = found.and_met(&unreadable);
                Self::read_all(connection, settings, unreadable, now)
            }
            read => read,
        };
        let (mut index, mut opened, unpublished) = loaded?;
        let batches = Batches::read(connection, &index, &unpublished)?;
        let transaction = connection.unchecked_transaction()?;
        let unpublished = index.keep_staged(unpublished, under_way, &batches);
        index.remove_unpublished(
            connection,
            &unpublished,
            under_way.unwrap_or_default(),
            &batches,
        )?;
        if under_way.is_none() {
            // Parts of files that nobody finished; batches write theirs again.
            connection.execute(
                "UPDATE files SET state = 2, sum = checksum(id, tenant, 2, expires_at, data)
                 WHERE state = 0 AND sum IS checksum(id, tenant, state, expires_at, data)",
                [],
            )?;
        }
        transaction.commit()?;
        opened.unpublished = unpublished.len() as u64;
        Ok((index, opened))
    }

    /// Reads what has not ended; also answers the rows that were never published.
    fn read_all(
        connection: &Connection,
        settings: Settings,
        unreadable: Unreadable,
        now: WallTime,
    ) -> rusqlite::Result<(Self, Opened, Vec<JobRow>)> {
        let mut index = Self {
            settings,
            names: Names::load(connection)?,
            unreadable,
            ..Self::default()
        };
        let mut opened = Opened::default();
        for (number, queue, is_whole) in queues::load(connection, now)? {
            if !is_whole {
                opened.find(format!(
                    "the row of queue {} is damaged: its pause and the counts of what ended are \
                     as they read",
                    index.names.name(number)
                ));
            }
            index.queues.insert(number, queue);
        }
        for number in index.names.damaged() {
            opened.find(format!(
                "row {number} of names is damaged: whose name it was, queue, tenant or upstream, \
                 is lost"
            ));
        }
        let (endpoints, damaged) = outbox::load(connection)?;
        for endpoint in endpoints {
            index.endpoints.insert(endpoint.id, endpoint);
        }
        index.backlog = Backlog::load(connection, index.endpoints.values())?;
        if damaged > 0 {
            opened.find(format!(
                "{damaged} rows of webhook_endpoints are damaged: nothing is delivered to these"
            ));
        }
        index.load_stages(connection, now, &mut opened)?;
        index.load_numbers(connection)?;
        let mut counts = HashMap::new();
        let unpublished = index.load_jobs(connection, &mut counts, &mut opened)?;
        index.compare(counts, &mut opened);
        Ok((index, opened, unpublished))
    }

    fn load_stages(
        &mut self,
        connection: &Connection,
        now: WallTime,
        opened: &mut Opened,
    ) -> rusqlite::Result<()> {
        let mut query = connection.prepare(
            "SELECT number, published_at, shift, sum IS checksum(number, published_at, shift)
             FROM stages",
        )?;
        let rows = query.query_map([], |row| {
            let stage = Stage {
                is_published: row.get::<_, Option<i64>>(1)?.is_some(),
                shift: row.get(2)?,
                began_at: now.as_micros(),
                ..Stage::default()
            };
            Ok((row.get(0)?, stage, row.get(3)?))
        })?;
        for row in rows {
            let (number, stage, is_whole): (_, _, bool) = row?;
            if !is_whole {
                opened.find(format!(
                    "row {number} of stages is damaged: whether all of a large insert was \
                     accepted, and until when its jobs may start, is as it reads"
                ));
            }
            self.last_stage = self.last_stage.max(number);
            self.stages.insert(number, stage);
        }
        Ok(())
    }

    /// The numbers that were given last.
    fn load_numbers(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let last = |query| connection.query_row(query, [], |row| row.get::<_, i64>(0));
        self.last_number = unreadable::last_number(connection, "jobs")?;
        self.last_blob = last("SELECT coalesce(max(number), 0) FROM blobs")?;
        self.last_event = last("SELECT coalesce(max(last), 0) FROM event_log")?.cast_unsigned();
        self.last_batch = unreadable::last_number(connection, "batches")?;
        self.last_delivery = outbox::last_number(connection)?;
        // Those between a damaged row and the first whole one may be let go already.
        let oldest = connection
            .query_row(
                "SELECT last - count + 1 FROM event_log
                 WHERE sum IS checksum(last, count, at, packed) ORDER BY last LIMIT 1",
                [],
                |row| row.get::<_, i64>(0),
            )
            .optional()?;
        self.oldest_event = oldest.map_or(self.last_event + 1, i64::cast_unsigned);
        Ok(())
    }

    /// Puts each job that has not ended where it belongs. Answers those never published.
    fn load_jobs(
        &mut self,
        connection: &Connection,
        counts: &mut HashMap<i64, Counts>,
        opened: &mut Opened,
    ) -> rusqlite::Result<Vec<JobRow>> {
        let mut reading = Reading {
            counts,
            opened,
            unpublished: Vec::new(),
            lane: None,
        };
        if self.unreadable.is_empty() {
            let mut query = connection.prepare(select_jobs!("WHERE status < 2 ORDER BY place"))?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                self.take(JobRow::read(row)?, &mut reading);
            }
            return Ok(reading.unpublished);
        }
        // Which they are, and in which order, is in their index as well.
        let mut query = connection.prepare(
            "SELECT number, place FROM jobs INDEXED BY jobs_open WHERE status < 2 ORDER BY place",
        )?;
        let mut numbers = query.query([])?;
        while let Some(row) = numbers.next()? {
            let number = row.get(0)?;
            if self.unreadable.holds(number) {
                self.lost.add(number);
                let place = row.get::<_, i64>(1)?.cast_unsigned();
                self.last_place = self.last_place.max(place);
            } else if let Some(row) = row::by_number(connection, number)? {
                self.take(row, &mut reading);
            }
        }
        self.lost.identify(connection)?;
        for job in self.lost.since(&Lost::default()) {
            let finding = format!("{job}: {UNREADABLE}; {NOT_STARTED}");
            reading.opened.findings.push(finding);
        }
        Ok(reading.unpublished)
    }

    fn take(&mut self, row: Checked, reading: &mut Reading<'_>) {
        let mut row = match row {
            Ok(row) => row,
            Err(damage) => {
                return reading.opened.find(format!(
                    "{} is damaged ({}): {NOT_STARTED}",
                    damage.of(),
                    damage.what
                ));
            }
        };
        self.last_place = self.last_place.max(row.place.0);
        self.last_token = self.last_token.max(row.token.cast_unsigned());
        if let Some(stage) = row.stage.and_then(|stage| self.stages.get_mut(&stage)) {
            stage.rows += 1;
        }
        if !self.settle(&mut row) {
            reading.unpublished.push(row);
            return;
        }
        self.capacity.holds(1, row.bytes.cast_unsigned());
        let counts = reading.counts.entry(row.queue).or_default();
        *of_status(counts, row.status) += 1;
        counts.bytes += row.bytes.cast_unsigned();
        if row.status == Status::Processing {
            reading.opened.processing += 1;
            self.found_leased(row);
            return;
        }
        reading.opened.queued += 1;
        let of = (row.queue, row.tenant, row.priority, row.key());
        if reading.lane.as_ref().is_none_or(|(found, _)| *found != of) {
            reading.lane = Some((of, self.lane(&row)));
        }
        if let Some((_, lane)) = &reading.lane {
            let ends = row.deadline.map_or(NEVER, second_of);
            self.wait_in(lane, row.queue, row.place, row.number, ends, row.due());
        }
    }

    fn remove_unpublished(
        &mut self,
        connection: &Connection,
        rows: &[JobRow],
        under_way: &[i64],
        batches: &Batches,
    ) -> rusqlite::Result<()> {
        for row in rows {
            blobs::delete(connection, row.body)?;
            let delete = "DELETE FROM jobs WHERE number = ?1";
            connection.prepare_cached(delete)?.execute([row.number])?;
            if let Some(stage) = row.stage.and_then(|stage| self.stages.get_mut(&stage)) {
                stage.rows = 0;
            }
        }
        // The stage of a batch that is still being read is used again.
        let mut stale =
            connection.prepare("SELECT number FROM stages WHERE published_at IS NULL")?;
        let stale = stale.query_map([], |row| row.get(0))?;
        for number in stale.collect::<rusqlite::Result<Vec<i64>>>()? {
            if batches.may_use(number) {
                continue;
            }
            let is_given_up = self.stages.get(&number).is_some_and(|it| it.is_given_up);
            if !under_way.contains(&number) && !is_given_up {
                connection.execute("DELETE FROM stages WHERE number = ?1", [number])?;
            }
        }
        let mut kept = connection.prepare("SELECT number FROM stages")?;
        let kept = kept.query_map([], |row| row.get(0))?;
        let kept = kept.collect::<rusqlite::Result<HashSet<i64>>>()?;
        self.stages.retain(|number, stage| {
            kept.contains(number) && (!stage.is_published || stage.rows > 0)
        });
        for number in kept {
            if !self.stages.contains_key(&number) {
                connection.execute("DELETE FROM stages WHERE number = ?1", [number])?;
            }
        }
        Ok(())
    }

    /// Keeps the staged members of batches and the rows of inserts that are under way, unless the
    /// store is being opened. Answers the rest.
    fn keep_staged(
        &mut self,
        rows: Vec<JobRow>,
        under_way: Option<&[i64]>,
        batches: &Batches,
    ) -> Vec<JobRow> {
        let Some(under_way) = under_way else {
            return rows;
        };
        let goes_on = |row: &JobRow| {
            row.batch.is_some() || row.stage.is_some_and(|stage| under_way.contains(&stage))
        };
        let (kept, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(goes_on);
        for row in kept {
            let staged = Staged {
                number: row.number,
                id: row.id,
                lane: self.lane(&row),
                place: row.place,
                due: row.due(),
                deadline: row.deadline,
                bytes: row.bytes.cast_unsigned(),
                body: row.body,
            };
            let is_given_up = batches.have_ended(&row);
            if !is_given_up {
                self.capacity.holds(1, staged.bytes);
            }
            let queue = self.queue(row.queue);
            queue.counts.bytes += staged.bytes;
            if let Some(stage) = row.stage.and_then(|stage| self.stages.get_mut(&stage)) {
                stage.is_given_up = is_given_up;
                stage.waiting.push(staged);
            }
        }
        rest
    }

    /// Compares the counters with what was found, and says where they differ.
    fn compare(&mut self, mut found: HashMap<i64, Counts>, opened: &mut Opened) {
        for (number, queue) in &mut self.queues {
            let counted = found.remove(number).unwrap_or_default();
            let (waiting, running) = (queue.counts.queued, queue.counts.processing);
            if (waiting, running) != (counted.queued, counted.processing) {
                opened.find(format!(
                    "queue {}: {waiting} waiting and {running} running jobs were counted, and {} \
                     and {} are there",
                    self.names.name(*number),
                    counted.queued,
                    counted.processing
                ));
                queue.is_dirty = true;
            }
            // Those of rows that were never published were counted, and are removed.
            queue.is_dirty |= queue.counts.bytes != counted.bytes;
            queue.counts.queued = counted.queued;
            queue.counts.processing = counted.processing;
            queue.counts.bytes = counted.bytes;
        }
    }
}

/// What batches have to do with rows that were never published.
#[derive(Debug)]
struct Batches {
    /// The stages of those that have not ended; `None` where some cannot be read.
    stages: Option<HashSet<i64>>,
    /// Those that have ended, of those that such rows are of.
    ended: HashSet<i64>,
}

impl Batches {
    /// Not to be asked in a transaction, as above.
    fn read(
        connection: &Connection,
        index: &Index,
        unpublished: &[JobRow],
    ) -> rusqlite::Result<Self> {
        let mut batches = Self {
            stages: Some(HashSet::new()),
            ended: HashSet::new(),
        };
        if index.stages.values().all(|stage| stage.is_published) {
            return Ok(batches);
        }
        let mut stages = connection.prepare(
            "SELECT stage FROM batches WHERE ended IS NULL
               OR sum IS NOT checksum(number, id, tenant, stage, ended, data)",
        )?;
        let stages = stages.query_map([], |row| row.get(0))?;
        batches.stages = unless_damaged(stages.collect())?;
        let mut ended = connection.prepare(
            "SELECT 1 FROM batches WHERE number = ?1 AND ended IS NOT NULL
               AND sum IS checksum(number, id, tenant, stage, ended, data)",
        )?;
        let of_rows: HashSet<i64> = unpublished.iter().filter_map(|row| row.batch).collect();
        for batch in of_rows {
            if unless_damaged(ended.exists([batch]))? == Some(true) {
                batches.ended.insert(batch);
            }
        }
        Ok(batches)
    }

    /// Whether a row is of one that has.
    fn have_ended(&self, row: &JobRow) -> bool {
        let has_ended = |batch| self.ended.contains(&batch);
        row.batch.is_some_and(has_ended)
    }

    /// Whether a stage may be that of a batch that is still being read.
    fn may_use(&self, stage: i64) -> bool {
        let stages = self.stages.as_ref();
        stages.is_none_or(|stages| stages.contains(&stage))
    }
}

/// `None` where a page is damaged.
fn unless_damaged<T>(read: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match read {
        Err(error) if is_damage(&error) => Ok(None),
        read => read.map(Some),
    }
}

/// The store is another from now on. One of an older layout has its id without a sum, or none yet.
pub(crate) fn new_id(connection: &Connection) -> rusqlite::Result<()> {
    let update = match connection.pragma_query_value(None, "user_version", |row| row.get(0))? {
        0..HAS_ID => return Ok(()),
        HAS_ID..HAS_SUM_OF_ID => "UPDATE store_facts SET value = ?1 WHERE name = 'id'",
        _ => "UPDATE store_facts SET value = ?1, sum = checksum('id', ?1) WHERE name = 'id'",
    };
    connection.execute(update, params![Uuid::new_v4().as_bytes()])?;
    Ok(())
}

/// The store's own id, drawn the first time.
pub(crate) fn id(connection: &Connection) -> rusqlite::Result<Uuid> {
    let fresh = Uuid::new_v4();
    connection.execute(
        "INSERT INTO store_facts (name, value, sum) VALUES ('id', ?1, checksum('id', ?1))
         ON CONFLICT DO NOTHING",
        params![fresh.as_bytes()],
    )?;
    let query = "SELECT value, sum IS checksum(name, value) FROM store_facts WHERE name = 'id'";
    connection.query_row(query, [], |row| {
        expect_whole(row, 1, "store_facts")?;
        row.get(0).map(Uuid::from_bytes)
    })
}
