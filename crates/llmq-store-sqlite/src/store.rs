use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use llmq_core::{Now, WallTime};
use llmq_store::{EnqueueError, Enqueued, EventId, Health, NewJob, Settings};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::ballast::Ballast;
use crate::jobs::{self, Desk, Done};
use crate::migrate::migrate;
use crate::owner::{self, OwnerLock};
use crate::writer::{Access, BeginBulk, Question, Room, Seen, Task, Work, Writer, load_at_open};
use crate::{OpenError, Opened, Owner, Place, StoreError, header, sums};

/// How much may wait for the writer before those who bring more wait themselves.
const WAITING_MAX: usize = 1024;

/// How much of the file is kept in memory, in KiB: the pages that every life of a job touches.
const CACHE_KIB: i64 = 2048;

/// How long another program (a shell that looks at the file) may hold us up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How many prepared statements are kept: more than there are.
const STATEMENTS_MAX: usize = 256;

/// How a store is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How much it takes and how long it keeps things.
    pub settings: Settings,
    /// How much room it lays by beside its file, which is freed when the disk fills so that the
    /// results of what runs can still be recorded. 0: none.
    pub ballast_bytes: u64,
    /// How long the log beside its file gets before it is copied into the file.
    pub log_bytes: u32,
    /// The name under which SQLite knows the file system to use; `None`: the system's. Tests
    /// register one that loses power.
    pub vfs: Option<String>,
    /// Whether a caller who is alone commits on its own thread (by
    /// [`block_in_place`](tokio::task::block_in_place)), which saves it two changes of threads.
    /// Then the methods are only for tasks of a multi-threaded runtime and outside a
    /// [`LocalSet`](tokio::task::LocalSet): they panic elsewhere. Off unless it is said.
    pub in_place: bool,
}

impl Options {
    /// The room that is laid by unless something else is said: 64 MiB.
    pub const BALLAST_BYTES: u64 = 64 << 20;

    /// The length that the log gets unless something else is said: 64 MiB. Larger than SQLite's
    /// 4 MB: the copying is what callers notice, and each page is copied once however often it
    /// changed.
    pub const LOG_BYTES: u32 = 64 << 20;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            ballast_bytes: Self::BALLAST_BYTES,
            log_bytes: Self::LOG_BYTES,
            vfs: None,
            in_place: false,
        }
    }
}

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
    /// The database's real name; none in memory.
    path: Option<PathBuf>,
    touched_before: Option<WallTime>,
    id: Uuid,
    opened: Opened,
    seen: Arc<Seen>,
    room: Room,
    in_place: bool,
    /// Ends with the writer.
    ended: watch::Receiver<()>,
    /// None once the store was closed. Only ever held to look.
    to_writer: Mutex<Option<mpsc::Sender<Box<dyn Work>>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store at `place` as [`Options`] usually say, but without laying room by: for
    /// programs that keep no jobs, and for tests.
    ///
    /// # Errors
    ///
    /// As [`open_with`](Self::open_with).
    pub fn open(place: &Place, now: WallTime) -> Result<Self, OpenError> {
        let options = Options {
            ballast_bytes: 0,
            ..Options::default()
        };
        Self::open_with(place, options, now)
    }

    /// Opens the store at `place`, makes it if there is none, and takes ownership of it.
    ///
    /// An older layout is brought up to date; what a crash left is checked and put in order
    /// ([`opened`](Self::opened) says what was found). This reads and writes files: call it while
    /// a program starts, not between two requests.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; one that another process owns is told with that process.
    pub fn open_with(place: &Place, options: Options, now: WallTime) -> Result<Self, OpenError> {
        let mut findings = Vec::new();
        let mut ballast = None;
        let (connection, lock) = match place {
            Place::Memory => (open_memory()?, None),
            Place::File(path) => {
                let path = real(path)?;
                let lock = OwnerLock::acquire(&path, &Owner::this_process(now))?;
                create(&path)?;
                findings = header::check(&path)?;
                let connection = open_file(&path, &options)?;
                if options.ballast_bytes > 0 {
                    ballast = Some(Ballast::new(&path, options.ballast_bytes));
                }
                (connection, Some((path, lock)))
            }
        };
        let (path, lock) = lock.unzip();
        let touched_before = lock.as_ref().and_then(|lock| lock.touched_before);
        let failed = |source| unusable(place.path(), source);
        let (mut index, mut opened) =
            load_at_open(&connection, options.settings.clone(), now).map_err(failed)?;
        let id = jobs::id(&connection).map_err(failed)?;
        findings.append(&mut opened.findings);
        opened.findings = findings;
        // What is left of a full disk is for the results of what ran, as before the process died.
        let was_freed = ballast.as_ref().and_then(Ballast::was_freed);
        let health = was_freed.map_or(Health::Ready, |reason| Health::ReserveOnly { reason });
        index.health = Some(health.clone());
        let seen = Arc::new(Seen {
            health: Mutex::new(health),
            newest_event: watch::Sender::new(EventId(index.last_event)),
        });
        let writer = Writer {
            connection,
            index,
            seen: Arc::clone(&seen),
            ballast,
            bulks: std::collections::VecDeque::new(),
            must_reload: false,
            must_look: false,
            must_renew_log: false,
            // Until it was said, it is not known.
            is_full_sync: false,
        };
        let room = Room::new(writer);
        let (to_writer, waiting) = mpsc::channel(WAITING_MAX);
        let (end, ended) = watch::channel(());
        let working = room.clone();
        let writer = std::thread::Builder::new()
            .name("llmq-store".to_owned())
            .spawn(move || {
                working.work(waiting);
                drop(lock);
                drop(end);
            })
            .map_err(|source| OpenError::File {
                path: place.path().to_owned(),
                source,
            })?;
        let shared = Shared {
            place: place.clone(),
            path,
            touched_before,
            id,
            opened,
            seen,
            room,
            in_place: options.in_place,
            ended,
            to_writer: Mutex::new(Some(to_writer)),
            writer: Mutex::new(Some(writer)),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// What was found when it was opened.
    #[must_use]
    pub fn opened(&self) -> &Opened {
        &self.shared.opened
    }

    /// Says that this process is alive at `now`, though nothing can be recorded: it is noted as the
    /// time of the lock file, which a full disk takes too. Survives the process, but no power cut.
    /// Blocks for as long as the file system takes.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn touch(&self, now: WallTime) -> io::Result<()> {
        match &self.shared.path {
            Some(path) => owner::touch(path, now),
            None => Ok(()),
        }
    }

    /// When an earlier process was alive last, as far as [`touch`](Self::touch) says.
    #[must_use]
    pub fn touched_before(&self) -> Option<WallTime> {
        self.shared.touched_before
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
        ask: impl Fn(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(Access::Read, ask).await
    }

    /// Changes the database: all of what `ask` does, or nothing; synced when this returns.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        ask: impl Fn(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(Access::Write, ask).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        access: Access,
        ask: impl Fn(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (question, answer) = Question::new(access, ask);
        self.hand_over(question).await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Work on jobs: what it refuses by itself is the inner result.
    pub(crate) async fn desk<T: Send + 'static, E: Send + 'static>(
        &self,
        access: Access,
        ask: impl Fn(&mut Desk<'_>) -> Done<T, E> + Send + 'static,
    ) -> Result<Result<T, E>, StoreError> {
        let (task, answer) = Task::new(access, ask);
        self.hand_over(task).await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(crate) async fn enqueue_bulk(
        &self,
        jobs: Vec<NewJob>,
        now: Now,
    ) -> Result<Vec<Enqueued>, EnqueueError> {
        let (begin, answer) = BeginBulk::new(jobs, now);
        // It goes on after its turn, which is for the thread.
        self.send(Box::new(begin)).await?;
        answer.await.unwrap_or(Err(StoreError::Closed.into()))
    }

    async fn hand_over(&self, work: impl Work + 'static) -> Result<(), StoreError> {
        let mut work: Box<dyn Work> = Box::new(work);
        if self.shared.in_place {
            // As long as there is a sender, the writer is there.
            let _open = self.shared.to_writer().ok_or(StoreError::Closed)?;
            let _entered = self.shared.room.enter();
            match self.shared.room.commit_alone(work) {
                None => return Ok(()),
                Some(back) => work = back,
            }
        }
        self.send(work).await
    }

    async fn send(&self, work: Box<dyn Work>) -> Result<(), StoreError> {
        let to_writer = self.shared.to_writer().ok_or(StoreError::Closed)?;
        let entered = self.shared.room.enter();
        let sent = to_writer.send(work).await;
        sent.map_err(|_| StoreError::Closed)?;
        entered.leave_to_thread();
        Ok(())
    }

    /// How much waits for the thread of the writer.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        let to_writer = self.shared.to_writer();
        to_writer.map_or(0, |sender| sender.max_capacity() - sender.capacity())
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> &Room {
        &self.shared.room
    }

    pub(crate) fn seen_id(&self) -> Uuid {
        self.shared.id
    }

    pub(crate) fn seen_health(&self) -> Health {
        if self.shared.to_writer().is_none() {
            let reason = StoreError::Closed.to_string();
            return Health::Unavailable { reason };
        }
        self.shared.seen.health()
    }

    pub(crate) fn seen_events(&self) -> watch::Receiver<EventId> {
        self.shared.seen.newest_event.subscribe()
    }

    /// Takes no more work, and waits until what there is has been done.
    pub(crate) async fn close_and_wait(&self) -> Result<(), StoreError> {
        drop(self.shared.take_sender());
        let mut ended = self.shared.ended.clone();
        // It says nothing but that it has ended.
        while ended.changed().await.is_ok() {}
        Ok(())
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

    fn take_sender(&self) -> Option<mpsc::Sender<Box<dyn Work>>> {
        let to_writer = self.to_writer.lock();
        to_writer.unwrap_or_else(PoisonError::into_inner).take()
    }

    fn close(&self) {
        drop(self.take_sender());
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

/// A file's real name, whether it is there or not: two names of one file must not have two locks.
/// The file is not opened: its owner's locks would be gone when it is closed.
fn real(path: &Path) -> Result<PathBuf, OpenError> {
    let found = match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => within_its_directory(path),
        found => found,
    };
    found.map_err(|source| match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() && !directory.exists() => {
            OpenError::NoDirectory {
                path: path.to_owned(),
                directory: directory.to_owned(),
            }
        }
        _ => OpenError::File {
            path: path.to_owned(),
            source,
        },
    })
}

/// The real name of a file that is not there.
fn within_its_directory(path: &Path) -> io::Result<PathBuf> {
    let not_found = || io::Error::from(io::ErrorKind::NotFound);
    let name = path.file_name().ok_or_else(not_found)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let path = directory.canonicalize()?.join(name);
    match path.read_link() {
        // A link to what is not there yet: it is made there, so its name there has the lock.
        Ok(target) => within_its_directory(&path.with_file_name("").join(target)),
        Err(_) => Ok(path),
    }
}

/// Makes the file if there is none, for its owner's eyes only.
fn create(path: &Path) -> Result<(), OpenError> {
    let mut options = std::fs::File::options();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(OpenError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

fn open_memory() -> Result<Connection, OpenError> {
    let path = Place::Memory.path().to_owned();
    let connection = Connection::open_in_memory().map_err(|source| unusable(&path, source));
    prepare(connection?, &path)
}

fn open_file(path: &Path, options: &Options) -> Result<Connection, OpenError> {
    let flags = OpenFlags::default();
    let connection = match options.vfs.as_deref() {
        None => Connection::open_with_flags(path, flags),
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs),
    };
    let connection = connection.map_err(|source| unusable(path, source))?;
    use_log(&connection, options.log_bytes).map_err(|source| unusable(path, source))?;
    prepare(connection, path)
}

/// A write-ahead log that is synced at each commit, and checkpointed seldom.
fn use_log(connection: &Connection, log_bytes: u32) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let mode = journal_mode(connection)?;
    if mode != "wal" {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
            Some(format!(
                "no write-ahead log can be kept beside it (its journal is `{mode}`)"
            )),
        ));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // On macOS a plain fsync leaves data in the drive's cache; elsewhere these do nothing.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    let page_bytes: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let pages = (log_bytes / page_bytes.max(1)).max(1);
    connection.pragma_update_and_check(None, "wal_autocheckpoint", pages, |_| Ok(()))?;
    // After a burst the log gives its space back.
    connection.pragma_update_and_check(None, "journal_size_limit", log_bytes, |_| Ok(()))
}

/// Asks for a write-ahead log, and says what there is then.
///
/// SQLite stays with its old journal where it cannot have a log, and then a commit is not on the
/// disk when it says so: the removal of that journal is not synced. It answers before it has
/// written, so the answer alone says nothing: what follows it may be an error.
fn journal_mode(connection: &Connection) -> rusqlite::Result<String> {
    let mut statement = connection.prepare("PRAGMA journal_mode = WAL")?;
    let mut rows = statement.query([])?;
    let mut mode = String::new();
    while let Some(row) = rows.next()? {
        mode = row.get(0)?;
    }
    Ok(mode)
}

fn prepare(mut connection: Connection, path: &Path) -> Result<Connection, OpenError> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    sums::register(&connection).map_err(|source| unusable(path, source))?;
    migrate(&mut connection, path)?;
    connection
        .pragma_update(None, "foreign_keys", true)
        .map_err(|source| unusable(path, source))?;
    Ok(connection)
}

pub(crate) fn unusable(path: &Path, source: rusqlite::Error) -> OpenError {
    OpenError::Database {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}
