//! A disk under SQLite that loses power, gets full or breaks. Only with the feature `disk`.
//!
//! [`Disk`] is a file system for SQLite that passes everything on to the system's and keeps a
//! [`Log`] of what changed the files. From it come the [`Image`]s that a power cut could have left.

mod images;
mod vfs;

use std::collections::HashMap;
use std::ffi::c_int;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use images::{Change, Op};
pub use images::{IMAGES_A_CUT, Image, Log};
use rusqlite::ffi;

/// A file system for SQLite that knows what reached the disk, and that can be made to fail.
///
/// What it is told of is what SQLite does by its name ([`Disk::name`]); files that are written in
/// another way are not in its log.
///
/// ```
/// # use llmq_testkit::disk::Disk;
/// # let directory = tempfile::tempdir().unwrap();
/// let disk = Disk::new();
/// let path = directory.path().join("x.db");
/// let database =
///     rusqlite::Connection::open_with_flags_and_vfs(path, Default::default(), disk.name())?;
/// database.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a)")?;
/// assert!(disk.log().sync_points().len() > 2);
/// # Ok::<(), rusqlite::Error>(())
/// ```
#[derive(Debug)]
pub struct Disk {
    name: String,
    shared: &'static Shared,
}

/// In which way a disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It is full: a write takes some of what it is given and says `SQLITE_FULL`.
    Full,
    /// It is broken: every change says `SQLITE_IOERR`. A sync that fails drops what was to be
    /// synced, as Linux does: the next one says nothing of it.
    Broken,
    /// Syncs fail, as with [`Trouble::Broken`], and nothing else does. Which ones is counted in
    /// syncs.
    Syncs,
}

/// Numbers the names, which are the process's.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Disk {
    /// A disk without trouble. SQLite keeps its name until the process ends.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each one is another disk")]
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("llmq-disk-{number}");
        let shared: &'static Shared = Box::leak(Box::default());
        vfs::register(&name, shared);
        Self { name, shared }
    }

    /// The name under which SQLite knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How much has happened: what is acknowledged now was acknowledged after so many operations
    /// of the log.
    #[must_use]
    pub fn position(&self) -> usize {
        self.shared.lock().log.ops.len()
    }

    /// What has happened so far.
    #[must_use]
    pub fn log(&self) -> Log {
        self.shared.lock().log.clone()
    }

    /// Of the changes from now on, those with a number in `which` fail, the next one being 0.
    pub fn fail(&self, trouble: Trouble, which: Range<u64>) {
        let mut inner = self.shared.lock();
        let from = match trouble {
            Trouble::Full | Trouble::Broken => inner.changes,
            Trouble::Syncs => inner.syncs,
        };
        let which = from.saturating_add(which.start)..from.saturating_add(which.end);
        inner.trouble = Some((trouble, which));
    }

    /// It is sound again. Answers how many changes have failed since it was made.
    pub fn mend(&self) -> u64 {
        let mut inner = self.shared.lock();
        inner.trouble = None;
        inner.room = None;
        inner.failed
    }

    /// How many changes there were, those that failed among them.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.shared.lock().changes
    }

    /// How many syncs there were.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.shared.lock().syncs
    }

    /// From now on its files, and those at `beside`, which SQLite knows nothing of, have room for
    /// so many bytes together.
    pub fn has_room(&self, bytes: u64, beside: Vec<PathBuf>) {
        self.shared.lock().room = Some(Room { bytes, beside });
    }

    /// From now on it says that it synced and does not, as some drives do.
    pub fn lies(&self) {
        self.shared.lock().is_lying = true;
    }
}

/// What is to become of a call.
enum Verdict {
    /// It goes on to the system.
    Do,
    /// It goes nowhere and is said to have been done.
    Pretend,
    /// It fails with this code.
    Fail(c_int),
}

/// What a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    TakesRoom,
    Sync,
    Other,
}

/// What SQLite's calls are told to.
#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    log: Log,
    names: HashMap<PathBuf, usize>,
    /// How long each file is.
    lengths: Vec<u64>,
    changes: u64,
    syncs: u64,
    failed: u64,
    trouble: Option<(Trouble, Range<u64>)>,
    room: Option<Room>,
    is_lying: bool,
}

#[derive(Debug)]
struct Room {
    bytes: u64,
    beside: Vec<PathBuf>,
}

/// How much of a write of this length is done when it fails: whole sectors.
fn part_of(length: usize) -> usize {
    length / 2 / images::SECTOR_BYTES * images::SECTOR_BYTES
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file is about to be opened. Answers its number.
    fn opens(&self, path: &Path) -> usize {
        let mut inner = self.lock();
        let found = std::fs::read(path).ok();
        if let Some(number) = inner.names.get(path).copied() {
            if found.is_none() {
                inner.log.ops.push(Op::Made { file: number });
            }
            return number;
        }
        let number = inner.log.names.len();
        inner.names.insert(path.to_owned(), number);
        inner.log.names.push(path.to_owned());
        inner
            .lengths
            .push(found.as_ref().map_or(0, |found| found.len() as u64));
        inner.log.ops.push(match found {
            // What was there before is taken for synced.
            Some(content) => Op::Found {
                file: number,
                content,
            },
            None => Op::Made { file: number },
        });
        number
    }

    fn writes(&self, file: usize, at: u64, bytes: &[u8]) -> Verdict {
        let mut inner = self.lock();
        let end = at + bytes.len() as u64;
        let verdict = match inner.verdict(ffi::SQLITE_IOERR_WRITE, Kind::TakesRoom) {
            Verdict::Do if !inner.fits(file, end) => {
                inner.failed += 1;
                Verdict::Fail(ffi::SQLITE_FULL)
            }
            verdict => verdict,
        };
        let done = match verdict {
            Verdict::Fail(_) => &bytes[..part_of(bytes.len())],
            Verdict::Do | Verdict::Pretend => bytes,
        };
        let end = at + done.len() as u64;
        inner.lengths[file] = inner.lengths[file].max(end);
        let bytes = done.to_vec();
        let change = Change::Write { at, bytes };
        inner.log.ops.push(Op::Change { file, change });
        verdict
    }

    fn cuts(&self, file: usize, length: u64) -> Verdict {
        let mut inner = self.lock();
        let verdict = inner.verdict(ffi::SQLITE_IOERR_TRUNCATE, Kind::Other);
        if let Verdict::Do = verdict {
            inner.lengths[file] = length;
            let change = Change::Cut { length };
            inner.log.ops.push(Op::Change { file, change });
        }
        verdict
    }

    fn syncs(&self, file: usize) -> Verdict {
        let mut inner = self.lock();
        let verdict = inner.verdict(ffi::SQLITE_IOERR_FSYNC, Kind::Sync);
        if inner.is_lying {
            return Verdict::Pretend;
        }
        inner.log.ops.push(match verdict {
            Verdict::Fail(_) => Op::Dropped { file },
            Verdict::Do | Verdict::Pretend => Op::Sync { file },
        });
        verdict
    }

    fn deletes(&self, path: &Path, synced: bool) -> Verdict {
        let mut inner = self.lock();
        let verdict = inner.verdict(ffi::SQLITE_IOERR_DELETE, Kind::Other);
        if let (Verdict::Do, Some(file)) = (&verdict, inner.names.get(path).copied()) {
            inner.lengths[file] = 0;
            inner.log.ops.push(Op::Deleted { file, synced });
        }
        verdict
    }

    /// The index of the log grows.
    fn maps(&self) -> Verdict {
        self.lock()
            .verdict(ffi::SQLITE_IOERR_SHMSIZE, Kind::TakesRoom)
    }
}

impl Inner {
    /// Counts a change, and says what is to become of it.
    fn verdict(&mut self, code: c_int, kind: Kind) -> Verdict {
        let (number, sync) = (self.changes, self.syncs);
        self.changes += 1;
        self.syncs += u64::from(kind == Kind::Sync);
        let Some((trouble, which)) = &self.trouble else {
            return Verdict::Do;
        };
        let verdict = match (trouble, kind) {
            (Trouble::Full, Kind::TakesRoom) if which.contains(&number) => {
                Verdict::Fail(ffi::SQLITE_FULL)
            }
            (Trouble::Broken, _) if which.contains(&number) => Verdict::Fail(code),
            (Trouble::Syncs, Kind::Sync) if which.contains(&sync) => Verdict::Fail(code),
            _ => return Verdict::Do,
        };
        self.failed += 1;
        verdict
    }

    /// Whether there is room for a file to be so long.
    fn fits(&self, file: usize, length: u64) -> bool {
        let Some(room) = &self.room else {
            return true;
        };
        let grows = length.saturating_sub(self.lengths[file]);
        let beside = room.beside.iter().filter_map(|path| path.metadata().ok());
        let beside: u64 = beside.map(|found| found.len()).sum();
        let held: u64 = self.lengths.iter().sum();
        grows == 0 || held + beside + grows <= room.bytes
    }
}
