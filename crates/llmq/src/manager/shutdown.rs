use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::QueueManager;
use crate::error::QueueError;
use crate::queue::Queue;

/// How a shutdown went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Requests that had to be cancelled because the time was over, by model and id. Every
    /// other accepted request has finished by itself.
    pub cancelled: Vec<(Arc<str>, Uuid)>,
}

impl ShutdownReport {
    /// Whether everything finished by itself.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.cancelled.is_empty()
    }
}

/// What is cancelled needs a moment to end.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

impl<P, T> QueueManager<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Closes one model's queue as [`QueueManager::shutdown_all`] does, and forgets it.
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue closed and registered; calling it again goes on.
    pub async fn remove_queue(
        &self,
        model: &str,
        grace: Duration,
    ) -> Result<ShutdownReport, QueueError> {
        let queue = self.queue(model)?;
        let report = shut_down(vec![queue.clone()], grace).await;
        let mut queues = self.queues_mut();
        // It may have been registered again meanwhile.
        if queues.get(model).is_some_and(|now| now.is(&queue)) {
            queues.remove(model);
            queue.retire();
        }
        drop(queues);
        Ok(report)
    }

    /// Closes every queue: nothing new is accepted, what was accepted is finished. What has
    /// not after `grace` is cancelled and told of, so that nothing is lost in silence.
    ///
    /// Requests of a paused queue do not finish by themselves. Finished requests can still be
    /// asked for afterwards.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queues closed; calling it again goes on waiting.
    pub async fn shutdown_all(&self, grace: Duration) -> ShutdownReport {
        let queues: Vec<Queue<P, T>> = self.queues().values().cloned().collect();
        shut_down(queues, grace).await
    }
}

async fn shut_down<P, T>(queues: Vec<Queue<P, T>>, grace: Duration) -> ShutdownReport
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    for queue in &queues {
        queue.close();
    }
    let all_idle = || async {
        for queue in &queues {
            queue.idle().await;
        }
    };
    let mut report = ShutdownReport::default();
    if tokio::time::timeout(grace, all_idle()).await.is_err() {
        report.cancelled = end(&queues);
        // Those whose submitter does not poll them end when it does.
        let _ = tokio::time::timeout(CANCEL_GRACE, all_idle()).await;
    }
    for queue in &queues {
        queue.end_day().await;
    }
    report
}

/// Ends what is in flight; the model and id of each.
fn end<P, T>(queues: &[Queue<P, T>]) -> Vec<(Arc<str>, Uuid)>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    let of_queue = |queue: &Queue<P, T>| {
        let model = Arc::clone(queue.model_id());
        let ended = queue.end_all().into_iter();
        ended.map(|id| (Arc::clone(&model), id)).collect::<Vec<_>>()
    };
    queues.iter().flat_map(of_queue).collect()
}
