use std::ops::RangeInclusive;

use super::bitmap::Bitmap;
use super::input::{InputError, InputKind, InputSource, ReadOptions, Records};
use super::journal::{JournalError, OutputFormat, OutputPaths, Tail, scan_path};

/// Row numbers that a report names one by one; beyond them it only counts.
const NAMED_MAX: usize = 100;

/// What the files say, read afresh and without repairing anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Rows of the input, bad ones included.
    pub rows: u64,
    /// Rows with a result.
    pub completed: u64,
    /// Rows that failed for good.
    pub failed: u64,
    /// Rows without any result.
    pub missing: u64,
    /// The first hundred ranges of them.
    pub missing_ranges: Vec<RangeInclusive<u64>>,
    /// Results of rows that had one already.
    pub duplicates: u64,
    /// The first hundred of their rows.
    pub duplicate_rows: Vec<u64>,
    /// Results of rows that the input does not have.
    pub unknown: u64,
    /// The first hundred of their numbers.
    pub unknown_rows: Vec<u64>,
    /// Bytes at the end that are a part of a row.
    pub torn_bytes: u64,
    /// Rows with holes.
    pub damaged_rows: u64,
}

impl VerifyReport {
    /// Whether every row is there exactly once, and nothing else.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let faults = [
            self.missing,
            self.duplicates,
            self.unknown,
            self.torn_bytes,
            self.damaged_rows,
        ];
        faults == [0; 5]
    }
}

/// Why the files could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The input cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// An output cannot be read, or is not ours.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Proves on the files that every row of `input` is in the outputs exactly once.
///
/// Needs a bit a row for each of three sets, and no more.
///
/// # Errors
///
/// [`VerifyError`] when a file cannot be read. What is wrong with the rows is in the report.
pub fn verify(
    input: &InputSource,
    kind: InputKind,
    limit_rows: Option<u64>,
    paths: &OutputPaths,
) -> Result<VerifyReport, VerifyError> {
    let mut report = VerifyReport::default();
    let mut results = Bitmap::default();
    let mut failed = Bitmap::default();
    for path in std::iter::once(&paths.output).chain(&paths.errors) {
        let scanned = scan_path(path, OutputFormat::of(path)?, |entry, _| {
            if results.insert(entry.line) {
                if entry.failed {
                    failed.insert(entry.line);
                }
            } else {
                report.duplicates += 1;
                name(&mut report.duplicate_rows, entry.line);
            }
        })?;
        report.damaged_rows += scanned.damaged;
        if let Tail::Torn { bytes } = scanned.tail {
            report.torn_bytes += bytes;
        }
    }
    compare_with_input(input, kind, limit_rows, &mut results, &failed, &mut report)?;
    report.unknown = results.len();
    report.unknown_rows = results.iter().take(NAMED_MAX).collect();
    Ok(report)
}

/// Takes the rows of the input out of `results`; what remains is unknown.
fn compare_with_input(
    input: &InputSource,
    kind: InputKind,
    limit_rows: Option<u64>,
    results: &mut Bitmap,
    failed: &Bitmap,
    report: &mut VerifyReport,
) -> Result<(), InputError> {
    let max_row_bytes = ReadOptions::default().max_row_bytes;
    // Ranges are in rows that exist: a blank line between two missing rows does not part them.
    let mut open_range: Option<RangeInclusive<u64>> = None;
    for record in Records::open(input, kind, limit_rows, max_row_bytes)? {
        let line = record?.line;
        report.rows += 1;
        if !results.remove(line) {
            report.missing += 1;
            let start = open_range.map_or(line, |range| *range.start());
            open_range = Some(start..=line);
            continue;
        }
        name_range(&mut report.missing_ranges, open_range.take());
        if failed.contains(line) {
            report.failed += 1;
        } else {
            report.completed += 1;
        }
    }
    name_range(&mut report.missing_ranges, open_range);
    Ok(())
}

fn name(names: &mut Vec<u64>, line: u64) {
    if names.len() < NAMED_MAX {
        names.push(line);
    }
}

fn name_range(ranges: &mut Vec<RangeInclusive<u64>>, range: Option<RangeInclusive<u64>>) {
    if ranges.len() < NAMED_MAX {
        ranges.extend(range);
    }
}

impl std::fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} rows: {} completed, {} failed, {} missing",
            self.rows, self.completed, self.failed, self.missing
        )?;
        for (number, range) in self.missing_ranges.iter().enumerate() {
            let before = if number == 0 { " (rows " } else { ", " };
            match (range.start(), range.end()) {
                (start, end) if start == end => write!(f, "{before}{start}")?,
                (start, end) => write!(f, "{before}{start}-{end}")?,
            }
        }
        if !self.missing_ranges.is_empty() {
            f.write_str(")")?;
        }
        write!(
            f,
            ", {} written twice, {} unknown, {} damaged, {} torn bytes",
            self.duplicates, self.unknown, self.damaged_rows, self.torn_bytes
        )
    }
}
