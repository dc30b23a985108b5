//! Looking after a store's file: checking it, copying it while it is in use, making it small.

use std::path::{Path, PathBuf};

use llmq_core::WallTime;
use rusqlite::{Connection, OpenFlags};

use crate::jobs::{self, audit};
use crate::owner::OwnerLock;
use crate::store::unusable;
use crate::{OpenError, Owner, header, sums};

/// How many faults of its structure SQLite is asked for.
const STRUCTURE_MAX: u32 = 100;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Jobs whose rows were read.
    pub jobs: u64,
    /// Requests, answers and parts of files whose content was read.
    pub blobs: u64,
    /// Events that were read.
    pub events: u64,
    /// What is wrong, in words; none of a sound file.
    pub findings: Vec<String>,
    /// Promises that the file shows broken, when its history was asked for.
    pub broken: Vec<String>,
}

impl Checked {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.broken.is_empty()
    }
}

/// Reads all of the store at `path` and says what is wrong with it. With `history`, what it holds
/// is held against the promises too ([`llmq_store::check_history`]).
///
/// Nothing is changed, and the store may be in use: its state at one moment is read.
///
/// # Errors
///
/// [`OpenError`]: it cannot be read at all.
pub fn check(path: &Path, history: bool) -> Result<Checked, OpenError> {
    let before = before_sqlite(path)?;
    let mut checked = Checked::default();
    let connection = look(path)?;
    crate::migrate::expect_newest(&connection, path)?;
    let failed = |source| unusable(path, source);
    // One state for all that follows.
    connection.execute_batch("BEGIN").map_err(failed)?;
    structure(&connection, &mut checked).map_err(failed)?;
    // A structure that is broken can send every query astray: of such a file it is only said which
    // jobs cannot be read.
    let look = if checked.findings.is_empty() {
        audit::check
    } else {
        audit::name_unreadable
    };
    look(&connection, &mut checked).map_err(failed)?;
    let can_be_read = checked.findings.is_empty();
    // What a power cut tore off the log says nothing against what can be read.
    checked.findings.splice(0..0, before);
    if history && can_be_read {
        let entries = audit::history(&connection).map_err(failed)?;
        let options = llmq_store::HistoryOptions {
            faults_min: 0,
            unfinished: true,
        };
        let broken = llmq_store::check_history(&entries, options);
        checked.broken = broken.iter().map(ToString::to_string).collect();
    }
    Ok(checked)
}

/// What is looked at before SQLite is, where nobody has the store: whoever has it looked when it
/// was opened, and writes the log while it would be followed here.
fn before_sqlite(path: &Path) -> Result<Vec<String>, OpenError> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if OwnerLock::is_held(&real) {
        return Ok(Vec::new());
    }
    header::check(path)
}

fn structure(connection: &Connection, checked: &mut Checked) -> rusqlite::Result<()> {
    let mut query = connection.prepare(&format!("PRAGMA integrity_check({STRUCTURE_MAX})"))?;
    let rows = query.query_map([], |row| row.get::<_, String>(0))?;
    for row in rows {
        match row {
            Ok(word) if word == "ok" => {}
            Ok(word) => checked.findings.push(word),
            Err(error) => {
                checked.findings.push(error.to_string());
                break;
            }
        }
    }
    Ok(())
}

/// Copies the store at `path` to a new file, which holds its state at one moment. The store may be
/// in use. Answers the copy's length.
///
/// The copy has an id of its own: what it tells from then on is not what the original tells, and
/// whoever knows the original's messages by their ids must not take one for another.
///
/// # Errors
///
/// [`OpenError`]; nothing is left at `to` then, unless there was something before.
pub fn backup(path: &Path, to: &Path) -> Result<u64, OpenError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::File { path, source }
    };
    before_sqlite(path)?;
    let connection = look(path)?;
    // Reserves the name, and refuses one that is taken. SQLite fills an empty file.
    let mut options = std::fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(to).map_err(file(to))?;
    let copied = copy(&connection, to).map_err(|source| unusable(path, source));
    let named = copied.and_then(|()| {
        let copy = open(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let named = jobs::new_id(&copy).map_err(|source| unusable(to, source));
        // Its log goes with it.
        let closed = copy.close().map_err(|(_, source)| unusable(to, source));
        named.and(closed)
    });
    let synced = named.and_then(|()| {
        let copy = std::fs::File::open(to).map_err(file(to))?;
        copy.sync_all().map_err(file(to))?;
        Ok(copy.metadata().map_err(file(to))?.len())
    });
    if synced.is_err() {
        let _ = std::fs::remove_file(to);
    }
    synced
}

fn copy(connection: &Connection, to: &Path) -> rusqlite::Result<()> {
    let to = to
        .to_str()
        .ok_or_else(|| rusqlite::Error::InvalidPath(to.to_owned()))?;
    connection.execute("VACUUM INTO ?1", [to])?;
    Ok(())
}

/// Gives back the room of what was removed. The store must not be in use, and the disk needs room
/// for it once more meanwhile. Answers its length before and after.
///
/// # Errors
///
/// [`OpenError`]; the store is as it was then.
pub fn compact(path: &Path, now: WallTime) -> Result<(u64, u64), OpenError> {
    let path = path.canonicalize().map_err(|source| OpenError::File {
        path: path.to_owned(),
        source,
    })?;
    let _lock = OwnerLock::acquire(&path, &Owner::this_process(now))?;
    header::check(&path)?;
    let connection = open(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let failed = |source| unusable(&path, source);
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    connection.execute_batch(checkpoint).map_err(failed)?;
    let before = length(&path)?;
    connection.execute_batch("VACUUM").map_err(failed)?;
    connection.execute_batch(checkpoint).map_err(failed)?;
    Ok((before, length(&path)?))
}

fn length(path: &Path) -> Result<u64, OpenError> {
    let found = path.metadata().map_err(|source| OpenError::File {
        path: PathBuf::from(path),
        source,
    })?;
    Ok(found.len())
}

/// A connection that changes nothing.
fn look(path: &Path) -> Result<Connection, OpenError> {
    open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|source| unusable(path, source))?;
    sums::register(&connection).map_err(|source| unusable(path, source))?;
    crate::migrate::expect_known(&connection, path)?;
    Ok(connection)
}
