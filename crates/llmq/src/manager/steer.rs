use std::collections::BTreeMap;
use std::sync::Arc;

use llmq_dispatch::Why;
use uuid::Uuid;

use super::QueueManager;
use crate::error::QueueError;
use crate::info::QueueInfo;
use crate::metrics::QueueMetrics;
use crate::queue::Queue;

impl<P, T> QueueManager<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Starts nothing more of a model; what runs goes on.
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn pause(&self, model: &str) -> Result<(), QueueError> {
        self.queue(model)?.pause();
        Ok(())
    }

    /// Goes on after [`QueueManager::pause`].
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn resume(&self, model: &str) -> Result<(), QueueError> {
        self.queue(model)?.resume();
        Ok(())
    }

    /// What a model's queue looks like now.
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn get_queue_info(&self, model: &str) -> Result<QueueInfo, QueueError> {
        Ok(self.queue(model)?.info())
    }

    /// What every queue looks like now, by model.
    #[must_use]
    pub fn get_all_queues_info(&self) -> BTreeMap<Arc<str>, QueueInfo> {
        let queues: Vec<Queue<P, T>> = self.queues().values().cloned().collect();
        let info = |queue: &Queue<P, T>| (Arc::clone(queue.model_id()), queue.info());
        queues.iter().map(info).collect()
    }

    /// What all queues together have done so far.
    #[must_use]
    pub fn metrics(&self) -> QueueMetrics {
        let mut total = QueueMetrics::default();
        for queue in self.queues().values() {
            total.add(&queue.metrics());
        }
        total
    }

    /// What a request in flight waits for; none for an unknown or finished one.
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn why(&self, model: &str, id: Uuid) -> Result<Option<Why>, QueueError> {
        Ok(self.queue(model)?.why(id))
    }
}
