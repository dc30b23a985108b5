//! A file beside the database that holds room: when the disk is full it is removed, so that the
//! results of what runs can still be recorded.

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
    is_there: bool,
    tried_at: Option<Timestamp>,
}

impl Ballast {
    /// Lays it by. One that there is no room for is as one that was freed.
    pub(crate) fn new(database: &std::path::Path, bytes: u64) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push(".ballast");
        let mut ballast = Self {
            path: path.into(),
            bytes,
            is_there: false,
            tried_at: None,
        };
        ballast.is_there = ballast.write().is_ok();
        ballast
    }

    pub(crate) fn is_freed(&self) -> bool {
        !self.is_there
    }

    /// Gives the room to the database. Whether there is any, now or since before.
    pub(crate) fn free(&mut self, now: Now) -> bool {
        if self.is_there {
            self.is_there = std::fs::remove_file(&self.path).is_err();
            self.tried_at = Some(now.mono);
        }
        self.is_freed()
    }

    /// Lays it by again, if there is room and the last try was long enough ago. Whether it is
    /// there.
    pub(crate) fn restore(&mut self, now: Now) -> bool {
        if self.tried_at.is_some_and(|tried| now.mono - tried < RETRY) {
            return false;
        }
        self.tried_at = Some(now.mono);
        self.is_there = self.write().is_ok();
        self.is_there
    }

    /// Writes all of it: a length alone would hold no room.
    fn write(&self) -> io::Result<()> {
        if self
            .path
            .metadata()
            .is_ok_and(|found| found.len() == self.bytes)
        {
            return Ok(());
        }
        let written = self.write_anew();
        if written.is_err() {
            let _ = std::fs::remove_file(&self.path);
        }
        written
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
