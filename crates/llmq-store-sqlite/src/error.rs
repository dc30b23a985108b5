use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use llmq_store::StoreError;
use rusqlite::ErrorCode;

use crate::Owner;
use crate::jobs::is_of_value;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process owns it.
    #[error(
        "the store {} is in use by {}; stop it, or choose another store",
        .path.display(),
        .owner.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string)
    )]
    Owned {
        /// The database.
        path: PathBuf,
        /// Who has it, as far as the lock file says.
        owner: Option<Owner>,
    },
    /// A newer llmq wrote it.
    #[error(
        "the store {} was written by a newer llmq (its layout is version {found}, this llmq knows \
         versions up to {known}); use that llmq", .path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version of this build.
        known: u32,
    },
    /// An older llmq wrote it, and it is only to be looked at.
    #[error(
        "the store {} was written by an older llmq (its layout is version {found}, this llmq's is \
         version {known}); start this llmq with it once, which brings it forward", .path.display()
    )]
    Older {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version of this build.
        known: u32,
    },
    /// It is a database of something else.
    #[error("{} is a database, but not one of llmq; choose another store", .path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// There is no directory that it could be in.
    #[error(
        "cannot open the store {}: there is no directory {}; create it or choose another store",
        .path.display(), .directory.display()
    )]
    NoDirectory {
        /// The database.
        path: PathBuf,
        /// What is not there.
        directory: PathBuf,
    },
    /// The file cannot be created, locked or read.
    #[error("cannot open the store {}", .path.display())]
    File {
        /// The database.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what an llmq wrote, at a place that nothing can be read without.
    #[error("the store {} is damaged: {what}; nothing was changed in it", .path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// SQLite cannot use it.
    #[error("cannot use the store {}", .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: Arc<dyn Error + Send + Sync>,
    },
}

impl OpenError {
    /// Whether the file is not what an llmq wrote, though it should be: a backup may help. Else the
    /// wrong one was named, somebody else has it, or it cannot be opened here.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Database { source, .. } => source
                .downcast_ref::<rusqlite::Error>()
                .and_then(rusqlite::Error::sqlite_error_code)
                .is_some_and(|code| code == ErrorCode::DatabaseCorrupt),
            _ => false,
        }
    }
}

/// What is told of an error of SQLite.
pub(crate) fn failed(error: rusqlite::Error) -> StoreError {
    if let Some(damaged) = is_of_value(&error) {
        return damaged;
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::damaged(error.to_string())
        }
        Some(ErrorCode::DiskFull) => StoreError::unavailable("the disk is full", error),
        Some(ErrorCode::SystemIoFailure) => {
            StoreError::unavailable("the disk could not be read or written", error)
        }
        _ => StoreError::unavailable(error.to_string(), error),
    }
}

/// Whether the disk could not read or write.
pub(crate) fn is_of_disk(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure)
}

/// Whether it would meet any other transaction too: the disk, the memory or somebody else's lock,
/// and no page or value that others do without.
pub(crate) fn is_of_all(error: &rusqlite::Error) -> bool {
    let rusqlite::Error::SqliteFailure(found, _) = error else {
        return false;
    };
    match found.code {
        // A place of the disk that cannot be read is no reason to leave the others.
        ErrorCode::SystemIoFailure => !is_of_reading(error),
        ErrorCode::DiskFull
        | ErrorCode::OutOfMemory
        | ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::ReadOnly
        | ErrorCode::CannotOpen
        | ErrorCode::OperationInterrupted
        | ErrorCode::FileLockingProtocolFailed
        | ErrorCode::NotADatabase => true,
        _ => false,
    }
}

/// Whether a place of the disk could not be read.
pub(crate) fn is_of_reading(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ};
    let code = error.sqlite_error().map(|found| found.extended_code);
    matches!(code, Some(SQLITE_IOERR_READ | SQLITE_IOERR_SHORT_READ))
}

/// Whether SQLite says that the file is not what was written.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

pub(crate) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}
