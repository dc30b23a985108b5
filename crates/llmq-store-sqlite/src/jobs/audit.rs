//! Reading all of the tables, to say what is wrong with them.

use std::collections::{BTreeMap, HashMap, HashSet};

use llmq_core::{Status, WallTime};
use llmq_store::{Counts, Entry, EventKind, JobId, LeaseToken, StoredEvent, Subject};
use rusqlite::Connection;

use super::index::of_status;
use super::names::Names;
use super::outbox::parsed;
use super::row::{self, Damage, JobRow, called, select_jobs};
use super::{blobs, events, outbox, unreadable};
use crate::Checked;
use crate::error::is_damage;
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
                found.add(format!("{}: {}", damage.of(), damage.what));
                continue;
            }
        };
        let job = (row.number, row.id);
        wanted.insert(row.body, job);
        wanted.extend(row.answer.map(|answer| (answer, job)));
        if row.noted().is_err() || row.known().is_err() {
            let job = called(row.id, row.number);
            found.add(format!("{job}: its notes cannot be read"));
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

/// Says which jobs cannot be read in a file whose structure is broken, and counts the others.
pub(crate) fn name_unreadable(
    connection: &Connection,
    checked: &mut Checked,
) -> rusqlite::Result<()> {
    let mut found = Findings::default();
    let seen = unreadable::each_id(connection, |id, number| {
        match row::by_number(connection, number) {
            Ok(Some(Ok(_))) => checked.jobs += 1,
            Ok(Some(Err(damage))) => {
                let id = damage.id.or(id);
                let damage = Damage { id, ..damage };
                found.add(format!("{}: {}", damage.of(), damage.what));
            }
            Ok(None) => {
                let damage = Damage::unreadable(number, id);
                found.add(format!("{} is not there", damage.of()));
            }
            Err(error) if is_damage(&error) => {
                let damage = Damage::unreadable(number, id);
                found.add(format!("{}: {}", damage.of(), damage.what));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    });
    match seen {
        Err(error) if is_damage(&error) => {
            found.add(format!(
                "which other jobs there are cannot be read: {error}"
            ));
        }
        seen => seen?,
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
    mut wanted: HashMap<i64, (i64, JobId)>,
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
                Some((row, id)) => {
                    let job = called(id, row);
                    format!("blob {number}, of {job}: its checksum is wrong")
                }
                None => format!("blob {number}: its checksum is wrong"),
            });
        }
        unnamed += u64::from(job.is_none() && !of_files.contains(&number));
    }
    let mut lost: Vec<_> = wanted.into_iter().collect();
    lost.sort_unstable();
    for (blob, (row, id)) in lost {
        let job = called(id, row);
        found.add(format!("blob {blob}, of {job}, is not there"));
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
    for (number, queue, _) in &queues {
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
    let told_since = told_since(connection)?;
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
            targets: callback_of(&row, told_since)?,
        });
        held.push((job, row.status));
    }
    let known: HashSet<JobId> = held.iter().map(|(job, _)| *job).collect();
    let mut attempts = Attempts::default();
    for event in events::all(connection, &names)?.into_iter().flatten() {
        attempts.is_whole |= event.id.0 == 1;
        attempts.seen_in(&event, &known, &mut entries);
    }
    entries.extend(told(connection, &known)?);
    entries.push(Entry::End { jobs: held });
    Ok(entries)
}

/// What the log of events tells of attempts.
#[derive(Default)]
struct Attempts {
    /// The log goes back to the first event.
    is_whole: bool,
    /// The newest lease of each job: each start is one.
    leases: HashMap<JobId, LeaseToken>,
}

impl Attempts {
    /// What an event tells of a job that is still there.
    fn seen_in(&mut self, event: &StoredEvent, known: &HashSet<JobId>, entries: &mut Vec<Entry>) {
        let Subject::Job {
            id: job, status, ..
        } = event.event.subject
        else {
            return;
        };
        if !known.contains(&job) {
            return;
        }
        let (token, at) = (LeaseToken(event.id.0), event.at);
        if status == Status::Processing {
            self.leases.insert(job, token);
            entries.push(Entry::Started { job, token, at });
        } else if EventKind::of_end(status).is_none() {
            entries.push(Entry::Seen { job, status });
        } else {
            let mut lease = self.leases.get(&job).copied();
            if lease.is_none() && status == Status::Completed && !self.is_whole {
                // Its start was let go of.
                lease = Some(token);
                entries.push(Entry::Started { job, token, at });
            }
            entries.push(Entry::Finished {
                job,
                status,
                token: lease,
            });
        }
    }
}

/// Since when no delivery has been let go: since ever, if none is missing.
fn told_since(connection: &Connection) -> rusqlite::Result<i64> {
    let last = outbox::last_number(connection)?;
    let (count, oldest): (i64, Option<i64>) = connection.query_row(
        "SELECT count(*), min(last_attempt_at) FILTER (WHERE due_at IS NULL) FROM deliveries",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(if count == last {
        i64::MIN
    } else {
        // They go in the order of their last attempts.
        oldest.unwrap_or(i64::MAX)
    })
}

/// Who is to be told of the end of a job, if that came since `told_since`.
fn callback_of(row: &JobRow, told_since: i64) -> rusqlite::Result<Vec<String>> {
    if row.batch.is_some() || row.finished_at.is_none_or(|at| at <= told_since) {
        return Ok(Vec::new());
    }
    let callback = row.noted().ok().and_then(|noted| noted.details.callback);
    callback.iter().map(outbox::written).collect()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use llmq_core::Now;
    use llmq_store::{
        Callback, Details, Jobs as _, NewJob, NextTry, Report, Rule, Start, StoredAnswer, Take,
        Webhooks as _, Worker,
    };

    use super::*;
    use crate::jobs::{Done, row};
    use crate::writer::Access;
    use crate::{Place, Store, check};

    /// A file in which two jobs have ended and their callbacks were told, and the second job.
    async fn told(directory: &std::path::Path) -> (std::path::PathBuf, Store, JobId, Now) {
        let path = directory.join("llmq.db");
        let mut now = Now::default().after(Duration::from_secs(77));
        let store = Store::open(&Place::File(path.clone()), now.wall).unwrap();
        let mut last = JobId::new();
        for _ in 0..2 {
            now = now.after(Duration::from_secs(1));
            let callback = Callback {
                url: "https://example.com/".to_owned(),
                signed_by: None,
            };
            let details = Details {
                callback: Some(callback),
                ..Details::default()
            };
            let job = NewJob {
                details,
                ..NewJob::new("m", "t", "{}")
            };
            last = job.id;
            store.enqueue(vec![job], now).await.unwrap();
            store.cancel(last, now).await.unwrap();
            let take = Take {
                max: 9,
                each: 9,
                each_failing: 9,
                hold: Duration::from_secs(60),
            };
            let due = store.due_deliveries(take, now).await.unwrap().deliveries;
            let done = due.iter().map(|delivery| llmq_store::Attempted {
                delivery: delivery.id,
                next: NextTry::Delivered,
                outcome: "200".to_owned(),
            });
            store.delivered(done.collect(), now).await.unwrap();
        }
        assert_eq!(broken(&path), [""; 0], "a file without a bug");
        (path, store, last, now)
    }

    fn broken(path: &std::path::Path) -> Vec<String> {
        let checked = check(path, true).unwrap();
        assert_eq!(checked.findings, [""; 0]);
        checked.broken
    }

    #[tokio::test]
    async fn a_second_end_is_seen_though_it_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (path, store, job, now) = told(directory.path()).await;
        let again = store.desk(Access::Write, move |desk| -> Done<()> {
            let row = row::by_id(desk.connection, job)?;
            let mut row = row.expect("it is there").expect("it is whole");
            // What tells of it nobody is to be told of again.
            row.batch = Some(1);
            desk.tell_of(&row, now)
        });
        let Ok(()) = again.await.unwrap();
        let broken = broken(&path);
        let word = Rule::OneResult.to_string();
        assert!(broken.iter().any(|what| what.contains(&word)), "{broken:?}");
    }

    /// The first three events are of a job that waits, is started and completed.
    #[tokio::test]
    async fn nothing_is_completed_that_was_not_started_as_far_as_the_log_goes_back() {
        for (gone, is_seen) in [
            ("last = 2", true),
            ("last <= 2", false),
            ("last = 9", false),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("llmq.db");
            let now = Now::default().after(Duration::from_secs(77));
            let store = Store::open(&Place::File(path.clone()), now.wall).unwrap();
            let job = NewJob::new("m", "t", "{}");
            let start = Start {
                job: job.id,
                worker: Worker::new("here"),
                lease: Duration::from_secs(60),
                upstream: None,
            };
            store.enqueue(vec![job], now).await.unwrap();
            let started = store.start(vec![start], now).await.unwrap().remove(0);
            let answer = StoredAnswer {
                status: 200,
                headers: Vec::new(),
                body: "{}".into(),
            };
            let done = Report::Completed {
                answer,
                usage: None,
                cost_nano_usd: None,
            };
            store
                .report(started.unwrap().lease, done, now)
                .await
                .unwrap();
            let go = format!("DELETE FROM event_log WHERE {gone}");
            let gone_by = store.write(move |connection| connection.execute(&go, []));
            gone_by.await.unwrap();
            let broken = broken(&path);
            let word = "completed by nobody who held it";
            let seen = broken.iter().any(|what| what.contains(word));
            assert_eq!(
                (seen, broken.is_empty()),
                (is_seen, !is_seen),
                "{gone}: {broken:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_callback_that_nobody_was_to_tell_is_seen() {
        for bug in [
            // Never written, or gone before its time.
            "DELETE FROM deliveries WHERE number = 2; UPDATE sqlite_sequence SET seq = 1",
            "DELETE FROM deliveries WHERE number = 2",
        ] {
            let directory = tempfile::tempdir().unwrap();
            let (path, store, _, _) = told(directory.path()).await;
            let seeded = store.write(move |connection| connection.execute_batch(bug));
            seeded.await.unwrap();
            let broken = broken(&path);
            assert!(broken[0].contains("was not told"), "{broken:?}");
        }
    }

    #[tokio::test]
    async fn what_was_let_go_is_not_missed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, store, _, _) = told(directory.path()).await;
        let go = "DELETE FROM deliveries WHERE number = 1";
        store
            .write(move |connection| connection.execute_batch(go))
            .await
            .unwrap();
        assert_eq!(broken(&path), [""; 0]);
    }
}
