//! One request from its place in line to its end: the loop over its attempts.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use llmq_core::{Timestamp, Usage};
use llmq_dispatch::{Ended, NoGrant};
use llmq_engine::{AfterFailure, Grant, Ticket};
use tokio::time::Sleep;

use crate::error::QueueError;
use crate::hooks::tell;
use crate::live::{End, Live};
use crate::processor::{ProcessorError, process};
use crate::queue::{Active, Inner, accept_alone};
use crate::request::QueueRequest;
use crate::response::QueueResponse;

/// How waiting or an attempt ended.
enum Ending<V> {
    Own(V),
    Asked(End),
    TimedOut,
}

/// A request from its submission to its end: waits for leave, runs the processor, and again
/// while the retry table says so.
///
/// Many of these wait at once, so it is written by hand: what waits holds its request once, and
/// what only a running attempt needs is boxed when that begins. Dropped anywhere, it gives back
/// what the dispatcher holds for it.
pub(crate) struct Drive<P, T> {
    request: QueueRequest<P>,
    stage: Stage<P, T>,
}

enum Stage<P, T> {
    /// Not accepted yet.
    New(Arc<Inner<P, T>>),
    Waiting(Active<P, T>, Ticket),
    /// Its waiting is over.
    Called(Active<P, T>, Turn),
    /// Dropped in this order: what is told last is that the request is over.
    Running(Processed<T>, Grant, Active<P, T>),
    Over,
}

/// How the wait for a turn ended.
type Turn = Ending<Result<Grant, NoGrant>>;

type Processed<T> = BoxFuture<'static, Ending<Result<T, ProcessorError>>>;

// No field is ever pinned in place: what must be is boxed.
impl<P, T> Unpin for Drive<P, T> {}

impl<P, T> Drive<P, T> {
    /// A request that will be accepted when it is first polled.
    pub(crate) fn new(inner: Arc<Inner<P, T>>, request: QueueRequest<P>) -> Self {
        Self {
            request,
            stage: Stage::New(inner),
        }
    }

    /// A request that was accepted.
    pub(crate) fn accepted(active: Active<P, T>, ticket: Ticket, request: QueueRequest<P>) -> Self {
        Self {
            request,
            stage: Stage::Waiting(active, ticket),
        }
    }

    /// Waits for its turn only: whatever follows is for whoever polls it as a future.
    pub(crate) fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Stage::Waiting(active, ticket) = &mut self.stage else {
            return Poll::Ready(());
        };
        let Poll::Ready(turn) = poll_granted(active, ticket, context) else {
            return Poll::Pending;
        };
        if let Stage::Waiting(active, _) = std::mem::replace(&mut self.stage, Stage::Over) {
            self.stage = Stage::Called(active, turn);
        }
        Poll::Ready(())
    }
}

impl<P, T> Future for Drive<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    type Output = Result<QueueResponse<T>, QueueError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            this.stage = match std::mem::replace(&mut this.stage, Stage::Over) {
                Stage::New(inner) => match accept_alone(&inner, &this.request) {
                    Ok((active, ticket)) => Stage::Waiting(active, ticket),
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Stage::Waiting(active, mut ticket) => {
                    match poll_granted(&active, &mut ticket, context) {
                        Poll::Ready(turn) => Stage::Called(active, turn),
                        Poll::Pending => {
                            this.stage = Stage::Waiting(active, ticket);
                            return Poll::Pending;
                        }
                    }
                }
                Stage::Called(active, turn) => match this.granted(active, turn) {
                    Next::Stage(stage) => stage,
                    Next::Ended(ended) => return Poll::Ready(ended),
                },
                Stage::Running(mut processed, grant, active) => {
                    match processed.as_mut().poll(context) {
                        Poll::Ready(outcome) => match this.processed(active, grant, outcome) {
                            Next::Stage(stage) => stage,
                            Next::Ended(ended) => return Poll::Ready(ended),
                        },
                        Poll::Pending => {
                            this.stage = Stage::Running(processed, grant, active);
                            return Poll::Pending;
                        }
                    }
                }
                // Polled after its end, which no caller of ours does.
                Stage::Over => return Poll::Pending,
            };
        }
    }
}

/// What comes next, or how it ended.
enum Next<P, T> {
    Stage(Stage<P, T>),
    Ended(Result<QueueResponse<T>, QueueError>),
}

impl<P, T> Drive<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    fn granted(&self, active: Active<P, T>, turn: Turn) -> Next<P, T> {
        let timeout = active.inner.timeout_of(&self.request);
        let error = match turn {
            Ending::Own(Ok(grant)) => {
                if let Some(end) = active.live.asked() {
                    // Not sent, it gives everything back.
                    drop(grant);
                    let error = active.ended(end);
                    return Next::Ended(active.finish(Err(error)));
                }
                let at = begin(&active, &grant);
                let attempt = Attempt {
                    inner: Arc::clone(&active.inner),
                    live: Arc::clone(&active.live),
                    deadline: deadline(&active, timeout, at),
                };
                let processed = Box::pin(attempt.run(self.request.clone()));
                return Next::Stage(Stage::Running(processed, grant, active));
            }
            Ending::Own(Err(no_grant)) => refused(&active, no_grant, timeout),
            Ending::Asked(end) => active.ended(end),
            Ending::TimedOut => timed_out(&active, timeout),
        };
        Next::Ended(active.finish(Err(error)))
    }

    fn processed(
        &self,
        active: Active<P, T>,
        grant: Grant,
        outcome: Ending<Result<T, ProcessorError>>,
    ) -> Next<P, T> {
        let took = active.live.stops(active.inner.engine.now().mono);
        active.inner.counters.processing_nanos.span(took);
        let result = match outcome {
            Ending::Own(Ok(result)) => {
                let usage = active.live.attempts_usage();
                grant.complete(Ended {
                    usage,
                    headers: active.live.take_headers(),
                    ..Ended::default()
                });
                heed_usage(&active, usage);
                Ok(result)
            }
            Ending::Own(Err(error)) => match fail(&active, grant, &error, took) {
                Some(ticket) => return Next::Stage(Stage::Waiting(active, ticket)),
                None => Err(given_up(&active, error)),
            },
            // The grant is dropped: the provider will have charged the call.
            Ending::Asked(end) => {
                drop(grant);
                heed_usage(&active, None);
                Err(active.ended(end))
            }
            Ending::TimedOut => {
                drop(grant);
                heed_usage(&active, None);
                Err(timed_out(&active, active.inner.timeout_of(&self.request)))
            }
        };
        Next::Ended(active.finish(result))
    }
}

fn poll_granted<P, T>(
    active: &Active<P, T>,
    ticket: &mut Ticket,
    context: &mut Context<'_>,
) -> Poll<Turn> {
    if let Some(end) = active.live.asked() {
        return Poll::Ready(Ending::Asked(end));
    }
    if let Poll::Ready(granted) = ticket.poll_granted(context) {
        return Poll::Ready(Ending::Own(granted));
    }
    match active.live.poll_end(context) {
        Some(end) => Poll::Ready(Ending::Asked(end)),
        None => Poll::Pending,
    }
}

/// Notes that an attempt begins; when.
fn begin<P, T>(active: &Active<P, T>, grant: &Grant) -> Timestamp {
    let inner = &active.inner;
    if inner.dates() {
        grant.sent();
    }
    let now = inner.engine.now().mono;
    inner.counters.attempts.one();
    if let Some(waited) = active.live.starts(grant.start().attempt, now) {
        inner.counters.queued_nanos.span(waited);
    }
    tell(inner.engine.hooks.as_ref(), |hooks| {
        hooks.started(&active.event(now - active.live.submitted.mono, None));
    });
    now
}

/// The time that is left for the attempt.
fn deadline<P, T>(
    active: &Active<P, T>,
    timeout: Option<Duration>,
    now: Timestamp,
) -> Option<Pin<Box<Sleep>>> {
    let left = (active.live.submitted.mono + timeout?) - now;
    Some(Box::pin(tokio::time::sleep(left)))
}

/// One call of the processor, with everything that can end it early.
struct Attempt<P, T> {
    inner: Arc<Inner<P, T>>,
    live: Arc<Live<T>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<P, T> Attempt<P, T> {
    async fn run(mut self, request: QueueRequest<P>) -> Ending<Result<T, ProcessorError>> {
        let inner = Arc::clone(&self.inner);
        let mut processing = std::pin::pin!(process(&inner.processor, request));
        poll_fn(move |context| {
            if let Some(end) = self.live.asked() {
                return Poll::Ready(Ending::Asked(end));
            }
            if let Poll::Ready(result) = processing.as_mut().poll(context) {
                return Poll::Ready(Ending::Own(result));
            }
            self.poll_early_end(context)
        })
        .await
    }

    fn poll_early_end<V>(&mut self, context: &mut Context<'_>) -> Poll<Ending<V>> {
        if let Some(end) = self.live.poll_end(context) {
            return Poll::Ready(Ending::Asked(end));
        }
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(context).map(|()| Ending::TimedOut),
            None => Poll::Pending,
        }
    }
}

/// Corrects an attempt that was settled to `settled`, if something else has been told of it.
fn heed_usage<P, T>(active: &Active<P, T>, settled: Option<Usage>) {
    let told = active.live.attempts_usage();
    if let Some(usage) = told.filter(|_| told != settled) {
        active.inner.correct(active.live.ticket, &usage);
    }
}

/// Tells the dispatcher of a failure; the place in line for the next attempt, if there is one.
fn fail<P, T>(
    active: &Active<P, T>,
    grant: Grant,
    error: &ProcessorError,
    took: Duration,
) -> Option<Ticket> {
    let counters = &active.inner.counters;
    if error.is_rate_limit() {
        counters.rate_limited.one();
    }
    let headers = active.live.take_headers();
    let said = headers.as_ref().and_then(|headers| headers.retry_after);
    let usage = active.live.attempts_usage();
    let ended = Ended {
        usage,
        headers,
        ..error.ended(said)
    };
    let after = grant.fail(ended);
    heed_usage(active, usage);
    match after {
        AfterFailure::Again(ticket) => {
            counters.retried.one();
            if let Some(hooks) = active.inner.engine.hooks.as_ref() {
                let age = active.inner.engine.now().mono - active.live.submitted.mono;
                let event = active.event(age, Some(took));
                tell(Some(hooks), |hooks| hooks.retried(&event, error));
            }
            Some(ticket)
        }
        AfterFailure::GivenUp { .. } => None,
    }
}

fn given_up<P, T>(active: &Active<P, T>, error: ProcessorError) -> QueueError {
    let model = Arc::clone(&active.inner.model);
    let (is_rate_limit, retry_after) = (error.is_rate_limit(), error.retry_after());
    match error.into_cause() {
        Some(source) if !is_rate_limit => QueueError::ProcessingError {
            model,
            request: active.live.id,
            attempts: active.live.attempts(),
            source,
        },
        source => QueueError::RateLimitExceeded {
            model,
            retry_after,
            source,
        },
    }
}

fn refused<P, T>(
    active: &Active<P, T>,
    no_grant: NoGrant,
    timeout: Option<Duration>,
) -> QueueError {
    match no_grant {
        NoGrant::TooLarge { limit, count } => QueueError::RequestTooLarge {
            model: Arc::clone(&active.inner.model),
            limit,
            count,
        },
        _ => timed_out(active, timeout),
    }
}

fn timed_out<P, T>(active: &Active<P, T>, timeout: Option<Duration>) -> QueueError {
    QueueError::QueueTimeout {
        model: Arc::clone(&active.inner.model),
        timeout: timeout.unwrap_or_default(),
        attempts: active.live.attempts(),
    }
}
