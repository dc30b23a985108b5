//! What waits for the writer, and who waits for what comes of it.

use std::sync::Arc;

use llmq_core::Now;
use llmq_store::{EnqueueError, Enqueued, NewJob};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::StoreError;
use crate::error::{failed, is_damage};
use crate::jobs::{Begun, Bulk, Desk, Done, Fault, is_of_value};

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

    /// Carries it out; what it did counts only once the batch is committed. When that failed, it
    /// is carried out again.
    ///
    /// # Errors
    ///
    /// Those after which the whole transaction is to be taken back. Work that changed nothing
    /// keeps its error to itself.
    fn run(&mut self, desk: &mut Desk<'_>) -> rusqlite::Result<()>;

    /// Tells whoever asked: `failed` when the batch was not committed. What it leaves to be done is
    /// a large insert that has begun.
    fn finish(self: Box<Self>, failed: Option<&StoreError>) -> Option<Bulk>;
}

/// A closure on the tables, and who waits for its result.
pub(crate) struct Question<F, T> {
    access: Access,
    ask: F,
    result: Option<rusqlite::Result<T>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Question<F, T> {
    pub(crate) fn new(access: Access, ask: F) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (answer, receiver) = oneshot::channel();
        let question = Self {
            access,
            ask,
            result: None,
            answer,
        };
        (question, receiver)
    }
}

impl<F, T> Work for Question<F, T>
where
    F: Fn(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn access(&self) -> Access {
        self.access
    }

    fn run(&mut self, desk: &mut Desk<'_>) -> rusqlite::Result<()> {
        let connection = desk.connection;
        let asked = match self.access {
            Access::Read => (self.ask)(connection),
            Access::Write => in_savepoint(connection, &self.ask),
        };
        if asked.as_ref().is_err_and(is_damage) {
            // The transaction takes no change any more, and its end fails.
            return asked.map(|_| ());
        }
        self.result = Some(asked);
        Ok(())
    }

    fn finish(self: Box<Self>, failure: Option<&StoreError>) -> Option<Bulk> {
        let result = match (failure, self.result) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(result)) => result.map_err(failed),
            (None, None) => Err(StoreError::Closed),
        };
        // Whoever does not wait any more does not want to know; the change stands.
        let _ = self.answer.send(result);
        None
    }
}

/// Work that fails takes back what it did, and the rest of its batch stands.
fn in_savepoint<T>(
    connection: &Connection,
    ask: &impl Fn(&Connection) -> rusqlite::Result<T>,
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
/// It checks before it writes, so it needs no savepoint of its own. If a write fails, or something
/// is found damaged after one, what was written must not stay, in the file or in what is known of
/// it: the whole transaction goes, what is known of the file is read again, and the others of the
/// turn are carried out without it.
pub(crate) struct Task<F, T, E> {
    access: Access,
    ask: F,
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
            ask,
            result: None,
            answer,
        };
        (task, receiver)
    }
}

impl<F, T, E> Work for Task<F, T, E>
where
    F: Fn(&mut Desk<'_>) -> Done<T, E> + Send,
    T: Send,
    E: Send,
{
    fn access(&self) -> Access {
        self.access
    }

    fn run(&mut self, desk: &mut Desk<'_>) -> rusqlite::Result<()> {
        let before = desk.connection.total_changes();
        let (own, goes) = match (self.ask)(desk) {
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
                // A transaction in which a damaged page was met, even by who only looks, takes no
                // change any more, and its end fails: what others want is done in another.
                None => {
                    self.result = None;
                    return Err(error);
                }
            },
        };
        self.result = Some(own);
        goes.map_or(Ok(()), Err)
    }

    fn finish(self: Box<Self>, failure: Option<&StoreError>) -> Option<Bulk> {
        let result = match (failure, self.result) {
            // What it met itself says more than that its transaction failed.
            (_, Some(Err(own))) => Err(own),
            (Some(error), _) => Err(error.clone()),
            (None, Some(result)) => result,
            (None, None) => Err(StoreError::Closed),
        };
        let _ = self.answer.send(result);
        None
    }
}

/// A large insert that is to begin.
pub(crate) struct BeginBulk {
    jobs: Arc<[NewJob]>,
    now: Now,
    answer: oneshot::Sender<Result<Vec<Enqueued>, EnqueueError>>,
    begun: Option<Result<Begun, EnqueueError>>,
}

impl BeginBulk {
    pub(crate) fn new(
        jobs: Vec<NewJob>,
        now: Now,
    ) -> (Self, oneshot::Receiver<Result<Vec<Enqueued>, EnqueueError>>) {
        let (answer, receiver) = oneshot::channel();
        let begin = Self {
            jobs: jobs.into(),
            now,
            answer,
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
        self.begun = match Begun::begin(desk, &self.jobs, self.now) {
            Ok(begun) => Some(Ok(begun)),
            Err(Fault::Refused(error)) => Some(Err(error)),
            Err(Fault::Store(error)) => Some(Err(error.into())),
            Err(Fault::Broken(error)) => {
                self.begun = None;
                return Err(error);
            }
        };
        Ok(())
    }

    fn finish(self: Box<Self>, failure: Option<&StoreError>) -> Option<Bulk> {
        let refused = match (failure, self.begun) {
            (None, Some(Ok(begun))) => {
                return Some(Bulk::new(begun, self.jobs, self.now, self.answer));
            }
            (Some(error), _) => error.clone().into(),
            (None, Some(Err(error))) => error,
            (None, None) => StoreError::Closed.into(),
        };
        let _ = self.answer.send(Err(refused));
        None
    }
}

fn taken_back() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT),
        Some("something was found damaged after a write: all of it is taken back".to_owned()),
    )
}
