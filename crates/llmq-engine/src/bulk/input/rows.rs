use std::collections::VecDeque;

use serde_json::value::RawValue;

use super::error::{BadRow, BadRowCode, InputError, StrictError};
use super::kind::{InputFormat, InputKind};
use super::records::{Content, Record, Records};
use super::shape::{Chooser, Fault, Shape, fault};
use super::source::InputSource;
use crate::bulk::ids::IdSet;
use crate::bulk::template::Template;

/// The urls that a batch row may name: OpenAI's, and Anthropic's messages.
pub const BATCH_URLS: [&str; 5] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/messages",
];

/// Rows of JSON lines that are looked at before the first is given, to know their keys.
const SAMPLE_ROWS: usize = 100;
const SAMPLE_BYTES: usize = 1 << 20;

/// What is wanted of an input.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Makes prompts of values; needed for CSV, TSV and JSON objects.
    pub template: Option<Template>,
    /// The column that holds each row's own id; without it a row is `row-N`.
    pub id: Option<String>,
    /// Only so many rows, from the first.
    pub limit_rows: Option<u64>,
    /// Longer rows are bad rows, and are not held in memory.
    pub max_row_bytes: usize,
}

impl Default for ReadOptions {
    /// Everything, rows up to 32 MiB, no template.
    fn default() -> Self {
        Self {
            template: None,
            id: None,
            limit_rows: None,
            max_row_bytes: 32 << 20,
        }
    }
}

/// A row that can be sent.
#[derive(Debug, Clone)]
pub struct Row {
    /// The row's number in the input, from 1: its identity.
    pub line: u64,
    /// The line in the unpacked file on which it begins, from 1; for messages.
    pub physical_line: u64,
    /// Its own id, or `row-N`.
    pub custom_id: String,
    /// What to ask.
    pub call: RowCall,
}

/// What a row asks.
#[derive(Debug, Clone)]
pub enum RowCall {
    /// A prompt, for which the settings of the run make the body.
    Prompt(String),
    /// A whole call, in the words of the row.
    Batch {
        /// One of [`BATCH_URLS`].
        url: String,
        /// The body: a JSON object on one line.
        body: Box<RawValue>,
    },
}

/// A row, good or bad.
#[derive(Debug, Clone)]
pub enum Item {
    /// One that can be sent.
    Row(Row),
    /// One that becomes an error row of the output.
    Bad(BadRow),
}

impl Item {
    /// The row's number in the input, from 1.
    #[must_use]
    pub fn line(&self) -> u64 {
        match self {
            Self::Row(row) => row.line,
            Self::Bad(bad) => bad.line,
        }
    }
}

/// The rows of an input, one at a time.
///
/// An error ends the iteration; a bad row does not. Rows whose ids were used before are bad,
/// so a resumed run has to pass over its finished rows here and not before.
///
/// ```no_run
/// use llmq_engine::bulk::{InputKind, InputSource, Item, ReadOptions, RowReader, Template};
/// let input = InputSource::from_argument("examples/places.csv");
/// let options = ReadOptions {
///     template: Some(Template::parse("Introduce {{name}}, {{country}}.")?),
///     id: Some("id".to_owned()),
///     ..ReadOptions::default()
/// };
/// for item in RowReader::open(&input, InputKind::of(&input)?, options)? {
///     match item? {
///         Item::Row(row) => println!("{} {:?}", row.custom_id, row.call),
///         Item::Bad(bad) => println!("{}: {}", bad.code, bad.message),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RowReader {
    records: Records,
    /// Records that were read to look at them.
    ahead: VecDeque<Record>,
    shape: Shape,
    ids: IdSet,
}

impl RowReader {
    /// Opens `input` and checks everything that does not depend on single rows.
    ///
    /// # Errors
    ///
    /// [`InputError`], among them an empty file, and a column that does not exist.
    pub fn open(
        input: &InputSource,
        kind: InputKind,
        options: ReadOptions,
    ) -> Result<Self, InputError> {
        let mut records = Records::open(input, kind, options.limit_rows, options.max_row_bytes)?;
        let ahead = sample(&mut records)?;
        if ahead.is_empty() && options.limit_rows != Some(0) {
            return Err(InputError::Empty {
                input: input.clone(),
                has_header: !records.columns().is_empty(),
            });
        }
        let chooser = Chooser {
            input,
            template: options.template,
            id: options.id,
        };
        let shape = match kind.format {
            InputFormat::Txt => chooser.txt(),
            InputFormat::Csv | InputFormat::Tsv => chooser.table(records.columns()),
            InputFormat::Batch => chooser.batch(),
            InputFormat::Jsonl => chooser.jsonl(&ahead),
        }?;
        Ok(Self {
            records,
            ahead,
            shape,
            ids: IdSet::default(),
        })
    }

    /// Whether rows bring their own bodies.
    pub(crate) fn holds_calls(&self) -> bool {
        matches!(self.shape, Shape::Batch)
    }

    fn item(&mut self, record: Record) -> Item {
        let (line, physical_line) = (record.line, record.physical_line);
        let made = match record.content {
            Content::Broken(code, message) => Err(fault(code, message)),
            Content::Line(text) => self.shape.row_of_text(&text),
            Content::Fields(fields) => self.shape.row_of_fields(&fields),
        };
        let made = made.and_then(|(id, call)| match id {
            Some(id) if !self.ids.insert(&id) => Err(Fault {
                code: BadRowCode::DuplicateId,
                message: format!("the id {id:?} was used by an earlier row"),
                custom_id: Some(id),
            }),
            id => Ok((id, call)),
        });
        match made {
            Ok((id, call)) => Item::Row(Row {
                line,
                physical_line,
                custom_id: id.unwrap_or_else(|| format!("row-{line}")),
                call,
            }),
            Err(fault) => Item::Bad(BadRow {
                line,
                physical_line,
                custom_id: fault.custom_id.unwrap_or_else(|| format!("row-{line}")),
                code: fault.code,
                message: format!("line {physical_line}: {}", fault.message),
            }),
        }
    }
}

impl Iterator for RowReader {
    type Item = Result<Item, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = match self.ahead.pop_front() {
            Some(record) => record,
            None => match self.records.next()? {
                Ok(record) => record,
                Err(error) => return Some(Err(error)),
            },
        };
        Some(Ok(self.item(record)))
    }
}

/// The first rows, within bounds.
fn sample(records: &mut Records) -> Result<VecDeque<Record>, InputError> {
    let mut ahead = VecDeque::new();
    let mut bytes = 0;
    while ahead.len() < SAMPLE_ROWS && bytes < SAMPLE_BYTES {
        let Some(record) = records.next() else { break };
        let record = record?;
        bytes += match &record.content {
            Content::Line(text) => text.len(),
            Content::Fields(fields) => fields.bytes().len(),
            Content::Broken(..) => 0,
        };
        ahead.push_back(record);
    }
    Ok(ahead)
}

/// How many rows `input` has, bad ones included, without understanding them.
///
/// # Errors
///
/// [`InputError`] when it cannot be read.
pub fn count_rows(
    input: &InputSource,
    kind: InputKind,
    limit_rows: Option<u64>,
) -> Result<u64, InputError> {
    let max_row_bytes = ReadOptions::default().max_row_bytes;
    let mut rows = 0;
    for record in Records::open(input, kind, limit_rows, max_row_bytes)? {
        record?;
        rows += 1;
    }
    Ok(rows)
}

/// Reads all rows for `--strict`, before anything is sent; gives their number.
///
/// # Errors
///
/// [`StrictError::BadRows`] with the first ten bad rows, or why the input cannot be read.
pub fn refuse_bad_rows(
    input: &InputSource,
    kind: InputKind,
    options: ReadOptions,
) -> Result<u64, StrictError> {
    const SHOWN: usize = 10;
    let (mut rows, mut count, mut first) = (0, 0, Vec::new());
    for item in RowReader::open(input, kind, options)? {
        rows += 1;
        if let Item::Bad(bad) = item? {
            count += 1;
            if first.len() < SHOWN {
                first.push(bad);
            }
        }
    }
    if count == 0 {
        return Ok(rows);
    }
    Err(StrictError::BadRows {
        input: input.clone(),
        count,
        first,
    })
}
