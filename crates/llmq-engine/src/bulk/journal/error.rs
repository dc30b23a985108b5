use std::io;
use std::path::{Path, PathBuf};

use crate::files::{directory_of, is_full};

/// Why results cannot be read or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The directory of the file does not exist.
    #[error("cannot write {}: there is no directory {}; create it or choose another file",
            .path.display(), .directory.display())]
    MissingDirectory {
        /// The file.
        path: PathBuf,
        /// The directory.
        directory: PathBuf,
    },
    /// The file or its directory may not be written.
    #[error("cannot write {}: {source}; choose another file or give yourself write access to {}",
            .path.display(), .directory.display())]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// Its directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is a directory, a pipe or a device.
    #[error("{} is not a regular file; results can only be resumed from one", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The ending asks for a packed file.
    #[error("{} cannot be packed while it is appended to; leave out .gz or .zst", .path.display())]
    Packed {
        /// The path.
        path: PathBuf,
    },
    /// Results and errors would share one file.
    #[error("{} is named for both results and errors; choose two files", .path.display())]
    SameFile {
        /// The path.
        path: PathBuf,
    },
    /// Another process writes the file under another of its names.
    #[error("{} is being written by another process under another name (a hard link, or one that \
             it had before); wait for it, stop it, or choose another output file", .path.display())]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something that no run wrote.
    #[error("{} holds something that llmq did not write (line {line}), and is left untouched; \
             choose another output file", .path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// The first such line, from 1.
        line: u64,
    },
    /// Opening or reading failed.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room. The file ends with a whole row; what did not fit is still held.
    #[error("the disk of {} is full: {}; free some space and run the same command again",
            .path.display(), left(*.unwritten))]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Rows that are held in memory only.
        unwritten: usize,
    },
    /// There is not even room to begin.
    #[error("the disk of {} is full; free some space and run the same command again",
            .path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
    },
    /// Writing failed otherwise. The file ends with a whole row; the rest is still held.
    #[error("cannot write {}: {}", .path.display(), left(*.unwritten))]
    Write {
        /// The file.
        path: PathBuf,
        /// Rows that are held in memory only.
        unwritten: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The system could not say that the rows are on the disk. They may be lost by a power cut.
    #[error("cannot make the rows written to {} safe", .path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Putting a new version of the file in its place failed; the old one is still there.
    #[error("cannot replace {}; it is unchanged", .path.display())]
    Replace {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl JournalError {
    /// Whether it is cured by freeing space.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::NoRoom { .. } => true,
            Self::Replace { source, .. } | Self::Sync { source, .. } => is_full(source),
            _ => false,
        }
    }

    /// The same as it stands now.
    pub(crate) fn with_unwritten(mut self, rows: usize) -> Self {
        if let Self::DiskFull { unwritten, .. } | Self::Write { unwritten, .. } = &mut self {
            *unwritten = rows;
        }
        self
    }

    pub(crate) fn opening(path: &Path, source: io::Error) -> Self {
        use io::ErrorKind as K;
        let path_buf = path.to_owned();
        let directory = directory_of(path).to_owned();
        match source.kind() {
            K::NotFound | K::NotADirectory if !directory.is_dir() => Self::MissingDirectory {
                path: path_buf,
                directory,
            },
            K::PermissionDenied | K::ReadOnlyFilesystem | K::NotFound => Self::NotWritable {
                path: path_buf,
                directory,
                source,
            },
            K::IsADirectory => Self::NotAFile { path: path_buf },
            _ if is_full(&source) => Self::NoRoom { path: path_buf },
            _ => Self::Read {
                path: path_buf,
                source,
            },
        }
    }

    pub(crate) fn writing(path: &Path, unwritten: usize, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_full(&source) {
            return Self::DiskFull { path, unwritten };
        }
        Self::Write {
            path,
            unwritten,
            source,
        }
    }
}

fn left(unwritten: usize) -> String {
    match unwritten {
        0 => "all finished rows are written by now".to_owned(),
        1 => "1 finished row is not written yet".to_owned(),
        rows => format!("{rows} finished rows are not written yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_written_is_told_with_its_remedy() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let message = JournalError::opening(Path::new("/data/out.jsonl"), denied).to_string();
        assert!(message.contains("/data/out.jsonl") && message.contains("write access to /data"));
        let read_only = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        let error = JournalError::opening(Path::new("out.jsonl"), read_only);
        assert!(matches!(error, JournalError::NotWritable { .. }));
        // It was told as a file that cannot be read.
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = JournalError::opening(Path::new("out.jsonl"), full);
        assert!(error.is_disk_full());
        assert!(error.to_string().contains("the disk of out.jsonl is full"));
    }
}
