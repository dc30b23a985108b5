//! Stages of which nothing will be published, such as those of batches that failed: their rows are
//! removed in slices between other work, as there may be a million.

use super::desk::{Desk, Done};
use super::index::Staged;

/// How many rows one slice removes.
const SLICE: usize = 500;

impl Desk<'_> {
    /// Nothing of a stage will be published. The room of its rows is free at once; a slice of them
    /// is removed here, and the rest by housekeeping. Nobody sees them meanwhile.
    pub(crate) fn give_up_stage<E>(&mut self, number: i64) -> Done<(), E> {
        let Some(stage) = self.index.stages.get_mut(&number) else {
            return Ok(());
        };
        stage.is_given_up = true;
        let jobs = stage.waiting.len() as u64;
        let bytes = stage.waiting.iter().map(|staged| staged.bytes).sum();
        self.index.capacity.give_back(jobs, bytes);
        self.remove_given_up(number)
    }

    /// Removes a slice of a stage that was given up, if there is one. Whether there was.
    pub(crate) fn tend_given_up(&mut self) -> Done<bool> {
        let mut stages = self.index.stages.iter();
        let given_up = stages.find(|(_, stage)| stage.is_given_up);
        let Some(number) = given_up.map(|(number, _)| *number) else {
            return Ok(false);
        };
        self.remove_given_up(number)?;
        Ok(true)
    }

    fn remove_given_up<E>(&mut self, number: i64) -> Done<(), E> {
        let Some(stage) = self.index.stages.get_mut(&number) else {
            return Ok(());
        };
        let rest = stage.waiting.len().saturating_sub(SLICE);
        let slice = stage.waiting.split_off(rest);
        for staged in &slice {
            self.remove_staged_row(staged)?;
        }
        if rest == 0 {
            self.forget_stage(number)?;
        }
        Ok(())
    }

    /// Removes a staged row, which its queue counts no more.
    pub(crate) fn remove_staged_row(&mut self, staged: &Staged) -> rusqlite::Result<()> {
        self.delete(staged.number, staged.body, None)?;
        let queue = self
            .index
            .names
            .number(self.connection, &staged.lane.queue)?;
        self.index.count(queue, |counts| {
            counts.bytes = counts.bytes.saturating_sub(staged.bytes);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use llmq_core::Now;
    use llmq_store::{
        Batch, BatchId, BatchStatus, BatchUpdate, Batches as _, Filter, JobId, Jobs as _, Member,
        NewJob, Reads as _, STAGE_MAX, Settings,
    };

    use crate::{Options, Place, Store};

    async fn rows(store: &Store, table: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {table}");
        let rows = store.read(move |connection| connection.query_row(&count, [], |row| row.get(0)));
        rows.await.unwrap()
    }

    /// A batch of which so many lines were read.
    async fn read(store: &Store, lines: u32, now: Now) -> (BatchId, Vec<JobId>) {
        let batch = Batch::new("t", serde_json::Value::Null, now.wall);
        let id = batch.id;
        store.create_batch(batch).await.unwrap();
        let member = |line: u32| NewJob {
            member: Some(Member {
                batch: id,
                line,
                custom_id: line.to_string(),
            }),
            ..NewJob::new("m", "t", "{}")
        };
        let jobs: Vec<_> = (1..=lines).map(member).collect();
        for slice in jobs.chunks(STAGE_MAX) {
            store.stage(slice.to_vec(), now).await.unwrap();
        }
        (id, jobs.iter().map(|job| job.id).collect())
    }

    /// The same, and its next line is a fault.
    async fn failed(store: &Store, lines: u32, now: Now) -> Vec<JobId> {
        let (id, jobs) = read(store, lines, now).await;
        let update = BatchUpdate {
            from: BatchStatus::Validating,
            to: BatchStatus::Failed,
            details: serde_json::Value::Null,
            files: Vec::new(),
            event: None,
        };
        store.update_batch(id, update, now).await.unwrap().unwrap();
        assert!(store.members(id, 0, 10).await.unwrap().is_empty());
        jobs
    }

    async fn breaks(store: &Store) {
        let broken = store.write(|connection| connection.execute_batch("SELECT broken"));
        broken.await.unwrap_err();
    }

    /// A bit that made a batch look ended gave up its lines, as soon as anything had failed.
    #[tokio::test]
    async fn a_batch_that_looks_ended_by_damage_alone_keeps_its_lines() {
        let now = Now::default().after(Duration::from_secs(77));
        let store = Store::open(&Place::Memory, now.wall).unwrap();
        read(&store, 3, now).await;
        let damage = |connection: &rusqlite::Connection| {
            connection.execute("UPDATE batches SET ended = 1", [])
        };
        assert_eq!(store.write(damage).await.unwrap(), 1);
        breaks(&store).await;
        for _ in 0..3 {
            store.tend(now).await.unwrap();
        }
        assert_eq!(rows(&store, "jobs").await, 3);
        assert_eq!(rows(&store, "stages").await, 1);
    }

    /// A fault in the last of fifty thousand lines held up everybody else's work for a second.
    #[tokio::test]
    async fn a_large_stage_is_removed_by_slices_and_its_room_is_free_at_once() {
        let now = Now::default().after(Duration::from_secs(77));
        let options = Options {
            settings: Settings {
                max_jobs: 3_000,
                high_watermark: 1.0,
                ..Settings::default()
            },
            ..Options::default()
        };
        let store = Store::open_with(&Place::Memory, options, now.wall).unwrap();
        let jobs = failed(&store, 2_300, now).await;
        assert_eq!(rows(&store, "jobs").await, 1_800);
        for id in [jobs[0], jobs[2_299]] {
            assert_eq!(store.job(id).await.unwrap(), None);
        }
        let list = store.list(&Filter::default(), None, 10).await.unwrap();
        assert!(list.items.is_empty());
        // There is room, also after a transaction that failed: what is known is read again then.
        let others = || (0..1_000).map(|_| NewJob::new("m", "t", "{}")).collect();
        store.enqueue(others(), now).await.unwrap();
        breaks(&store).await;
        store.enqueue(others(), now).await.unwrap();
        for left in [1_300, 800, 300, 0] {
            assert!(store.tend(now).await.unwrap().more);
            assert_eq!(rows(&store, "jobs").await, 2_000 + left);
        }
        assert!(!store.tend(now).await.unwrap().more);
        assert_eq!(
            rows(&store, "stages").await,
            2,
            "those of the large inserts"
        );
        assert_eq!(rows(&store, "blobs").await, 2_000);
        let counts = store.counts().await.unwrap();
        assert_eq!(counts.queued, 2_000);
        let one = llmq_store::Capacity::bytes_of(&NewJob::new("m", "t", "{}"));
        assert_eq!(counts.bytes, 2_000 * one);
        let too_many = store.enqueue(others(), now).await;
        too_many.unwrap();
        let refused = store.enqueue(vec![NewJob::new("m", "t", "{}")], now).await;
        assert!(refused.is_err(), "{refused:?}");
    }
}
