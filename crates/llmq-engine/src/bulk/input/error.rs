use std::io;

use super::source::InputSource;

/// Why an input cannot be read at all. Every one of them is found before anything is sent, but
/// for [`InputError::Read`], which can come at any row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The file cannot be opened.
    #[error("cannot open {input}")]
    Open {
        /// The input.
        input: InputSource,
        /// What the system said.
        source: io::Error,
    },
    /// Reading or unpacking failed on the way.
    #[error("cannot read {input} beyond line {line}; rows before it are not affected")]
    Read {
        /// The input.
        input: InputSource,
        /// The line on which reading stopped, from 1.
        line: u64,
        /// What the system or the unpacker said.
        source: io::Error,
    },
    /// There is not one row.
    #[error("{input} is empty: it has no rows{}", if *.has_header { " after its header" } else { "" })]
    Empty {
        /// The input.
        input: InputSource,
        /// Whether there is a header at least.
        has_header: bool,
    },
    /// The first bytes are of another kind of file.
    #[error("{input} looks like {looks_like}")]
    Foreign {
        /// The input.
        input: InputSource,
        /// What it looks like, and what to do about it.
        looks_like: &'static str,
    },
    /// The name does not tell the format.
    #[error(
        "the format of {input} is unknown: give it an ending (.jsonl .csv .tsv .txt, also with \
         .gz or .zst) or say --input-format"
    )]
    UnknownFormat {
        /// The input.
        input: InputSource,
    },
    /// The header cannot be used.
    #[error("the header of {input} on line {line} cannot be used: {reason}")]
    BadHeader {
        /// The input.
        input: InputSource,
        /// The line of the header, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A template or `--id` names a column that is not there.
    #[error("{flag} names {name:?}, but {input} has no such column; it has {}", list(.known))]
    NoSuchColumn {
        /// The input.
        input: InputSource,
        /// The flag that names it.
        flag: &'static str,
        /// The name.
        name: String,
        /// The columns that exist; for JSON lines the keys of the first rows.
        known: Vec<String>,
    },
    /// These rows are values, and only a template makes prompts of them.
    #[error(
        "the rows of {input} need a template: say --template \"… {{{{{example}}}}} …\"; \
         columns are {}", list(.known)
    )]
    TemplateNeeded {
        /// The input.
        input: InputSource,
        /// A column to show how.
        example: String,
        /// The columns that exist.
        known: Vec<String>,
    },
    /// A flag that has no meaning for this format.
    #[error("{flag} cannot be used with {input}: {reason}")]
    FlagNotUsable {
        /// The input.
        input: InputSource,
        /// The flag.
        flag: &'static str,
        /// Why not.
        reason: &'static str,
    },
}

/// A word after `--input-format` that is no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no input format: use jsonl, batch, csv, tsv or txt, also with .gz or .zst")]
pub struct ParseKindError {
    /// The word.
    pub word: String,
}

/// Why a file is refused with `--strict`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StrictError {
    /// Some rows are bad.
    #[error("{input} has {count} bad {}, and --strict refuses it; the first: {}",
        if *count == 1 { "row" } else { "rows" }, first_message(.first))]
    BadRows {
        /// The input.
        input: InputSource,
        /// How many.
        count: u64,
        /// The first ten.
        first: Vec<BadRow>,
    },
    /// The file cannot be read at all.
    #[error(transparent)]
    Input(#[from] InputError),
}

/// A row that cannot be sent, and becomes an error row of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// The row's number in the input, from 1.
    pub line: u64,
    /// The line in the unpacked file on which the row begins, from 1.
    pub physical_line: u64,
    /// The row's own id, as far as it has one, else `row-N`.
    pub custom_id: String,
    /// What kind of mistake it is.
    pub code: BadRowCode,
    /// What is wrong, with the line.
    pub message: String,
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BadRowCode {
    /// Not JSON, or not a JSON object.
    InvalidJson,
    /// Not UTF-8.
    InvalidUtf8,
    /// A value that the template or `--id` names is missing.
    MissingColumn,
    /// More or fewer fields than the header.
    UnevenRow,
    /// A quote is opened and never closed.
    UnclosedQuote,
    /// Longer than the limit for one row.
    RowTooLong,
    /// The id was used by an earlier row.
    DuplicateId,
    /// A batch row without `custom_id`, `method`, `url` or `body`.
    MissingField,
    /// A batch row whose `custom_id`, `method`, `url` or `body` cannot be used.
    InvalidField,
}

impl BadRowCode {
    /// The word used as `error.code` in the output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::MissingColumn => "missing_column",
            Self::UnevenRow => "uneven_row",
            Self::UnclosedQuote => "unclosed_quote",
            Self::RowTooLong => "row_too_long",
            Self::DuplicateId => "duplicate_id",
            Self::MissingField => "missing_field",
            Self::InvalidField => "invalid_field",
        }
    }
}

impl std::fmt::Display for BadRowCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// At most twenty names, so that a file of a thousand columns still gives a readable message.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = names
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

fn first_message(rows: &[BadRow]) -> String {
    rows.first()
        .map(|row| row.message.clone())
        .unwrap_or_default()
}
