//! What came of a batch goes to OUTPUT.

use std::borrow::Cow;
use std::collections::BTreeMap;

use llmq_core::Clock;
use llmq_engine::bulk::{Answer, HandedIn, OutputFormat, RowError, RowResult};
use llmq_provider::answer_text;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::gather::row_of;
use super::{FULL, Halt, Handing};
use crate::batches::text;
use crate::exit::{FAILED, Failure, UNREACHABLE};

/// A line of a batch's output (OpenAI's API reference, "The request output object", 2026).
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    #[serde(borrow)]
    response: Option<Response<'a>>,
    error: Option<Said>,
}

#[derive(Deserialize)]
struct Response<'a> {
    status_code: u16,
    request_id: Option<String>,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// An error as it is told, by the server or by a provider.
#[derive(Deserialize, Default)]
struct Said {
    code: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize, Default)]
struct Body {
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Said>,
}

/// In OpenAI's words, old and new, and Anthropic's.
#[derive(Deserialize, Default)]
struct Usage {
    #[serde(default, alias = "prompt_tokens")]
    input_tokens: u64,
    #[serde(default, alias = "completion_tokens")]
    output_tokens: u64,
}

impl Handing {
    /// Takes what a batch that has ended brought.
    pub(super) fn collect(
        &mut self,
        index: usize,
        part: &HandedIn,
        batch: &Value,
    ) -> Result<(), Halt> {
        if text(batch, "status") == "failed" {
            return self.refused(index, part, batch);
        }
        for name in ["output_file_id", "error_file_id"] {
            if let Some(file) = batch[name].as_str() {
                self.fetch(file, |handing, _, line| handing.take(line))?;
            }
        }
        self.let_go(index)
    }

    /// What is written is on the disk before its batch is forgotten.
    fn let_go(&mut self, index: usize) -> Result<(), Halt> {
        let synced = self.output.sync();
        synced.map_err(|error| Failure::wrong(&error))?;
        self.side.handed_in.remove(index);
        Ok(self.save()?)
    }

    /// A batch of which nothing was begun. Rows with faults have failed; the others are handed in
    /// again.
    fn refused(&mut self, index: usize, part: &HandedIn, batch: &Value) -> Result<(), Halt> {
        let errors = batch["errors"]["data"].as_array();
        let errors = errors.map(Vec::as_slice).unwrap_or_default();
        let has = |code: &str| errors.iter().any(|error| text(error, "code") == code);
        if has("queue_full") || has("queue_draining") {
            // Its file is there: a batch is made of it anew.
            self.side.handed_in[index].batch = None;
            self.save()?;
            return self.pause(FULL);
        }
        if has("too_many_requests") && part.rows > 1 {
            self.rows_max = (part.rows / 2).max(1);
            return self.let_go(index);
        }
        let by_line = errors
            .iter()
            .filter_map(|error| Some((error["line"].as_u64()?, error)));
        let by_line: BTreeMap<u64, &Value> = by_line.collect();
        if by_line.is_empty() {
            let first = errors
                .first()
                .map_or("no reason", |error| text(error, "message"));
            return Err(Halt::Failed(Failure {
                code: FAILED,
                message: format!(
                    "the server refuses the batch {}: {first}",
                    text(batch, "id")
                ),
            }));
        }
        self.fetch(&part.file, |handing, number, line| {
            match by_line.get(&number) {
                Some(error) => handing.fault(line, error),
                None => Ok(()),
            }
        })?;
        self.let_go(index)
    }

    /// A row that its batch could not be made with.
    fn fault(&mut self, line: &[u8], error: &Value) -> Result<(), Halt> {
        #[derive(Deserialize)]
        struct Asked<'a> {
            #[serde(borrow)]
            custom_id: Cow<'a, str>,
        }
        // It is our own line.
        let asked = serde_json::from_slice::<Asked<'_>>(line).ok();
        let Some((line, id)) = asked.as_ref().and_then(|asked| row_of(&asked.custom_id)) else {
            return Ok(());
        };
        let error = RowError {
            code: text(error, "code"),
            message: text(error, "message"),
        };
        self.write(&result(line, id, None, Some(error)))
    }

    /// A line of an output or error file.
    fn take(&mut self, line: &[u8]) -> Result<(), Halt> {
        let unreadable = |why: &str| {
            Halt::Failed(Failure {
                code: UNREACHABLE,
                message: format!("a line of the batch's results cannot be read: {why}"),
            })
        };
        let line: Line<'_> =
            serde_json::from_slice(line).map_err(|error| unreadable(&error.to_string()))?;
        let (row, id) = row_of(&line.custom_id).ok_or_else(|| unreadable("it names no row"))?;
        let Some(response) = &line.response else {
            let said = line.error.unwrap_or_default().told("server_error");
            if matches!(said.0.as_str(), "batch_expired" | "batch_cancelled") {
                self.not_started.insert(row);
                return Ok(());
            }
            let error = RowError {
                code: &said.0,
                message: &said.1,
            };
            return self.write(&result(row, id, None, Some(error)));
        };
        let raw = response.body.get().as_bytes();
        let body: Body = serde_json::from_slice(raw).unwrap_or_default();
        let usage = body.usage.unwrap_or_default();
        let is_csv = OutputFormat::of(&self.options.paths.output)
            .is_ok_and(|format| format == OutputFormat::Csv);
        let generated = match is_csv {
            true => answer_text(raw).unwrap_or_default(),
            false => String::new(),
        };
        let answer = Answer {
            status_code: response.status_code,
            request_id: response.request_id.as_deref(),
            body: raw,
            text: &generated,
            tokens: Some(usage.input_tokens + usage.output_tokens),
        };
        let is_new = !self.done.contains(row);
        let status = response.status_code;
        let said = body
            .error
            .unwrap_or_default()
            .told(&format!("http_{status}"));
        let error = (!(200..300).contains(&status)).then_some(RowError {
            code: &said.0,
            message: &said.1,
        });
        self.write(&result(row, id, Some(answer), error))?;
        if is_new {
            self.figures.answers += 1;
            self.figures.input_tokens += usage.input_tokens;
            self.figures.output_tokens += usage.output_tokens;
        }
        Ok(())
    }

    /// Writes a row's result, unless it has one: a batch that is fetched a second time brings the
    /// same.
    pub(super) fn write(&mut self, row: &RowResult<'_>) -> Result<(), Halt> {
        if !self.done.insert(row.line) {
            return Ok(());
        }
        match row.error {
            None => self.figures.completed += 1,
            Some(_) => self.figures.failed += 1,
        }
        let now = self.clock.now().mono;
        let mut written = self.output.append(row, now);
        if self.output.is_due(now) {
            written = written.and_then(|()| self.output.sync());
        }
        Ok(written.map_err(|error| Failure::wrong(&error))?)
    }

    /// Hands on the lines of a file of the server with their numbers, from the first again if it
    /// goes away.
    fn fetch(
        &mut self,
        file: &str,
        mut take: impl FnMut(&mut Self, u64, &[u8]) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        let path = format!("/v1/files/{file}/content");
        let server = self.server.clone();
        loop {
            let (mut rest, mut number, mut halt) = (Vec::new(), 0, None);
            let copied = server.copy(&path, |bytes| {
                rest.extend_from_slice(bytes);
                let whole = rest.iter().rposition(|byte| *byte == b'\n');
                let whole = whole.map_or(0, |at| at + 1);
                for line in rest[..whole].split_inclusive(|byte| *byte == b'\n') {
                    number += 1;
                    if let Err(why) = take(self, number, line) {
                        halt = Some(why);
                        return Ok(false);
                    }
                }
                rest.drain(..whole);
                Ok(true)
            });
            if let Some(halt) = halt {
                return Err(halt);
            }
            match copied {
                Ok(()) => return Ok(()),
                Err(away) if away.code == UNREACHABLE => self.wait_for_server(&away.message)?,
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}

impl Said {
    /// Its code and its message.
    fn told(self, unless: &str) -> (String, String) {
        let code = match self.code {
            Some(Value::String(code)) => Some(code),
            Some(Value::Number(code)) => Some(code.to_string()),
            _ => None,
        };
        let code = code.or(self.kind).unwrap_or_else(|| unless.to_owned());
        (
            code,
            self.message
                .unwrap_or_else(|| "no reason was told".to_owned()),
        )
    }
}

/// What is written of a row. How often it was tried, and how long it waited, is the server's to
/// know.
fn result<'a>(
    line: u64,
    custom_id: &'a str,
    answer: Option<Answer<'a>>,
    error: Option<RowError<'a>>,
) -> RowResult<'a> {
    RowResult {
        line,
        custom_id,
        answer,
        error,
        attempts: 0,
        ambiguous_attempts: 0,
        queued_ms: 0,
        took_ms: 0,
    }
}
