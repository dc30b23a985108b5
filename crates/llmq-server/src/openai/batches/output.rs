//! What came of a batch, in OpenAI's line form.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::Bytes;
use llmq_core::{Clock, Status, Usage};
use llmq_store::{
    Batch, BatchStatus, FileId, Job, JobError, Store, StoreError, StoredAnswer, StoredFile,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{ids, upload};
use super::notes::Notes;
use super::reading::{Lines, Next};
use super::steward::{told, update};
use crate::Gateway;

/// So many members are read at once.
const PAGE: usize = 64;
/// So much is handed to the store at once.
const CHUNK: usize = 512 << 10;

/// Writes the output of a batch whose members have all ended, and ends it. Its files appear with
/// its end.
///
/// # Errors
///
/// The store cannot be read or written; the batch is where it was.
pub(super) async fn finish(gateway: &Gateway, batch: &Batch) -> Result<(), StoreError> {
    let mut notes = Notes::of(batch)?;
    let store = gateway.desk.store().as_ref();
    let mut writing = Writing::new(gateway, batch, &notes);
    let written = writing.members(store, gateway, &notes).await;
    let ended = match written {
        Ok(()) => end(gateway, batch, &mut notes, &writing).await,
        Err(error) => Err(error),
    };
    if !matches!(ended, Ok(true)) {
        for file in writing.files() {
            // What cannot be removed now is removed when the store is next opened.
            let _ = store.delete_file(file).await;
        }
    }
    ended.map(drop)
}

async fn end(
    gateway: &Gateway,
    batch: &Batch,
    notes: &mut Notes,
    writing: &Writing<'_>,
) -> Result<bool, StoreError> {
    let now = gateway.clock.now();
    let (status, kind, at) = match batch.status {
        BatchStatus::Cancelling => (
            BatchStatus::Cancelled,
            "batch.cancelled",
            &mut notes.at.cancelled,
        ),
        _ if batch.counts.expired > 0 => {
            (BatchStatus::Expired, "batch.expired", &mut notes.at.expired)
        }
        _ => (
            BatchStatus::Completed,
            "batch.completed",
            &mut notes.at.completed,
        ),
    };
    *at = Some(now.wall);
    notes.output = writing.output.file;
    notes.error_output = writing.errors.file;
    notes.usage = Some(writing.usage);
    let mut update = update(batch.status, status, notes, Some(told(batch, kind)));
    update.files = writing.files().collect();
    let ended = gateway
        .desk
        .store()
        .update_batch(batch.id, update, now)
        .await?;
    Ok(ended.is_some())
}

/// The two files as they are written.
struct Writing<'a> {
    batch: &'a Batch,
    template: StoredFile,
    output: Out,
    errors: Out,
    usage: Usage,
}

impl<'a> Writing<'a> {
    fn new(gateway: &Gateway, batch: &'a Batch, notes: &Notes) -> Self {
        let now = gateway.clock.now().wall;
        let kept = std::time::Duration::from_secs(notes.output_kept_s);
        Self {
            batch,
            template: StoredFile {
                id: FileId::new(),
                tenant: batch.tenant.clone(),
                filename: String::new(),
                purpose: "batch_output".to_owned(),
                bytes: 0,
                created_at: now,
                expires_at: Some(now + kept.min(upload::KEPT)),
            },
            output: Out::new("output"),
            errors: Out::new("error"),
            usage: Usage::default(),
        }
    }

    fn files(&self) -> impl Iterator<Item = FileId> {
        [self.output.file, self.errors.file].into_iter().flatten()
    }

    async fn members(
        &mut self,
        store: &dyn Store,
        gateway: &Gateway,
        notes: &Notes,
    ) -> Result<(), StoreError> {
        let mut after = 0;
        let mut written = BTreeSet::new();
        loop {
            let page = store.members(self.batch.id, after, PAGE).await?;
            if page.is_empty() {
                break;
            }
            for job in page {
                after = after.max(job.member.as_ref().map_or(after, |member| member.line));
                written.extend(job.member.as_ref().map(|member| member.line));
                self.member(store, job).await?;
            }
        }
        if written.len() < self.batch.counts.total as usize {
            match store.file(notes.input).await {
                Ok(Some(input)) => {
                    let max = usize::try_from(gateway.max_body_bytes()).unwrap_or(usize::MAX);
                    self.lost(Lines::new(store, &input, max), &written).await?;
                }
                Ok(None) => {}
                Err(StoreError::Damaged { what }) => self.input_is_damaged(&what),
                Err(error) => return Err(error),
            }
        }
        let name = ids::batch(self.batch.id);
        self.output.flush(store, &self.template, &name).await?;
        self.errors.flush(store, &self.template, &name).await
    }

    /// Writes a line for each one of the input whose call is damaged in the store.
    async fn lost(
        &mut self,
        mut lines: Lines<'_>,
        written: &BTreeSet<u32>,
    ) -> Result<(), StoreError> {
        loop {
            let (number, line) = match lines.next().await {
                Ok(Next::Line(number, line)) => (number, line),
                Ok(_) => break,
                // The others have their answers all the same.
                Err(StoreError::Damaged { what }) => {
                    self.input_is_damaged(&what);
                    break;
                }
                Err(error) => return Err(error),
            };
            if written.contains(&number) {
                continue;
            }
            tracing::error!(batch = %self.batch.id, line = number, "the call of a batch's line is damaged");
            let named: Named<'_> = serde_json::from_slice(&line).unwrap_or_default();
            let message = "what was stored of this line is damaged; it may have been sent";
            let line = json!({
                "id": format!("{}_{number}", ids::batch(self.batch.id)),
                "custom_id": named.custom_id.unwrap_or_default(),
                "response": null,
                "error": {"code": JobError::DAMAGED, "message": message},
            });
            self.errors
                .text
                .extend_from_slice(line.to_string().as_bytes());
            self.errors.text.push(b'\n');
        }
        Ok(())
    }

    fn input_is_damaged(&self, what: &str) {
        tracing::error!(batch = %self.batch.id, what, "a batch's input is damaged");
    }

    async fn member(&mut self, store: &dyn Store, mut job: Job) -> Result<(), StoreError> {
        let mut is_damaged = false;
        let answer = match job.status {
            Status::Completed | Status::Failed => match store.answer(job.id).await {
                // The others of the batch have theirs all the same.
                Err(StoreError::Damaged { what }) => {
                    tracing::error!(job = %job.id, what, "the answer of a batch's line is damaged");
                    is_damaged = true;
                    None
                }
                answer => answer?,
            },
            _ => None,
        };
        if is_damaged && job.error.is_none() {
            let message = "what was stored of its answer is damaged";
            job.error = Some(JobError::new("stored_answer_damaged", message));
        }
        if let (Status::Completed, Some(usage)) = (job.status, job.usage) {
            let sum = &mut self.usage;
            sum.input_tokens += usage.input_tokens;
            sum.output_tokens += usage.output_tokens;
            sum.cache_read_tokens += usage.cache_read_tokens;
            sum.cache_write_tokens += usage.cache_write_tokens;
        }
        let out = match job.status {
            Status::Completed if !is_damaged => &mut self.output,
            _ => &mut self.errors,
        };
        out.text.extend_from_slice(line(&job, answer).as_bytes());
        if out.text.len() >= CHUNK {
            let name = ids::batch(self.batch.id);
            out.flush(store, &self.template, &name).await?;
        }
        Ok(())
    }
}

/// The name of a line of the input.
#[derive(Default, Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    custom_id: Option<Cow<'a, str>>,
}

/// A file, which is made when it has a line.
struct Out {
    kind: &'static str,
    file: Option<FileId>,
    text: Vec<u8>,
}

impl Out {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            file: None,
            text: Vec::new(),
        }
    }

    async fn flush(
        &mut self,
        store: &dyn Store,
        template: &StoredFile,
        batch: &str,
    ) -> Result<(), StoreError> {
        let mut text = Bytes::from(std::mem::take(&mut self.text));
        if text.is_empty() {
            return Ok(());
        }
        let file = match self.file {
            Some(file) => file,
            None => {
                let id = FileId::new();
                let filename = format!("{batch}_{}.jsonl", self.kind);
                let file = StoredFile {
                    id,
                    filename,
                    ..template.clone()
                };
                store.create_file(file).await?;
                *self.file.insert(id)
            }
        };
        // One line may be larger than a chunk.
        while !text.is_empty() {
            let chunk = text.split_to(text.len().min(CHUNK));
            let length = store.append_file(file, chunk).await?;
            if length.is_none() {
                return Err(StoreError::Unavailable {
                    reason: "the output was removed while it was written".to_owned(),
                    source: None,
                });
            }
        }
        Ok(())
    }
}

/// A line of the output (API reference, "The request output object", 2026).
fn line(job: &Job, answer: Option<StoredAnswer>) -> String {
    let custom_id = job.member.as_ref().map(|member| member.custom_id.as_str());
    let custom_id = Value::from(custom_id.unwrap_or_default());
    let id = ids::line(job.id);
    let (response, error) = match (job.status, answer) {
        (_, Some(answer)) => (answered(job, &answer), Value::Null),
        (Status::Expired, None) => {
            let message =
                "This request could not be executed before the completion window expired.";
            (
                "null".to_owned(),
                json!({"code": "batch_expired", "message": message}),
            )
        }
        (Status::Cancelled, None) => {
            let message = "This request was not executed, since its batch was cancelled.";
            (
                "null".to_owned(),
                json!({"code": "batch_cancelled", "message": message}),
            )
        }
        (_, None) => {
            let error = job.error.as_ref();
            let code = error.map_or("server_error", |error| error.code.as_str());
            let message = error.map_or("its answer is not kept", |error| error.message.as_str());
            ("null".to_owned(), json!({"code": code, "message": message}))
        }
    };
    format!(
        "{{\"id\":\"{id}\",\"custom_id\":{custom_id},\"response\":{response},\"error\":{error}}}\n"
    )
}

/// The provider's answer with its body as it was, on one line.
fn answered(job: &Job, answer: &StoredAnswer) -> String {
    let header = |wanted: &str| {
        let mut headers = answer.headers.iter();
        let found = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.clone())
    };
    let request_id = header("x-request-id").or_else(|| header("request-id"));
    let request_id = Value::from(request_id.unwrap_or_else(|| job.id.to_string()));
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&answer.body).is_ok();
    let text = String::from_utf8_lossy(&answer.body);
    let body = match is_json {
        // Between JSON's parts a line's end is a space like any other; inside there is none.
        true => text.replace(['\n', '\r'], " "),
        false => Value::from(text.as_ref()).to_string(),
    };
    format!(
        "{{\"status_code\":{},\"request_id\":{request_id},\"body\":{body}}}",
        answer.status
    )
}
