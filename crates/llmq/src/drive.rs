//! One request from its place in line to its end: the loop over its attempts.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use llmq_core::Timestamp;
use llmq_dispatch::{Ended, NoGrant};
use llmq_engine::{AfterFailure, Grant, Ticket};
use tokio::time::Sleep;

use crate::error::QueueError;
use crate::hooks::tell;
use crate::live::End;
use crate::processor::{ProcessorError, process};
use crate::queue::Active;
use crate::request::QueueRequest;

/// How waiting or an attempt ended.
enum Ending<V> {
    Own(V),
    Asked(End),
    TimedOut,
}

/// Waits for leave, runs the processor, and again while the retry table says so.
///
/// Dropped anywhere, it gives back what the dispatcher holds for it. Many of these wait at once,
/// so what only a running attempt needs is boxed when that begins.
pub(crate) async fn drive<P: Clone, T>(
    active: &Active<P, T>,
    mut ticket: Ticket,
    request: Box<QueueRequest<P>>,
) -> Result<T, QueueError> {
    let timeout = active.inner.timeout_of(&request);
    loop {
        let grant = match poll_fn(|context| poll_granted(active, &mut ticket, context)).await {
            Ending::Own(Ok(grant)) => grant,
            Ending::Own(Err(no_grant)) => return Err(refused(active, no_grant, timeout)),
            Ending::Asked(end) => return Err(ended(active, end)),
            Ending::TimedOut => return Err(timed_out(active, timeout)),
        };
        let at = begin(active, &grant);
        let attempt = Attempt {
            active,
            deadline: deadline(active, timeout, at),
        };
        let outcome = Box::pin(attempt.run(QueueRequest::clone(&request))).await;
        let took = active.live.stops(active.inner.engine.now().mono);
        active.inner.counters.processing_nanos.span(took);
        let error = match outcome {
            Ending::Own(Ok(result)) => {
                grant.complete(Ended {
                    usage: active.live.usage(),
                    ..Ended::default()
                });
                return Ok(result);
            }
            Ending::Own(Err(error)) => error,
            // The grant is dropped: the provider will have charged the call.
            Ending::Asked(end) => return Err(ended(active, end)),
            Ending::TimedOut => return Err(timed_out(active, timeout)),
        };
        ticket = match fail(active, grant, &error, took) {
            Some(ticket) => ticket,
            None => return Err(given_up(active, error)),
        };
    }
}

fn poll_granted<P, T>(
    active: &Active<P, T>,
    ticket: &mut Ticket,
    context: &mut Context<'_>,
) -> Poll<Ending<Result<Grant, NoGrant>>> {
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
    if inner.place.dates {
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
struct Attempt<'a, P, T> {
    active: &'a Active<P, T>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<P, T> Attempt<'_, P, T> {
    async fn run(mut self, request: QueueRequest<P>) -> Ending<Result<T, ProcessorError>> {
        let mut processing = std::pin::pin!(process(&self.active.inner.processor, request));
        poll_fn(move |context| {
            if let Poll::Ready(result) = processing.as_mut().poll(context) {
                return Poll::Ready(Ending::Own(result));
            }
            self.poll_early_end(context)
        })
        .await
    }

    fn poll_early_end<V>(&mut self, context: &mut Context<'_>) -> Poll<Ending<V>> {
        if let Some(end) = self.active.live.poll_end(context) {
            return Poll::Ready(Ending::Asked(end));
        }
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(context).map(|()| Ending::TimedOut),
            None => Poll::Pending,
        }
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
    let ended = Ended {
        usage: active.live.usage(),
        ..error.ended()
    };
    match grant.fail(ended) {
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

fn ended<P, T>(active: &Active<P, T>, end: End) -> QueueError {
    let model = Arc::clone(&active.inner.model);
    match end {
        End::Cancelled => QueueError::Cancelled {
            model,
            request: active.live.id,
        },
        End::ShutDown => QueueError::ShuttingDown { model },
    }
}

fn timed_out<P, T>(active: &Active<P, T>, timeout: Option<Duration>) -> QueueError {
    QueueError::QueueTimeout {
        model: Arc::clone(&active.inner.model),
        timeout: timeout.unwrap_or_default(),
        attempts: active.live.attempts(),
    }
}
