//! The thread that holds the connection, and group commit: while one transaction is synced the
//! next batch forms by itself, so a sync is shared by all who waited for it and no timer is
//! needed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use llmq_core::{Now, WallTime};
use llmq_store::{EnqueueError, Enqueued, EventId, Health, NewJob};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use crate::StoreError;
use crate::ballast::Ballast;
use crate::error::{failed, is_damage, is_full, is_of_disk};
use crate::jobs::{Bulk, Desk, Done, Fault, Index, Slice, is_of_value};

/// Work in one transaction, at most: bounds how long the first of a batch waits for the last.
const BATCH_MAX: usize = 4096;

/// What a piece of work does to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Looks only.
    Read,
    /// Changes something.
    Write,
}

/// Something that waits for the writer.
pub(crate) trait Work: Send {
    fn access(&self) -> Access;

    /// Carries it out; what it did counts only once the batch is committed.
    ///
    /// # Errors
    ///
    /// Those after which the whole transaction is to be taken back. Work that fails alone keeps
    /// its error to itself.
    fn run(&mut self, desk: &mut Desk<'_>) -> rusqlite::Result<()>;

    /// Tells whoever asked: `failed` when the batch was not committed.
    fn finish(self: Box<Self>, failed: Option<&StoreError>);
}

/// A closure on the tables, and who waits for its result.
pub(crate) struct Question<F, T> {
    access: Access,
    ask: Option<F>,
    result: Option<rusqlite::Result<T>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Question<F, T> {
    pub(crate) fn new(access: Access, ask: F) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (answer, receiver) = oneshot::channel();
        let question = Self {
            access,
            ask: Some(ask),
            result: None,
            answer,
        };
        (question, receiver)
    }
}

impl<F, T> Work for Question<F, T>
where
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn access(&self) -> Access {
        self.access
    }

    fn run(&mut self, desk: &mut Desk<'_>) -> rusqlite::Result<()> {
        let connection = desk.connection;
        self.result = self.ask.take().map(|ask| match self.access {
            Access::Read => ask(connection),
            Access::Write => in_savepoint(connection, ask),
        });
        Ok(())
    }

    fn finish(self: Box<Self>, failure: Option<&StoreError>) {
        let result = match (failure, self.result) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(result)) => result.map_err(failed),
            (None, None) => Err(StoreError::Closed),
        };
        // Whoever does not wait any more does not want to know; the change stands.
        let _ = self.answer.send(result);
    }
}

/// Work that fails takes back what it did, and the rest of its batch stands.
fn in_savepoint<T>(
    connection: &Connection,
    ask: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    connection.execute_batch("SAVEPOINT work")?;
    match ask(connection) {
        Ok(value) => connection.execute_batch("RELEASE work").map(|()| value),
        Err(error) => {
            // When this fails the whole transaction is gone, which `run_all` notices.
            let _ = connection.execute_batch("ROLLBACK TO work; RELEASE work");
            Err(error)
        }
    }
}

/// What a desk is asked to do, and who waits for what comes of it.
///
/// It checks before it writes, so it needs no savepoint of its own. If a write fails, the disk has;
/// if something is found damaged after a write, what was written must not stay: in both cases the
/// whole transaction goes, and what is known of the file is read again.
pub(crate) struct Task<F, T, E> {
    access: Access,
    ask: Option<F>,
    result: Option<Result<Result<T, E>, StoreError>>,
    answer: oneshot::Sender<Result<Result<T, E>, StoreError>>,
}

/// How the answer to a [`Task`] comes.
pub(crate) type Answer<T, E> = oneshot::Receiver<Result<Result<T, E>, StoreError>>;

impl<F, T, E> Task<F, T, E> {
    pub(crate) fn new(access: Access, ask: F) -> (Self, Answer<T, E>) {
        let (answer, receiver) = oneshot::channel();
        let task = Self {
            access,
            ask: Some(ask),
            result: None,
            answer,
        };
        (task, receiver)
    }
}

impl<F, T, E> Work for Task<F, T, E>
where
    F: FnOnce(&mut Desk<'_>) -> Done<T, E> + Send,
    T: Send,
    E: Send,
{
    fn access(&self) -> Access {
        self.access
    }

    fn run(&mut self, desk: &mut Desk<'_>) -> rusqlite::Result<()> {
        let Some(ask) = self.ask.take() else {
            return Ok(());
        };
        let before = desk.connection.total_changes();
        let (own, goes) = match ask(desk) {
            Ok(value) => (Ok(Ok(value)), None),
            Err(Fault::Refused(error)) => (Ok(Err(error)), None),
            Err(Fault::Store(error)) => {
                let has_written = desk.connection.total_changes() != before;
                (Err(error), has_written.then(taken_back))
            }
            Err(Fault::Broken(error)) => match is_of_value(&error) {
                Some(damaged) => {
                    let has_written = desk.connection.total_changes() != before;
                    (Err(damaged), has_written.then_some(error))
                }
                None if is_damage(&error) => {
                    let damaged = StoreError::damaged(error.to_string());
                    (Err(damaged), Some(error))
                }
                None => return Err(error),
            },
        };
        self.result = Some(own);
        goes.map_or(Ok(()), Err)
    }

    fn finish(self: Box<Self>, failure: Option<&StoreError>) {
        let result = match (failure, self.result) {
            // What it met itself says more than that its transaction failed.
            (_, Some(Err(own))) => Err(own),
            (Some(error), _) => Err(error.clone()),
            (None, Some(result)) => result,
            (None, None) => Err(StoreError::Closed),
        };
        let _ = self.answer.send(result);
    }
}

/// A large insert that is to begin.
pub(crate) struct BeginBulk {
    jobs: Vec<NewJob>,
    now: Now,
    answer: Option<oneshot::Sender<Result<Vec<Enqueued>, EnqueueError>>>,
    begun: Option<Bulk>,
}

impl BeginBulk {
    pub(crate) fn new(
        jobs: Vec<NewJob>,
        now: Now,
    ) -> (Self, oneshot::Receiver<Result<Vec<Enqueued>, EnqueueError>>) {
        let (answer, receiver) = oneshot::channel();
        let begin = Self {
            jobs,
            now,
            answer: Some(answer),
            begun: None,
        };
        (begin, receiver)
    }
}

impl Work for BeginBulk {
    fn access(&self) -> Access {
        Access::Write
    }

    fn run(&mut self, desk: &mut Desk<'_>) -> rusqlite::Result<()> {
        desk.index.comes_to(self.now);
        if let Some(answer) = self.answer.take() {
            let jobs = std::mem::take(&mut self.jobs);
            self.begun = Bulk::begin(desk, jobs, self.now, answer)?;
            desk.index.bulks.extend(self.begun.take());
        }
        Ok(())
    }

    fn finish(self: Box<Self>, failure: Option<&StoreError>) {
        if let (Some(error), Some(answer)) = (failure, self.answer) {
            let _ = answer.send(Err(error.clone().into()));
        }
    }
}

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

/// The writer: the file, what it knows of it, and what is under way.
pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) index: Index,
    pub(crate) seen: Arc<Seen>,
    pub(crate) ballast: Option<Ballast>,
    pub(crate) bulks: VecDeque<Bulk>,
    /// A transaction failed, and what is known of the file may be more than is in it.
    pub(crate) must_reload: bool,
    /// The disk failed while the log was written or synced.
    pub(crate) must_renew_log: bool,
    /// A commit is synced. Nobody is told of one that is not.
    pub(crate) is_full_sync: bool,
}

impl Writer {
    /// Works until every sender is gone and everything they sent is done.
    pub(crate) fn work(mut self, mut waiting: mpsc::Receiver<Box<dyn Work>>) {
        let mut batch = Vec::new();
        loop {
            if self.bulks.is_empty() {
                if waiting.blocking_recv_many(&mut batch, BATCH_MAX) == 0 {
                    break;
                }
            } else {
                while batch.len() < BATCH_MAX
                    && let Ok(work) = waiting.try_recv()
                {
                    batch.push(work);
                }
            }
            self.turn(&mut batch);
        }
        // Copies the log into the database and removes it; if that fails, the log is read next
        // time.
        let _ = self.connection.close();
    }

    /// One transaction: all that waits, and a slice of a large insert.
    fn turn(&mut self, batch: &mut Vec<Box<dyn Work>>) {
        let mut stepped = None;
        let outcome = self.commit(batch, &mut stepped);
        let failure = outcome.err().map(|error| self.fall_back(error));
        let failure = failure.map(of_another);
        for work in batch.drain(..) {
            work.finish(failure.as_ref());
        }
        let is_committed = failure.is_none();
        self.bulks.extend(self.index.bulks.drain(..));
        match (failure, stepped) {
            (Some(error), _) => {
                for bulk in self.bulks.drain(..) {
                    bulk.fail(error.clone());
                }
            }
            (None, Some(Slice::Done(result))) => {
                if let Some(bulk) = self.bulks.pop_front() {
                    bulk.finish(result);
                }
            }
            (None, Some(Slice::More)) => self.bulks.rotate_left(1),
            (None, None) => {}
        }
        // What failed told of events that are not there, and whose numbers are given again.
        if is_committed {
            let newest = EventId(self.index.last_event);
            self.seen
                .newest_event
                .send_if_modified(|seen| std::mem::replace(seen, newest) != newest);
        }
    }

    fn commit(
        &mut self,
        batch: &mut [Box<dyn Work>],
        stepped: &mut Option<Slice>,
    ) -> rusqlite::Result<()> {
        if self.must_reload {
            self.reload()?;
        }
        // Nobody is told of a slice that is not the last, so it need not be synced.
        let is_synced = !batch.is_empty() || self.bulks.front().is_none_or(Bulk::is_near_its_end);
        if is_synced {
            self.sync_fully()?;
        } else {
            self.connection
                .execute_batch("PRAGMA synchronous = NORMAL")?;
            self.is_full_sync = false;
        }
        self.transaction(batch, stepped)?;
        self.sync_fully()
    }

    /// From now on commits are synced. Not to be asked inside a transaction: SQLite refuses it.
    fn sync_fully(&mut self) -> rusqlite::Result<()> {
        if !self.is_full_sync {
            self.connection.execute_batch("PRAGMA synchronous = FULL")?;
            self.is_full_sync = true;
        }
        Ok(())
    }

    fn transaction(
        &mut self,
        batch: &mut [Box<dyn Work>],
        stepped: &mut Option<Slice>,
    ) -> rusqlite::Result<()> {
        let is_writing =
            !self.bulks.is_empty() || batch.iter().any(|work| work.access() == Access::Write);
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
        for work in batch {
            work.run(&mut desk)?;
            // A full disk or a read error ends the transaction, with all that was done in it.
            if desk.connection.is_autocommit() {
                return Err(ended_by_the_disk());
            }
        }
        if let Some(bulk) = self.bulks.front_mut() {
            *stepped = Some(bulk.step(&mut desk)?);
        }
        desk.flush()?;
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        self.index.given_up.clear();
        if is_writing && matches!(self.seen.health(), Health::Unavailable { .. }) {
            self.set_health(Health::Ready);
        }
        self.mend_ballast();
        Ok(())
    }

    /// A transaction failed: takes it back, and says why it did.
    fn fall_back(&mut self, error: rusqlite::Error) -> StoreError {
        if !self.connection.is_autocommit() {
            // If this fails there is no transaction any more.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        // If this fails, the next commit begins with it.
        let _ = self.sync_fully();
        self.must_reload = true;
        self.must_renew_log |= is_of_disk(&error);
        let is_full = is_full(&error);
        let error = failed(error);
        let reason = error.to_string();
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
        if ballast.is_freed() && ballast.restore(self.index.now) {
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
        let mut before = std::mem::take(&mut self.index);
        let loaded = Index::load(&self.connection, settings, Some(&before), before.now.wall);
        match loaded {
            Ok((index, _)) => {
                self.index = index;
                self.index.survive(&mut before);
                self.must_reload = false;
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

fn taken_back() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT),
        Some("something was found damaged after a write: all of it is taken back".to_owned()),
    )
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
    Index::load(connection, settings, None, now)
}

#[cfg(test)]
mod failures;
