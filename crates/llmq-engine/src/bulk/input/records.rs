use std::io;

use super::csv::{CsvFault, CsvReader, Fields};
use super::error::{BadRowCode, InputError};
use super::kind::{InputFormat, InputKind};
use super::lines::{Line, Lines};
use super::source::{Bytes, InputSource};

/// The numbered records of an input, whatever its format.
pub(crate) struct Records {
    input: InputSource,
    reader: Reader,
    columns: Vec<String>,
    /// Records still to be given; `None` for all.
    left: Option<u64>,
    /// The number of the last CSV record.
    csv_number: u64,
    ended: bool,
}

enum Reader {
    Lines(Lines<Bytes>),
    Csv(CsvReader<Bytes>),
}

/// One row, not yet understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The row's number in the input, from 1.
    pub(crate) line: u64,
    /// The line on which it begins, from 1.
    pub(crate) physical_line: u64,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A line of `.jsonl` or `.txt`.
    Line(String),
    /// A record of `.csv` or `.tsv`, all of it UTF-8 and as long as the header.
    Fields(Fields),
    /// What could not be read, and why; without the line.
    Broken(BadRowCode, String),
}

impl Records {
    pub(crate) fn open(
        input: &InputSource,
        kind: InputKind,
        limit_rows: Option<u64>,
        max_row_bytes: usize,
    ) -> Result<Self, InputError> {
        let bytes = input.open(kind.compression)?;
        let reader = match kind.format {
            InputFormat::Jsonl | InputFormat::Batch | InputFormat::Txt => {
                Reader::Lines(Lines::new(bytes, max_row_bytes))
            }
            InputFormat::Csv => Reader::Csv(CsvReader::new(bytes, b',', max_row_bytes)),
            InputFormat::Tsv => Reader::Csv(CsvReader::new(bytes, b'\t', max_row_bytes)),
        };
        let mut records = Self {
            input: input.clone(),
            reader,
            columns: Vec::new(),
            left: limit_rows,
            csv_number: 0,
            ended: false,
        };
        records.read_header()?;
        Ok(records)
    }

    /// The header of `.csv` and `.tsv`; nothing for the other formats.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    fn read_header(&mut self) -> Result<(), InputError> {
        let Reader::Csv(reader) = &mut self.reader else {
            return Ok(());
        };
        let header = reader.next().map_err(|source| InputError::Read {
            input: self.input.clone(),
            line: 1,
            source,
        })?;
        let Some(header) = header else {
            return Err(InputError::Empty {
                input: self.input.clone(),
                has_header: false,
            });
        };
        let bad = |reason: &str| InputError::BadHeader {
            input: self.input.clone(),
            line: header.physical_line,
            reason: reason.to_owned(),
        };
        match header.fault {
            Some(CsvFault::UnclosedQuote) => return Err(bad("a quote is opened and never closed")),
            Some(CsvFault::TooLong) => return Err(bad("it is longer than the limit for one row")),
            None => {}
        }
        let names: Result<Vec<String>, _> = header
            .fields
            .iter()
            .map(|name| std::str::from_utf8(name).map(str::to_owned))
            .collect();
        self.columns = names.map_err(|_| bad("it is not UTF-8"))?;
        let repeated = |(at, name): (usize, &String)| self.columns[..at].contains(name);
        if let Some(at) = (0..self.columns.len()).find(|&at| repeated((at, &self.columns[at]))) {
            let name = &self.columns[at];
            return Err(bad(&format!("the column {name:?} is there twice")));
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<Option<Record>> {
        match &mut self.reader {
            Reader::Lines(lines) => next_line(lines),
            Reader::Csv(reader) => {
                let record = next_fields(reader, self.csv_number + 1, self.columns.len())?;
                self.csv_number += u64::from(record.is_some());
                Ok(record)
            }
        }
    }

    fn current_line(&self) -> u64 {
        match &self.reader {
            Reader::Lines(lines) => lines.current_line(),
            Reader::Csv(reader) => reader.current_line(),
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.left == Some(0) {
            return None;
        }
        let read = self.read();
        if let (Some(left), Ok(Some(_))) = (&mut self.left, &read) {
            *left -= 1;
        }
        self.ended = !matches!(read, Ok(Some(_)));
        read.map_err(|source| InputError::Read {
            input: self.input.clone(),
            line: self.current_line(),
            source,
        })
        .transpose()
    }
}

fn next_line(lines: &mut Lines<Bytes>) -> io::Result<Option<Record>> {
    while let Some(numbered) = lines.next()? {
        let content = match numbered.line {
            Line::Whole(line) if line.iter().all(u8::is_ascii_whitespace) => continue,
            Line::Whole(line) => match std::str::from_utf8(line) {
                Ok(text) => Content::Line(text.to_owned()),
                Err(error) => not_utf8(error),
            },
            Line::TooLong => too_long(),
        };
        return Ok(Some(Record {
            line: numbered.number,
            physical_line: numbered.number,
            content,
        }));
    }
    Ok(None)
}

fn next_fields(
    reader: &mut CsvReader<Bytes>,
    line: u64,
    columns: usize,
) -> io::Result<Option<Record>> {
    let Some(record) = reader.next()? else {
        return Ok(None);
    };
    let content = match record.fault {
        Some(CsvFault::UnclosedQuote) => Content::Broken(
            BadRowCode::UnclosedQuote,
            "a quote is opened and never closed, so the rest of the file is one value".to_owned(),
        ),
        Some(CsvFault::TooLong) => too_long(),
        None if record.fields.len() != columns => Content::Broken(
            BadRowCode::UnevenRow,
            format!(
                "{} fields where the header has {columns}",
                record.fields.len()
            ),
        ),
        None => match first_utf8_error(&record.fields) {
            Some(error) => not_utf8(error),
            None => Content::Fields(record.fields),
        },
    };
    Ok(Some(Record {
        line,
        physical_line: record.physical_line,
        content,
    }))
}

fn first_utf8_error(fields: &Fields) -> Option<std::str::Utf8Error> {
    let mut texts = fields.iter().map(std::str::from_utf8);
    texts.find_map(Result::err)
}

fn not_utf8(error: std::str::Utf8Error) -> Content {
    let message = format!("not UTF-8 after {} bytes", error.valid_up_to());
    Content::Broken(BadRowCode::InvalidUtf8, message)
}

fn too_long() -> Content {
    Content::Broken(
        BadRowCode::RowTooLong,
        "longer than the limit for one row".to_owned(),
    )
}
