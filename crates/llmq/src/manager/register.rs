use std::future::Future;
use std::sync::Arc;

use llmq_core::CallSize;

use super::QueueManager;
use crate::config::ModelConfig;
use crate::error::QueueError;
use crate::processor::{Processor, ProcessorError, boxed};
use crate::queue::{Estimator, Queue};
use crate::request::QueueRequest;

impl<P, T> QueueManager<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Makes a queue for a model. Its requests are given to `processor` when their limits
    /// allow.
    ///
    /// The processor runs where the request is waited for: in the task that polls the
    /// submission, or in one of its own when nobody waits. It is called again when an attempt
    /// failed in a way that passes, with the same request. If it panics, its request fails and
    /// nothing else does.
    ///
    /// A model that was shut down or removed can be registered again: what it used of its limits
    /// and its day stays used, and what still runs of it counts.
    ///
    /// # Errors
    ///
    /// [`QueueError::AlreadyRegistered`], or [`QueueError::InvalidConfiguration`] with every
    /// mistake, or when there is no tokio runtime: the first registration starts a timer on it,
    /// and nothing more can be registered or submitted when that one has ended.
    pub fn register_queue<E, F, R>(
        &self,
        config: ModelConfig,
        processor: F,
    ) -> Result<Queue<P, T>, QueueError>
    where
        F: Fn(QueueRequest<P>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<ProcessorError>,
    {
        self.add(&config, boxed(processor), None)
    }

    /// The same with a function that says how large a call is, for limits on tokens. Where it
    /// panics, the submission does, and the request was never accepted.
    ///
    /// # Errors
    ///
    /// Those of [`QueueManager::register_queue`].
    pub fn register_queue_sized<E, F, R>(
        &self,
        config: ModelConfig,
        processor: F,
        size: impl Fn(&P) -> CallSize + Send + Sync + 'static,
    ) -> Result<Queue<P, T>, QueueError>
    where
        F: Fn(QueueRequest<P>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<ProcessorError>,
    {
        self.add(&config, boxed(processor), Some(Box::new(size)))
    }

    /// Makes a queue for each of several models with one processor: all of them or none.
    ///
    /// # Errors
    ///
    /// Those of [`QueueManager::register_queue`], for the first model that has one.
    pub fn register_all_queues<E, F, R>(
        &self,
        configs: impl IntoIterator<Item = ModelConfig>,
        processor: F,
    ) -> Result<Vec<Queue<P, T>>, QueueError>
    where
        F: Fn(QueueRequest<P>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<ProcessorError> + 'static,
    {
        let processor = Arc::new(processor);
        let mut added: Vec<Queue<P, T>> = Vec::new();
        for config in configs {
            let processor = Arc::clone(&processor);
            match self.add(&config, boxed(move |request| processor(request)), None) {
                Ok(queue) => added.push(queue),
                Err(error) => {
                    let mut queues = self.queues_mut();
                    for queue in &added {
                        queue.retire();
                        queues.remove(queue.model_id());
                    }
                    return Err(error);
                }
            }
        }
        Ok(added)
    }

    fn add(
        &self,
        config: &ModelConfig,
        processor: Processor<P, T>,
        estimator: Option<Estimator<P>>,
    ) -> Result<Queue<P, T>, QueueError> {
        config.check()?;
        let engine = self.engine()?;
        let mut queues = self.queues_mut();
        let known = queues.get(&config.model_id);
        if known.is_some_and(|queue| !queue.is_closed()) {
            return Err(QueueError::AlreadyRegistered {
                model: Arc::clone(&config.model_id),
            });
        }
        let place = engine.add_model(config)?;
        let queue = Queue::new(config, engine, place, processor, estimator);
        queues.insert(Arc::clone(&config.model_id), queue.clone());
        Ok(queue)
    }

    /// The queue of a model.
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn queue(&self, model: &str) -> Result<Queue<P, T>, QueueError> {
        let found = self.queues().get(model).cloned();
        found.ok_or_else(|| QueueError::ModelNotRegistered {
            model: model.into(),
        })
    }
}
