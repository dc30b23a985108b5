use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use hyper::body::{Body, Incoming};
use llmq_core::Timestamp;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{CallError, Cause, Timeouts};

/// When the two ends of a call's way to the provider were passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The last byte of the call was handed to its connection.
    pub sent: Timestamp,
    /// The head of the answer was there.
    pub head: Timestamp,
}

/// An answer whose head has come; its body is still on the way.
///
/// # Cancel safety
///
/// Dropping it before the body's end closes the connection (HTTP/2: resets the stream).
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    times: Times,
    body: Incoming,
    deadlines: Deadlines,
    received_bytes: u64,
    authority: String,
    answer_bytes_max: usize,
}

/// An answer that has come to its end.
#[derive(Debug, Clone)]
pub struct WholeAnswer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers as they came.
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: Bytes,
    /// When the call left and the answer began.
    pub times: Times,
}

impl Answer {
    pub(crate) fn new(
        status: StatusCode,
        headers: HeaderMap,
        times: Times,
        body: Incoming,
        deadlines: Deadlines,
        authority: String,
        answer_bytes_max: usize,
    ) -> Self {
        Self {
            status,
            headers,
            times,
            body,
            deadlines,
            received_bytes: 0,
            authority,
            answer_bytes_max,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers as they came.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// When the call left and the answer began.
    #[must_use]
    pub fn times(&self) -> Times {
        self.times
    }

    /// Whether the body is a stream of events (`text/event-stream`).
    #[must_use]
    pub fn is_event_stream(&self) -> bool {
        self.headers
            .get(http::header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| {
                let value = value.trim_start();
                value
                    .get(..17)
                    .is_some_and(|kind| kind.eq_ignore_ascii_case("text/event-stream"))
            })
    }

    /// The next piece of the body as it came; `None` at its proper end.
    ///
    /// # Errors
    ///
    /// [`CallError::CutOff`] when the connection broke, was silent for the idle time, or the
    /// whole call took too long. A body without a stated length ends with its connection and
    /// can look whole when it is not: whether it is, only its content tells
    /// ([`crate::check_answer`], [`crate::StreamReader`]).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no piece is lost when the future is dropped.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, CallError> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// [`Answer::chunk`] for those who write a stream of their own.
    ///
    /// # Errors
    ///
    /// As [`Answer::chunk`].
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CallError>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Ok(frame))) => {
                    self.deadlines.heard_something();
                    // Trailers carry nothing that a provider is known to send.
                    let Ok(piece) = frame.into_data() else {
                        continue;
                    };
                    if piece.is_empty() {
                        continue;
                    }
                    self.received_bytes += piece.len() as u64;
                    return Poll::Ready(Ok(Some(piece)));
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(self.cut_off(Cause::of(&error))));
                }
                Poll::Pending => {
                    let cause = ready!(self.deadlines.poll_passed(cx));
                    return Poll::Ready(Err(self.cut_off(cause)));
                }
            }
        }
    }

    /// Waits for the whole body, at most `answer_bytes_max` of it.
    ///
    /// # Errors
    ///
    /// As [`Answer::chunk`], and [`CallError::AnswerTooLarge`].
    pub async fn collect(mut self) -> Result<WholeAnswer, CallError> {
        let Some(first) = self.chunk().await? else {
            return Ok(self.whole(Bytes::new()));
        };
        self.check_size(first.len())?;
        // Nearly every answer comes in one piece, which then need not be copied.
        let Some(second) = self.chunk().await? else {
            return Ok(self.whole(first));
        };
        let mut body = BytesMut::with_capacity(self.expected_len(first.len() + second.len()));
        body.extend_from_slice(&first);
        drop(first);
        let mut next = Some(second);
        while let Some(piece) = next {
            self.check_size(body.len() + piece.len())?;
            body.extend_from_slice(&piece);
            next = self.chunk().await?;
        }
        Ok(self.whole(body.freeze()))
    }

    fn whole(self, body: Bytes) -> WholeAnswer {
        WholeAnswer {
            status: self.status,
            headers: self.headers,
            body,
            times: self.times,
        }
    }

    fn expected_len(&self, at_least: usize) -> usize {
        let left = usize::try_from(self.body.size_hint().lower()).unwrap_or(usize::MAX);
        at_least.saturating_add(left).min(self.answer_bytes_max)
    }

    fn check_size(&self, len: usize) -> Result<(), CallError> {
        if len <= self.answer_bytes_max {
            return Ok(());
        }
        Err(CallError::AnswerTooLarge {
            authority: self.authority.clone(),
            max_bytes: self.answer_bytes_max,
        })
    }

    fn cut_off(&self, cause: Cause) -> CallError {
        CallError::CutOff {
            authority: self.authority.clone(),
            received_bytes: self.received_bytes,
            cause,
        }
    }
}

/// The two deadlines of a body: silence, and the end of the whole call.
///
/// One timer serves both. It is moved only when it fires, not with every piece that comes.
#[derive(Debug)]
pub(crate) struct Deadlines {
    idle: Duration,
    total: Duration,
    end: Instant,
    waiting_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadlines {
    pub(crate) fn new(timeouts: Timeouts, started: Instant) -> Self {
        Self {
            idle: timeouts.idle,
            total: timeouts.total,
            end: started + timeouts.total,
            waiting_since: None,
            timer: None,
        }
    }

    fn heard_something(&mut self) {
        self.waiting_since = None;
    }

    /// Silence is the provider's only while somebody listens: a reader that was away for a
    /// minute does not find the answer given up.
    fn next(&mut self) -> Instant {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        (since + self.idle).min(self.end)
    }

    fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        let next = self.next();
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(next)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= self.end {
                return Poll::Ready(Cause::TotalTimeout(self.total));
            }
            if now >= next {
                return Poll::Ready(Cause::IdleTimeout(self.idle));
            }
            timer.as_mut().reset(next);
        }
    }
}
