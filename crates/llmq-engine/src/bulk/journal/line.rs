use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::error::JournalError;
use crate::bulk::input::{BadRow, Fields};
use crate::bulk::json::one_line;

/// Every line that we write begins so.
const HEAD: &[u8] = b"{\"id\":\"batch_req_";
/// The header of an output in CSV.
pub(crate) const CSV_HEADER: &[u8] = b"id,text,tokens,error,line\n";
pub(crate) const CSV_COLUMNS: [&str; 5] = ["id", "text", "tokens", "error", "line"];

/// How results are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// JSON lines in OpenAI's batch output form, with `llmq {line, attempts, queued_ms,
    /// took_ms}`, and `ambiguous_attempts` there when there are any.
    Jsonl,
    /// `id,text,tokens,error,line`. The last column is the row's number in the input, by which a
    /// run knows what is done.
    Csv,
}

impl OutputFormat {
    /// The format that the ending of a file's name tells: `.csv`, or JSON lines for all others.
    ///
    /// # Errors
    ///
    /// [`JournalError::Packed`] for `.gz` and `.zst`.
    pub fn of(path: &Path) -> Result<Self, JournalError> {
        let ending = path.extension().and_then(|ending| ending.to_str());
        match ending.map(str::to_ascii_lowercase).as_deref() {
            Some("csv") => Ok(Self::Csv),
            Some("gz" | "zst") => Err(JournalError::Packed {
                path: path.to_owned(),
            }),
            _ => Ok(Self::Jsonl),
        }
    }
}

/// The end of one row: its answer, its error, or both.
#[derive(Debug, Clone, Copy)]
pub struct RowResult<'a> {
    /// The row's number in the input, from 1.
    pub line: u64,
    /// The row's own id, or `row-N`.
    pub custom_id: &'a str,
    /// What the provider answered, if it did. A failed row keeps the answer that told of it.
    pub answer: Option<Answer<'a>>,
    /// Why the row failed for good; a row without an error is completed.
    pub error: Option<RowError<'a>>,
    /// How often it was sent.
    pub attempts: u32,
    /// How many of these attempts were sent and never answered: each may have been carried out
    /// and billed. Written only when there are any, and not in CSV.
    pub ambiguous_attempts: u32,
    /// How long it waited for its limits, in milliseconds.
    pub queued_ms: u64,
    /// How long its last attempt took, in milliseconds.
    pub took_ms: u64,
}

/// A provider's answer.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The HTTP status.
    pub status_code: u16,
    /// The provider's id of the request, from its headers.
    pub request_id: Option<&'a str>,
    /// The body as it came. If it is not JSON it is kept as a JSON string.
    pub body: &'a [u8],
    /// What was generated; only an output in CSV needs it.
    pub text: &'a str,
    /// The tokens charged, input and output; only an output in CSV needs it.
    pub tokens: Option<u64>,
}

/// Why a row failed for good.
#[derive(Debug, Clone, Copy)]
pub struct RowError<'a> {
    /// A stable word.
    pub code: &'a str,
    /// A sentence for people.
    pub message: &'a str,
}

/// A bad row ends without having been sent.
impl<'a> From<&'a BadRow> for RowResult<'a> {
    fn from(bad: &'a BadRow) -> Self {
        Self {
            line: bad.line,
            custom_id: &bad.custom_id,
            answer: None,
            error: Some(RowError {
                code: bad.code.as_str(),
                message: &bad.message,
            }),
            attempts: 0,
            ambiguous_attempts: 0,
            queued_ms: 0,
            took_ms: 0,
        }
    }
}

/// What a journal says of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) line: u64,
    pub(crate) failed: bool,
}

/// Puts `row` at the end of `out`, as one whole line (in CSV: one record).
pub(crate) fn encode(out: &mut Vec<u8>, format: OutputFormat, row: &RowResult<'_>) {
    let written = match format {
        OutputFormat::Jsonl => encode_json(out, row),
        OutputFormat::Csv => encode_csv(out, row),
    };
    // `Vec` takes every write, and strings and numbers are always JSON.
    debug_assert!(written.is_ok(), "{written:?}");
}

fn encode_json(out: &mut Vec<u8>, row: &RowResult<'_>) -> std::io::Result<()> {
    write!(out, "{{\"id\":\"batch_req_{}\",\"custom_id\":", row.line)?;
    serde_json::to_writer(&mut *out, row.custom_id)?;
    out.extend_from_slice(b",\"response\":");
    match &row.answer {
        None => out.extend_from_slice(b"null"),
        Some(answer) => {
            write!(
                out,
                "{{\"status_code\":{},\"request_id\":",
                answer.status_code
            )?;
            serde_json::to_writer(&mut *out, &answer.request_id)?;
            out.extend_from_slice(b",\"body\":");
            encode_body(out, answer.body)?;
            out.push(b'}');
        }
    }
    out.extend_from_slice(b",\"error\":");
    match &row.error {
        None => out.extend_from_slice(b"null"),
        Some(error) => {
            out.extend_from_slice(b"{\"code\":");
            serde_json::to_writer(&mut *out, error.code)?;
            out.extend_from_slice(b",\"message\":");
            serde_json::to_writer(&mut *out, error.message)?;
            out.push(b'}');
        }
    }
    write!(
        out,
        ",\"llmq\":{{\"line\":{},\"attempts\":{},\"queued_ms\":{},\"took_ms\":{}",
        row.line, row.attempts, row.queued_ms, row.took_ms
    )?;
    if row.ambiguous_attempts > 0 {
        write!(out, ",\"ambiguous_attempts\":{}", row.ambiguous_attempts)?;
    }
    out.write_all(b"}}\n")
}

fn encode_body(out: &mut Vec<u8>, body: &[u8]) -> std::io::Result<()> {
    match serde_json::from_slice::<&RawValue>(body) {
        Ok(json) => out.extend_from_slice(one_line(json.get()).as_bytes()),
        Err(_) => serde_json::to_writer(out, &String::from_utf8_lossy(body))?,
    }
    Ok(())
}

fn encode_csv(out: &mut Vec<u8>, row: &RowResult<'_>) -> std::io::Result<()> {
    csv_field(out, row.custom_id);
    out.push(b',');
    csv_field(out, row.answer.map_or("", |answer| answer.text));
    out.push(b',');
    if let Some(tokens) = row.answer.and_then(|answer| answer.tokens) {
        write!(out, "{tokens}")?;
    }
    out.push(b',');
    if let Some(error) = &row.error {
        csv_field(out, &format!("{}: {}", error.code, error.message));
    }
    writeln!(out, ",{}", row.line)
}

fn csv_field(out: &mut Vec<u8>, text: &str) {
    // A zero byte marks a hole that a power cut left, so none may come from an answer.
    let text = match memchr::memchr(0, text.as_bytes()) {
        None => Cow::Borrowed(text),
        Some(_) => Cow::Owned(text.replace('\0', "\u{FFFD}")),
    };
    if !text.contains([',', '"', '\n', '\r']) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.push(b'"');
}

/// Reads a line that ended with a line break; `None` when it is not one of ours.
pub(crate) fn decode_json(line: &[u8]) -> Option<Entry> {
    decode_own(line).or_else(|| decode_whole_json(line))
}

/// Reads a line whose end may have been cut off: only a complete JSON value counts.
pub(crate) fn decode_whole_json(line: &[u8]) -> Option<Entry> {
    #[derive(Deserialize)]
    struct Whole {
        #[serde(default)]
        error: Option<IgnoredAny>,
        llmq: Ours,
    }
    #[derive(Deserialize)]
    struct Ours {
        line: u64,
    }
    let whole: Whole = serde_json::from_slice(line).ok()?;
    Some(Entry {
        line: whole.llmq.line,
        failed: whole.error.is_some(),
    })
}

/// Reads a line exactly as [`encode_json`] wrote it, looking only at its two ends.
///
/// The last `,"llmq":{"line":` is ours even if the answer holds one too, and what stands before
/// it at the end of the line can only be the end of `error`.
fn decode_own(line: &[u8]) -> Option<Entry> {
    const MARK: &[u8] = b",\"llmq\":{\"line\":";
    /// The mark, four names and five numbers of at most 20 digits.
    const TAIL_MAX: usize = 192;
    if !line.starts_with(HEAD) || memchr::memchr(0, line).is_some() {
        return None;
    }
    let tail_start = line.len().saturating_sub(TAIL_MAX);
    let mark = tail_start + memchr::memmem::rfind(&line[tail_start..], MARK)?;
    let mut rest = &line[mark + MARK.len()..];
    let number = take_number(&mut rest)?;
    for name in [",\"attempts\":", ",\"queued_ms\":", ",\"took_ms\":"] {
        rest = rest.strip_prefix(name.as_bytes())?;
        take_number(&mut rest)?;
    }
    if let Some(more) = rest.strip_prefix(b",\"ambiguous_attempts\":") {
        rest = more;
        take_number(&mut rest)?;
    }
    if rest != b"}}" {
        return None;
    }
    Some(Entry {
        line: number,
        failed: !line[..mark].ends_with(b",\"error\":null"),
    })
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, after) = rest.split_at(digits);
    *rest = after;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Reads a record of an output in CSV; `None` when it is not one of ours.
pub(crate) fn decode_csv(fields: &Fields) -> Option<Entry> {
    if fields.len() != CSV_COLUMNS.len() || memchr::memchr(0, fields.bytes()).is_some() {
        return None;
    }
    Some(Entry {
        line: std::str::from_utf8(fields.get(4)?).ok()?.parse().ok()?,
        failed: !fields.get(3)?.is_empty(),
    })
}

/// Whether `bytes` can be the beginning of a line of ours, cut off or with a hole at its start.
pub(crate) fn may_begin_a_line(bytes: &[u8]) -> bool {
    may_begin(bytes, HEAD)
}

/// Whether `bytes` can be what is left of `expected`, cut off or with a hole, at its start or
/// after its first bytes.
pub(crate) fn may_begin(bytes: &[u8], expected: &[u8]) -> bool {
    let hole = memchr::memchr(0, bytes).unwrap_or(bytes.len());
    let known = &bytes[..hole];
    known.starts_with(expected) || expected.starts_with(known)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn row(line: u64, body: &str) -> RowResult<'_> {
        RowResult {
            line,
            custom_id: "id, \"1\"",
            answer: Some(Answer {
                status_code: 200,
                request_id: Some("req_1"),
                body: body.as_bytes(),
                text: body,
                tokens: Some(12),
            }),
            error: None,
            attempts: 1,
            ambiguous_attempts: 0,
            queued_ms: 2,
            took_ms: 3,
        }
    }

    pub(crate) fn failed(line: u64, message: &str) -> RowResult<'_> {
        RowResult {
            answer: None,
            error: Some(RowError {
                code: "row_fault",
                message,
            }),
            ..row(line, "")
        }
    }

    fn json(row: &RowResult<'_>) -> String {
        let mut out = Vec::new();
        encode(&mut out, OutputFormat::Jsonl, row);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_row_is_written_in_the_batch_form() {
        assert_eq!(
            json(&row(7, "{\n  \"a\": [1, 2]\n}\n")),
            concat!(
                r#"{"id":"batch_req_7","custom_id":"id, \"1\"","response":{"status_code":200,"#,
                r#""request_id":"req_1","body":{"a":[1,2]}},"error":null,"#,
                r#""llmq":{"line":7,"attempts":1,"queued_ms":2,"took_ms":3}}"#,
                "\n"
            )
        );
        let unsure = RowResult {
            ambiguous_attempts: 2,
            ..row(7, "{}")
        };
        assert!(json(&unsure).ends_with("\"took_ms\":3,\"ambiguous_attempts\":2}}\n"));
        assert!(json(&row(7, "<html>\n")).contains(r#""body":"<html>\n"}"#));
        assert!(json(&failed(7, "no\nway")).contains(
            r#""response":null,"error":{"code":"row_fault","message":"no\nway"},"llmq""#
        ));
    }

    #[test]
    fn an_answer_that_imitates_the_end_of_a_line_changes_nothing() {
        let body =
            r#"{"x":{"error":null,"llmq":{"line":9,"attempts":1,"queued_ms":0,"took_ms":0}}}"#;
        for row in [row(7, body), failed(7, body)] {
            let line = json(&row);
            let entry = decode_own(line.trim_end().as_bytes()).unwrap();
            let failed = row.error.is_some();
            assert_eq!(entry, Entry { line: 7, failed });
        }
    }

    #[test]
    fn a_line_that_another_tool_wrote_anew_is_still_read() {
        let line = br#"{ "llmq": {"line": 4}, "error": {"code":"x"}, "id": "batch_req_4" }"#;
        assert_eq!(decode_own(line), None);
        let expected = Entry {
            line: 4,
            failed: true,
        };
        assert_eq!(decode_json(line), Some(expected));
        assert_eq!(decode_json(br#"{"id":"x","custom_id":"y"}"#), None);
    }

    proptest! {
        #[test]
        fn both_ways_of_reading_agree(
            line in any::<u64>(),
            text in ".*",
            is_failed in any::<bool>(),
            ambiguous_attempts in 0u32..3,
            queued_ms in any::<u64>(),
        ) {
            let body = serde_json::to_string_pretty(&serde_json::json!({ "t": text })).unwrap();
            let row = if is_failed { failed(line, &text) } else { row(line, &body) };
            let row = RowResult { ambiguous_attempts, queued_ms, took_ms: queued_ms, ..row };
            let encoded = json(&row);
            prop_assert_eq!(encoded.matches('\n').count(), 1);
            let encoded = encoded.trim_end_matches('\n').as_bytes();
            let expected = Some(Entry { line, failed: is_failed });
            prop_assert_eq!(decode_own(encoded), expected);
            prop_assert_eq!(decode_whole_json(encoded), expected);
        }
    }
}
