//! The queue of one model. [`Queue`] is its face; `inner` is what its clones share, `accept`
//! takes requests in, `active` records their end, `parked` keeps those that nobody drives, and
//! `settle` takes what is told of a call.

mod accept;
mod active;
mod inner;
mod parked;
mod settle;

use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;

use futures_util::future::{BoxFuture, Either};
use llmq_core::{LimitSpec, Usage};
use llmq_dispatch::{CallKind, Event, Why};
use uuid::Uuid;

use crate::config::{ModelConfig, check_limit, same_slot};
use crate::drive::Drive;
use crate::engine::{Engine, Place};
use crate::error::QueueError;
use crate::info::{LimitInfo, QueueInfo};
use crate::live::End;
use crate::metrics::QueueMetrics;
use crate::processor::Processor;
use crate::registry::Found;
use crate::request::QueueRequest;
use crate::response::QueueResponse;

use accept::{Accepted, try_accept};

pub(crate) use accept::accept_alone;
pub(crate) use active::Active;
pub(crate) use inner::{Estimator, Inner};

/// A request on its way to its result.
pub(crate) type Submission<T> = BoxFuture<'static, Result<QueueResponse<T>, QueueError>>;

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
        let inner = Inner::new(config, engine, place, processor, estimator);
        let inner = Arc::new(inner);
        inner.end_with_runtime();
        Self { inner }
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
        if goes_on_alone(&request) {
            Either::Left(boxed(parked::submit_shared(inner, request)))
        } else {
            Either::Right(Box::pin(Drive::new(inner, request)))
        }
    }

    /// Takes a request into the line now; gives it back where that is full.
    pub(crate) fn try_submit(
        &self,
        request: QueueRequest<P>,
    ) -> Result<Submission<T>, Box<QueueRequest<P>>> {
        let inner = Arc::clone(&self.inner);
        let kind = match goes_on_alone(&request) {
            true => CallKind::Stored,
            false => CallKind::Plain,
        };
        Ok(match try_accept(&inner, &request, kind) {
            Ok(Accepted::New(active, ticket)) if kind == CallKind::Plain => {
                Box::pin(Drive::accepted(active, ticket, request))
            }
            Ok(accepted) => boxed(parked::go_on(inner, request, accepted)),
            Err(QueueError::QueueFull { .. }) => return Err(Box::new(request)),
            Err(error) => Box::pin(ready(Err(error))),
        })
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

    /// Ends a request: it leaves the line, or its processor is dropped where it stands. It has no
    /// result then. False when it is unknown, has finished or was cancelled before.
    pub fn cancel(&self, id: Uuid) -> bool {
        let live = match self.inner.registry().find(id) {
            Some(Found::Live(live)) => Arc::clone(live),
            Some(Found::Finished(_)) | None => return false,
        };
        live.end(End::Cancelled)
    }

    /// Tells what a request really used, so that limits on tokens are settled to it.
    ///
    /// Best told from inside the processor: then it counts from the attempt's end on. Told
    /// later, the difference to what was charged is taken or given back at once, as long as its
    /// window counts the call: of the model's own limits, of shared ones and of the tenant's.
    /// Each attempt has its own usage; what is told between two is that of the one before. False
    /// when the request is unknown.
    pub fn update_token_usage(&self, id: Uuid, usage: Usage) -> bool {
        self.inner.tell_usage(id, usage)
    }

    /// Tells what the headers of an answer say of the provider's limits, by name and value;
    /// others are passed over. To be called by the processor, with its request's id, when the
    /// answer is there.
    ///
    /// They are compared with the books once the attempt ends: what others used of the account
    /// is taken from the limits, and a limit that the provider states lower is lowered. A limit
    /// that nobody configured is kept once three answers in a row have stated the same. Where
    /// an error names no wait, the headers' holds. They are read as those of the model's
    /// [`host`](ModelConfig::host).
    ///
    /// False when no attempt of this request runs.
    ///
    /// ```
    /// # use llmq::{Host, ModelConfig, ProcessorError, QueueError, QueueManager, QueueRequest};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), QueueError> {
    /// let manager = QueueManager::<(), ()>::new();
    /// let teller = manager.clone();
    /// let limit = "requests=50/1m".parse().expect("it is a limit");
    /// let config = ModelConfig::new("claude").host(Host::Anthropic).limit(limit);
    /// let queue = manager.register_queue(config, move |request: QueueRequest<()>| {
    ///     let teller = teller.clone();
    ///     async move {
    ///         // What an HTTP client would show of its answer.
    ///         let headers = [
    ///             ("anthropic-ratelimit-requests-limit", "50"),
    ///             ("anthropic-ratelimit-requests-remaining", "10"),
    ///         ];
    ///         teller.update_from_response("claude", request.id, headers)?;
    ///         Ok::<(), ProcessorError>(())
    ///     }
    /// })?;
    /// queue.submit(QueueRequest::new("claude", ())).await?;
    /// // One call was ours; somebody else has made 39.
    /// assert_eq!(queue.info().limits[0].available(), 10);
    /// # Ok(())
    /// # }
    /// ```
    pub fn update_from_response<'a>(
        &self,
        id: Uuid,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> bool {
        self.inner.tell_headers(id, headers)
    }

    /// Starts nothing more; what runs goes on. Requests are still accepted.
    pub fn pause(&self) {
        let inner = &self.inner;
        inner.engine.hub.handle(Event::Pause(inner.place.queue));
    }

    /// Goes on after [`Queue::pause`], and after a failure that a person had to mend
    /// ([`QueueInfo::closed_for`]), such as a refused key.
    pub fn resume(&self) {
        let inner = &self.inner;
        inner.engine.hub.handle(Event::Reopen(inner.place.upstream));
        inner.engine.hub.handle(Event::Resume(inner.place.queue));
    }

    /// Changes the count of a limit that the model has; what is used of it stays used. Headers
    /// lower it, and raise it up to this count again, as they do with one that was configured.
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
            dispatcher.set_count(id, limit.count, now, effects);
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

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Accepts nothing more.
    pub(crate) fn close(&self) {
        self.inner.close();
    }

    /// Accepts nothing more, and its model is no longer offered.
    pub(crate) fn retire(&self) {
        self.close();
        self.inner.engine.retire(&self.inner.place);
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn idle(&self) {
        self.inner.idle().await;
    }

    /// Writes the count of the day, where it is kept.
    pub(crate) async fn end_day(&self) {
        self.inner.engine.end_day(&self.inner.place).await;
    }

    /// Ends everything in flight.
    pub(crate) fn end_all(&self) -> Vec<Uuid> {
        self.inner.end_all()
    }
}

/// Whether it goes on when its submitter does not wait for it any more.
fn goes_on_alone<P>(request: &QueueRequest<P>) -> bool {
    request.dedup_key.is_some() || !request.wait_for_completion
}

/// A future of which the one that awaits it holds only a pointer.
fn boxed<V>(future: impl Future<Output = V> + Send + 'static) -> BoxFuture<'static, V> {
    Box::pin(future)
}

#[cfg(test)]
mod tests {
    use llmq_engine::Ticket;

    use super::*;
    use crate::live::Live;
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
