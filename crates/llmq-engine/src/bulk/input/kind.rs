use std::path::Path;
use std::str::FromStr;

use super::error::{InputError, ParseKindError};
use super::source::InputSource;

/// How rows are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFormat {
    /// JSON lines, either OpenAI's batch input form or objects for a template. Which of the two
    /// is told by the first row: it is the batch form when it has `custom_id` and `body` and no
    /// template is given.
    Jsonl,
    /// JSON lines in OpenAI's batch input form.
    Batch,
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values with a header.
    Tsv,
    /// One prompt a line.
    Txt,
}

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip, of any number of members.
    Gzip,
    /// Zstandard, of any number of frames.
    Zstd,
}

/// The format and packing of an input.
///
/// ```
/// use llmq_engine::bulk::{Compression, InputFormat, InputKind};
/// let kind: InputKind = "csv.gz".parse()?;
/// assert_eq!(kind.format, InputFormat::Csv);
/// assert_eq!(kind.compression, Compression::Gzip);
/// # Ok::<(), llmq_engine::bulk::ParseKindError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputKind {
    /// How rows are written down.
    pub format: InputFormat,
    /// How the file is packed.
    pub compression: Compression,
}

impl InputKind {
    /// The kind that the ending of a file's name tells.
    ///
    /// # Errors
    ///
    /// [`InputError::UnknownFormat`] when it tells none, as for standard input.
    pub fn of(source: &InputSource) -> Result<Self, InputError> {
        let unknown = || InputError::UnknownFormat {
            input: source.clone(),
        };
        let InputSource::File(path) = source else {
            return Err(unknown());
        };
        let (path, compression) = without_compression(path);
        let format = path.extension().and_then(|ending| ending.to_str());
        let format = format.and_then(|ending| parse_format(&ending.to_ascii_lowercase()));
        Ok(Self {
            format: format.ok_or_else(unknown)?,
            compression,
        })
    }

    /// The kind that `--input-format` names; what it does not say about the packing is told by
    /// the file's ending, so `--input-format csv` reads `rows.data.gz` too.
    ///
    /// # Errors
    ///
    /// [`ParseKindError`] for a word that is no format.
    pub fn named(word: &str, source: &InputSource) -> Result<Self, ParseKindError> {
        let mut kind: Self = word.parse()?;
        if let (Compression::None, InputSource::File(path)) = (kind.compression, source) {
            kind.compression = without_compression(path).1;
        }
        Ok(kind)
    }
}

impl FromStr for InputKind {
    type Err = ParseKindError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let lower = word.to_ascii_lowercase();
        let (format, compression) = match lower.split_once('.') {
            None => (lower.as_str(), Some(Compression::None)),
            Some((format, packing)) => (format, parse_compression(packing)),
        };
        match (parse_format(format), compression) {
            (Some(format), Some(compression)) => Ok(Self {
                format,
                compression,
            }),
            _ => Err(ParseKindError {
                word: word.to_owned(),
            }),
        }
    }
}

fn without_compression(path: &Path) -> (&Path, Compression) {
    let ending = path.extension().and_then(|ending| ending.to_str());
    let packing = ending.and_then(|ending| parse_compression(&ending.to_ascii_lowercase()));
    match (packing, path.file_stem()) {
        (Some(packing), Some(stem)) => (Path::new(stem), packing),
        _ => (path, Compression::None),
    }
}

fn parse_compression(ending: &str) -> Option<Compression> {
    match ending {
        "gz" => Some(Compression::Gzip),
        "zst" => Some(Compression::Zstd),
        _ => None,
    }
}

fn parse_format(word: &str) -> Option<InputFormat> {
    match word {
        "jsonl" | "ndjson" => Some(InputFormat::Jsonl),
        "batch" => Some(InputFormat::Batch),
        "csv" => Some(InputFormat::Csv),
        "tsv" => Some(InputFormat::Tsv),
        "txt" => Some(InputFormat::Txt),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, format: InputFormat, compression: Compression) {
        let source = InputSource::from_argument(name);
        let expected = InputKind {
            format,
            compression,
        };
        assert_eq!(InputKind::of(&source).unwrap(), expected, "{name}");
    }

    #[test]
    fn the_ending_tells_the_kind() {
        check("a/b.jsonl", InputFormat::Jsonl, Compression::None);
        check("b.JSONL.GZ", InputFormat::Jsonl, Compression::Gzip);
        check("b.x.csv.zst", InputFormat::Csv, Compression::Zstd);
        check("b.tsv", InputFormat::Tsv, Compression::None);
        check("b.txt.gz", InputFormat::Txt, Compression::Gzip);
        for name in ["-", "data", "data.gz", "data.json", ".csv"] {
            let error = InputKind::of(&InputSource::from_argument(name)).unwrap_err();
            assert!(matches!(error, InputError::UnknownFormat { .. }), "{name}");
            assert!(error.to_string().contains("--input-format"));
        }
    }

    #[test]
    fn the_flag_beats_the_ending_but_keeps_its_packing() {
        let source = InputSource::from_argument("rows.data.gz");
        let kind = InputKind::named("csv", &source).unwrap();
        assert_eq!(kind, "csv.gz".parse().unwrap());
        for word in ["", "xml", "csv.bz2", "csv.gz.gz"] {
            assert!(word.parse::<InputKind>().is_err(), "{word}");
        }
    }
}
