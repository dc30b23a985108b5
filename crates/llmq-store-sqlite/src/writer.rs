//! The writer, which alone holds the connection, and group commit: while one transaction is synced
//! the next batch forms by itself, so a sync is shared by all who waited for it and no timer is
//! needed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use llmq_core::WallTime;
use llmq_store::{EventId, Health};
use rusqlite::Connection;
use tokio::sync::watch;

use crate::StoreError;
use crate::ballast::Ballast;
use crate::error::{failed, is_damage, is_full, is_of_all, is_of_disk};
use crate::jobs::{Bulk, Desk, Index, Slice, Unreadable};

mod room;
mod work;

pub(crate) use room::Room;
pub(crate) use work::{Access, BeginBulk, Question, Task, Work};

/// Work in one transaction, at most: bounds how long the first of a batch waits for the last.
const BATCH_MAX: usize = 4096;

/// How often a turn is begun anew because one in it failed. Each time what is known of the file is
/// read again, which takes seconds with millions of jobs; one that fails by what only the commit
/// says is found among all of a turn within these.
const TRIES_MAX: u32 = 16;

/// What others see of the writer.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) health: Mutex<Health>,
    pub(crate) newest_event: watch::Sender<EventId>,
}

impl Seen {
    pub(crate) fn health(&self) -> Health {
        let health = self.health.lock();
        health.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_health(&self, new: Health) {
        let health = self.health.lock();
        *health.unwrap_or_else(PoisonError::into_inner) = new;
    }
}

/// What is carried out in one transaction.
struct Group {
    works: Vec<Box<dyn Work>>,
    /// Whether the next slice of a large insert is.
    steps: bool,
}

/// Whose transaction failed, and why.
struct Failure {
    of: Of,
    error: rusqlite::Error,
}

/// Who made a transaction fail.
enum Of {
    /// This one of its group.
    Work(usize),
    /// The slice of a large insert.
    Bulk,
    /// One of them, by what only the end of the transaction says.
    Turn,
    /// Nobody in it.
    Store,
}

impl Of {
    fn because(self, error: rusqlite::Error) -> Failure {
        Failure { of: self, error }
    }
}

impl Failure {
    /// Whether it would meet any other transaction.
    fn is_of_all(&self) -> bool {
        matches!(self.of, Of::Store) || is_of_all(&self.error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Of::Store.because(error)
    }
}

/// The writer: the file, what it knows of it, and what is under way.
pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) index: Index,
    pub(crate) seen: Arc<Seen>,
    pub(crate) ballast: Option<Ballast>,
    pub(crate) bulks: VecDeque<Bulk>,
    /// A transaction failed, and what is known of the file may be more than is in it.
    pub(crate) must_reload: bool,
    /// Somebody met a damaged page: what is on those of the jobs is to be known.
    pub(crate) must_look: bool,
    /// The disk failed while the log was written or synced.
    pub(crate) must_renew_log: bool,
    /// A commit is synced. Nobody is told of one that is not.
    pub(crate) is_full_sync: bool,
}

impl Writer {
    /// All that waits, and a slice of a large insert, in one transaction. Who makes it fail does so
    /// alone: the others are carried out again without it.
    fn turn(&mut self, batch: &mut Vec<Box<dyn Work>>) {
        let mut tries = TRIES_MAX;
        // The next one last.
        let mut groups = vec![Group {
            works: std::mem::take(batch),
            steps: true,
        }];
        while let Some(mut group) = groups.pop() {
            match self.commit(&mut group) {
                Ok(()) => {
                    let begun = group.works.into_iter();
                    self.bulks
                        .extend(begun.filter_map(|work| work.finish(None)));
                }
                Err(failure) => {
                    // What is known to be damaged is met by nobody again.
                    let is_avoided = self.index.unreadable.take_news();
                    let goes_on = is_avoided || tries > 0 && !failure.is_of_all();
                    tries = tries.saturating_sub(u32::from(!is_avoided));
                    let error = self.fall_back(failure.error, goes_on);
                    if is_avoided {
                        groups.push(group);
                    } else if goes_on {
                        self.part(group, &failure.of, error, &mut groups);
                    } else {
                        self.fail(group, error);
                    }
                }
            }
        }
    }

    /// Whoever made a group fail is told; the others are to be carried out again: half by half when
    /// nobody knows who it was.
    fn part(&mut self, mut group: Group, of: &Of, error: StoreError, groups: &mut Vec<Group>) {
        let has_bulk = group.steps && !self.bulks.is_empty();
        match of {
            Of::Work(at) => {
                group.works.remove(*at).finish(Some(&error));
            }
            Of::Bulk => self.fail_bulk(error),
            Of::Turn | Of::Store if has_bulk && group.works.is_empty() => self.fail_bulk(error),
            Of::Turn | Of::Store if has_bulk => {
                group.steps = false;
                groups.push(Group {
                    works: Vec::new(),
                    steps: true,
                });
            }
            Of::Turn | Of::Store if group.works.len() > 1 => {
                groups.push(Group {
                    works: group.works.split_off(group.works.len() / 2),
                    steps: false,
                });
            }
            Of::Turn | Of::Store => {
                for work in group.works.drain(..) {
                    work.finish(Some(&error));
                }
            }
        }
        if !group.works.is_empty() {
            groups.push(group);
        }
    }

    fn fail_bulk(&mut self, error: StoreError) {
        if let Some(bulk) = self.bulks.pop_front() {
            bulk.finish(Err(error.into()));
        }
    }

    /// Nothing of a group can be recorded, nor any large insert.
    fn fail(&mut self, group: Group, error: StoreError) {
        let error = of_another(error);
        for work in group.works {
            work.finish(Some(&error));
        }
        for bulk in self.bulks.drain(..) {
            bulk.finish(Err(error.clone().into()));
        }
    }

    fn commit(&mut self, group: &mut Group) -> Result<(), Failure> {
        if self.must_reload {
            self.reload()?;
        }
        // Nobody is told of a slice that is not the last, so it need not be synced.
        let is_synced =
            !group.works.is_empty() || self.bulks.front().is_none_or(Bulk::is_near_its_end);
        if is_synced {
            self.sync_fully()?;
        } else {
            self.connection
                .execute_batch("PRAGMA synchronous = NORMAL")?;
            self.is_full_sync = false;
        }
        let stepped = self.transaction(group)?;
        self.tell(stepped);
        // What failed tells of no events: their numbers are given again.
        let newest = EventId(self.index.last_event);
        self.seen
            .newest_event
            .send_if_modified(|seen| std::mem::replace(seen, newest) != newest);
        Ok(())
    }

    /// Tells of a slice that is on disk.
    fn tell(&mut self, stepped: Option<Slice>) {
        match stepped {
            Some(Slice::Done(result)) => {
                if let Some(bulk) = self.bulks.pop_front() {
                    bulk.finish(result);
                }
            }
            Some(Slice::More) => {
                if let Some(bulk) = self.bulks.front_mut() {
                    bulk.is_committed();
                }
                self.bulks.rotate_left(1);
            }
            None => {}
        }
    }

    /// From now on commits are synced. Not to be asked inside a transaction: SQLite refuses it.
    fn sync_fully(&mut self) -> rusqlite::Result<()> {
        if !self.is_full_sync {
            self.connection.execute_batch("PRAGMA synchronous = FULL")?;
            self.is_full_sync = true;
        }
        Ok(())
    }

    fn transaction(&mut self, group: &mut Group) -> Result<Option<Slice>, Failure> {
        let bulk = self.bulks.front_mut().filter(|_| group.steps);
        let is_writing = bulk.is_some()
            || group
                .works
                .iter()
                .any(|work| work.access() == Access::Write);
        // A transaction that begins with reading cannot always go on to write
        // (SQLITE_BUSY_SNAPSHOT, when somebody else's shell wrote meanwhile), so one that will
        // write says so at once.
        let begin = if is_writing {
            "BEGIN IMMEDIATE"
        } else {
            "BEGIN"
        };
        self.connection.prepare_cached(begin)?.execute([])?;
        let mut desk = Desk {
            connection: &self.connection,
            index: &mut self.index,
        };
        for (at, work) in group.works.iter_mut().enumerate() {
            let done = work.run(&mut desk);
            done.map_err(|error| Of::Work(at).because(error))?;
            // A full disk or a read error ends the transaction, with all that was done in it.
            if desk.connection.is_autocommit() {
                return Err(ended_by_the_disk().into());
            }
        }
        let stepped = bulk.map(|bulk| bulk.step(&mut desk)).transpose();
        let stepped = stepped.map_err(|error| Of::Bulk.because(error))?;
        let flushed = desk.flush();
        flushed.map_err(|error| Of::Turn.because(error))?;
        let committed = self.connection.prepare_cached("COMMIT")?.execute([]);
        committed.map_err(|error| Of::Turn.because(error))?;
        self.index.given_up.clear();
        if is_writing && matches!(self.seen.health(), Health::Unavailable { .. }) {
            self.set_health(Health::Ready);
        }
        self.mend_ballast();
        Ok(stepped)
    }

    /// A transaction failed: takes it back, and says why it did. The store is as well as before
    /// if it `goes_on` without one of those who wanted something.
    fn fall_back(&mut self, error: rusqlite::Error, goes_on: bool) -> StoreError {
        if !self.connection.is_autocommit() {
            // If this fails there is no transaction any more.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        // If this fails, the next commit begins with it.
        let _ = self.sync_fully();
        self.must_reload = true;
        self.must_renew_log |= is_of_disk(&error);
        self.must_look |= is_damage(&error);
        self.bulks.iter_mut().for_each(Bulk::fell_back);
        let is_full = is_full(&error);
        let error = failed(error);
        if goes_on {
            return error;
        }
        let reason = match &error {
            // Whoever tells it says again that the store is not available.
            StoreError::Unavailable { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        let now = self.index.now;
        if is_full
            && self
                .ballast
                .as_mut()
                .is_some_and(|ballast| ballast.free(now))
        {
            self.set_health(Health::ReserveOnly { reason });
        } else if self.seen.health() == Health::Ready {
            self.set_health(Health::Unavailable { reason });
        }
        error
    }

    fn set_health(&mut self, health: Health) {
        self.index.health = Some(health.clone());
        self.seen.set_health(health);
    }

    /// Once there is room again, the reserve is laid by again, and new work is taken.
    fn mend_ballast(&mut self) {
        let Some(ballast) = &mut self.ballast else {
            return;
        };
        if !ballast.is_laid_by() && ballast.restore(self.index.now) {
            self.set_health(Health::Ready);
        }
    }

    /// Reads again what follows from the file.
    fn reload(&mut self) -> rusqlite::Result<()> {
        if self.must_renew_log {
            renew_log(&self.connection)?;
            self.must_renew_log = false;
        }
        let settings = self.index.settings.clone();
        let unreadable = if self.must_look {
            Unreadable::look(&self.connection)?.and_met(&self.index.unreadable)
        } else {
            self.index.unreadable.clone()
        };
        let mut before = std::mem::take(&mut self.index);
        let under_way: Vec<i64> = self.bulks.iter().map(Bulk::stage).collect();
        let loaded = Index::load(
            &self.connection,
            settings,
            Some(&under_way),
            unreadable,
            before.now.wall,
        );
        match loaded {
            Ok((index, _)) => {
                self.index = index;
                self.index.survive(&mut before);
                for (jobs, bytes) in self.bulks.iter().map(Bulk::rest) {
                    self.index.capacity.holds(jobs, bytes);
                }
                (self.must_reload, self.must_look) = (false, false);
                Ok(())
            }
            Err(error) => {
                self.index = before;
                Err(error)
            }
        }
    }
}

/// Copies the log into the database and begins it anew.
///
/// A sync that failed has dropped what it was to sync, and the next one does not say so (Linux
/// marks the pages clean). What was in the log and not synced yet, slices of large inserts, would
/// be a hole in it: whatever is acknowledged behind it would be lost with the power.
fn renew_log(connection: &Connection) -> rusqlite::Result<()> {
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    let is_busy = connection.query_row(checkpoint, [], |row| row.get::<_, bool>(0))?;
    if is_busy {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
            Some("somebody else reads the file, so its log cannot be begun anew".to_owned()),
        ));
    }
    Ok(())
}

/// What the others of a turn are told when one of them met damage: theirs may be sound.
fn of_another(error: StoreError) -> StoreError {
    match error {
        StoreError::Damaged { what } => StoreError::Unavailable {
            reason: format!("what was to be recorded at the same time met damage: {what}"),
            source: None,
        },
        other => other,
    }
}

fn ended_by_the_disk() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
        Some("the transaction was ended by an error of the disk".to_owned()),
    )
}

/// The wall's time when nothing has been asked yet.
pub(crate) fn load_at_open(
    connection: &Connection,
    settings: llmq_store::Settings,
    now: WallTime,
) -> rusqlite::Result<(Index, crate::Opened)> {
    Index::load(connection, settings, None, Unreadable::default(), now)
}

#[cfg(test)]
mod failures;
