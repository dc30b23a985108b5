//! Who waits for the end of a job.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llmq_store::JobId;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

/// Those who wait, by job.
#[derive(Debug, Default)]
pub(super) struct Ends {
    waiting: Mutex<FxHashMap<JobId, Arc<Notify>>>,
}

/// Waits for one job's end.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    ends: &'a Ends,
    job: JobId,
    notify: Arc<Notify>,
}

impl Ends {
    /// Begins to listen: an end that comes from now on is heard.
    pub(super) fn watch(&self, job: JobId) -> Watch<'_> {
        let notify = Arc::clone(self.lock().entry(job).or_default());
        Watch {
            ends: self,
            job,
            notify,
        }
    }

    /// A job has ended.
    pub(super) fn ended(&self, job: JobId) {
        if let Some(notify) = self.lock().remove(&job) {
            notify.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<JobId, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch<'_> {
    /// The next end. To be made before the job is looked at, so that none is missed between.
    pub(super) fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut waiting = self.ends.lock();
        // The table's own and this one: nobody else waits for it.
        if Arc::strong_count(&self.notify) <= 2
            && waiting
                .get(&self.job)
                .is_some_and(|notify| Arc::ptr_eq(notify, &self.notify))
        {
            waiting.remove(&self.job);
        }
    }
}
