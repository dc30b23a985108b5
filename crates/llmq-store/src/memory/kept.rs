//! Batches and files.

use std::collections::HashSet;

use bytes::Bytes;
use llmq_core::{Now, Status};

use super::state::{FileRow, State};
use crate::capacity::Capacity;
use crate::{
    Batch, BatchId, BatchStatus, BatchUpdate, EnqueueError, EventKind, FileId, Job, JobId,
    NewEvent, NewJob, STAGE_MAX, StoreError, StoredFile, Subject,
};

impl State {
    pub(super) fn stage(&mut self, mut jobs: Vec<NewJob>, now: Now) -> Result<(), EnqueueError> {
        if jobs.len() > STAGE_MAX {
            return Err(EnqueueError::TooMany { count: jobs.len() });
        }
        // Whoever reads the input again finds what was staged the first time.
        jobs.retain(|job| {
            let member = job.member.as_ref();
            let line = member.map(|member| (member.batch, member.line));
            line.is_none_or(|line| !self.members.contains_key(&line))
        });
        let mut ids = HashSet::new();
        for job in &jobs {
            let batch = job.member.as_ref().map(|member| member.batch);
            let batch = batch.and_then(|batch| self.batches.get(&batch));
            if batch.is_none_or(|batch| batch.status != BatchStatus::Validating) {
                let reason = "its batch is not one that members are added to".to_owned();
                return Err(StoreError::Unavailable {
                    reason,
                    source: None,
                }
                .into());
            }
            if self.drains(&job.queue) {
                let queue = job.queue.clone();
                return Err(EnqueueError::Draining { queue });
            }
            if self.jobs.contains_key(&job.id) || !ids.insert(job.id) {
                return Err(EnqueueError::DuplicateId { job: job.id });
            }
        }
        let bytes = jobs.iter().map(Capacity::bytes_of).sum();
        self.capacity
            .take(jobs.len() as u64, bytes, &self.settings)?;
        for job in jobs {
            self.admit(job, now);
        }
        Ok(())
    }

    pub(super) fn publish_batch(
        &mut self,
        id: BatchId,
        update: BatchUpdate,
        now: Now,
    ) -> Option<Batch> {
        let batch = self.batches.get(&id)?;
        if batch.status != BatchStatus::Validating || update.from != batch.status {
            return None;
        }
        let staged: Vec<_> = self.members_of(id, 0).map(|(_, job)| job).collect();
        for job in &staged {
            self.appear(*job, now);
        }
        if let Some(batch) = self.batches.get_mut(&id) {
            batch.counts.total = u32::try_from(staged.len()).unwrap_or(u32::MAX);
        }
        let batch = self.update_batch(id, update, now);
        self.tell_if_done(id, now);
        batch
    }

    pub(super) fn update_batch(
        &mut self,
        id: BatchId,
        update: BatchUpdate,
        now: Now,
    ) -> Option<Batch> {
        let batch = self.batches.get_mut(&id)?;
        if batch.status != update.from {
            return None;
        }
        batch.status = update.to;
        batch.details = update.details;
        batch.changed_at = now.wall;
        let batch = batch.clone();
        if update.from == BatchStatus::Validating && update.to.is_final() {
            let staged: Vec<_> = self.members_of(id, 0).map(|(_, job)| job).collect();
            for job in staged {
                self.remove_job(job);
            }
        }
        for file in update.files {
            self.publish_file(file);
        }
        if let Some(event) = update.event {
            self.tell(event, None, now);
        }
        Some(batch)
    }

    /// A member has ended: its batch counts it, and may have been waiting for it alone.
    pub(super) fn count_member(&mut self, id: JobId, status: Status, now: Now) {
        let member = self.jobs.get(&id).and_then(|row| row.job.member.clone());
        let Some(member) = member else {
            return;
        };
        let Some(batch) = self.batches.get_mut(&member.batch) else {
            return;
        };
        match status {
            Status::Completed => batch.counts.completed += 1,
            Status::Failed => batch.counts.failed += 1,
            Status::Expired => batch.counts.expired += 1,
            Status::Cancelled => batch.counts.cancelled += 1,
            Status::Queued | Status::Processing => {}
        }
        self.tell_if_done(member.batch, now);
    }

    fn tell_if_done(&mut self, id: BatchId, now: Now) {
        let Some(batch) = self.batches.get(&id) else {
            return;
        };
        if batch.counts.all_ended() {
            let event = NewEvent {
                kind: EventKind::BATCH_WORK_DONE.to_owned(),
                tenant: Some(batch.tenant.clone()),
                subject: Subject::Batch(id),
                data: serde_json::Value::Null,
            };
            self.tell(event, None, now);
        }
    }

    pub(super) fn members(&self, batch: BatchId, after_line: u32, limit: usize) -> Vec<Job> {
        let members = self.members_of(batch, after_line);
        let jobs = members.filter_map(|(_, id)| self.visible(id));
        jobs.take(limit).map(|row| self.shown(row)).collect()
    }

    pub(super) fn create_file(&mut self, file: StoredFile) {
        let id = file.id;
        let file = StoredFile { bytes: 0, ..file };
        let row = FileRow {
            file,
            chunks: Vec::new(),
            published: false,
        };
        self.files.insert(id, row);
    }

    pub(super) fn append_file(&mut self, id: FileId, chunk: Bytes) -> Option<u64> {
        let row = self.files.get_mut(&id).filter(|row| !row.published)?;
        row.file.bytes += chunk.len() as u64;
        row.chunks.push(chunk);
        Some(row.file.bytes)
    }

    pub(super) fn describe_file(&mut self, file: StoredFile) -> bool {
        let row = self.files.get_mut(&file.id).filter(|row| !row.published);
        let Some(row) = row else {
            return false;
        };
        let bytes = row.file.bytes;
        row.file = StoredFile { bytes, ..file };
        true
    }

    pub(super) fn publish_file(&mut self, id: FileId) -> Option<StoredFile> {
        let row = self.files.get_mut(&id).filter(|row| !row.published)?;
        row.published = true;
        Some(row.file.clone())
    }

    pub(super) fn file(&self, id: FileId) -> Option<StoredFile> {
        let row = self.files.get(&id).filter(|row| row.published);
        row.map(|row| row.file.clone())
    }

    pub(super) fn read_file(&self, id: FileId, chunk: u32) -> Option<Bytes> {
        let row = self.files.get(&id).filter(|row| row.published)?;
        row.chunks.get(chunk as usize).cloned()
    }

    pub(super) fn list_files(
        &self,
        tenant: Option<&str>,
        after: Option<FileId>,
        limit: usize,
    ) -> Vec<StoredFile> {
        let rows = self.files.values().rev().filter(|row| row.published);
        let rows = rows.filter(|row| tenant.is_none_or(|tenant| row.file.tenant == tenant));
        let rows = rows.filter(|row| after.is_none_or(|after| row.file.id < after));
        rows.take(limit).map(|row| row.file.clone()).collect()
    }
}
