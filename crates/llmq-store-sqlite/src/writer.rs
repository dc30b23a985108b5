//! The thread that holds the connection, and group commit: while one transaction is synced the
//! next batch forms by itself, so a sync is shared by all who waited for it and no timer is
//! needed.

use std::error::Error;
use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use crate::StoreError;

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
    fn run(&mut self, connection: &Connection);
    /// Tells whoever asked: `failed` when the batch was not committed.
    fn finish(self: Box<Self>, failed: Option<&StoreError>);
}

/// A closure and who waits for its result.
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

    fn run(&mut self, connection: &Connection) {
        self.result = self.ask.take().map(|ask| match self.access {
            Access::Read => ask(connection),
            Access::Write => in_savepoint(connection, ask),
        });
    }

    fn finish(self: Box<Self>, failed: Option<&StoreError>) {
        let result = match (failed, self.result) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(result)) => result.map_err(StoreError::from),
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

/// Works until every sender is gone and everything they sent is done.
pub(crate) fn work(mut connection: Connection, mut waiting: mpsc::Receiver<Box<dyn Work>>) {
    let mut batch = Vec::new();
    while waiting.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        let failed = commit(&mut connection, &mut batch).err();
        for work in batch.drain(..) {
            work.finish(failed.as_ref());
        }
    }
    // Copies the log into the database and removes it; if that fails, the log is read next time.
    let _ = connection.close();
}

fn commit(connection: &mut Connection, batch: &mut [Box<dyn Work>]) -> Result<(), StoreError> {
    let writes = batch.iter().any(|work| work.access() == Access::Write);
    // A transaction that begins with reading cannot always go on to write (SQLITE_BUSY_SNAPSHOT,
    // when somebody else's shell wrote meanwhile), so one that will write says so at once.
    let behavior = if writes {
        TransactionBehavior::Immediate
    } else {
        TransactionBehavior::Deferred
    };
    let transaction = connection.transaction_with_behavior(behavior)?;
    run_all(&transaction, batch)?;
    transaction.commit()?;
    Ok(())
}

fn run_all(transaction: &Transaction<'_>, batch: &mut [Box<dyn Work>]) -> Result<(), StoreError> {
    for work in batch {
        work.run(transaction);
        // A full disk or a read error ends the transaction, with all that was done in it.
        if transaction.is_autocommit() {
            return Err(StoreError::Failed {
                source: Arc::from(Box::<dyn Error + Send + Sync>::from(
                    "the transaction was ended by an error of the disk",
                )),
            });
        }
    }
    Ok(())
}
