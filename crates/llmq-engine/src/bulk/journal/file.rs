use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use llmq_core::Timestamp;

use super::error::JournalError;
use super::line::{OutputFormat, RowResult, encode};

/// How long a row may be written and not yet synced. Half of the second that is promised, so
/// that a slow sync still ends within it.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(500);
/// Rows are handed to the system in pieces of about this size.
const BUFFER_MAX: usize = 256 * 1024;

/// What a journal needs of its file: the system's, or one that fails or records in a test.
pub trait JournalFile: Write {
    /// Waits until what was written is on the disk.
    ///
    /// # Errors
    ///
    /// What the system says; then it is unknown what is on the disk.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file to `length` bytes; the next write goes there.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

/// The file must be open for appending, so that writes go to its end after a cut.
impl JournalFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// One output file, to which whole rows are appended.
///
/// A row goes through three stages: [`append`](Self::append) holds it in memory,
/// [`flush`](Self::flush) gives it to the system (a killed process keeps it),
/// [`sync`](Self::sync) puts it on the disk (a power cut keeps it). The caller syncs whenever
/// [`is_due`](Self::is_due) says so, and at every stop.
///
/// After a failed write the file is cut back to its last whole row, and the rows that did not
/// fit are still held: a later `flush` goes on where this one stopped.
#[derive(Debug)]
pub struct Journal<F = File> {
    path: PathBuf,
    file: F,
    format: OutputFormat,
    buffer: Vec<u8>,
    /// Where each row in the buffer ends.
    ends: VecDeque<usize>,
    /// The length of the file, all of it whole rows.
    written: u64,
    /// Whether a part of a row may stand behind `written`.
    has_torn_end: bool,
    /// When the oldest row came that is not synced.
    unsynced_since: Option<Timestamp>,
}

impl<F: JournalFile> Journal<F> {
    /// A journal over `file`, which holds `length` bytes of whole rows. `path` is for messages.
    pub fn over(file: F, path: &Path, format: OutputFormat, length: u64) -> Self {
        Self {
            path: path.to_owned(),
            file,
            format,
            buffer: Vec::new(),
            ends: VecDeque::new(),
            written: length,
            has_torn_end: false,
            unsynced_since: None,
        }
    }

    /// Holds `row`, and flushes when 256 KiB are held.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush). The row is held all the same.
    pub fn append(&mut self, row: &RowResult<'_>, now: Timestamp) -> Result<(), JournalError> {
        encode(&mut self.buffer, self.format, row);
        self.ends.push_back(self.buffer.len());
        self.unsynced_since.get_or_insert(now);
        if self.buffer.len() < BUFFER_MAX {
            return Ok(());
        }
        self.flush()
    }

    /// Gives all held rows to the system.
    ///
    /// # Errors
    ///
    /// [`JournalError::DiskFull`] and [`JournalError::Write`] tell how many rows are still held.
    pub fn flush(&mut self) -> Result<(), JournalError> {
        if self.has_torn_end {
            self.cut_torn_end()
                .map_err(|source| JournalError::writing(&self.path, self.ends.len(), source))?;
        }
        let (count, result) = write_all(&mut self.file, &self.buffer);
        self.forget_written(count);
        result.map_err(|source| {
            // If cutting fails too, the next flush or the next run does it.
            let _ = self.cut_torn_end();
            JournalError::writing(&self.path, self.ends.len(), source)
        })
    }

    /// Flushes, and waits until every row is on the disk.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush), and [`JournalError::Sync`]: then stop, since the system
    /// may have dropped what it could not write.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.flush()?;
        if self.unsynced_since.is_none() {
            return Ok(());
        }
        self.file.sync().map_err(|source| JournalError::Sync {
            path: self.path.clone(),
            source,
        })?;
        self.unsynced_since = None;
        Ok(())
    }

    /// When the next [`sync`](Self::sync) is due; `None` when everything is on the disk.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.unsynced_since.map(|since| since + SYNC_INTERVAL)
    }

    /// Whether a sync is due.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.next_due().is_some_and(|due| due <= now)
    }

    /// The file that it writes to.
    pub fn file(&self) -> &F {
        &self.file
    }

    /// Rows that are held in memory only.
    pub fn unwritten(&self) -> usize {
        self.ends.len()
    }

    /// Takes the first `count` bytes, which were written, out of the buffer as far as they are
    /// whole rows.
    fn forget_written(&mut self, count: usize) {
        let mut whole = 0;
        while let Some(&end) = self.ends.front() {
            if end > count {
                break;
            }
            whole = end;
            self.ends.pop_front();
        }
        self.buffer.drain(..whole);
        for end in &mut self.ends {
            *end -= whole;
        }
        self.written += whole as u64;
        self.has_torn_end = whole < count;
    }

    fn cut_torn_end(&mut self) -> io::Result<()> {
        if self.has_torn_end {
            self.file.cut(self.written)?;
            self.has_torn_end = false;
        }
        Ok(())
    }
}

/// How many bytes were written, and why not all.
fn write_all(file: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
mod tests {
    use llmq_testkit::SmallFile;
    use proptest::prelude::*;

    use super::super::line::tests::row;
    use super::*;

    impl JournalFile for SmallFile {
        fn sync(&mut self) -> io::Result<()> {
            Self::sync(self);
            Ok(())
        }

        fn cut(&mut self, length: u64) -> io::Result<()> {
            Self::cut(self, length);
            Ok(())
        }
    }

    fn journal(room: usize, format: OutputFormat) -> Journal<SmallFile> {
        Journal::over(SmallFile::with_room(room), Path::new("out"), format, 0)
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    proptest! {
        #[test]
        fn a_full_disk_keeps_whole_rows_and_loses_none_of_the_others(
            bodies in prop::collection::vec("\"[a-z]{0,30}\"", 1..12),
            room in 0_usize..2_000,
            is_csv in any::<bool>(),
        ) {
            let format = if is_csv { OutputFormat::Csv } else { OutputFormat::Jsonl };
            let mut expected = Vec::new();
            let mut small = journal(room, format);
            for (body, line) in bodies.iter().zip(1..) {
                encode(&mut expected, format, &row(line, body));
                small.append(&row(line, body), at(0)).unwrap();
            }
            match small.flush() {
                Ok(()) => prop_assert!(expected.len() <= room),
                Err(error) => {
                    prop_assert!(matches!(error, JournalError::DiskFull { .. }), "{error}");
                    let whole = small.file.content.len();
                    prop_assert!(expected.starts_with(&small.file.content));
                    prop_assert!(whole == 0 || expected[whole - 1] == b'\n');
                    // As much as fits stays.
                    let next = memchr::memchr(b'\n', &expected[whole..]).unwrap() + 1;
                    prop_assert!(whole + next > room);
                }
            }
            small.file.room_bytes = usize::MAX;
            small.sync().unwrap();
            prop_assert_eq!(small.unwritten(), 0);
            prop_assert_eq!(&small.file.content, &expected);
            prop_assert_eq!(small.file.synced_bytes, expected.len());
        }
    }

    #[test]
    fn a_sync_is_due_half_a_second_after_the_oldest_row() {
        let mut journal = journal(usize::MAX, OutputFormat::Jsonl);
        assert_eq!(journal.next_due(), None);
        journal.append(&row(1, "{}"), at(100)).unwrap();
        journal.append(&row(2, "{}"), at(590)).unwrap();
        assert!(!journal.is_due(at(599)) && journal.is_due(at(600)));
        journal.flush().unwrap();
        assert!(journal.is_due(at(600)), "flushed is not synced");
        journal.sync().unwrap();
        assert_eq!(journal.next_due(), None);
    }

    #[test]
    fn a_long_run_holds_little_in_memory() {
        let mut journal = journal(usize::MAX, OutputFormat::Jsonl);
        let body = format!("\"{}\"", "x".repeat(1_000));
        for line in 1..=2_000 {
            journal.append(&row(line, &body), at(0)).unwrap();
            assert!(journal.buffer.len() < BUFFER_MAX);
        }
        assert!(journal.buffer.capacity() < 2 * BUFFER_MAX);
        assert!(journal.file.content.len() > 1_000_000);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_that_is_always_full_is_told_as_a_full_disk() {
        let file = File::options().append(true).open("/dev/full").unwrap();
        let mut journal = Journal::over(file, Path::new("/dev/full"), OutputFormat::Jsonl, 0);
        journal.append(&row(1, "{}"), at(0)).unwrap();
        let error = journal.sync().unwrap_err();
        assert!(error.is_disk_full());
        assert!(
            error
                .to_string()
                .contains("1 finished row is not written yet")
        );
        assert_eq!(journal.unwritten(), 1);
    }
}
