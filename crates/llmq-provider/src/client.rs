use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::header::{HOST, HeaderMap, HeaderValue};
use llmq_core::{Clock, Host, Timestamp};
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::config::Addresses;
use crate::connect::Connector;
use crate::headers::headers;
use crate::http1::Http1;
use crate::http2::Http2;
use crate::recorder::{Recipient, Recording};
use crate::response::{BodySource, Deadlines};
use crate::sent::SentMark;
use crate::wire::AnswerHead;
use crate::{
    Answer, CallError, Cause, ConfigError, Dialect, Operation, ProviderConfig, SentHook, Timeouts,
    Times,
};

/// One provider account's connections. Cheap to clone; all clones share one pool.
///
/// HTTP/1.1 opens as many connections as there are calls in flight and keeps them for the
/// next ones; HTTP/2 sends all calls over one. Redirects are not followed, answers are asked
/// for uncompressed, bytes are neither read nor changed, but for the account's key where an answer
/// with an error's status quotes it.
#[derive(Clone)]
pub struct Provider {
    inner: Arc<Inner>,
}

/// What both ways of calling need.
pub(crate) struct Inner {
    pub(crate) config: ProviderConfig,
    pub(crate) addresses: Addresses,
    /// Of every call.
    pub(crate) headers: HeaderMap,
    transport: Transport,
    pub(crate) clock: Arc<dyn Clock>,
}

enum Transport {
    Http1(Http1),
    Http2(Box<Http2>),
}

/// What one call sends.
pub struct Request {
    /// Which path.
    pub operation: Operation,
    /// The body, sent as it is.
    pub body: Bytes,
    /// Headers to add, such as `anthropic-beta` or `traceparent`. Those that belong to a
    /// connection, the encoding and the credentials are left out: they are the provider's.
    pub headers: HeaderMap,
    /// Set for a call about one thing below the operation's path, such as one response.
    pub item: Option<Item>,
    /// Called once at the moment the last byte is handed to the connection.
    pub on_sent: Option<SentHook>,
    /// Set to true as soon as any byte of the call may have left; over HTTP/2 only by a call with
    /// a body. Who breaks the call off learns from it whether the provider may bill it.
    pub has_left: Option<Arc<AtomicBool>>,
}

/// One thing that the provider keeps, and what to do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// `GET` it, `DELETE` it, or `POST` to it.
    pub method: http::Method,
    /// Its path below the operation's, such as `resp_1/cancel`.
    pub path: String,
    /// The query of the address.
    pub query: Option<String>,
}

impl Request {
    /// A call without headers of its own.
    pub fn new(operation: Operation, body: impl Into<Bytes>) -> Self {
        Self {
            operation,
            body: body.into(),
            headers: HeaderMap::new(),
            item: None,
            on_sent: None,
            has_left: None,
        }
    }

    /// The same, calling `hook` when the last byte is handed to the connection.
    #[must_use]
    pub fn on_sent(mut self, hook: impl FnOnce(Timestamp) + Send + 'static) -> Self {
        self.on_sent = Some(Box::new(hook));
        self
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("operation", &self.operation)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("authority", &self.inner.addresses.authority)
            .field("dialect", &self.inner.config.dialect)
            .finish_non_exhaustive()
    }
}

impl Provider {
    /// Checks `config` and prepares the pool. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an address or key that cannot be used.
    pub fn new(config: ProviderConfig, clock: Arc<dyn Clock>) -> Result<Self, ConfigError> {
        let addresses = Addresses::of(config.dialect, &config.base_url)?;
        let mut headers = headers(&config)?;
        if !config.http2 {
            let host = HeaderValue::from_str(addresses.host());
            headers.insert(HOST, host.map_err(|_| ConfigError::NotAUrl)?);
        }
        let connector = Connector::new(addresses.https, config.http2, config.timeouts.connect)?;
        let transport = if config.http2 {
            Transport::Http2(Box::new(Http2::new(&config, &addresses, connector)))
        } else {
            Transport::Http1(Http1::new(&config, &addresses, &headers, connector))
        };
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                addresses,
                headers,
                transport,
                clock,
            }),
        })
    }

    /// Whose JSON it speaks.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.inner.config.dialect
    }

    /// Who runs the server.
    #[must_use]
    pub fn host(&self) -> Host {
        self.inner.config.host
    }

    /// Its scheme, host and port.
    #[must_use]
    pub fn server(&self) -> &Uri {
        &self.inner.addresses.server
    }

    /// Host and port, for messages.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.inner.addresses.authority
    }

    /// Sends `request` and waits for the head of the answer; its body follows from [`Answer`].
    ///
    /// Any HTTP status is an answer. What it means is told by [`crate::check_answer`].
    ///
    /// # Errors
    ///
    /// [`CallError::NotSent`] when not a byte left, [`CallError::NoAnswer`] when the call left
    /// and nothing came back, [`CallError::NoAddress`] for an item whose name no address can hold.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the call: an HTTP/1.1 connection is closed, an HTTP/2 stream
    /// reset. If [`Request::has_left`] was set before, the provider may still work and bill.
    pub async fn call(&self, request: Request) -> Result<Answer, CallError> {
        let has_address = |item: &Item| self.inner.addresses.has(request.operation, item);
        if !request.item.as_ref().is_none_or(has_address) {
            let authority = self.authority().to_owned();
            return Err(CallError::NoAddress { authority });
        }
        let started = Instant::now();
        let recording = self.recording(&request);
        let answer = match &self.inner.transport {
            Transport::Http1(http1) => http1.call(&self.inner, request, started).await,
            // Boxed: few use it, and nobody else is to hold room for it.
            Transport::Http2(http2) => Box::pin(http2.call(&self.inner, request, started)).await,
        };
        match (answer, recording) {
            (Ok(answer), Some(recording)) => Ok(answer.recorded(recording)),
            (Err(error), Some(mut recording)) => {
                recording.failed(&error);
                Err(error)
            }
            (answer, None) => answer,
        }
    }

    fn recording(&self, request: &Request) -> Option<Box<Recording>> {
        let config = &self.inner.config;
        let recorder = config.recorder.as_ref()?;
        let recipient = Recipient {
            dialect: config.dialect,
            authority: self.authority(),
            key: config.api_key.as_ref(),
        };
        let (operation, body) = (request.operation, request.body.clone());
        Some(Box::new(Recording::begin(
            recorder, recipient, operation, body,
        )))
    }
}

impl Inner {
    /// What comes of `poll`, unless the head of the answer is overdue first. Connecting has its
    /// own limit inside the connector, so this one counts from the moment the other side took
    /// something of the call last: that of the whole call where it was sent, or of a part of it
    /// where it takes no more. For a call that leaves unseen it begins where connecting would end.
    pub(crate) async fn in_time<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
        alarm: &mut Alarm,
        mark: &SentMark,
        started: Instant,
    ) -> Result<T, CallError> {
        let Timeouts {
            connect,
            first_byte,
            total,
            ..
        } = self.config.timeouts;
        let end = started + total;
        let mut look_again = (started + first_byte).min(end);
        let sent = poll_fn(|context| {
            if let Poll::Ready(sent) = poll(context) {
                return Poll::Ready(Ok(sent));
            }
            loop {
                let now = ready!(alarm.poll_passed(look_again, context));
                if now >= end {
                    return Poll::Ready(Err(Cause::TotalTimeout(total)));
                }
                let waited = match mark.moved() {
                    Some(at) => Some(self.clock.now().mono.since(at)),
                    None if mark.leaves_unseen() => {
                        Some(now.duration_since(started).saturating_sub(connect))
                    }
                    None => None,
                };
                let left = match waited {
                    Some(waited) if waited >= first_byte => {
                        return Poll::Ready(Err(Cause::FirstByteTimeout(first_byte)));
                    }
                    Some(waited) => first_byte - waited,
                    None => first_byte,
                };
                // At least a millisecond: two clocks need not agree to the nanosecond.
                look_again = (now + left.max(Duration::from_millis(1))).min(end);
            }
        });
        sent.await.map_err(|cause| self.without_answer(cause, mark))
    }

    /// An answer whose head has just come.
    pub(crate) fn answer(
        &self,
        head: AnswerHead,
        body: BodySource,
        started: Instant,
        mark: &SentMark,
    ) -> Answer {
        let now = self.clock.now().mono;
        let times = Times {
            // A server may answer before it has read the whole call.
            sent: mark.sent().unwrap_or(now).min(now),
            head: now,
        };
        let is_error = !head.status.is_success();
        let answer = Answer::new(
            head,
            times,
            body,
            Deadlines::new(self.config.timeouts, started),
            Arc::clone(&self.addresses.authority),
            self.config.answer_bytes_max,
        );
        match &self.config.api_key {
            Some(key) if is_error => answer.without_key(key.clone()),
            _ => answer,
        }
    }

    pub(crate) fn not_sent(&self, cause: Cause) -> CallError {
        let authority = self.addresses.authority.to_string();
        CallError::NotSent { authority, cause }
    }

    pub(crate) fn without_answer(&self, cause: Cause, mark: &SentMark) -> CallError {
        // One that leaves unseen has left when there is a connection, and that had its own limit.
        let was_waited_for = match &cause {
            Cause::FirstByteTimeout(_) => true,
            Cause::TotalTimeout(total) => *total > self.config.timeouts.connect,
            _ => false,
        };
        if !(mark.touched() || mark.leaves_unseen() && was_waited_for) {
            return self.not_sent(cause);
        }
        let authority = self.addresses.authority.to_string();
        CallError::NoAnswer { authority, cause }
    }
}

/// No deadline of a call is closer than this when it is set, but perhaps that of the whole call.
pub(crate) fn nap(timeouts: Timeouts) -> Duration {
    timeouts.first_byte.min(timeouts.idle)
}
