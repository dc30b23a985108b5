use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, ready};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;
use llmq_core::{Backoffs, CallSize, LimitSpec, Usage};
use llmq_dispatch::Why;
use rustc_hash::FxHashMap;
use uuid::Uuid;

use crate::config::{ModelConfig, check_limit};
use crate::engine::Engine;
use crate::error::QueueError;
use crate::hooks::Hooks;
use crate::info::QueueInfo;
use crate::metrics::QueueMetrics;
use crate::processor::{Processor, ProcessorError, boxed};
use crate::queue::{Estimator, Queue};
use crate::request::QueueRequest;
use crate::response::QueueResponse;
use crate::tenant::TenantConfig;

/// All queues of one program whose parameters are of type `P` and results of type `T`, one for
/// each model.
///
/// A manager can be cloned; every clone is the same. Queues of one manager can share limits
/// ([`QueueManager::share_limit`]); two managers know nothing of each other.
///
/// ```
/// # use llmq::{ModelConfig, QueueError, QueueManager, QueueRequest};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), QueueError> {
/// let manager = QueueManager::new();
/// manager.register_queue(
///     ModelConfig::new("echo").requests_per_minute(500).concurrent(8),
///     |request: QueueRequest<String>| async move { Ok::<_, QueueError>(request.params.len()) },
/// )?;
/// let response = manager.submit_request(QueueRequest::new("echo", "Hello".to_owned())).await?;
/// assert_eq!(response.result, Some(5));
/// # Ok(())
/// # }
/// ```
pub struct QueueManager<P, T> {
    shared: Arc<Shared<P, T>>,
}

struct Shared<P, T> {
    hooks: Option<Arc<dyn Hooks>>,
    backoffs: Backoffs,
    /// Made when the first queue is registered, since that happens on a runtime.
    engine: Mutex<Option<Arc<Engine>>>,
    queues: RwLock<FxHashMap<Arc<str>, Queue<P, T>>>,
}

/// A manager that is being set up.
#[must_use]
pub struct QueueManagerBuilder {
    hooks: Option<Arc<dyn Hooks>>,
    backoffs: Backoffs,
}

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

/// So many requests of one [`QueueManager::submit_all`] are in line at once; the rest is taken
/// in as they finish.
const SUBMIT_WINDOW: usize = 4_096;
/// What is cancelled needs a moment to end.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

impl QueueManagerBuilder {
    /// Lets `hooks` hear what happens to every request.
    pub fn hooks(self, hooks: impl Hooks) -> Self {
        Self {
            hooks: Some(Arc::new(hooks)),
            ..self
        }
    }

    /// How long to wait before another attempt.
    pub fn backoffs(self, backoffs: Backoffs) -> Self {
        Self { backoffs, ..self }
    }

    /// The manager.
    #[must_use]
    pub fn build<P, T>(self) -> QueueManager<P, T> {
        QueueManager {
            shared: Arc::new(Shared {
                hooks: self.hooks,
                backoffs: self.backoffs,
                engine: Mutex::new(None),
                queues: RwLock::new(FxHashMap::default()),
            }),
        }
    }
}

impl<P, T> Clone for QueueManager<P, T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<P, T> Default for QueueManager<P, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P, T> fmt::Debug for QueueManager<P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueManager")
            .field("models", &self.models())
            .finish()
    }
}

impl QueueManager<(), ()> {
    /// Sets up a manager with hooks or backoffs of its own.
    pub fn builder() -> QueueManagerBuilder {
        QueueManagerBuilder {
            hooks: None,
            backoffs: Backoffs::default(),
        }
    }
}

impl<P, T> QueueManager<P, T> {
    /// A manager without queues, without hooks and with the default backoffs.
    #[must_use]
    pub fn new() -> Self {
        QueueManager::builder().build()
    }

    /// The registered models, in the order of their names.
    #[must_use]
    pub fn models(&self) -> Vec<Arc<str>> {
        let mut models: Vec<_> = self.queues().keys().cloned().collect();
        models.sort_unstable();
        models
    }

    fn queues(&self) -> RwLockReadGuard<'_, FxHashMap<Arc<str>, Queue<P, T>>> {
        self.shared
            .queues
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn queues_mut(&self) -> RwLockWriteGuard<'_, FxHashMap<Arc<str>, Queue<P, T>>> {
        self.shared
            .queues
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn engine(&self) -> Result<Arc<Engine>, QueueError> {
        let mut engine = self
            .shared
            .engine
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*engine {
            return Ok(Arc::clone(engine));
        }
        let started = Engine::start(self.shared.backoffs, self.shared.hooks.clone())?;
        *engine = Some(Arc::clone(&started));
        Ok(started)
    }

    /// Makes a limit that several models keep together, such as an account's; they refer to it
    /// with [`ModelConfig::shared_limit`].
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] when the limit cannot be meant, its name is taken,
    /// or there is no tokio runtime.
    pub fn share_limit(&self, name: &str, limit: LimitSpec) -> Result<(), QueueError> {
        check_limit(&limit)
            .map_err(|words| QueueError::invalid(name, format!("{limit}: {words}")))?;
        self.engine()?.share_limit(name, limit)
    }
}

impl<P, T> QueueManager<P, T> {
    /// Makes a tenant, to whom requests can be charged with [`QueueRequest::tenant`]. It is
    /// known to all queues.
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] when a setting cannot be meant, there is a tenant
    /// of this name, or no tokio runtime.
    ///
    /// ```
    /// # use llmq::{ModelConfig, QueueError, QueueManager, QueueRequest, TenantConfig};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), QueueError> {
    /// let manager = QueueManager::new();
    /// manager.register_queue(
    ///     ModelConfig::new("m").requests_per_minute(500),
    ///     |request: QueueRequest<String>| async move { Ok::<_, QueueError>(request.params.len()) },
    /// )?;
    /// // While both wait for a limit, alice gets three quarters of it.
    /// manager.add_tenant(&TenantConfig::new("alice").weight(3.0))?;
    /// manager.add_tenant(&TenantConfig::new("bob"))?;
    /// let request = QueueRequest::new("m", "Hello".to_owned()).tenant("alice");
    /// assert_eq!(manager.submit_request(request).await?.result, Some(5));
    /// # Ok(())
    /// # }
    /// ```
    pub fn add_tenant(&self, tenant: &TenantConfig) -> Result<(), QueueError> {
        tenant.check()?;
        self.engine()?.add_tenant(tenant)
    }
}

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
    /// A model that was shut down can be registered again: what it used of its limits stays
    /// used.
    ///
    /// # Errors
    ///
    /// [`QueueError::AlreadyRegistered`], or [`QueueError::InvalidConfiguration`] with every
    /// mistake, or when there is no tokio runtime: the first registration starts a timer on it.
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

    /// The same with a function that says how large a call is, for limits on tokens.
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
                        queue.close();
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
        let before = queues.get(&config.model_id);
        if before.is_some_and(|queue| !queue.is_closed()) {
            return Err(QueueError::AlreadyRegistered {
                model: Arc::clone(&config.model_id),
            });
        }
        let place = engine.add_model(config, before.map(Queue::place))?;
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

    /// Gives a request to its model's queue; see [`Queue::submit`].
    ///
    /// # Errors
    ///
    /// [`QueueError`]: it was not accepted, or it has no result.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the request, unless it has a `dedup_key` or does not wait.
    pub fn submit_request(
        &self,
        request: QueueRequest<P>,
    ) -> impl Future<Output = Result<QueueResponse<T>, QueueError>> + Send + use<P, T> {
        match self.queue(&request.model_id) {
            Ok(queue) => Either::Left(queue.submit(request)),
            // Boxed, so that those that wait do not reserve the room for it.
            Err(error) => Either::Right(Box::pin(ready(Err(error)))),
        }
    }

    /// Submits many requests, to any models, and waits for all; the answers are in the order
    /// of the requests. Each has its own error: one that fails does not touch the others.
    ///
    /// However many there are, a few thousand are in line at once, so a queue is not filled up
    /// by it. Their processors take turns on the task that polls this; give processors that
    /// compute much a task of their own.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels what has not finished.
    pub async fn submit_all(
        &self,
        requests: impl IntoIterator<Item = QueueRequest<P>, IntoIter: Send> + Send,
    ) -> Vec<Result<QueueResponse<T>, QueueError>> {
        let mut requests = requests.into_iter().enumerate();
        let mut running = FuturesUnordered::new();
        let mut answers: Vec<Option<Result<QueueResponse<T>, QueueError>>> = Vec::new();
        loop {
            while running.len() < SUBMIT_WINDOW
                && let Some((index, request)) = requests.next()
            {
                answers.push(None);
                let answer = self.submit_request(request);
                running.push(async move { (index, answer.await) });
            }
            match running.next().await {
                Some((index, answer)) => answers[index] = Some(answer),
                None => return answers.into_iter().flatten().collect(),
            }
        }
    }

    /// Where a request stands: one in flight, or one of the last 10,000 (unless set otherwise)
    /// that finished; none for an unknown one.
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn get_status(
        &self,
        model: &str,
        id: Uuid,
    ) -> Result<Option<QueueResponse<T>>, QueueError> {
        Ok(self.queue(model)?.get_status(id))
    }

    /// Waits for a request that was submitted without waiting; see [`Queue::wait`].
    ///
    /// # Errors
    ///
    /// The request's own error; [`QueueError::ModelNotRegistered`];
    /// [`QueueError::UnknownRequest`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the request goes on.
    pub async fn wait(&self, model: &str, id: Uuid) -> Result<QueueResponse<T>, QueueError> {
        self.queue(model)?.wait(id).await
    }

    /// Ends a request; see [`Queue::cancel`].
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn cancel(&self, model: &str, id: Uuid) -> Result<bool, QueueError> {
        Ok(self.queue(model)?.cancel(id))
    }

    /// Tells what a request really used; see [`Queue::update_token_usage`].
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn update_token_usage(
        &self,
        model: &str,
        id: Uuid,
        input_tokens: u64,
        output_tokens: u64,
    ) -> Result<bool, QueueError> {
        let usage = Usage {
            input_tokens,
            output_tokens,
            ..Usage::default()
        };
        Ok(self.queue(model)?.update_token_usage(id, usage))
    }

    /// Tells what an answer's headers say of limits; see [`Queue::update_from_response`].
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn update_from_response<'a>(
        &self,
        model: &str,
        id: Uuid,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<bool, QueueError> {
        Ok(self.queue(model)?.update_from_response(id, headers))
    }

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
        let report = shut_down(vec![queue], grace).await;
        self.queues_mut().remove(model);
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
    if tokio::time::timeout(grace, all_idle()).await.is_ok() {
        return report;
    }
    for queue in &queues {
        let model = queue.model_id();
        let ended = queue.end_all();
        let ended = ended.into_iter().map(|id| (Arc::clone(model), id));
        report.cancelled.extend(ended);
    }
    // Those whose submitter does not poll them end when it does.
    let _ = tokio::time::timeout(CANCEL_GRACE, all_idle()).await;
    report
}
