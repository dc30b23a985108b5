use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use llmq_core::Timestamp;

use super::error::JournalError;
use super::file::{Journal, JournalFile};
use super::line::{CSV_HEADER, Entry, OutputFormat, RowResult};
use super::scan::{Scanned, Tail, scan_file, scan_path};
use crate::bulk::bitmap::Bitmap;
use crate::files::{behind_links, beside, directory_of, replace, sync_directory};

/// Where results go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputPaths {
    /// Completed rows, and failed ones too if they have no file of their own.
    pub output: PathBuf,
    /// Failed rows.
    pub errors: Option<PathBuf>,
}

impl OutputPaths {
    /// Whether results and errors have files of their own, however the paths are spelled.
    ///
    /// # Errors
    ///
    /// [`JournalError::SameFile`].
    pub fn check(&self) -> Result<(), JournalError> {
        match &self.errors {
            Some(errors) if same_file(&self.output, errors) => Err(JournalError::SameFile {
                path: self.output.clone(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// What the files of an earlier run say.
#[derive(Debug, Clone, Default)]
pub struct Resumed {
    /// Rows that have a result, failed ones included: they are not sent again.
    pub done: Bitmap,
    /// Those of them that failed.
    pub failed: Bitmap,
    /// Bytes of a torn last row that were cut off.
    pub torn_bytes: u64,
    /// Rows with holes, as a power cut can leave them, that were taken out.
    pub damaged_rows: u64,
    /// Further results of rows that had one.
    pub duplicates: u64,
}

impl Resumed {
    /// Rows that were completed.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.done.len() - self.failed.len()
    }

    fn take(&mut self, entry: Entry) {
        if !self.done.insert(entry.line) {
            self.duplicates += 1;
            // One good result is enough.
            if !entry.failed {
                self.failed.remove(entry.line);
            }
        } else if entry.failed {
            self.failed.insert(entry.line);
        }
    }
}

/// The files that a run writes its results to.
///
/// The caller holds the [`OutputLock`](crate::bulk::OutputLock) of each file meanwhile. That is the
/// lock of its name; the file itself is locked as well, since it may have other names (hard links).
#[derive(Debug)]
pub struct Output<F = File> {
    results: Journal<F>,
    errors: Option<Journal<F>>,
    reserve: Option<PathBuf>,
    /// The file for which the disk had no room.
    full: Option<PathBuf>,
}

impl Output {
    /// Opens the files, creates those that are missing, repairs what a crash left, and tells
    /// what is done.
    ///
    /// A torn last row is cut off; a whole last row without its line break gets one; rows with
    /// holes are taken out (new file, then rename). All of it is synced before this returns.
    ///
    /// # Errors
    ///
    /// [`JournalError`]; a file that is not ours is left untouched.
    pub fn open(paths: &OutputPaths) -> Result<(Self, Resumed), JournalError> {
        paths.check()?;
        let mut resumed = Resumed::default();
        let results = open_journal(&paths.output, &mut resumed)?;
        let errors = match &paths.errors {
            Some(path) => Some(open_journal(path, &mut resumed)?),
            None => None,
        };
        let output = Self {
            results,
            errors,
            reserve: None,
            full: None,
        };
        Ok((output, resumed))
    }
}

impl<F: JournalFile> Output<F> {
    /// Sets `bytes` of the disk aside in `OUTPUT.reserve`.
    ///
    /// When the disk is full the file is removed and the write is repeated, so that the results
    /// of the calls in flight still find room; [`out_of_room`](Self::out_of_room) tells it, and
    /// nothing more is to be sent. It is removed in the end too.
    ///
    /// # Errors
    ///
    /// [`JournalError::DiskFull`] when there is not even that much room.
    pub fn set_reserve(&mut self, output: &Path, bytes: u64) -> Result<(), JournalError> {
        let path = beside(output, ".reserve");
        self.reserve = Some(path.clone());
        let filled = File::create(&path).and_then(|mut file| {
            // Written out, since a file that was only made longer takes no room.
            io::copy(&mut io::repeat(0x55).take(bytes), &mut file)?;
            file.sync_all()
        });
        filled.map_err(|source| {
            self.free_reserve();
            JournalError::writing(&path, 0, source)
        })
    }

    /// Holds `row` for the file it belongs to; see [`Journal::append`].
    ///
    /// # Errors
    ///
    /// As for [`Journal::flush`]. The row is held all the same.
    pub fn append(&mut self, row: &RowResult<'_>, now: Timestamp) -> Result<(), JournalError> {
        let appended = match &mut self.errors {
            Some(errors) if row.error.is_some() => errors.append(row, now),
            _ => self.results.append(row, now),
        };
        match appended {
            Err(error) if self.makes_room(&error) => self.flush(),
            appended => appended,
        }
    }

    /// Gives all held rows to the system.
    ///
    /// # Errors
    ///
    /// As for [`Journal::flush`].
    pub fn flush(&mut self) -> Result<(), JournalError> {
        self.each(Journal::flush)
    }

    /// Waits until every row is on the disk.
    ///
    /// # Errors
    ///
    /// As for [`Journal::sync`].
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.each(Journal::sync)
    }

    /// When the next sync is due; `None` when everything is on the disk.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.journals().filter_map(Journal::next_due).min()
    }

    /// Whether a sync is due.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.next_due().is_some_and(|due| due <= now)
    }

    /// Whether the disk had no room for a write, even if there is some since.
    #[must_use]
    pub fn out_of_room(&self) -> Option<JournalError> {
        self.full.as_ref().map(|path| JournalError::DiskFull {
            path: path.clone(),
            unwritten: self.unwritten(),
        })
    }

    /// Rows that are held in memory only.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.journals().map(Journal::unwritten).sum()
    }

    fn journals(&self) -> impl Iterator<Item = &Journal<F>> {
        std::iter::once(&self.results).chain(&self.errors)
    }

    /// Does `step` with both files even if the first fails, so that as much as possible is kept.
    fn each(
        &mut self,
        step: impl Fn(&mut Journal<F>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let once = |output: &mut Self| {
            let results = step(&mut output.results);
            let errors = output.errors.as_mut().map_or(Ok(()), &step);
            results.and(errors)
        };
        match once(self) {
            Err(error) if self.makes_room(&error) => once(self),
            done => done,
        }
    }

    /// Whether there is room now for a write that found none. What a sync found none for may be
    /// lost already, and the next one would say nothing of it.
    fn makes_room(&mut self, error: &JournalError) -> bool {
        let was_free = error.is_disk_full() && self.free_reserve();
        match error {
            JournalError::DiskFull { path, .. } => {
                self.full.get_or_insert_with(|| path.clone());
                was_free
            }
            _ => false,
        }
    }

    fn free_reserve(&mut self) -> bool {
        free(&mut self.reserve)
    }
}

impl<F> Drop for Output<F> {
    fn drop(&mut self) {
        free(&mut self.reserve);
    }
}

/// Whether there was a reserve, which is free now.
fn free(reserve: &mut Option<PathBuf>) -> bool {
    reserve
        .take()
        .is_some_and(|path| fs::remove_file(path).is_ok())
}

/// Takes the failed rows out of the files, so that they are sent again; gives their number.
///
/// The files are replaced whole (new file, then rename): a crash leaves the old or the new one.
///
/// # Errors
///
/// [`JournalError`]; then each file is unchanged or done.
pub fn forget_failed(paths: &OutputPaths) -> Result<u64, JournalError> {
    let mut failed = 0;
    for path in std::iter::once(&paths.output).chain(&paths.errors) {
        if !path.exists() {
            continue;
        }
        let format = OutputFormat::of(path)?;
        let mut here = 0;
        scan_path(path, format, |entry, _| here += u64::from(entry.failed))?;
        if here > 0 {
            // What another process still writes is not to be gone on with.
            hold(&open_to_append(path)?, path)?;
            rewrite(path, format, |entry| !entry.failed)?;
        }
        failed += here;
    }
    Ok(failed)
}

/// Moves the file at `path` out of the way, to the first of `path.1`, `path.2`, … that is free;
/// gives the new name. What was paid for is never overwritten. A symbolic link stays, and what it
/// leads to is moved.
///
/// # Errors
///
/// [`JournalError::Replace`] when it cannot be renamed.
pub fn set_aside(path: &Path) -> Result<Option<PathBuf>, JournalError> {
    let path = &behind_links(path);
    if !path.exists() {
        return Ok(None);
    }
    let free = (1_u32..)
        .map(|number| beside(path, &format!(".{number}")))
        .find(|old| !old.exists());
    let Some(old) = free else { return Ok(None) };
    fs::rename(path, &old)
        .and_then(|()| sync_directory(path))
        .map_err(|source| JournalError::Replace {
            path: path.to_owned(),
            source,
        })?;
    Ok(Some(old))
}

fn open_journal(path: &Path, resumed: &mut Resumed) -> Result<Journal, JournalError> {
    let format = OutputFormat::of(path)?;
    // Opening a pipe would wait for its other end.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(JournalError::NotAFile {
            path: path.to_owned(),
        });
    }
    let is_new = !path.exists();
    let mut file = open_to_append(path)?;
    hold(&file, path)?;
    let reader = file
        .try_clone()
        .map_err(|source| JournalError::opening(path, source))?;
    let scanned = scan_file(reader, path, format, |entry, _| resumed.take(entry))?;
    let mut length = scanned.whole;
    if scanned.damaged > 0 {
        // It is read once more by its name, and another one takes its place.
        drop(file);
        length = rewrite(path, format, |_| true)?;
        resumed.damaged_rows += scanned.damaged;
        file = open_to_append(path)?;
        hold(&file, path)?;
    }
    if let Tail::Torn { bytes } = scanned.tail {
        resumed.torn_bytes += bytes;
    }
    let length = repair_end(&file, format, length, &scanned)
        .and_then(|length| {
            if is_new {
                sync_directory(&behind_links(path))?;
            }
            Ok(length)
        })
        .map_err(|source| JournalError::writing(path, 0, source))?;
    Ok(Journal::over(file, path, format, length))
}

fn open_to_append(path: &Path) -> Result<File, JournalError> {
    File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| JournalError::opening(path, source))
}

/// Locks the file itself for as long as it is open. It is read by this very handle from then on:
/// on a share of Windows a lock keeps all others out (flock(2), "CIFS details").
fn hold(file: &File, path: &Path) -> Result<(), JournalError> {
    // On Windows itself nobody could look at the results meanwhile.
    if cfg!(not(unix)) {
        return Ok(());
    }
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(JournalError::Held {
            path: path.to_owned(),
        }),
        // Where no file can be locked, the lock of the name has to do.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Makes the file end with the line break of a whole row; gives its length then.
fn repair_end(
    mut file: &File,
    format: OutputFormat,
    whole: u64,
    scanned: &Scanned,
) -> io::Result<u64> {
    let mut length = whole;
    let mut is_changed = false;
    match scanned.tail {
        // A file that was written anew because of damage has neither.
        _ if scanned.damaged > 0 => {}
        Tail::Clean => {}
        Tail::Torn { .. } => {
            file.set_len(whole)?;
            is_changed = true;
        }
        Tail::Unterminated => {
            file.write_all(b"\n")?;
            length += 1;
            is_changed = true;
        }
    }
    if format == OutputFormat::Csv && length == 0 {
        file.write_all(CSV_HEADER)?;
        length = CSV_HEADER.len() as u64;
        is_changed = true;
    }
    if is_changed {
        file.sync_all()?;
    }
    Ok(length)
}

/// Replaces the journal by one with only the whole rows that `keep` wants; gives its length.
fn rewrite(
    path: &Path,
    format: OutputFormat,
    mut keep: impl FnMut(&Entry) -> bool,
) -> Result<u64, JournalError> {
    let failed = |source| JournalError::Replace {
        path: path.to_owned(),
        source,
    };
    let mut old = RowsOf {
        file: BufReader::new(File::open(path).map_err(failed)?),
        position: 0,
    };
    let mut scanned = Ok(());
    let replaced = replace(path, |new| {
        let mut length = 0;
        if format == OutputFormat::Csv {
            new.write_all(CSV_HEADER)?;
            length = CSV_HEADER.len() as u64;
        }
        let mut copied = Ok(length);
        let scan = scan_path(path, format, |entry, place| {
            if let (Ok(length), true) = (&mut copied, keep(&entry)) {
                match old.copy(place, new) {
                    Ok(count) => *length += count,
                    Err(error) => copied = Err(error),
                }
            }
        });
        scanned = scan.map(|_| ());
        if scanned.is_err() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        copied
    });
    scanned.and(replaced.map_err(failed))
}

/// A journal from which rows are copied, in ascending order.
struct RowsOf {
    file: BufReader<File>,
    position: u64,
}

impl RowsOf {
    /// Copies one row and gives it the line break that it may lack; gives its length.
    fn copy(&mut self, place: Range<u64>, to: &mut impl Write) -> io::Result<u64> {
        let skip = i64::try_from(place.start - self.position).map_err(io::Error::other)?;
        self.file.seek_relative(skip)?;
        let mut row = Vec::new();
        let length = place.end - place.start;
        self.file.by_ref().take(length).read_to_end(&mut row)?;
        self.position = place.end;
        if row.last() != Some(&b'\n') {
            row.push(b'\n');
        }
        to.write_all(&row)?;
        Ok(row.len() as u64)
    }
}

/// Whether two paths name one file, or one that does not exist yet, however they are spelled.
#[must_use]
pub fn same_file(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| {
        let there = fs::canonicalize(path);
        there.ok().or_else(|| {
            let path = behind_links(path);
            let directory = fs::canonicalize(directory_of(&path)).ok()?;
            Some(directory.join(path.file_name()?))
        })
    };
    a == b || is_linked(a, b) || whole(a).is_some_and(|a| whole(b) == Some(a))
}

/// Whether two names are hard links to one file.
#[cfg(unix)]
fn is_linked(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_linked(_a: &Path, _b: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::super::line::tests::row;
    use super::*;

    /// A disk on which nothing fits while the reserve lies on it.
    struct DiskBesides {
        reserve: PathBuf,
        content: Vec<u8>,
        room: usize,
    }

    impl Write for DiskBesides {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.reserve.exists() || self.content.len() + bytes.len() > self.room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.content.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl JournalFile for DiskBesides {
        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn cut(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn on_a_full_disk_results_find_room_in_the_reserve_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.jsonl");
        let disk = DiskBesides {
            reserve: beside(&path, ".reserve"),
            content: Vec::new(),
            room: 300,
        };
        let mut output = Output {
            results: Journal::over(disk, &path, OutputFormat::Jsonl, 0),
            errors: None,
            reserve: None,
            full: None,
        };
        output.set_reserve(&path, 1_000).unwrap();
        output.append(&row(1, "{}"), Timestamp::ZERO).unwrap();
        assert!(output.out_of_room().is_none());
        output.sync().unwrap();
        assert_eq!(output.unwritten(), 0);
        let full = output.out_of_room().unwrap().to_string();
        assert!(full.contains("all finished rows are written"), "{full}");
        assert!(output.results_file().content.ends_with(b"}}\n"));
        assert!(!beside(&path, ".reserve").exists());
        output.append(&row(2, "{}"), Timestamp::ZERO).unwrap();
        let error = output.sync().unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        assert_eq!(output.unwritten(), 1);
    }

    impl Output<DiskBesides> {
        fn results_file(&self) -> &DiskBesides {
            self.results.file()
        }
    }
}
