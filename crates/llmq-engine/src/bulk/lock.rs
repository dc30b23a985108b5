use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use llmq_core::WallTime;
use serde::{Deserialize, Serialize};

use super::journal::JournalError;
use crate::files::{behind_links, beside};

/// Who holds an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// The machine it runs on.
    pub host: String,
    /// When it took the lock.
    pub since: WallTime,
}

impl Holder {
    /// This process, taking a lock at `now`.
    #[must_use]
    pub fn this_process(now: WallTime) -> Self {
        Self {
            pid: std::process::id(),
            host: host_name(),
            since: now,
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)?;
        match jiff::Timestamp::from_microsecond(self.since.as_micros()) {
            Ok(since) => write!(f, " since {since:.0}"),
            Err(_) => Ok(()),
        }
    }
}

/// The right to write one output: one process at a time has it.
///
/// It is a lock of the operating system on `OUTPUT.lock`, so it ends with the process however
/// that ends; a file left by a crash is simply taken over. Dropping it removes the file. Through a
/// symbolic link it is the lock of what that leads to; other names of the file itself are seen by
/// [`Output::open`](crate::bulk::Output::open).
#[derive(Debug)]
pub struct OutputLock {
    path: PathBuf,
    file: File,
}

/// Why an output cannot be held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process has it.
    #[error("{} is being written by {}; wait for it, stop it, or choose another output file",
            .output.display(), named(.holder))]
    Held {
        /// The output.
        output: PathBuf,
        /// Who has it, as far as the lock file says.
        holder: Option<Holder>,
    },
    /// The lock file cannot be written.
    #[error(transparent)]
    File(#[from] JournalError),
}

impl OutputLock {
    /// Takes the lock on `output` for `holder`, without waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] says who has it.
    pub fn acquire(output: &Path, holder: &Holder) -> Result<Self, LockError> {
        let path = beside(output, ".lock");
        // The lock file is ours; what people know is the output beside it.
        let failed = |source| JournalError::opening(&behind_links(output), source);
        loop {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        output: output.to_owned(),
                        holder: read_holder(&mut file),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source).into()),
            }
            // Its last holder may have removed the name between the opening and the locking;
            // then others would lock another file of the same name.
            if is_still_at(&file, &path) {
                write_holder(&mut file, holder).map_err(failed)?;
                return Ok(Self { path, file });
            }
        }
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        // Removed while it is locked, so that nobody's lock goes with it.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

fn read_holder(file: &mut File) -> Option<Holder> {
    /// A host name has at most 255 bytes.
    const MAX: u64 = 4096;
    let mut text = String::new();
    Read::take(file, MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write_holder(file: &mut File, holder: &Holder) -> io::Result<()> {
    let text = serde_json::to_string(holder)?;
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{text}")
}

#[cfg(unix)]
fn is_still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Elsewhere an open file cannot be removed.
#[cfg(not(unix))]
fn is_still_at(_file: &File, _path: &Path) -> bool {
    true
}

fn named(holder: &Option<Holder>) -> String {
    match holder {
        Some(holder) => holder.to_string(),
        None => "another process".to_owned(),
    }
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn holder_at(pid: u32) -> Holder {
        Holder {
            pid,
            host: "here".to_owned(),
            since: WallTime::from_micros(1_767_225_600_000_000),
        }
    }

    #[test]
    fn a_second_holder_is_told_who_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out.jsonl");
        let lock = OutputLock::acquire(&output, &holder_at(41)).unwrap();
        // A lock belongs to an open file, so another one in this process stands for a process.
        let error = std::thread::scope(|scope| {
            let second = scope.spawn(|| OutputLock::acquire(&output, &holder_at(42)));
            second.join().unwrap().unwrap_err()
        });
        let message = error.to_string();
        assert!(
            message.contains("written by process 41 on here since 2026-01-01T00:00:00Z"),
            "{message}"
        );
        drop(lock);
        assert!(!directory.path().join("out.jsonl.lock").exists());
        OutputLock::acquire(&output, &holder_at(42)).unwrap();
    }

    /// Each wrote to the one file, and all rows were sent twice.
    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_is_no_second_output() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out.jsonl");
        let link = directory.path().join("link.jsonl");
        std::os::unix::fs::symlink("out.jsonl", &link).unwrap();
        // Before the output is there, and when it is.
        for _ in 0..2 {
            let lock = OutputLock::acquire(&output, &holder_at(41)).unwrap();
            let second = OutputLock::acquire(&link, &holder_at(42));
            assert!(matches!(second, Err(LockError::Held { .. })), "{second:?}");
            drop(lock);
            std::fs::write(&output, "").unwrap();
        }
    }

    #[test]
    fn a_file_left_by_a_crash_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out.jsonl");
        for left in [
            "",
            "garbage",
            "{\"pid\":1,\"host\":\"gone\",\"since\":0}\n and more",
        ] {
            std::fs::write(beside(&output, ".lock"), left).unwrap();
            let _lock = OutputLock::acquire(&output, &holder_at(7)).unwrap();
            let mut file = File::open(beside(&output, ".lock")).unwrap();
            assert_eq!(read_holder(&mut file), Some(holder_at(7)));
        }
    }

    #[test]
    fn never_two_at_once() {
        const THREADS: usize = 4;
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out.jsonl");
        let inside = std::sync::atomic::AtomicU32::new(0);
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    use std::sync::atomic::Ordering::SeqCst;
                    start.wait();
                    let mut held = 0;
                    while held < 100 {
                        if let Ok(_lock) = OutputLock::acquire(&output, &holder_at(1)) {
                            assert_eq!(inside.fetch_add(1, SeqCst), 0);
                            held += 1;
                            std::thread::yield_now();
                            inside.fetch_sub(1, SeqCst);
                        }
                    }
                });
            }
        });
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_lost_its_name_is_told_from_the_one_that_has_it_now() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.jsonl.lock");
        let first = File::create(&path).unwrap();
        assert!(is_still_at(&first, &path));
        std::fs::remove_file(&path).unwrap();
        assert!(!is_still_at(&first, &path));
        let second = File::create(&path).unwrap();
        assert!(!is_still_at(&first, &path) && is_still_at(&second, &path));
    }

    #[test]
    fn a_missing_directory_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("no/out.jsonl");
        let error = OutputLock::acquire(&output, &holder_at(1)).unwrap_err();
        assert!(
            error.to_string().contains("there is no directory"),
            "{error}"
        );
    }
}
