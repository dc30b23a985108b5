//! A file beside the database that holds room: when the disk is full it is emptied, so that the
//! results of what runs can still be recorded. That it is empty tells the next process so.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use llmq_core::{Now, Timestamp};

/// How long before room is looked for again.
const RETRY: Duration = Duration::from_secs(5);

/// How much of it is written at once.
const PART: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
    bytes: u64,
    room: Room,
    tried_at: Option<Timestamp>,
}

/// What has become of the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    LaidBy,
    /// It was given to the database, by this process or one before, and is not laid by again.
    Freed,
    /// There never was as much: a volume that is too small for it is used without.
    NeverThere,
}

impl Ballast {
    /// Lays it by, if there is room.
    pub(crate) fn new(database: &std::path::Path, bytes: u64) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push(".ballast");
        let mut ballast = Self {
            path: path.into(),
            bytes,
            room: Room::NeverThere,
            tried_at: None,
        };
        let found = ballast.path.metadata();
        if found.is_ok_and(|found| !found.is_dir() && found.len() == 0) {
            ballast.room = Room::Freed;
        }
        ballast.lay_by();
        ballast
    }

    /// Why no work is taken from the start: a process before gave the room up, and since then
    /// there was no more of it.
    pub(crate) fn was_freed(&self) -> Option<String> {
        let name = self.path.file_name().unwrap_or_default().display();
        (self.room == Room::Freed).then(|| {
            format!("the disk is full: there is no room to lay the store's reserve by ({name})")
        })
    }

    pub(crate) fn is_laid_by(&self) -> bool {
        self.room == Room::LaidBy
    }

    /// Gives the room to the database. Whether there is any, now or since before.
    pub(crate) fn free(&mut self, now: Now) -> bool {
        if self.is_laid_by() {
            let freed = self.empty().or_else(|_| std::fs::remove_file(&self.path));
            if freed.is_ok() {
                self.room = Room::Freed;
            }
            self.tried_at = Some(now.mono);
        }
        self.room == Room::Freed
    }

    /// Lays it by again, if there is room and the last try was long enough ago. Whether it is
    /// there.
    pub(crate) fn restore(&mut self, now: Now) -> bool {
        if self.tried_at.is_some_and(|tried| now.mono - tried < RETRY) {
            return false;
        }
        self.tried_at = Some(now.mono);
        self.lay_by();
        self.is_laid_by()
    }

    /// Writes all of it: a length alone would hold no room.
    fn lay_by(&mut self) {
        let found = self.path.metadata();
        let is_there = found.is_ok_and(|found| found.len() == self.bytes);
        if is_there || self.write_anew().is_ok() {
            self.room = Room::LaidBy;
        } else if self.room == Room::Freed {
            let _ = self.empty();
        } else {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn empty(&self) -> io::Result<()> {
        File::options().write(true).open(&self.path)?.set_len(0)
    }

    fn write_anew(&self) -> io::Result<()> {
        let mut file = File::create(&self.path)?;
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{FallocateFlags, fallocate};
            match fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::NOSPC) => return Err(rustix::io::Errno::NOSPC.into()),
                // A file system that cannot is written to.
                Err(_) => {}
            }
        }
        let part = vec![0; PART];
        let mut left = self.bytes;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(PART).min(PART);
            file.write_all(&part[..length])?;
            left -= length as u64;
        }
        file.sync_all()
    }
}
