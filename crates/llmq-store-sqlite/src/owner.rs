//! One process owns a store. The right is a lock of the operating system on a file beside the
//! database: SQLite's own locks are dropped when *any* descriptor of the database is closed in
//! the process (POSIX advisory locks), so they cannot say who owns it.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use llmq_core::WallTime;
use serde::{Deserialize, Serialize};

use crate::OpenError;

/// Who owns a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The process.
    pub pid: u32,
    /// The machine it runs on.
    pub host: String,
    /// When it opened the store.
    pub since: WallTime,
}

impl Owner {
    /// This process, opening a store at `now`.
    #[must_use]
    pub fn this_process(now: WallTime) -> Self {
        Self {
            pid: std::process::id(),
            host: host_name(),
            since: now,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)?;
        match jiff::Timestamp::from_microsecond(self.since.as_micros()) {
            Ok(since) => write!(f, " since {since:.0}"),
            Err(_) => Ok(()),
        }
    }
}

/// The right to use a database, until it is dropped or the process ends in whatever way.
///
/// The file stays when the lock goes: removing it would open a gap in which two processes lock
/// two files of one name.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    _file: File,
    /// When the file was touched last before this process took it.
    pub(crate) touched_before: Option<WallTime>,
}

impl OwnerLock {
    /// Takes the lock of the database at `path`, without waiting.
    pub(crate) fn acquire(path: &Path, owner: &Owner) -> Result<Self, OpenError> {
        let failed = |source| OpenError::File {
            path: path.to_owned(),
            source,
        };
        let is_new = !lock_path(path).exists();
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(lock_path(path))
            .map_err(failed)?;
        // Whoever only asks whether it is held has the lock for a moment.
        for patience in (0..10).rev() {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if patience > 0 => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(OpenError::Owned {
                        path: path.to_owned(),
                        owner: read_owner(&mut file),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        let touched_before = touched_at(&file).filter(|_| !is_new);
        write_owner(&mut file, owner).map_err(failed)?;
        Ok(Self {
            _file: file,
            touched_before,
        })
    }

    /// Whether somebody has the database at `path`, this process or another.
    pub(crate) fn is_held(path: &Path) -> bool {
        let file = File::open(lock_path(path));
        // Shared, so that two who ask at once do not take each other for its owner.
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// Notes a time beside the database at `path`, without writing anything anywhere: that works while
/// a disk is full, and survives the process but no power cut.
pub(crate) fn touch(path: &Path, now: WallTime) -> io::Result<()> {
    let now = Duration::from_micros(u64::try_from(now.as_micros()).unwrap_or(0));
    let file = File::options().write(true).open(lock_path(path))?;
    file.set_modified(UNIX_EPOCH + now)
}

fn touched_at(file: &File) -> Option<WallTime> {
    let modified = file.metadata().and_then(|found| found.modified()).ok()?;
    let since = modified.duration_since(UNIX_EPOCH).ok()?;
    let micros = i64::try_from(since.as_micros()).ok()?;
    Some(WallTime::from_micros(micros))
}

fn lock_path(database: &Path) -> PathBuf {
    let mut name = OsString::from(database);
    name.push(".lock");
    PathBuf::from(name)
}

fn read_owner(file: &mut File) -> Option<Owner> {
    /// A host name has at most 255 bytes.
    const MAX: u64 = 4096;
    let mut text = String::new();
    Read::take(file, MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write_owner(file: &mut File, owner: &Owner) -> io::Result<()> {
    let text = serde_json::to_string(owner)?;
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{text}")
}

fn host_name() -> String {
    let of_system = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    of_system
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "this machine".to_owned())
}
