use async_trait::async_trait;
use bytes::Bytes;
use llmq_core::{Priority, Status, WallTime};

use crate::{BatchId, Counts, Job, JobId, StoreError, StoredAnswer};

/// The most jobs on a page of a list.
pub const PAGE_MAX: usize = 1000;

/// The most rows that a page of a list looks at.
pub const EXAMINED_MAX: usize = 10_000;

/// Which jobs a list shows. Each that is `None` lets all pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only in this status.
    pub status: Option<Status>,
    /// Only in this queue.
    pub queue: Option<String>,
    /// Only of this tenant.
    pub tenant: Option<String>,
    /// Only of this priority.
    pub priority: Option<Priority>,
    /// Only members of this batch.
    pub batch: Option<BatchId>,
    /// Only accepted at or after this.
    pub created_after: Option<WallTime>,
    /// Only accepted before this.
    pub created_before: Option<WallTime>,
}

impl Filter {
    /// Whether `job` is one of them.
    #[must_use]
    pub fn passes(&self, job: &Job) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, found: &T) -> bool {
            wanted.is_none_or(|wanted| wanted == found)
        }
        let batch = job.member.as_ref().map(|member| member.batch);
        is(self.status.as_ref(), &job.status)
            && is(self.queue.as_ref(), &job.queue)
            && is(self.tenant.as_ref(), &job.tenant)
            && is(self.priority.as_ref(), &job.priority)
            && (self.batch.is_none() || self.batch == batch)
            && self
                .created_after
                .is_none_or(|after| job.created_at >= after)
            && self
                .created_before
                .is_none_or(|before| job.created_at < before)
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// What it shows. Fewer than were asked for do not mean that there are no more.
    pub items: Vec<T>,
    /// Where the next page begins; `None` when there is none.
    pub next: Option<JobId>,
}

/// Looking at jobs.
///
/// What is read was recorded, and is whole: a row or an answer whose checksum is wrong is
/// [`StoreError::Damaged`], never shown.
#[async_trait]
pub trait Reads {
    /// A job; `None` for one that is not there, any more or at all.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn job(&self, job: JobId) -> Result<Option<Job>, StoreError>;

    /// What a job's request was.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn body(&self, job: JobId) -> Result<Option<Bytes>, StoreError>;

    /// What a job's caller gets: of a completed one the result, of a failed one the provider's
    /// answer if there was one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn answer(&self, job: JobId) -> Result<Option<StoredAnswer>, StoreError>;

    /// Jobs by their ids, newest first, from behind `after` on: at most `limit` (and at most
    /// [`PAGE_MAX`]), and at most [`EXAMINED_MAX`] are looked at. A job that neither came nor went
    /// between two pages is on exactly one of them.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn list(
        &self,
        filter: &Filter,
        after: Option<JobId>,
        limit: usize,
    ) -> Result<Page<Job>, StoreError>;

    /// How many jobs are in each status, in all queues. No row is counted for it.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn counts(&self) -> Result<Counts, StoreError>;
}
