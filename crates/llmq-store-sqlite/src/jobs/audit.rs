//! Reading all of the tables, to say what is wrong with them.

use std::collections::{BTreeMap, HashMap, HashSet};

use llmq_core::{Status, WallTime};
use llmq_store::{Counts, Entry, EventKind, JobId, StoredEvent, Subject};
use rusqlite::Connection;

use super::index::of_status;
use super::names::Names;
use super::outbox::parsed;
use super::row::{JobRow, select_jobs};
use super::{blobs, events};
use crate::Checked;
use crate::sums::SUMMED;

/// How many findings of one kind are told word for word.
const WORDS_MAX: usize = 20;

/// Reads every row and blob, and holds the counters against them.
pub(crate) fn check(connection: &Connection, checked: &mut Checked) -> rusqlite::Result<()> {
    let mut found = Findings::default();
    let mut wanted = HashMap::new();
    let mut counts: BTreeMap<i64, Counts> = BTreeMap::new();
    let staged = unpublished(connection)?;
    let mut query = connection.prepare(select_jobs!("ORDER BY number"))?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        checked.jobs += 1;
        let row = match JobRow::read(row)? {
            Ok(row) => row,
            Err(damage) => {
                found.add(format!("row {} of jobs: {}", damage.number, damage.what));
                continue;
            }
        };
        wanted.insert(row.body, row.number);
        wanted.extend(row.answer.map(|answer| (answer, row.number)));
        if row.noted().is_err() || row.known().is_err() {
            found.add(format!(
                "row {} of jobs: its notes cannot be read",
                row.number
            ));
        }
        let counts = counts.entry(row.queue).or_default();
        if !row.status.is_final() {
            counts.bytes += row.bytes.cast_unsigned();
        }
        if row.stage.is_none_or(|stage| !staged.contains(&stage)) {
            *of_status(counts, row.status) += 1;
        }
    }
    check_sums(connection, &mut found)?;
    check_blobs(connection, wanted, checked, &mut found)?;
    check_counts(connection, &counts, &mut found)?;
    let names = Names::load(connection)?;
    for event in events::all(connection, &names)? {
        match event {
            Ok(_) => checked.events += 1,
            Err(last) => found.add(format!(
                "events up to {last}: they are not what was written"
            )),
        }
    }
    checked.findings.append(&mut found.into_words());
    Ok(())
}

/// Rows of the smaller tables.
fn check_sums(connection: &Connection, found: &mut Findings) -> rusqlite::Result<()> {
    for (table, columns) in SUMMED {
        let count = format!("SELECT count(*) FROM {table} WHERE sum IS NOT checksum({columns})");
        let wrong: i64 = connection.query_row(&count, [], |row| row.get(0))?;
        if wrong > 0 {
            found.add(format!("{wrong} rows of {table}: the checksum is wrong"));
        }
    }
    Ok(())
}

fn unpublished(connection: &Connection) -> rusqlite::Result<HashSet<i64>> {
    let mut query = connection.prepare("SELECT number FROM stages WHERE published_at IS NULL")?;
    let rows = query.query_map([], |row| row.get(0))?;
    rows.collect()
}

/// `wanted` maps a blob to the job that names it.
fn check_blobs(
    connection: &Connection,
    mut wanted: HashMap<i64, i64>,
    checked: &mut Checked,
    found: &mut Findings,
) -> rusqlite::Result<()> {
    let mut query = connection.prepare("SELECT blob FROM file_chunks")?;
    let of_files = query.query_map([], |row| row.get(0))?;
    let of_files = of_files.collect::<rusqlite::Result<HashSet<i64>>>()?;
    let mut query = connection.prepare("SELECT number, data, sum FROM blobs ORDER BY number")?;
    let mut rows = query.query([])?;
    let mut unnamed = 0;
    while let Some(row) = rows.next()? {
        checked.blobs += 1;
        let number = row.get(0)?;
        let job = wanted.remove(&number);
        let data = row.get_ref(1)?.as_blob().ok();
        let sum = row.get::<_, i64>(2).ok();
        if data.map(|data| blobs::sum(number, data)) != sum {
            found.add(match job {
                Some(job) => format!("blob {number}, of row {job} of jobs: its checksum is wrong"),
                None => format!("blob {number}: its checksum is wrong"),
            });
        }
        unnamed += u64::from(job.is_none() && !of_files.contains(&number));
    }
    let mut lost: Vec<_> = wanted.into_iter().collect();
    lost.sort_unstable();
    for (blob, job) in lost {
        found.add(format!("blob {blob}, of row {job} of jobs, is not there"));
    }
    if unnamed > 0 {
        found.add(format!("{unnamed} blobs belong to nothing"));
    }
    Ok(())
}

fn check_counts(
    connection: &Connection,
    counted: &BTreeMap<i64, Counts>,
    found: &mut Findings,
) -> rusqlite::Result<()> {
    let names = Names::load(connection)?;
    let queues = super::queues::load(connection, WallTime::default())?;
    for (number, queue) in &queues {
        let counted = counted.get(number).copied().unwrap_or_default();
        if counted != queue.counts {
            let name = names.name(*number);
            found.add(format!(
                "queue {name}: its counters say {:?}, its rows {counted:?}",
                queue.counts
            ));
        }
    }
    Ok(())
}

/// What the file tells of its jobs, in the words of the history checker.
///
/// What was purged and the events that were let go are not in it: it can show a promise broken,
/// and that none is as far as the file goes back.
pub(crate) fn history(connection: &Connection) -> rusqlite::Result<Vec<Entry>> {
    let names = Names::load(connection)?;
    let staged = unpublished(connection)?;
    let mut entries = Vec::new();
    let mut held = Vec::new();
    let mut query = connection.prepare(select_jobs!("ORDER BY number"))?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let Ok(row) = JobRow::read(row)? else {
            continue;
        };
        if row.stage.is_some_and(|stage| staged.contains(&stage)) {
            continue;
        }
        let job = row.id;
        entries.push(Entry::HandedIn { job });
        entries.push(Entry::Accepted {
            job,
            expires_at: None,
            targets: Vec::new(),
        });
        held.push((job, row.status));
    }
    let known: HashSet<JobId> = held.iter().map(|(job, _)| *job).collect();
    for event in events::all(connection, &names)?.into_iter().flatten() {
        entries.extend(seen_in(&event, &known));
    }
    entries.extend(told(connection, &known)?);
    entries.push(Entry::End { jobs: held });
    Ok(entries)
}

/// What an event tells of a job that is still there.
fn seen_in(event: &StoredEvent, known: &HashSet<JobId>) -> Option<Entry> {
    let Subject::Job { id, status, .. } = event.event.subject else {
        return None;
    };
    known.contains(&id).then(|| {
        if EventKind::of_end(status).is_some() && status != Status::Completed {
            Entry::Finished {
                job: id,
                status,
                token: None,
            }
        } else {
            Entry::Seen { job: id, status }
        }
    })
}

fn told(connection: &Connection, known: &HashSet<JobId>) -> rusqlite::Result<Vec<Entry>> {
    let mut query = connection
        .prepare("SELECT hex(endpoint), callback, event FROM deliveries ORDER BY number")?;
    let rows = query.query_map([], |row| {
        let endpoint: String = row.get(0)?;
        let callback: Option<String> = row.get(1)?;
        let event: StoredEvent = parsed(&row.get::<_, String>(2)?)?;
        Ok((callback.unwrap_or(endpoint), event))
    })?;
    let mut told = Vec::new();
    for row in rows {
        let (target, event) = row?;
        if let Subject::Job { id, .. } = event.event.subject
            && known.contains(&id)
        {
            told.push(Entry::Told {
                job: id,
                target,
                message: event.id.0.to_string(),
            });
        }
    }
    Ok(told)
}

/// What is wrong, and how much more of it there is.
#[derive(Default)]
struct Findings {
    words: Vec<String>,
    more: u64,
}

impl Findings {
    fn add(&mut self, finding: String) {
        if self.words.len() < WORDS_MAX {
            self.words.push(finding);
        } else {
            self.more += 1;
        }
    }

    fn into_words(mut self) -> Vec<String> {
        if self.more > 0 {
            self.words.push(format!("and {} more", self.more));
        }
        self.words
    }
}
