use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Owner;

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
    /// It is a database of something else.
    #[error("{} is a database, but not one of llmq; choose another store", .path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// The file cannot be created, locked or read.
    #[error("cannot open the store {}", .path.display())]
    File {
        /// The database.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
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

/// Why something was not recorded or read. Nothing of a change that failed is on disk.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// SQLite refused it: the disk is full or broken, or the file was damaged.
    #[error("the store could not carry it out")]
    Failed {
        /// What SQLite said.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed {
            source: Arc::new(error),
        }
    }
}
