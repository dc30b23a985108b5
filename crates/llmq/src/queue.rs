use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either};
use llmq_core::{CallSize, LimitKind, LimitSpec, Status, Usage};
use llmq_dispatch::{Call, CallKind, Event, Refusal, Why};
use llmq_engine::Ticket;
use llmq_limit::{Refund, charge_rule};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::config::{ModelConfig, check_limit, same_slot};
use crate::drive::Drive;
use crate::engine::{Engine, Place};
use crate::error::QueueError;
use crate::hooks::tell;
use crate::info::{LimitInfo, QueueInfo};
use crate::live::{Birth, End, Live};
use crate::metrics::{Counters, QueueMetrics};
use crate::processor::Processor;
use crate::registry::{Finished, Found, Registry, Taken};
use crate::request::QueueRequest;
use crate::response::QueueResponse;

/// Says how large a call with these parameters is.
pub(crate) type Estimator<P> = Box<dyn Fn(&P) -> CallSize + Send + Sync>;

/// The line of one model: what [`QueueManager::register_queue`](crate::QueueManager::register_queue)
/// made.
///
/// It can be cloned, and every clone is the same queue. The manager offers the same by the
/// model's name; a queue in hand saves looking it up.
pub struct Queue<P, T> {
    inner: Arc<Inner<P, T>>,
}

impl<P, T> Clone for Queue<P, T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<P, T> fmt::Debug for Queue<P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("model", &self.inner.model)
            .finish_non_exhaustive()
    }
}

pub(crate) struct Inner<P, T> {
    pub(crate) model: Arc<str>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) place: Place,
    pub(crate) processor: Processor<P, T>,
    pub(crate) counters: Counters,
    estimator: Option<Estimator<P>>,
    timeout: Option<Duration>,
    registry: Mutex<Registry<T>>,
    in_flight: AtomicU64,
    idle: Notify,
    is_closed: AtomicBool,
}

/// A request that its driver must finish. Dropped before that, it was cancelled.
pub(crate) struct Active<P, T> {
    pub(crate) inner: Arc<Inner<P, T>>,
    pub(crate) live: Arc<Live<T>>,
    is_open: bool,
}

/// What became of a request that was handed in.
enum Accepted<P, T> {
    New(Active<P, T>, Ticket),
    Joined(Arc<Live<T>>),
}

impl<P, T> Queue<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(
        config: &ModelConfig,
        engine: Arc<Engine>,
        place: Place,
        processor: Processor<P, T>,
        estimator: Option<Estimator<P>>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                model: Arc::clone(&config.model_id),
                engine,
                place,
                processor,
                counters: Counters::default(),
                estimator,
                timeout: config.timeout,
                registry: Mutex::new(Registry::new(config.history)),
                in_flight: AtomicU64::new(0),
                idle: Notify::new(),
                is_closed: AtomicBool::new(false),
            }),
        }
    }

    /// Its model's name.
    #[must_use]
    pub fn model_id(&self) -> &Arc<str> {
        &self.inner.model
    }

    /// Takes a request into the line and, unless it says otherwise, waits for its result. It is
    /// accepted at the first poll.
    ///
    /// # Errors
    ///
    /// [`QueueError`]: it was not accepted, or it has no result.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the request: it leaves the line, or its processor is
    /// dropped where it stands. What its call is charged stays charged once it was started. A
    /// request with a `dedup_key`, or one that does not wait, goes on.
    pub fn submit(
        &self,
        request: QueueRequest<P>,
    ) -> impl Future<Output = Result<QueueResponse<T>, QueueError>> + Send + use<P, T> {
        let inner = Arc::clone(&self.inner);
        if request.dedup_key.is_some() || !request.wait_for_completion {
            Either::Left(boxed(submit_shared(inner, request)))
        } else {
            Either::Right(Box::pin(Drive::new(inner, request)))
        }
    }

    /// Where a request stands: one in flight, or one of the last that finished; none for an
    /// unknown one.
    #[must_use]
    pub fn get_status(&self, id: Uuid) -> Option<QueueResponse<T>> {
        match self.inner.registry().find(id)? {
            Found::Live(live) => Some(live.response(&self.inner.model, live.status())),
            Found::Finished(finished) => Some(finished.response.clone()),
        }
    }

    /// Waits until a request that was submitted without waiting, or with a `dedup_key`, has
    /// finished.
    ///
    /// # Errors
    ///
    /// The request's own error; [`QueueError::UnknownRequest`] for one that is unknown, or
    /// whose submitter waits for it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the request goes on.
    pub async fn wait(&self, id: Uuid) -> Result<QueueResponse<T>, QueueError> {
        let unknown = || QueueError::UnknownRequest {
            model: Arc::clone(&self.inner.model),
            request: id,
        };
        let live = {
            match self.inner.registry().find(id).ok_or_else(unknown)? {
                Found::Live(live) if live.is_shared() => Arc::clone(live),
                Found::Live(_) => return Err(unknown()),
                Found::Finished(finished) => {
                    return match &finished.response.error {
                        Some(error) => Err(error.clone()),
                        None => Ok(finished.response.clone()),
                    };
                }
            }
        };
        live.outcome().await
    }

    /// Ends a request: it leaves the line, or its processor is dropped where it stands. False
    /// when it is unknown, has finished or was cancelled before.
    pub fn cancel(&self, id: Uuid) -> bool {
        let live = match self.inner.registry().find(id) {
            Some(Found::Live(live)) => Arc::clone(live),
            Some(Found::Finished(_)) | None => return false,
        };
        live.end(End::Cancelled)
    }

    /// Tells what a request really used, so that limits on tokens are settled to it.
    ///
    /// Best told from inside the processor: then it counts from the request's end on. Told
    /// later, the difference to what was charged is taken or given back at once. False when
    /// the request is unknown.
    pub fn update_token_usage(&self, id: Uuid, usage: Usage) -> bool {
        let mut registry = self.inner.registry();
        let (before, size, sent_at) = match registry.find(id) {
            None => return false,
            Some(Found::Live(live)) => {
                live.tell_usage(usage);
                return true;
            }
            Some(Found::Finished(finished)) => (
                finished.response.usage.replace(usage),
                finished.size,
                finished.sent_at,
            ),
        };
        drop(registry);
        let before = before.unwrap_or(Usage {
            input_tokens: u64::from(size.input_tokens),
            // Where no cap was known, the mean answer was charged, which is near enough.
            output_tokens: size
                .max_output_tokens
                .map_or(usage.output_tokens, |_| size.output_cap(0)),
            ..Usage::default()
        });
        self.inner.resettle(&before, &usage, sent_at);
        true
    }

    /// Starts nothing more; what runs goes on. Requests are still accepted.
    pub fn pause(&self) {
        let inner = &self.inner;
        inner.engine.hub.handle(Event::Pause(inner.place.queue));
    }

    /// Goes on after [`Queue::pause`].
    pub fn resume(&self) {
        let inner = &self.inner;
        inner.engine.hub.handle(Event::Resume(inner.place.queue));
    }

    /// Changes the count of a limit that the model has; what is used of it stays used.
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] when it has no limit of this kind over this
    /// period, or the count is 0.
    pub fn set_limit(&self, limit: LimitSpec) -> Result<(), QueueError> {
        let inner = &self.inner;
        let invalid = |reason: String| QueueError::invalid(Arc::clone(&inner.model), reason);
        check_limit(&limit).map_err(|words| invalid(format!("{limit}: {words}")))?;
        let same = |(_, old): &&(_, LimitSpec)| same_slot(old, &limit);
        let Some((id, _)) = inner.place.limits.iter().find(same).copied() else {
            return Err(invalid(format!(
                "{limit}: it has no limit {}",
                limit.name()
            )));
        };
        inner.engine.hub.change(|dispatcher, now, effects| {
            let books = dispatcher.limit_mut(id);
            books.set_count(limit.count, now.mono);
            let allowed = books.allowed();
            // The same allowance again, so that those who wait for the limit are asked anew.
            dispatcher.allow(id, allowed, now, effects);
        });
        Ok(())
    }

    /// What it looks like now.
    #[must_use]
    pub fn info(&self) -> QueueInfo {
        let inner = &self.inner;
        let now = inner.engine.now();
        let (queue, upstream, limits) = inner.engine.hub.with(|dispatcher| {
            let upstream = dispatcher.upstream_view(inner.place.upstream);
            let limits: Vec<LimitInfo> = upstream
                .limits
                .iter()
                .map(|id| LimitInfo::from(dispatcher.limit_view(*id, now)))
                .collect();
            (dispatcher.queue_view(inner.place.queue), upstream, limits)
        });
        QueueInfo::new(
            Arc::clone(&inner.model),
            queue,
            &upstream,
            limits,
            inner.is_closed(),
            self.metrics(),
        )
    }

    /// What it has done so far.
    #[must_use]
    pub fn metrics(&self) -> QueueMetrics {
        self.inner.counters.read()
    }

    /// What a request in flight waits for; none for an unknown or finished one.
    #[must_use]
    pub fn why(&self, id: Uuid) -> Option<Why> {
        let ticket = match self.inner.registry().find(id)? {
            Found::Live(live) => live.ticket,
            Found::Finished(_) => return None,
        };
        let hub = &self.inner.engine.hub;
        hub.with(|dispatcher| dispatcher.why(ticket))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    pub(crate) fn place(&self) -> &Place {
        &self.inner.place
    }

    /// Accepts nothing more.
    pub(crate) fn close(&self) {
        self.inner.is_closed.store(true, Ordering::SeqCst);
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn idle(&self) {
        let inner = &self.inner;
        loop {
            let mut idle = std::pin::pin!(inner.idle.notified());
            idle.as_mut().enable();
            if inner.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Ends everything in flight.
    pub(crate) fn end_all(&self) -> Vec<Uuid> {
        let live: Vec<_> = self.inner.registry().live().cloned().collect();
        for live in &live {
            live.end(End::ShutDown);
        }
        live.iter().map(|live| live.id).collect()
    }
}

/// A future of which the one that awaits it holds only a pointer.
fn boxed<V>(future: impl Future<Output = V> + Send + 'static) -> BoxFuture<'static, V> {
    Box::pin(future)
}

/// Accepts a request that is driven by a task of its own.
async fn submit_shared<P, T>(
    inner: Arc<Inner<P, T>>,
    request: QueueRequest<P>,
) -> Result<QueueResponse<T>, QueueError>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    let waits = request.wait_for_completion;
    let model = Arc::clone(&inner.model);
    let live = match accept(&inner, &request, CallKind::Stored)? {
        Accepted::Joined(live) => live,
        Accepted::New(active, ticket) => {
            let live = Arc::clone(&active.live);
            let engine = Arc::clone(&active.inner.engine);
            let drive = Drive::accepted(active, ticket, request);
            engine.spawn(drive.map(drop));
            live
        }
    };
    if waits {
        live.outcome().await
    } else {
        Ok(live.response(&model, live.status()))
    }
}

/// Takes a request into the line, or joins it to the one that has its key.
fn accept<P, T>(
    inner: &Arc<Inner<P, T>>,
    request: &QueueRequest<P>,
    kind: CallKind,
) -> Result<Accepted<P, T>, QueueError> {
    if request.model_id != inner.model {
        return Err(QueueError::ModelNotRegistered {
            model: Arc::clone(&request.model_id),
        });
    }
    if let Some(key) = &request.dedup_key
        && let Some(live) = inner.registry().keyed(key)
    {
        inner.counters.deduplicated.one();
        return Ok(Accepted::Joined(live));
    }
    // Counted before the look at `is_closed`: whoever shuts down closes first and counts then.
    inner.in_flight.fetch_add(1, Ordering::SeqCst);
    let accepted = enter(inner, request, kind);
    match accepted {
        Ok(Entered::New(live, ticket)) => {
            inner.counters.accepted.one();
            let active = Active {
                inner: Arc::clone(inner),
                live,
                is_open: true,
            };
            tell(active.inner.engine.hooks.as_ref(), |hooks| {
                hooks.queued(&active.event(Duration::ZERO, None));
            });
            Ok(Accepted::New(active, ticket))
        }
        Ok(Entered::Joined(live)) => {
            inner.counters.deduplicated.one();
            inner.leave();
            Ok(Accepted::Joined(live))
        }
        Err(error) => {
            inner.counters.refused.one();
            inner.leave();
            Err(error)
        }
    }
}

/// Takes a request into the line whose submitter drives it himself, and nobody else.
pub(crate) fn accept_alone<P, T>(
    inner: &Arc<Inner<P, T>>,
    request: &QueueRequest<P>,
) -> Result<(Active<P, T>, Ticket), QueueError> {
    match accept(inner, request, CallKind::Plain)? {
        Accepted::New(active, ticket) => Ok((active, ticket)),
        // Only a request with a key can be joined to another, and such a one is not alone.
        Accepted::Joined(live) => Err(QueueError::DuplicateRequest {
            model: Arc::clone(&inner.model),
            request: live.id,
        }),
    }
}

enum Entered<T> {
    New(Arc<Live<T>>, Ticket),
    Joined(Arc<Live<T>>),
}

fn enter<P, T>(
    inner: &Inner<P, T>,
    request: &QueueRequest<P>,
    kind: CallKind,
) -> Result<Entered<T>, QueueError> {
    if inner.is_closed() {
        return Err(QueueError::ShuttingDown {
            model: Arc::clone(&inner.model),
        });
    }
    let now = inner.engine.now();
    let size = request
        .size
        .or_else(|| inner.estimator.as_ref().map(|size| size(&request.params)))
        .unwrap_or_default();
    let start_by = inner.timeout_of(request).map(|timeout| now.mono + timeout);
    let call = Call {
        priority: request.priority,
        size,
        kind,
        start_by,
        ..Call::new(inner.place.queue, inner.engine.tenant)
    };
    let ticket = inner.engine.hub.submit(call).map_err(|refusal| {
        let model = Arc::clone(&inner.model);
        match refusal {
            Refusal::Full { jobs, .. } => QueueError::QueueFull {
                model,
                requests: jobs,
            },
            _ => QueueError::ShuttingDown { model },
        }
    })?;
    let live = Arc::new(Live::new(Birth {
        id: request.id,
        ticket: ticket.id(),
        submitted: now,
        priority: request.priority,
        size,
        key: request.dedup_key.as_deref().map(Into::into),
        metadata: match inner.engine.hooks {
            Some(_) => request.metadata.clone(),
            None => Default::default(),
        },
        is_shared: kind == CallKind::Stored,
    }));
    let inserted = inner.registry().insert(&live);
    match inserted {
        Ok(()) => Ok(Entered::New(live, ticket)),
        Err(Taken::Key(other)) => Ok(Entered::Joined(other)),
        Err(Taken::Id) => Err(QueueError::DuplicateRequest {
            model: Arc::clone(&inner.model),
            request: request.id,
        }),
    }
}

impl<P, T> Inner<P, T> {
    fn registry(&self) -> MutexGuard<'_, Registry<T>> {
        // Nothing of the caller's runs under this lock but the cloning of a result.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    pub(crate) fn timeout_of(&self, request: &QueueRequest<P>) -> Option<Duration> {
        request.timeout.or(self.timeout)
    }

    fn leave(&self) {
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.notify_waiters();
        }
    }

    /// Corrects limits for a call that was settled to `before` and had used `after`.
    fn resettle(&self, before: &Usage, after: &Usage, sent_at: llmq_core::Timestamp) {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let input = signed(after.input_tokens) - signed(before.input_tokens);
        let output = signed(after.output_tokens) - signed(before.output_tokens);
        self.engine.hub.change(|dispatcher, now, effects| {
            for (id, spec) in &self.place.limits {
                let amount = match spec.kind {
                    LimitKind::Tokens => input + output,
                    LimitKind::InputTokens => input,
                    LimitKind::OutputTokens => output,
                    LimitKind::Requests | LimitKind::Concurrency => continue,
                };
                // A provider that gives nothing back is not corrected either.
                if charge_rule(self.place.host, spec.kind).refund != Refund::ToUsage {
                    continue;
                }
                let books = dispatcher.limit_mut(*id);
                books.correct(amount, sent_at, now.mono);
                let allowed = books.allowed();
                dispatcher.allow(*id, allowed, now, effects);
            }
        });
    }
}

impl<P, T> Active<P, T> {
    pub(crate) fn event(
        &self,
        age: Duration,
        processing_time: Option<Duration>,
    ) -> crate::hooks::HookEvent<'_> {
        self.live
            .hook_event(&self.inner.model, age, processing_time)
    }

    fn count(&self, result: Result<(), &QueueError>) -> Status {
        let counters = &self.inner.counters;
        match result {
            Ok(()) => {
                counters.completed.one();
                Status::Completed
            }
            Err(QueueError::QueueTimeout { attempts, .. }) => {
                counters.timed_out.one();
                if *attempts == 0 {
                    Status::Expired
                } else {
                    Status::Failed
                }
            }
            Err(QueueError::Cancelled { .. } | QueueError::ShuttingDown { .. }) => {
                counters.cancelled.one();
                Status::Cancelled
            }
            Err(_) => {
                counters.failed.one();
                Status::Failed
            }
        }
    }

    fn cancelled(&self) -> QueueError {
        QueueError::Cancelled {
            model: Arc::clone(&self.inner.model),
            request: self.live.id,
        }
    }

    fn tell_end(&self, response: &QueueResponse<T>) {
        let Some(hooks) = self.inner.engine.hooks.as_ref() else {
            return;
        };
        let age = self.inner.engine.now().mono - self.live.submitted.mono;
        let event = self.event(age, response.processing_time);
        tell(Some(hooks), |hooks| match &response.error {
            None => hooks.completed(&event),
            Some(error) => hooks.failed(&event, error),
        });
    }
}

impl<P, T: Clone> Active<P, T> {
    /// Records the end of a request and tells everybody.
    pub(crate) fn finish(
        mut self,
        result: Result<T, QueueError>,
    ) -> Result<QueueResponse<T>, QueueError> {
        self.is_open = false;
        let status = self.count(result.as_ref().map(|_| ()));
        let mut response = self.live.response(&self.inner.model, status);
        match result {
            Ok(result) => {
                // A result that goes to the caller alone is not kept beside it.
                if !self.live.is_shared() {
                    self.record(response.clone());
                    response.result = Some(result);
                    self.over(&response);
                    return Ok(response);
                }
                response.result = Some(result);
            }
            Err(error) => response.error = Some(error),
        }
        self.record(response.clone());
        self.live.publish(|| response.clone());
        self.over(&response);
        match response.error {
            Some(error) => Err(error),
            None => Ok(response),
        }
    }
}

impl<P, T> Active<P, T> {
    fn record(&self, response: QueueResponse<T>) {
        let mut registry = self.inner.registry();
        let finished = registry.remembers().then(|| Finished {
            response,
            size: self.live.size,
            sent_at: self.live.sent_at(),
        });
        registry.finish(&self.live, finished);
    }

    fn over(&self, response: &QueueResponse<T>) {
        self.tell_end(response);
        self.inner.leave();
    }
}

impl<P, T> Drop for Active<P, T> {
    fn drop(&mut self) {
        if !self.is_open {
            return;
        }
        let error = self.cancelled();
        let status = self.count(Err(&error));
        let response = || QueueResponse {
            error: Some(error.clone()),
            ..self.live.response(&self.inner.model, status)
        };
        self.record(response());
        self.live.publish(response);
        self.over(&response());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ProcessorError, QueueManager};

    #[tokio::test]
    async fn what_waits_is_small() {
        let manager = QueueManager::<[u8; 100], usize>::new();
        let queue = manager
            .register_queue(ModelConfig::new("m"), |request| async move {
                Ok::<_, ProcessorError>(request.params.len())
            })
            .unwrap();
        let submission = queue.submit(QueueRequest::new("m", [0; 100]));
        let sizes = [
            size_of_val(&submission),
            size_of::<Drive<[u8; 100], usize>>(),
            size_of::<Live<usize>>(),
            size_of::<Ticket>(),
            size_of::<QueueRequest<[u8; 100]>>(),
            size_of::<Result<QueueResponse<usize>, QueueError>>(),
        ];
        assert!(
            sizes[0] <= 32 && sizes[1] <= 320 && sizes[2] <= 192,
            "{sizes:?}"
        );
    }
}
