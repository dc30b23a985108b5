use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use llmq_core::WallTime;
use rusqlite::Connection;
use tokio::sync::mpsc;

use crate::migrate::migrate;
use crate::owner::OwnerLock;
use crate::writer::{Access, Question, Work, work};
use crate::{OpenError, Owner, Place, StoreError};

/// How much may wait for the writer before those who bring more wait themselves.
const WAITING_MAX: usize = 1024;

/// The log is copied into the database when it has this many bytes. Larger than SQLite's 4 MB:
/// the copying is what callers notice, and each page is copied once however often it changed.
const LOG_BYTES: u32 = 64 << 20;

/// How long another program (a shell that looks at the file) may hold us up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The embedded store.
///
/// Cheap to clone: every clone speaks to the same thread. What a method has recorded when it
/// returns `Ok` is on disk and survives a killed process and a power cut, unless its
/// documentation says less; in a [`Place::Memory`] everything ends with the process.
///
/// # Cancel safety
///
/// Every method hands its work over when it is first polled and there is room in the line; from
/// then on it is carried out even if nobody waits for the answer.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    place: Place,
    /// None once the store was closed. Only ever held to look.
    to_writer: Mutex<Option<mpsc::Sender<Box<dyn Work>>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store at `place`, makes it if there is none, and takes ownership of it.
    ///
    /// An older layout is brought up to date. This reads and writes files: call it while a
    /// program starts, not between two requests.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; one that another process owns is told with that process.
    pub fn open(place: &Place, now: WallTime) -> Result<Self, OpenError> {
        let (connection, lock) = match place {
            Place::Memory => (open_memory()?, None),
            Place::File(path) => {
                let path = create(path)?;
                let lock = OwnerLock::acquire(&path, &Owner::this_process(now))?;
                (open_file(&path)?, Some(lock))
            }
        };
        let (to_writer, waiting) = mpsc::channel(WAITING_MAX);
        let writer = std::thread::Builder::new()
            .name("llmq-store".to_owned())
            .spawn(move || {
                work(connection, waiting);
                drop(lock);
            })
            .map_err(|source| OpenError::File {
                path: place.path().to_owned(),
                source,
            })?;
        let shared = Shared {
            place: place.clone(),
            to_writer: Mutex::new(Some(to_writer)),
            writer: Mutex::new(Some(writer)),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.shared.place
    }

    /// Finishes what waits, copies the log into the file and gives the ownership up. Clones that
    /// are used later answer [`StoreError::Closed`].
    ///
    /// It waits for the disk. Dropping the last clone does the same.
    pub fn close(self) {
        self.shared.close();
    }

    /// Looks at the database in one consistent state, which holds everything that was recorded
    /// before.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(Access::Read, ask).await
    }

    /// Changes the database: all of what `ask` does, or nothing; synced when this returns.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(Access::Write, ask).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        access: Access,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (question, answer) = Question::new(access, ask);
        let to_writer = self.shared.to_writer().ok_or(StoreError::Closed)?;
        let sent = to_writer.send(Box::new(question)).await;
        sent.map_err(|_| StoreError::Closed)?;
        drop(to_writer);
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("place", &self.shared.place)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn to_writer(&self) -> Option<mpsc::Sender<Box<dyn Work>>> {
        let to_writer = self.to_writer.lock();
        to_writer.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn close(&self) {
        let to_writer = self.to_writer.lock();
        drop(to_writer.unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock();
        let writer = writer.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // Should it have panicked, everybody who waited was told that the store is closed.
            let _ = writer.join();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Memory => Path::new("memory:"),
        }
    }
}

/// Makes the file if there is none, for its owner's eyes only, and finds its real name: two
/// names of one file must not have two locks.
fn create(path: &Path) -> Result<PathBuf, OpenError> {
    let mut options = std::fs::File::options();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let created = options.open(path).and_then(|_| path.canonicalize());
    created.map_err(|source| OpenError::File {
        path: path.to_owned(),
        source,
    })
}

fn open_memory() -> Result<Connection, OpenError> {
    let path = Place::Memory.path().to_owned();
    let connection = Connection::open_in_memory().map_err(|source| unusable(&path, source));
    prepare(connection?, &path)
}

fn open_file(path: &Path) -> Result<Connection, OpenError> {
    let connection = Connection::open(path).map_err(|source| unusable(path, source))?;
    use_log(&connection).map_err(|source| unusable(path, source))?;
    prepare(connection, path)
}

/// A write-ahead log that is synced at each commit, and checkpointed seldom.
fn use_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // On macOS a plain fsync leaves data in the drive's cache; elsewhere these do nothing.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    let page_bytes: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let pages = LOG_BYTES / page_bytes.max(1);
    connection.pragma_update_and_check(None, "wal_autocheckpoint", pages, |_| Ok(()))?;
    // After a burst the log gives its space back.
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES, |_| Ok(()))
}

fn prepare(mut connection: Connection, path: &Path) -> Result<Connection, OpenError> {
    migrate(&mut connection, path)?;
    connection
        .pragma_update(None, "foreign_keys", true)
        .map_err(|source| unusable(path, source))?;
    Ok(connection)
}

fn unusable(path: &Path, source: rusqlite::Error) -> OpenError {
    OpenError::Database {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}
