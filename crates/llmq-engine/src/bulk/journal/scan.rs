use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;

use serde::de::IgnoredAny;

use super::error::JournalError;
use super::line::{
    CSV_COLUMNS, CSV_HEADER, Entry, OutputFormat, decode_csv, decode_json, decode_whole_json,
    may_begin, may_begin_a_line,
};
use crate::bulk::input::{CsvReader, Line, Lines};

const BUFFER: usize = 1 << 20;
/// No answer is as long; a longer line is not ours.
const LINE_MAX: usize = 512 << 20;

/// What a journal looks like beyond its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// The offset just after the last whole row (or header).
    pub(crate) whole: u64,
    pub(crate) tail: Tail,
    /// Rows in the middle with holes: what a power cut can leave of rows that were not synced.
    pub(crate) damaged: u64,
}

/// What follows the last line break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing.
    Clean,
    /// A whole row without its line break.
    Unterminated,
    /// A part of a row.
    Torn {
        /// How long it is.
        bytes: u64,
    },
}

/// Reads a journal and shows each whole row, with its place in the file, in order.
///
/// # Errors
///
/// [`JournalError::NotOurs`] when something else stands in it. What may be ours but is damaged
/// by a crash is no error.
pub(crate) fn scan_path(
    path: &Path,
    format: OutputFormat,
    visit: impl FnMut(Entry, Range<u64>),
) -> Result<Scanned, JournalError> {
    let file = File::open(path).map_err(|source| JournalError::Read {
        path: path.to_owned(),
        source,
    })?;
    scan_file(file, path, format, visit)
}

/// The same of a file that is open, from where it stands; `path` is for messages.
pub(super) fn scan_file(
    file: File,
    path: &Path,
    format: OutputFormat,
    visit: impl FnMut(Entry, Range<u64>),
) -> Result<Scanned, JournalError> {
    let read_error = |source| JournalError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(JournalError::NotAFile {
            path: path.to_owned(),
        });
    }
    let reader = BufReader::with_capacity(BUFFER, file);
    let mut scan = Scan {
        path,
        visit,
        rows: 0,
        scanned: Scanned {
            whole: 0,
            tail: Tail::Clean,
            damaged: 0,
        },
    };
    match format {
        OutputFormat::Jsonl => scan.json(reader)?,
        OutputFormat::Csv => scan.csv(reader, metadata.len())?,
    }
    Ok(scan.scanned)
}

struct Scan<'p, V> {
    path: &'p Path,
    visit: V,
    rows: u64,
    scanned: Scanned,
}

impl<V: FnMut(Entry, Range<u64>)> Scan<'_, V> {
    fn json(&mut self, reader: BufReader<File>) -> Result<(), JournalError> {
        let mut lines = Lines::new(reader, LINE_MAX);
        while let Some(numbered) = lines.next().map_err(|source| self.read_error(source))? {
            let Line::Whole(line) = numbered.line else {
                return Err(self.not_ours(numbered.number));
            };
            let (end, terminated) = (numbered.end, numbered.terminated);
            // Without its line break a line may be cut off, and only a whole value counts.
            let entry = if terminated {
                decode_json(line)
            } else {
                decode_whole_json(line)
            };
            let has_hole = memchr::memchr(0, line).is_some();
            // One of ours that is whole has the end by which it is known.
            let is_cut_off = !terminated && serde_json::from_slice::<IgnoredAny>(line).is_err();
            let may_be_ours = (has_hole || is_cut_off) && (self.rows > 0 || may_begin_a_line(line));
            match entry {
                Some(entry) => self.row(entry, end, terminated),
                None if line.is_empty() && terminated => self.scanned.whole = end,
                None if may_be_ours => self.no_row(end, terminated),
                None => return Err(self.not_ours(numbered.number)),
            }
        }
        Ok(())
    }

    /// Reads records up to the first that has a hole. A hole can swallow a quote, and then
    /// nobody knows which of the following line breaks end a record; none of them was synced.
    fn csv(&mut self, reader: BufReader<File>, length: u64) -> Result<(), JournalError> {
        let mut records = CsvReader::new(reader, b',', LINE_MAX);
        let mut is_header = true;
        while let Some(record) = records.next().map_err(|source| self.read_error(source))? {
            let (end, terminated) = (record.end, record.terminated);
            let has_hole = memchr::memchr(0, record.fields.bytes()).is_some();
            if std::mem::take(&mut is_header) {
                let names = record.fields.iter();
                let is_ours = names.eq(CSV_COLUMNS.iter().map(|name| name.as_bytes()));
                let text: Vec<u8> = record.fields.iter().collect::<Vec<_>>().join(&b',');
                match (is_ours, terminated) {
                    (true, true) => self.scanned.whole = end,
                    _ if !terminated && may_begin(&text, CSV_HEADER) => self.no_row(end, false),
                    _ => return Err(self.not_ours(record.physical_line)),
                }
                continue;
            }
            match decode_csv(&record.fields) {
                // A last record without its line break may lack digits of its number.
                Some(entry) if terminated => self.row(entry, end, true),
                _ if has_hole || !terminated => {
                    self.no_row(length, false);
                    return Ok(());
                }
                _ => return Err(self.not_ours(record.physical_line)),
            }
        }
        Ok(())
    }

    fn row(&mut self, entry: Entry, end: u64, terminated: bool) {
        (self.visit)(entry, self.scanned.whole..end);
        self.rows += 1;
        self.scanned.whole = end;
        if !terminated {
            self.scanned.tail = Tail::Unterminated;
        }
    }

    /// Takes note of bytes that are no whole row.
    fn no_row(&mut self, end: u64, terminated: bool) {
        if terminated {
            self.scanned.damaged += 1;
            self.scanned.whole = end;
        } else {
            let bytes = end - self.scanned.whole;
            self.scanned.tail = Tail::Torn { bytes };
        }
    }

    fn not_ours(&self, line: u64) -> JournalError {
        JournalError::NotOurs {
            path: self.path.to_owned(),
            line,
        }
    }

    fn read_error(&self, source: std::io::Error) -> JournalError {
        JournalError::Read {
            path: self.path.to_owned(),
            source,
        }
    }
}
