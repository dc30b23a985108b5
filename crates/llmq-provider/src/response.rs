use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use hyper::body::{Body, Incoming};
use llmq_core::Timestamp;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::blot::body_without_key;
use crate::link::Link;
use crate::pool::Pool;
use crate::recorder::Recording;
use crate::wire::AnswerHead;
use crate::{CallError, Cause, Secret, Timeouts};

/// Whoever sends more when all of an answer is there sends it at once: its usage, its last event.
const LAST_EVENT_WITHIN: Duration = Duration::from_secs(2);

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
    is_http2: bool,
    recording: Option<Box<Recording>>,
    /// The account's key, where the body may quote it.
    key: Option<Secret>,
}

/// An answer that has come to its end.
#[derive(Debug, Clone)]
pub struct WholeAnswer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers as they came.
    pub headers: HeaderMap,
    /// The body as it came; where the status is an error's, without the account's key, which some
    /// providers quote when they refuse it.
    pub body: Bytes,
    /// When the call left and the answer began.
    pub times: Times,
}

impl Answer {
    pub(crate) fn new(
        head: AnswerHead,
        times: Times,
        body: BodySource,
        deadlines: Deadlines,
        authority: Arc<str>,
        answer_bytes_max: usize,
    ) -> Self {
        Self {
            status: head.status,
            headers: head.headers,
            times,
            is_http2: matches!(body, BodySource::Shared(..)),
            body,
            deadlines,
            received_bytes: 0,
            authority,
            answer_bytes_max,
            recording: None,
            key: None,
        }
    }

    /// The same, with the key that is taken out of what is collected.
    pub(crate) fn without_key(mut self, key: Secret) -> Self {
        self.key = Some(key);
        self
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
        match self.body.poll_piece(cx) {
            Poll::Ready(Ok(piece)) => {
                self.deadlines.heard_something();
                let size = piece.as_ref().map_or(0, Bytes::len);
                self.received_bytes += size as u64;
                Poll::Ready(Ok(piece))
            }
            Poll::Ready(Err(cause)) => Poll::Ready(Err(self.cut_off(cause))),
            Poll::Pending => {
                let Some(alarm) = self.body.alarm() else {
                    return Poll::Pending;
                };
                let cause = ready!(self.deadlines.poll_passed(alarm, cx));
                Poll::Ready(Err(self.cut_off(cause)))
            }
        }
    }

    /// Whether the body has an end of its own, so that one that has ended is all that was sent. One
    /// without ends with its connection, also with that of a server that died.
    #[must_use]
    pub fn has_own_end(&self) -> bool {
        let is_stated = |name| self.headers.contains_key(name);
        self.is_http2 || is_stated(CONTENT_LENGTH) || is_stated(TRANSFER_ENCODING)
    }

    /// For a stream: until [`Answer::has_begun`] is told, it has the time that its first token
    /// may take (`first_token`), whatever comes meanwhile, and silence has no bound of its own.
    pub fn begins(&mut self) {
        let until = Instant::now() + self.deadlines.first_token;
        self.deadlines.first_token_by = Some(until);
    }

    /// The first token of the stream is there: from here on silence is bounded (`idle`).
    pub fn has_begun(&mut self) {
        self.deadlines.first_token_by = None;
    }

    /// All of the answer is there, but for what ends its stream: some servers send nothing more
    /// and keep the connection, and silence tells that soon.
    pub fn is_all_there(&mut self) {
        self.deadlines.is_all_there = true;
    }

    /// It was not: silence has its whole time again.
    pub fn goes_on(&mut self) {
        self.deadlines.is_all_there = false;
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

    /// The answer as the failure that its stream has told of: `said`, the words of
    /// [`StreamEnd::Failed`](crate::StreamEnd), stand for its body. What else may come of it is not
    /// waited for.
    #[must_use]
    pub fn failed(self, said: Bytes) -> WholeAnswer {
        self.whole(said)
    }

    fn whole(self, mut body: Bytes) -> WholeAnswer {
        if let Some(key) = &self.key {
            body = body_without_key(body, key);
        }
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

    /// Whether it may have so many bytes, for those who collect it themselves.
    ///
    /// # Errors
    ///
    /// [`CallError::AnswerTooLarge`].
    pub fn check_size(&self, len: usize) -> Result<(), CallError> {
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
pub(crate) enum BodySource {
    /// A connection that this answer has for itself, driven as it is read.
    Own(Box<Link>, Arc<Pool>),
    /// One that it shares with others, which has a task of its own.
    Shared(Incoming, Alarm),
    /// All has come: what was not asked for yet.
    Whole(Bytes),
}

impl BodySource {
    pub(crate) fn own(link: Box<Link>, pool: Arc<Pool>) -> Self {
        let mut source = Self::Own(link, pool);
        source.let_go_at_end();
        source
    }

    /// The next piece; `None` at the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cause>> {
        match self {
            Self::Own(link, _) => {
                let polled = ready!(link.poll_body(cx));
                // A connection that has broken goes with the answer.
                let piece = polled.map_err(|error| error.cause())?;
                self.let_go_at_end();
                Poll::Ready(Ok(piece))
            }
            Self::Shared(incoming, _) => poll_shared(incoming, cx),
            Self::Whole(rest) => {
                let rest = std::mem::take(rest);
                Poll::Ready(Ok((!rest.is_empty()).then_some(rest)))
            }
        }
    }

    /// The connection is free for the next call before this one is through with its answer.
    fn let_go_at_end(&mut self) {
        let Self::Own(link, _) = self else { return };
        if !link.is_at_end() {
            return;
        }
        let rest = Self::Whole(link.take_rest());
        if let Self::Own(link, pool) = std::mem::replace(self, rest) {
            pool.give_back(link);
        }
    }

    fn bytes_left(&self) -> u64 {
        match self {
            Self::Own(link, _) => link.bytes_left(),
            Self::Shared(incoming, _) => incoming.size_hint().lower(),
            Self::Whole(rest) => rest.len() as u64,
        }
    }

    /// `None` where nothing is waited for any more.
    fn alarm(&mut self) -> Option<&mut Alarm> {
        match self {
            Self::Own(link, _) => Some(&mut link.alarm),
            Self::Shared(_, alarm) => Some(alarm),
            Self::Whole(_) => None,
        }
    }
}

fn poll_shared(
    incoming: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Bytes>, Cause>> {
    loop {
        let Some(frame) = ready!(Pin::new(&mut *incoming).poll_frame(cx)) else {
            return Poll::Ready(Ok(None));
        };
        // Trailers carry nothing that a provider is known to send.
        match frame.map_err(|error| Cause::of(&error))?.into_data() {
            Ok(piece) if !piece.is_empty() => return Poll::Ready(Ok(Some(piece))),
            _ => {}
        }
    }
}

impl fmt::Debug for BodySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = match self {
            Self::Own(..) | Self::Shared(..) => "coming",
            Self::Whole(_) => "whole",
        };
        f.write_str(shown)
    }
}

/// The deadlines of a body: silence or the first token, and the end of the whole call.
#[derive(Debug)]
pub(crate) struct Deadlines {
    idle: Duration,
    /// What is missing is the last event at most.
    is_all_there: bool,
    first_token: Duration,
    /// Set while the first token of a stream is awaited.
    first_token_by: Option<Instant>,
    total: Duration,
    end: Instant,
    waiting_since: Option<Instant>,
}

impl Deadlines {
    pub(crate) fn new(timeouts: Timeouts, started: Instant) -> Self {
        Self {
            idle: timeouts.idle,
            is_all_there: false,
            first_token: timeouts.first_token,
            first_token_by: None,
            total: timeouts.total,
            end: started + timeouts.total,
            waiting_since: None,
        }
    }

    fn heard_something(&mut self) {
        self.waiting_since = None;
    }

    /// How long silence is borne.
    fn silence(&self) -> Duration {
        match self.is_all_there {
            true => self.idle.min(LAST_EVENT_WITHIN),
            false => self.idle,
        }
    }

    /// Silence is the provider's only while somebody listens: a reader that was away for a
    /// minute does not find the answer given up.
    fn next(&mut self) -> Instant {
        if let Some(first) = self.first_token_by {
            return first.min(self.end);
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        (since + self.silence()).min(self.end)
    }

    fn poll_passed(&mut self, alarm: &mut Alarm, cx: &mut Context<'_>) -> Poll<Cause> {
        let now = ready!(alarm.poll_passed(self.next(), cx));
        Poll::Ready(if now >= self.end {
            Cause::TotalTimeout(self.total)
        } else if self.first_token_by.is_some() {
            Cause::FirstTokenTimeout(self.first_token)
        } else {
            Cause::IdleTimeout(self.silence())
        })
    }
}
