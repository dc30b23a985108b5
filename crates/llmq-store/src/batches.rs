use async_trait::async_trait;
use bytes::Bytes;
use llmq_core::{Now, WallTime};
use serde::{Deserialize, Serialize};

use crate::{BatchId, EnqueueError, FileId, NewEvent, NewJob, StoreError};

/// The most jobs in one call of [`Batches::stage`].
pub const STAGE_MAX: usize = 500;

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatus {
    /// Its lines are read and staged; nothing of them can be seen.
    Validating,
    /// Final: its input was bad.
    Failed,
    /// Its members are in their lines.
    InProgress,
    /// All members have ended; its output is written.
    Finalizing,
    /// Final: all that could be done is done.
    Completed,
    /// Final: its time ended before all members had.
    Expired,
    /// Somebody asked for it to end; its members are being cancelled.
    Cancelling,
    /// Final: somebody asked for it to end.
    Cancelled,
}

impl BatchStatus {
    /// Whether nothing can change it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Failed | Self::Completed | Self::Expired | Self::Cancelled => true,
            Self::Validating | Self::InProgress | Self::Finalizing | Self::Cancelling => false,
        }
    }
}

/// How the members of a batch ended so far. Kept with each end, in its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BatchCounts {
    /// Members.
    pub total: u32,
    /// Completed.
    pub completed: u32,
    /// Failed.
    pub failed: u32,
    /// Expired.
    pub expired: u32,
    /// Cancelled.
    pub cancelled: u32,
}

impl BatchCounts {
    /// Whether no member is left that has not ended.
    #[must_use]
    pub fn all_ended(self) -> bool {
        self.completed + self.failed + self.expired + self.cancelled >= self.total
    }
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its id.
    pub id: BatchId,
    /// Whose it is.
    pub tenant: String,
    /// Where it stands.
    pub status: BatchStatus,
    /// Its members.
    pub counts: BatchCounts,
    /// When it was made.
    pub created_at: WallTime,
    /// When it came to the status it has.
    pub changed_at: WallTime,
    /// What its owner keeps with it (files, endpoint, window, instants, errors, metadata), which
    /// no store looks at.
    pub details: serde_json::Value,
}

impl Batch {
    /// A batch that is made now, and of which nothing has been read yet.
    #[must_use]
    pub fn new(tenant: impl Into<String>, details: serde_json::Value, now: WallTime) -> Self {
        Self {
            id: BatchId::new(),
            tenant: tenant.into(),
            status: BatchStatus::Validating,
            counts: BatchCounts::default(),
            created_at: now,
            changed_at: now,
            details,
        }
    }
}

/// A change of a batch's own data, by its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchUpdate {
    /// The status it must have now …
    pub from: BatchStatus,
    /// … and has then.
    pub to: BatchStatus,
    /// Its owner's data, in the place of those before.
    pub details: serde_json::Value,
    /// Staged files that become visible with it.
    pub files: Vec<FileId>,
    /// What tells of it.
    pub event: Option<NewEvent>,
}

/// Batches: many jobs that were handed in as a file and whose answers become one.
///
/// A batch is made `validating`, its members are staged in slices between other work, and one
/// small transaction publishes all of them. What was staged and never published is removed when
/// the store is next opened; its batch is `validating` still, and is to be read again.
#[async_trait]
pub trait Batches {
    /// Makes a batch, `validating` and without members.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn create_batch(&self, batch: Batch) -> Result<(), StoreError>;

    /// Adds members to a batch that is `validating`: at most [`STAGE_MAX`] jobs, whose `member`
    /// names the batch. They count for capacity from now on, and nobody sees or starts them.
    ///
    /// # Errors
    ///
    /// [`EnqueueError`]: none of these was added; those of earlier slices are still there.
    async fn stage(&self, jobs: Vec<NewJob>, now: Now) -> Result<(), EnqueueError>;

    /// Makes all staged members of a `validating` batch visible and has them wait in their lanes,
    /// and makes `update` with it. Their time to live begins now. A batch without members is done
    /// at once. `None`: there is no such batch, or it has another status.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing was published.
    async fn publish_batch(
        &self,
        batch: BatchId,
        update: BatchUpdate,
        now: Now,
    ) -> Result<Option<Batch>, StoreError>;

    /// Changes a batch; when it comes from `validating` to `failed` or `cancelled`, what was
    /// staged is removed. `None`: there is no such batch, or it has another status than
    /// `update.from`; then nothing was changed.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing was changed.
    async fn update_batch(
        &self,
        batch: BatchId,
        update: BatchUpdate,
        now: Now,
    ) -> Result<Option<Batch>, StoreError>;

    /// A batch; `None` for one that is not there.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn batch(&self, batch: BatchId) -> Result<Option<Batch>, StoreError>;

    /// Batches of a tenant, or all, newest first, from behind `after` on.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn batches(
        &self,
        tenant: Option<&str>,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<Batch>, StoreError>;

    /// The members of a batch in the order of their lines, from behind `after_line` on. One whose
    /// row is damaged is passed over: the batch's counts say that there is one more.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn members(
        &self,
        batch: BatchId,
        after_line: u32,
        limit: usize,
    ) -> Result<Vec<crate::Job>, StoreError>;
}

/// A file: content that was handed in or is handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its id.
    pub id: FileId,
    /// Whose it is.
    pub tenant: String,
    /// Its name, as it was handed in.
    pub filename: String,
    /// What it is for, such as `batch` or `batch_output`.
    pub purpose: String,
    /// How many bytes it has.
    pub bytes: u64,
    /// When it was made.
    pub created_at: WallTime,
    /// When it is removed by itself.
    pub expires_at: Option<WallTime>,
}

/// Files. One is written in chunks that nobody sees until it is published; one that never was is
/// removed when the store is next opened.
#[async_trait]
pub trait Files {
    /// Begins a file without content. Its `bytes` are counted by the store.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn create_file(&self, file: StoredFile) -> Result<(), StoreError>;

    /// Adds a chunk, of at most 1 MiB to stand between other work. `None`: there is no such file
    /// that is still being written. Otherwise its length then.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing was added.
    async fn append_file(&self, file: FileId, chunk: Bytes) -> Result<Option<u64>, StoreError>;

    /// Gives a file that is still being written the name, purpose and end of `file`: a caller may
    /// say them after the content. Its length stays. Whether there is such a file.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing was changed.
    async fn describe_file(&self, file: StoredFile) -> Result<bool, StoreError>;

    /// Makes it visible. `None`: there is no such file that is still being written. (The output of
    /// a batch becomes visible with the batch's end, by [`BatchUpdate::files`].)
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn publish_file(&self, file: FileId) -> Result<Option<StoredFile>, StoreError>;

    /// A file that is visible.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn file(&self, file: FileId) -> Result<Option<StoredFile>, StoreError>;

    /// The chunk with this number, from 0 on, verified; `None` behind the last one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn read_file(&self, file: FileId, chunk: u32) -> Result<Option<Bytes>, StoreError>;

    /// Visible files of a tenant, or all, newest first, from behind `after` on.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn files(
        &self,
        tenant: Option<&str>,
        after: Option<FileId>,
        limit: usize,
    ) -> Result<Vec<StoredFile>, StoreError>;

    /// Removes a file, visible or not. Whether there was one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn delete_file(&self, file: FileId) -> Result<bool, StoreError>;
}
