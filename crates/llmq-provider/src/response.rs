use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use hyper::body::{Body, Frame, Incoming};
use llmq_core::Timestamp;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::link::Link;
use crate::pool::{IDLE_MAX, Pool};
use crate::recorder::Recording;
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
    body: BodySource,
    deadlines: Deadlines,
    received_bytes: u64,
    authority: Arc<str>,
    answer_bytes_max: usize,
    recording: Option<Box<Recording>>,
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
        body: BodySource,
        deadlines: Deadlines,
        authority: Arc<str>,
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
            recording: None,
        }
    }

    /// The same, writing down what is read of it.
    pub(crate) fn recorded(mut self, mut recording: Box<Recording>) -> Self {
        recording.answered(self.status);
        self.recording = Some(recording);
        self
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
        let polled = ready!(self.poll_piece(cx));
        if let Some(recording) = &mut self.recording {
            match &polled {
                Ok(Some(piece)) => recording.piece(piece),
                Ok(None) => recording.ended(),
                Err(error) => recording.failed(error),
            }
        }
        Poll::Ready(polled)
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CallError>> {
        loop {
            match self.body.poll_frame(cx) {
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
                    let cause = ready!(self.deadlines.poll_passed(self.body.alarm(), cx));
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
        let left = usize::try_from(self.body.bytes_left()).unwrap_or(usize::MAX);
        at_least.saturating_add(left).min(self.answer_bytes_max)
    }

    fn check_size(&self, len: usize) -> Result<(), CallError> {
        if len <= self.answer_bytes_max {
            return Ok(());
        }
        Err(CallError::AnswerTooLarge {
            authority: self.authority.to_string(),
            max_bytes: self.answer_bytes_max,
        })
    }

    fn cut_off(&self, cause: Cause) -> CallError {
        CallError::CutOff {
            authority: self.authority.to_string(),
            received_bytes: self.received_bytes,
            cause,
        }
    }
}

/// Where the bytes of an answer come from.
pub(crate) struct BodySource {
    incoming: Incoming,
    way: Way,
}

enum Way {
    /// A connection that this answer has for itself, driven as it is read.
    Own(Link, Arc<Pool>),
    /// One that has its own task; or the answer has come to its end.
    Elsewhere(Alarm),
}

impl BodySource {
    pub(crate) fn own(incoming: Incoming, link: Link, pool: Arc<Pool>) -> Self {
        let way = Way::Own(link, pool);
        let mut source = Self { incoming, way };
        source.let_go_at_end();
        source
    }

    pub(crate) fn shared(incoming: Incoming, alarm: Alarm) -> Self {
        let way = Way::Elsewhere(alarm);
        Self { incoming, way }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.way {
            Way::Own(link, _) => {
                let polled = ready!(link.poll_body(&mut self.incoming, cx));
                match &polled {
                    Some(Ok(_)) => self.let_go_at_end(),
                    None => self.let_go(),
                    // It has broken, and goes with the answer.
                    Some(Err(_)) => {}
                }
                Poll::Ready(polled)
            }
            Way::Elsewhere(_) => Pin::new(&mut self.incoming).poll_frame(cx),
        }
    }

    /// Where an answer said how long it is, its last byte is its end.
    fn let_go_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.let_go();
        }
    }

    /// The connection is free for the next call before this one is through with its answer.
    fn let_go(&mut self) {
        let nothing = Way::Elsewhere(Alarm::new(IDLE_MAX));
        if let Way::Own(link, pool) = std::mem::replace(&mut self.way, nothing) {
            pool.give_back(link);
        }
    }

    fn bytes_left(&self) -> u64 {
        self.incoming.size_hint().lower()
    }

    fn alarm(&mut self) -> &mut Alarm {
        match &mut self.way {
            Way::Own(link, _) => &mut link.alarm,
            Way::Elsewhere(alarm) => alarm,
        }
    }
}

impl fmt::Debug for BodySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.incoming.fmt(f)
    }
}

/// The two deadlines of a body: silence, and the end of the whole call.
#[derive(Debug)]
pub(crate) struct Deadlines {
    idle: Duration,
    total: Duration,
    end: Instant,
    waiting_since: Option<Instant>,
}

impl Deadlines {
    pub(crate) fn new(timeouts: Timeouts, started: Instant) -> Self {
        Self {
            idle: timeouts.idle,
            total: timeouts.total,
            end: started + timeouts.total,
            waiting_since: None,
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

    fn poll_passed(&mut self, alarm: &mut Alarm, cx: &mut Context<'_>) -> Poll<Cause> {
        let now = ready!(alarm.poll_passed(self.next(), cx));
        Poll::Ready(if now >= self.end {
            Cause::TotalTimeout(self.total)
        } else {
            Cause::IdleTimeout(self.idle)
        })
    }
}
