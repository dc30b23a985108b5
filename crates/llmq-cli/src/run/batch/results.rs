//! What came of a batch goes to OUTPUT.

use std::borrow::Cow;
use std::collections::BTreeMap;

use hyper::Method;
use llmq_core::Clock;
use llmq_engine::bulk::{Answer, HandedIn, OutputFormat, RowError, RowResult};
use llmq_provider::answer_text;
use serde::Deserialize;
use serde_json::Value;

use super::answers::{Line, is_the_accounts};
use super::gather::row_of;
use super::{FULL, Halt, Handing};
use crate::batches::text;
use crate::client::Asked;
use crate::exit::{FAILED, Failure, UNREACHABLE};

/// A server that is there and so many times in a row cannot give a file to its end will not do so
/// later either: its store is damaged.
const BREAKS_MAX: u32 = 5;

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
        let has_answers = batch["request_counts"]["completed"].as_u64() > Some(0);
        let files = results_of(batch);
        for file in &files {
            let is_there = self.fetch(file, |handing, _, line| {
                handing.take(part, has_answers, line)
            })?;
            if !is_there {
                return self.lose(part);
            }
        }
        if files.is_empty() {
            // It was cancelled before it was read.
            self.left_out.unread += part.rows;
        }
        self.let_go(index, batch)
    }

    /// What became of a batch is not known any more.
    fn lose(&mut self, part: &HandedIn) -> Result<(), Halt> {
        self.lost.insert(part.file.clone());
        let synced = self.output.sync();
        Ok(synced.map_err(|error| Failure::wrong(&error))?)
    }

    /// What is written is on the disk before its batch is forgotten, and its files are removed at
    /// the server: they take the room of those to come.
    fn let_go(&mut self, index: usize, batch: &Value) -> Result<(), Halt> {
        let synced = self.output.sync();
        synced.map_err(|error| Failure::wrong(&error))?;
        let part = self.side.handed_in.remove(index);
        self.save()?;
        self.remove_file(&part.file);
        for file in results_of(batch) {
            self.remove_file(file);
        }
        // The room that was set aside is not for the next batch.
        match self.output.out_of_room() {
            Some(error) => Err(Halt::Failed(Failure::wrong(&error))),
            None => Ok(()),
        }
    }

    /// Removes a file at the server. One that cannot be removed now goes when its time is over.
    pub(super) fn remove_file(&self, file: &str) {
        let path = format!("/v1/files/{file}");
        let _ = self
            .server
            .send::<Value>(Method::DELETE, &path, None::<&()>);
    }

    /// A batch of which nothing was begun. Rows with faults have failed; the others are handed in
    /// again.
    fn refused(&mut self, index: usize, part: &HandedIn, batch: &Value) -> Result<(), Halt> {
        let errors = batch["errors"]["data"].as_array();
        let errors = errors.map(Vec::as_slice).unwrap_or_default();
        let told = |code: &str| errors.iter().find(|error| text(error, "code") == code);
        if told("queue_full").or(told("queue_draining")).is_some() {
            // Its file is there: a batch is made of it anew.
            self.side.handed_in[index].batch = None;
            self.save()?;
            return self.pause(FULL);
        }
        // Bounds of a batch, which are nothing against any of its rows.
        let too_many = told("too_many_requests").or(told("too_many_inputs"));
        if too_many.is_some() && part.rows > 1 {
            self.rows_max = (part.rows / 2).max(1);
            return self.let_go(index, batch);
        }
        let model = told("model_not_found");
        // A model that rows ask for themselves is their fault; whatever else may not be used, the
        // rows after it would not be taken either.
        if let Some(error) = told("forbidden").or(model.filter(|_| !part.names_model)) {
            let reason = text(error, "message").to_owned();
            self.let_go(index, batch)?;
            return Err(Halt::Account(reason));
        }
        let by_line = errors
            .iter()
            .filter_map(|error| Some((error["line"].as_u64()?, error)));
        let by_line: BTreeMap<u64, &Value> = by_line.collect();
        if by_line.is_empty() {
            let first = errors.first();
            let why = first.map_or("no reason", |error| text(error, "message"));
            let id = text(batch, "id");
            let message = format!("the server refuses the batch {id}: {why}");
            self.let_go(index, batch)?;
            let code = FAILED;
            return Err(Halt::Failed(Failure { code, message }));
        }
        let is_there = self.fetch(&part.file, |handing, number, line| {
            // All rows of a batch ask for one model, and the first faults alone are told.
            match by_line.get(&number).copied().or(model) {
                Some(error) => handing.fault(line, error),
                None => Ok(()),
            }
        })?;
        match is_there {
            true => self.let_go(index, batch),
            false => self.lose(part),
        }
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
    fn take(&mut self, part: &HandedIn, has_answers: bool, line: &[u8]) -> Result<(), Halt> {
        let unreadable = |why: &str| {
            Halt::Failed(Failure {
                code: UNREACHABLE,
                message: format!("a line of the batch's results cannot be read: {why}"),
            })
        };
        let line: Line<'_> =
            serde_json::from_slice(line).map_err(|error| unreadable(&error.to_string()))?;
        let (row, id) = row_of(&line.custom_id).ok_or_else(|| unreadable("it names no row"))?;
        if self.done.contains(row) {
            // A batch that is fetched a second time brings the same.
            return Ok(());
        }
        let Some(response) = &line.response else {
            let said = line.error.unwrap_or_default();
            // A budget that is spent is the key's matter, and the row is for the next run.
            let is_spent = said.code == "budget_exhausted";
            if is_spent || matches!(said.code.as_str(), "batch_expired" | "batch_cancelled") {
                self.left_out.rows.insert(row);
                if is_spent {
                    self.left_out.refused = Some(said.message);
                }
                return Ok(());
            }
            let error = RowError {
                code: &said.code,
                message: &said.message,
            };
            return self.write(&result(row, id, None, Some(error)));
        };
        let judged = response.judged(self.source, self.clock.now());
        let judged = judged.ok_or_else(|| unreadable("its status is none"))?;
        if let Err(verdict) = &judged.verdict
            && is_the_accounts(verdict, part, has_answers)
        {
            self.left_out.rows.insert(row);
            self.left_out.refused = Some(verdict.to_string());
            return Ok(());
        }
        let usage = judged.verdict.as_ref().ok().and_then(|facts| facts.usage);
        let format = OutputFormat::of(&self.options.paths.output);
        let generated = match format {
            Ok(OutputFormat::Csv) => answer_text(&judged.answer.body).unwrap_or_default(),
            _ => String::new(),
        };
        let answer = Answer {
            status_code: judged.answer.status.as_u16(),
            request_id: response.request_id.as_deref(),
            body: &judged.answer.body,
            text: &generated,
            tokens: usage.map(|usage| usage.total()),
        };
        let error = judged.verdict.as_ref().err().map(|verdict| RowError {
            code: verdict.code.as_deref().unwrap_or(verdict.class.as_str()),
            message: &verdict.message,
        });
        self.write(&result(row, id, Some(answer), error))?;
        let usage = usage.unwrap_or_default();
        self.figures.answers += 1;
        self.figures.input_tokens += usage.input_tokens;
        self.figures.output_tokens += usage.output_tokens;
        Ok(())
    }

    /// Writes a row's result, unless it has one.
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
    /// goes away. False: it has no such file any more.
    fn fetch(
        &mut self,
        file: &str,
        mut take: impl FnMut(&mut Self, u64, &[u8]) -> Result<(), Halt>,
    ) -> Result<bool, Halt> {
        let path = format!("/v1/files/{file}/content");
        let server = self.server.clone();
        let mut broken = 0;
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
            match copied? {
                Asked::Found(()) => return Ok(true),
                Asked::Unknown(_) => return Ok(false),
                Asked::Away(away) => {
                    self.wait_for_server(&away.message)?;
                    let known = server.ask::<Value>(&format!("/v1/files/{file}"))?;
                    broken = if matches!(known, Asked::Found(_)) {
                        broken + 1
                    } else {
                        0
                    };
                    if broken == BREAKS_MAX {
                        let why = away.message;
                        let message = format!("the server cannot give its file {file}: {why}");
                        return Err(Halt::Failed(Failure {
                            code: FAILED,
                            message,
                        }));
                    }
                }
            }
        }
    }
}

/// The files of what came of a batch.
fn results_of(batch: &Value) -> Vec<&str> {
    let files = ["output_file_id", "error_file_id"].map(|name| batch[name].as_str());
    files.into_iter().flatten().collect()
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
