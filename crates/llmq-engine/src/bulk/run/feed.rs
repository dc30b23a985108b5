use std::sync::Arc;

use llmq_provider::Dialect;
use tokio::sync::mpsc::{Sender, WeakSender};

use super::call::{CallMaker, Prepared};
use super::progress::Counters;
use super::writer::Finished;
use crate::bulk::{Bitmap, InputError, Item, RowReader};

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
                Item::Row(row) => self.maker.prepare(row, &self.model, self.dialect),
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
}
