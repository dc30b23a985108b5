use std::borrow::Cow;
use std::collections::VecDeque;

use serde_json::value::RawValue;

use super::csv::Fields;
use super::error::{BadRow, BadRowCode, InputError, StrictError};
use super::kind::{InputFormat, InputKind};
use super::records::{Content, Record, Records};
use super::source::InputSource;
use crate::bulk::ids::IdSet;
use crate::bulk::json::{Object, object, one_line};
use crate::bulk::template::{Name, Template};

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
/// The one name that a template for `.txt` may use.
const TXT_COLUMN: &str = "line";

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

/// How a record becomes a row.
enum Shape {
    Batch,
    Txt(Option<Template>),
    Objects {
        template: Template,
        id: Option<Name>,
    },
    Table {
        template: Template,
        /// The column of each of the template's names.
        columns: Vec<usize>,
        id: Option<(usize, Name)>,
    },
}

/// Why a record is a bad row; without its line.
struct Fault {
    code: BadRowCode,
    message: String,
    custom_id: Option<String>,
}

fn fault(code: BadRowCode, message: impl Into<String>) -> Fault {
    Fault {
        code,
        message: message.into(),
        custom_id: None,
    }
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

/// Chooses the shape of the rows and checks the names.
struct Chooser<'a> {
    input: &'a InputSource,
    template: Option<Template>,
    id: Option<String>,
}

impl Chooser<'_> {
    fn txt(self) -> Result<Shape, InputError> {
        if self.id.is_some() {
            return Err(self.not_usable("--id", "a text file has no columns"));
        }
        let known = [TXT_COLUMN.to_owned()];
        if let Some(template) = &self.template {
            for name in template.names() {
                self.column(name.as_str(), "--template", &known)?;
            }
        }
        Ok(Shape::Txt(self.template))
    }

    fn batch(self) -> Result<Shape, InputError> {
        if self.template.is_some() {
            return Err(self.not_usable("--template", "its rows bring their own bodies"));
        }
        if self.id.is_some() {
            return Err(self.not_usable("--id", "its rows bring their own custom_id"));
        }
        Ok(Shape::Batch)
    }

    fn table(self, known: &[String]) -> Result<Shape, InputError> {
        let Some(template) = self.template.clone() else {
            return Err(self.template_needed(known));
        };
        let columns: Result<Vec<usize>, InputError> = template
            .names()
            .map(|name| self.column(name.as_str(), "--template", known))
            .collect();
        let id = match &self.id {
            None => None,
            Some(name) => Some((self.column(name, "--id", known)?, Name::new(name))),
        };
        Ok(Shape::Table {
            template,
            columns: columns?,
            id,
        })
    }

    fn jsonl(self, ahead: &VecDeque<Record>) -> Result<Shape, InputError> {
        let mut objects = ahead.iter().filter_map(|record| match &record.content {
            Content::Line(text) => object(text),
            Content::Fields(_) | Content::Broken(..) => None,
        });
        let mut known: Vec<String> = Vec::new();
        let first = objects.next();
        let is_batch = match &first {
            Some(first) => first.contains_key("custom_id") && first.contains_key("body"),
            None => true,
        };
        for object in first.into_iter().chain(objects) {
            for key in object.into_keys() {
                if !known.contains(&key) {
                    known.push(key);
                }
            }
        }
        let Some(template) = self.template.clone() else {
            if is_batch {
                return self.batch();
            }
            return Err(self.template_needed(&known));
        };
        // Without one readable row nothing is known, and each row tells its own mistake.
        if !known.is_empty() {
            for name in template.names() {
                self.key(name, "--template", &known)?;
            }
        }
        let id = self.id.as_deref().map(Name::new);
        if let (Some(id), false) = (&id, known.is_empty()) {
            self.key(id, "--id", &known)?;
        }
        Ok(Shape::Objects { template, id })
    }

    fn key(&self, name: &Name, flag: &'static str, known: &[String]) -> Result<(), InputError> {
        if name.begins_in(known) {
            return Ok(());
        }
        Err(self.no_such_column(name.as_str(), flag, known))
    }

    fn column(
        &self,
        name: &str,
        flag: &'static str,
        known: &[String],
    ) -> Result<usize, InputError> {
        let place = known.iter().position(|column| column == name);
        place.ok_or_else(|| self.no_such_column(name, flag, known))
    }

    fn no_such_column(&self, name: &str, flag: &'static str, known: &[String]) -> InputError {
        InputError::NoSuchColumn {
            input: self.input.clone(),
            flag,
            name: name.to_owned(),
            known: known.to_vec(),
        }
    }

    fn template_needed(&self, known: &[String]) -> InputError {
        InputError::TemplateNeeded {
            input: self.input.clone(),
            example: known.first().cloned().unwrap_or_else(|| "name".to_owned()),
            known: known.to_vec(),
        }
    }

    fn not_usable(&self, flag: &'static str, reason: &'static str) -> InputError {
        InputError::FlagNotUsable {
            input: self.input.clone(),
            flag,
            reason,
        }
    }
}

/// A row's own id, if it has one, and its call.
type Made = Result<(Option<String>, RowCall), Fault>;

impl Shape {
    fn row_of_text(&self, text: &str) -> Made {
        match self {
            Self::Batch => batch_row(text),
            Self::Txt(template) => {
                let prompt = match template {
                    None => text.to_owned(),
                    Some(template) => render(template, |_| Some(Cow::Borrowed(text)))?,
                };
                Ok((None, RowCall::Prompt(prompt)))
            }
            Self::Objects { template, id } => {
                let object = json_object(text)?;
                let id = id.as_ref().map(|id| own_id(id, id.id_in(&object)));
                let id = id.transpose()?;
                let names: Vec<&Name> = template.names().collect();
                let value = |index: usize| names[index].value_in(&object).map(Cow::Owned);
                let prompt = render(template, value).map_err(|fault| Fault {
                    custom_id: id.clone(),
                    ..fault
                })?;
                Ok((id, RowCall::Prompt(prompt)))
            }
            // Tables give fields; kept total so that a mistake is a bad row and not a panic.
            Self::Table { .. } => Err(fault(BadRowCode::UnevenRow, "not a record")),
        }
    }

    fn row_of_fields(&self, fields: &Fields) -> Made {
        let Self::Table {
            template,
            columns,
            id,
        } = self
        else {
            return Err(fault(BadRowCode::InvalidJson, "not a line"));
        };
        let text = |column: usize| std::str::from_utf8(fields.get(column)?).ok();
        let id = id
            .as_ref()
            .map(|(column, name)| own_id(name, text(*column).map(str::to_owned)));
        let prompt = render(template, |index| text(columns[index]).map(Cow::Borrowed))?;
        Ok((id.transpose()?, RowCall::Prompt(prompt)))
    }
}

fn own_id(name: &Name, value: Option<String>) -> Result<String, Fault> {
    match value {
        Some(id) if !id.is_empty() => Ok(id),
        Some(_) => Err(fault(
            BadRowCode::MissingColumn,
            format!("the id column {name:?} is empty", name = name.as_str()),
        )),
        None => Err(missing(name)),
    }
}

fn render<'v>(
    template: &Template,
    value: impl FnMut(usize) -> Option<Cow<'v, str>>,
) -> Result<String, Fault> {
    template.render(value).map_err(missing)
}

fn missing(name: &Name) -> Fault {
    let message = format!("no value for {:?}", name.as_str());
    fault(BadRowCode::MissingColumn, message)
}

fn json_object(text: &str) -> Result<Object<'_>, Fault> {
    serde_json::from_str(text).map_err(|error| {
        let words = error.to_string();
        // The parser counts lines of the row, which are not lines of the file.
        let words = words.split(" at line ").next().unwrap_or_default();
        let message = format!("not a JSON object: {words} at column {}", error.column());
        fault(BadRowCode::InvalidJson, message)
    })
}

fn batch_row(text: &str) -> Made {
    let object = json_object(text)?;
    let custom_id = text_field(&object, "custom_id")?;
    if custom_id.is_empty() {
        return Err(fault(BadRowCode::InvalidField, "custom_id is empty"));
    }
    let call = batch_call(&object).map_err(|fault| Fault {
        custom_id: Some(custom_id.clone()),
        ..fault
    })?;
    Ok((Some(custom_id), call))
}

fn batch_call(object: &Object<'_>) -> Result<RowCall, Fault> {
    let method = text_field(object, "method")?;
    if method != "POST" {
        let message = format!("method is {method:?}; only \"POST\" can be sent");
        return Err(fault(BadRowCode::InvalidField, message));
    }
    let url = text_field(object, "url")?;
    if !BATCH_URLS.contains(&url.as_str()) {
        let message = format!("url {url:?} is not one of {}", BATCH_URLS.join(", "));
        return Err(fault(BadRowCode::InvalidField, message));
    }
    let body = field(object, "body")?;
    if !body.get().starts_with('{') {
        return Err(fault(BadRowCode::InvalidField, "body is not a JSON object"));
    }
    // A lone `\r` between tokens is the only line break that can be left inside a line.
    let body = match one_line(body.get()) {
        Cow::Borrowed(_) => body.to_owned(),
        Cow::Owned(line) => RawValue::from_string(line)
            .map_err(|_| fault(BadRowCode::InvalidField, "body is not JSON"))?,
    };
    Ok(RowCall::Batch { url, body })
}

fn field<'o>(object: &'o Object<'_>, name: &str) -> Result<&'o RawValue, Fault> {
    let value = object.get(name).copied();
    value.ok_or_else(|| fault(BadRowCode::MissingField, format!("no {name}")))
}

fn text_field(object: &Object<'_>, name: &str) -> Result<String, Fault> {
    let value = field(object, name)?;
    serde_json::from_str(value.get())
        .map_err(|_| fault(BadRowCode::InvalidField, format!("{name} is not a string")))
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
