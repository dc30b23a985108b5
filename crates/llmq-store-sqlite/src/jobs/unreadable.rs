//! Pages of the table of jobs that are not what was written, and the rows on them.
//!
//! Whoever reads such a page in a transaction has it fail as a whole, so they are looked for in
//! none, and the rows on them are known by their numbers from then on: nobody goes there again.
//! The indexes still say which jobs these are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use llmq_store::JobId;
use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::row::called;
use crate::error::{is_damage, is_of_reading};

/// How many rows that cannot be read are told word for word.
const WORDS_MAX: usize = 20;

/// So often a place of the disk is tried that cannot be read: it may be for a moment.
const READS_MAX: u8 = 3;

/// So many keys are found damaged, each at the cost of reading all that waits again; then none is
/// gone to any more.
const KEYS_MAX: usize = 16;

/// What is not gone to again once it met damage, beside the rows of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Spot {
    /// The large value with this number.
    Blob(i64),
    /// The batch with this number.
    Batch(i64),
    /// The idempotency key of the job with this number.
    KeyOf(i64),
    /// A part of housekeeping, by the table that it goes through.
    Tended(&'static str),
}

/// What cannot be read: rows of jobs by their numbers, and other places.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unreadable {
    /// From the first to the last, page by page.
    ranges: Vec<(i64, i64)>,
    /// Rows beside such a page, whose change would move it.
    stuck: BTreeSet<i64>,
    /// How often each could not be read.
    met: BTreeMap<Spot, u8>,
    has_news: bool,
}

impl Unreadable {
    /// Reads all rows. Not to be asked in a transaction.
    pub(crate) fn look(connection: &Connection) -> rusqlite::Result<Self> {
        let last = last_number(connection, "jobs")?;
        let mut ranges = Vec::new();
        let mut next = 0;
        while let Err(error) = read_from(connection, &mut next) {
            if !is_damage(&error) {
                return Err(error);
            }
            let to = end_of(connection, next, last)?;
            ranges.push((next, to));
            next = to + 1;
            if to >= last {
                break;
            }
        }
        Ok(Self {
            ranges,
            ..Self::default()
        })
    }

    /// The same, with what was found since the start by those who met it.
    pub(crate) fn and_met(self, before: &Self) -> Self {
        Self {
            stuck: before.stuck.clone(),
            met: before.met.clone(),
            ..self
        }
    }

    /// A row met damage when it was to be changed: it stays as it is.
    pub(super) fn is_stuck(&mut self, number: i64) {
        self.has_news |= self.stuck.insert(number);
    }

    /// Somebody went there and met `error`.
    pub(super) fn met(&mut self, spot: Spot, error: &rusqlite::Error) {
        let more = match () {
            () if is_damage(error) => READS_MAX,
            () if is_of_reading(error) => 1,
            () => return,
        };
        let times = self.met.entry(spot).or_default();
        *times = times.saturating_add(more);
        self.has_news |= *times >= READS_MAX;
    }

    /// Whether nobody is to go there any more.
    pub(super) fn avoids(&self, spot: Spot) -> bool {
        let is_lost = |times: &u8| *times >= READS_MAX;
        if let Spot::KeyOf(_) = spot {
            let keys = Spot::KeyOf(i64::MIN)..=Spot::KeyOf(i64::MAX);
            let met = self.met.range(keys);
            if met.filter(|(_, times)| is_lost(times)).count() >= KEYS_MAX {
                return true;
            }
        }
        self.met.get(&spot).is_some_and(is_lost)
    }

    /// Whether what met damage would not meet it again, since it is known where.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.stuck.is_empty()
    }

    pub(crate) fn holds(&self, number: i64) -> bool {
        let at = self.ranges.partition_point(|(_, to)| *to < number);
        let range = self.ranges.get(at);
        range.is_some_and(|(from, _)| *from <= number) || self.stuck.contains(&number)
    }
}

/// Reads rows from this number on, which it leads on behind the last that can be read.
fn read_from(connection: &Connection, next: &mut i64) -> rusqlite::Result<()> {
    // The last column lies behind all others.
    let rows = "SELECT number, sum FROM jobs NOT INDEXED WHERE number >= ?1 ORDER BY number";
    let mut rows = connection.prepare_cached(rows)?;
    let mut rows = rows.query([*next])?;
    while let Some(row) = rows.next()? {
        *next = row.get::<_, i64>(0)? + 1;
    }
    Ok(())
}

/// The last of the rows from this number on that cannot be read with the first of them.
fn end_of(connection: &Connection, first: i64, last: i64) -> rusqlite::Result<i64> {
    let row = "SELECT number FROM jobs NOT INDEXED WHERE number >= ?1 ORDER BY number LIMIT 1";
    let mut row = connection.prepare_cached(row)?;
    // None: there is no way to that number.
    let mut from = |at: i64| match row.query_row([at], |row| row.get(0)).optional() {
        Ok(found) => Ok(Some(found.unwrap_or(last))),
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) => Err(error),
    };
    if let Some(row) = from(first)? {
        // That it is there can be read, and the rest of it cannot.
        return Ok(row);
    }
    let (mut lost, mut step) = (first, 1);
    while from(lost + step)?.is_none() {
        lost += step;
        step *= 2;
        if lost >= last {
            return Ok(last);
        }
    }
    // The page ends between the two.
    let mut found = lost + step;
    while found - lost > 1 {
        let middle = lost + (found - lost) / 2;
        match from(middle)? {
            Some(_) => found = middle,
            None => lost = middle,
        }
    }
    Ok(lost)
}

/// The number that was given last in a table of rows with ids.
pub(super) fn last_number(connection: &Connection, table: &str) -> rusqlite::Result<i64> {
    let last = |query: String| connection.query_row(&query, [], |row| row.get(0));
    match last(format!("SELECT coalesce(max(number), 0) FROM {table}")) {
        // It is on a page of them. Each row of the index of ids has its row's number.
        Err(error) if is_damage(&error) => last(format!(
            "SELECT coalesce(max(+number), 0) FROM {table}
             INDEXED BY sqlite_autoindex_{table}_1"
        )),
        found => found,
    }
}

/// The number of a job, by the index of ids alone.
pub(super) fn number_of(connection: &Connection, id: JobId) -> rusqlite::Result<Option<i64>> {
    let number = "SELECT number FROM jobs INDEXED BY sqlite_autoindex_jobs_1 WHERE id = ?1";
    let mut number = connection.prepare_cached(number)?;
    let id = id.as_uuid();
    number
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()
}

/// All jobs that there are, by the index of ids alone.
pub(super) fn each_id(
    connection: &Connection,
    mut visit: impl FnMut(Option<JobId>, i64) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut query = connection
        .prepare("SELECT id, number FROM jobs INDEXED BY sqlite_autoindex_jobs_1 ORDER BY id")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let id = row.get_ref(0)?.as_blob().ok();
        let id = id.and_then(|id| Uuid::from_slice(id).ok());
        visit(id.map(JobId::from_uuid), row.get(1)?)?;
    }
    Ok(())
}

/// Jobs that have not ended and cannot be read, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    rows: BTreeMap<i64, Option<JobId>>,
}

impl Lost {
    pub(super) fn add(&mut self, number: i64) {
        self.rows.insert(number, None);
    }

    /// Looks up who they are.
    pub(super) fn identify(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut ids = HashMap::new();
        let seen = each_id(connection, |id, number| {
            if self.rows.contains_key(&number) {
                ids.insert(number, id);
            }
            Ok(())
        });
        match seen {
            // The index of ids is damaged as well: their numbers have to do.
            Err(error) if !is_damage(&error) => return Err(error),
            _ => {}
        }
        for (number, id) in &mut self.rows {
            *id = ids.remove(number).flatten();
        }
        Ok(())
    }

    /// Who of them is not one of those before, for people.
    pub(crate) fn since(&self, before: &Self) -> Vec<String> {
        let new = |(number, _): &(&i64, &Option<JobId>)| !before.rows.contains_key(*number);
        let mut new = self.rows.iter().filter(new);
        let named = |(number, id): (&i64, &Option<JobId>)| match id {
            Some(id) => called(*id, *number),
            None => format!("row {number} of jobs"),
        };
        let mut words: Vec<String> = new.by_ref().take(WORDS_MAX).map(named).collect();
        match new.count() {
            0 => {}
            more => words.push(format!("{more} more")),
        }
        words
    }
}
