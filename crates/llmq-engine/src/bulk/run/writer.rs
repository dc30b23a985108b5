use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use llmq_core::{Clock, Usage};
use llmq_provider::answer_text;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;

use super::progress::Counters;
use crate::SystemClock;
use crate::bulk::{Answer, BadRow, JournalError, Output, OutputFormat, RowError, RowResult};

/// Results that wait for the writer; more of them hold back the calls.
pub(super) const UNWRITTEN_MAX: usize = 1_024;
/// Results that are taken at once.
const BATCH: usize = 256;

/// One row's end.
#[derive(Debug)]
pub(super) enum Finished {
    /// It was sent, or failed before that for a reason of its own.
    Row(Box<FinishedRow>),
    /// It could not be read.
    Bad(Box<BadRow>),
}

/// How often a row was tried by this process.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tries {
    /// Attempts that count.
    pub(super) attempts: u32,
    /// Attempts that were sent and never answered.
    pub(super) ambiguous: u32,
}

/// What is written of a row.
#[derive(Debug)]
pub(super) struct FinishedRow {
    pub(super) line: u64,
    pub(super) custom_id: String,
    pub(super) answer: Option<(u16, Option<String>, Bytes)>,
    pub(super) usage: Option<Usage>,
    /// Code and message.
    pub(super) error: Option<(String, String)>,
    pub(super) tries: Tries,
    pub(super) queued: Duration,
    pub(super) took: Duration,
}

/// Appends results to the output until every sender is gone. Blocks; has a thread of its own.
///
/// # Errors
///
/// The first write that fails, or that found room only in what was set aside. After it nothing is
/// to be sent (`failed`); it still takes what comes and tries again at the end, so that calls in
/// flight are not lost to a disk that was full for a moment, and tells what is lost then.
pub(super) fn write(
    mut output: Output,
    format: OutputFormat,
    mut finished: Receiver<Finished>,
    counters: &Counters,
    clock: &SystemClock,
    failed: &impl Fn(),
) -> Result<(), JournalError> {
    let runtime = Handle::current();
    let mut batch = Vec::with_capacity(BATCH);
    let mut first_error: Option<JournalError> = None;
    let mut has_told = false;
    loop {
        let received = runtime.block_on(async {
            let due = output.next_due().filter(|_| first_error.is_none());
            match due {
                Some(due) => tokio::time::timeout_at(
                    clock.instant(due),
                    finished.recv_many(&mut batch, BATCH),
                )
                .await
                .ok(),
                None => Some(finished.recv_many(&mut batch, BATCH).await),
            }
        });
        if received == Some(0) {
            break;
        }
        let now = clock.now().mono;
        let mut outcome = Ok(());
        for row in batch.drain(..) {
            let appended = append(&mut output, format, &row, now);
            outcome = outcome.and(appended);
            count(counters, &row);
            log_failure(&row);
        }
        if outcome.is_ok() && output.is_due(now) {
            outcome = output.sync();
        } else if outcome.is_ok() && first_error.is_none() {
            // A killed process keeps only what the system has: a result that waits here for the
            // next sync would be paid for twice.
            outcome = output.flush();
        }
        if outcome.is_err() || output.out_of_room().is_some() {
            first_error = first_error.or(outcome.err());
            if !std::mem::replace(&mut has_told, true) {
                failed();
            }
        }
    }
    let synced = output.sync();
    match (first_error, synced) {
        // The system tells once that it may have dropped what it could not write.
        (Some(error @ JournalError::Sync { .. }), _) | (_, Err(error)) => Err(error),
        (Some(error), Ok(())) => Err(error.with_unwritten(output.unwritten())),
        (None, Ok(())) => output.out_of_room().map_or(Ok(()), Err),
    }
}

fn append(
    output: &mut Output,
    format: OutputFormat,
    finished: &Finished,
    now: llmq_core::Timestamp,
) -> Result<(), JournalError> {
    let row = match finished {
        Finished::Bad(bad) => return output.append(&RowResult::from(&**bad), now),
        Finished::Row(row) => row,
    };
    let text = match (&row.answer, format) {
        (Some((_, _, body)), OutputFormat::Csv) => answer_text(body).unwrap_or_default(),
        _ => String::new(),
    };
    let answer = row
        .answer
        .as_ref()
        .map(|(status_code, request_id, body)| Answer {
            status_code: *status_code,
            request_id: request_id.as_deref(),
            body,
            text: &text,
            tokens: row.usage.map(|usage| usage.total()),
        });
    let error = row
        .error
        .as_ref()
        .map(|(code, message)| RowError { code, message });
    let result = RowResult {
        line: row.line,
        custom_id: &row.custom_id,
        answer,
        error,
        attempts: row.tries.attempts,
        ambiguous_attempts: row.tries.ambiguous,
        queued_ms: millis(row.queued),
        took_ms: millis(row.took),
    };
    output.append(&result, now)
}

fn count(counters: &Counters, finished: &Finished) {
    let failed = match finished {
        Finished::Bad(_) => true,
        Finished::Row(row) => row.error.is_some(),
    };
    Counters::add(
        if failed {
            &counters.failed
        } else {
            &counters.completed
        },
        1,
    );
    if let Finished::Row(row) = finished {
        let usage = row.usage.unwrap_or_default();
        Counters::add(&counters.input_tokens, usage.input_tokens);
        Counters::add(&counters.output_tokens, usage.output_tokens);
    }
}

/// In the words of the output but for the message, which may quote the prompt.
fn log_failure(finished: &Finished) {
    match finished {
        Finished::Bad(bad) => {
            tracing::info!(line = bad.line, code = bad.code.as_str(), "row_failed");
        }
        Finished::Row(row) => {
            if let Some((code, _)) = &row.error {
                let attempts = row.tries.attempts;
                tracing::info!(line = row.line, code, attempts, "row_failed");
            }
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A clock that is shared.
pub(super) type SharedClock = Arc<SystemClock>;
