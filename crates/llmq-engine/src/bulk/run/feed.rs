use std::sync::Arc;

use bytes::Bytes;
use llmq_provider::{
    Dialect, Operation, Prompt, RequestScan, prompt_body, scan_request, with_model,
};
use tokio::sync::mpsc::{Sender, WeakSender};

use super::options::CallMaker;
use super::progress::Counters;
use super::row::Prepared;
use super::writer::Finished;
use crate::bulk::{BadRow, BadRowCode, Bitmap, InputError, Item, Row, RowCall, RowReader};

/// Rows that are read ahead.
pub(super) const AHEAD_ROWS: usize = 1_024;
/// And at most so many bytes of them.
pub(super) const AHEAD_BYTES: usize = 16 << 20;

/// Reads rows and makes calls of them. Blocks; has a thread of its own.
pub(super) struct Feeder {
    pub(super) maker: CallMaker,
    /// The model's name for prompts.
    pub(super) model: String,
    pub(super) dialect: Dialect,
    pub(super) done: Bitmap,
    pub(super) rows: Sender<Prepared>,
    pub(super) results: WeakSender<Finished>,
    pub(super) counters: Arc<Counters>,
    pub(super) room: Arc<tokio::sync::Semaphore>,
}

impl Feeder {
    /// Reads to the end, or until nobody takes rows any more; tells how many rows there were.
    ///
    /// # Errors
    ///
    /// [`InputError`] when the input cannot be read on.
    pub(super) fn run(self, reader: RowReader) -> Result<u64, InputError> {
        let mut rows = 0;
        for item in reader {
            let item = item?;
            rows += 1;
            Counters::add(&self.counters.read, 1);
            // Passed over only here, since the reader checks that ids are not used twice.
            if self.done.contains(item.line()) {
                continue;
            }
            let prepared = match item {
                Item::Row(row) => self.prepare(row),
                Item::Bad(bad) => Err(Box::new(bad)),
            };
            let sent = match prepared {
                Ok(prepared) => {
                    self.take_room(prepared.body.len());
                    self.rows.blocking_send(prepared).is_ok()
                }
                // Whoever takes the rows has a sender of its own, and is there as long as they are
                // taken.
                Err(bad) => self
                    .results
                    .upgrade()
                    .is_some_and(|results| results.blocking_send(Finished::Bad(bad)).is_ok()),
            };
            if !sent {
                return Ok(rows);
            }
        }
        self.counters
            .rows
            .store(rows, std::sync::atomic::Ordering::Relaxed);
        Ok(rows)
    }

    /// Waits until `bytes` fit beside what is read ahead; whoever sends the row gives them back.
    fn take_room(&self, bytes: usize) {
        let permits = u32::try_from(bytes.min(AHEAD_BYTES)).unwrap_or(u32::MAX);
        let taken = tokio::runtime::Handle::current().block_on(self.room.acquire_many(permits));
        if let Ok(permit) = taken {
            permit.forget();
        }
    }

    fn prepare(&self, row: Row) -> Result<Prepared, Box<BadRow>> {
        let names_model = matches!(row.call, RowCall::Batch { .. }) && self.maker.model.is_none();
        let (operation, body) = match &row.call {
            RowCall::Prompt(text) => (self.maker.operation, self.of_prompt(text)),
            RowCall::Batch { url, body } => self.of_batch(&row, url, body.get())?,
        };
        let scan = self.scan(&row, &body)?;
        Ok(Prepared {
            line: row.line,
            custom_id: row.custom_id,
            operation,
            body,
            size: scan.size,
            names_model,
        })
    }

    fn of_prompt(&self, text: &str) -> Bytes {
        let prompt = Prompt {
            model: &self.model,
            system: self.maker.system.as_deref(),
            text,
            params: &self.maker.params,
        };
        prompt_body(self.maker.operation, prompt)
    }

    fn of_batch(
        &self,
        row: &Row,
        url: &str,
        body: &str,
    ) -> Result<(Operation, Bytes), Box<BadRow>> {
        let operation = Operation::from_path(url)
            .filter(|operation| {
                (*operation == Operation::Messages) == (self.dialect == Dialect::Anthropic)
            })
            .ok_or_else(|| {
                bad(
                    row,
                    BadRowCode::InvalidField,
                    format!("the provider of this run has no {url}"),
                )
            })?;
        let body = match &self.maker.model {
            Some(model) => with_model(body.as_bytes(), model)
                .map_err(|error| bad(row, BadRowCode::InvalidJson, error.to_string()))?,
            None => Bytes::copy_from_slice(body.as_bytes()),
        };
        Ok((operation, body))
    }

    fn scan(&self, row: &Row, body: &[u8]) -> Result<RequestScan, Box<BadRow>> {
        let scan = scan_request(body, self.maker.counter)
            .map_err(|error| bad(row, BadRowCode::InvalidJson, error.to_string()))?;
        if scan.stream {
            let message =
                "`stream` cannot be asked for in a file: results are whole answers".to_owned();
            return Err(bad(row, BadRowCode::InvalidField, message));
        }
        Ok(scan)
    }
}

fn bad(row: &Row, code: BadRowCode, message: String) -> Box<BadRow> {
    Box::new(BadRow {
        line: row.line,
        physical_line: row.physical_line,
        custom_id: row.custom_id.clone(),
        code,
        message,
    })
}
