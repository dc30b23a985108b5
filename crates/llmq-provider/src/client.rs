use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST,
    HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use llmq_core::{Clock, Host, Timestamp};
use tokio::time::{Instant, timeout_at};

use crate::alarm::Alarm;
use crate::config::{Addresses, origin_form};
use crate::connect::Connector;
use crate::link::Link;
use crate::pool::{IDLE_MAX, Pool};
use crate::recorder::{Recipient, Recording};
use crate::response::{BodySource, Deadlines};
use crate::sent::{SentBody, SentMark};
use crate::{
    Answer, CallError, Cause, ConfigError, Dialect, Operation, ProviderConfig, SentHook, Timeouts,
    Times,
};

/// How often a quiet HTTP/2 connection is asked whether it is still there.
const HTTP2_PING: Duration = Duration::from_secs(20);

/// The API version sent when the caller names none (docs.anthropic.com, "Versions").
const ANTHROPIC_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// One provider account's connections. Cheap to clone; all clones share one pool.
///
/// HTTP/1.1 opens as many connections as there are calls in flight and keeps them for the
/// next ones; HTTP/2 sends all calls over one. Redirects are not followed, answers are asked
/// for uncompressed, bytes are neither read nor changed.
#[derive(Clone)]
pub struct Provider {
    inner: Arc<Inner>,
}

struct Inner {
    config: ProviderConfig,
    addresses: Addresses,
    headers: HeaderMap,
    transport: Transport,
    clock: Arc<dyn Clock>,
}

enum Transport {
    Http1(Arc<Pool>),
    /// All calls share one connection, which has a task of its own.
    Http2(Box<Client<Connector, SentBody>>),
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
            Transport::Http2(Box::new(client(&config, &addresses, connector)))
        } else {
            let server = addresses.server.clone();
            Transport::Http1(Arc::new(Pool::new(connector, server, nap(config.timeouts))))
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
    /// and nothing came back.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the call: an HTTP/1.1 connection is closed, an HTTP/2 stream
    /// reset. If the sent hook was called before, the provider may still work and bill.
    pub async fn call(&self, request: Request) -> Result<Answer, CallError> {
        let inner = &self.inner;
        let started = Instant::now();
        let mark = SentMark::new();
        let recording = self.recording(&request);
        let body = SentBody::new(
            request.body,
            Arc::clone(&mark),
            request.on_sent,
            Arc::clone(&inner.clock),
        );
        let mut outgoing = http::Request::new(body);
        *outgoing.method_mut() = match &request.item {
            Some(item) => item.method.clone(),
            None => request.operation.method(),
        };
        *outgoing.headers_mut() = merged(&inner.headers, request.headers);
        let addresses = &inner.addresses;
        let outcome = match &inner.transport {
            Transport::Http1(pool) => {
                *outgoing.uri_mut() = match &request.item {
                    Some(item) => origin_form(&addresses.below(request.operation, item)),
                    None => addresses.target(request.operation).clone(),
                };
                self.on_own_connection(pool, outgoing, &mark, started).await
            }
            Transport::Http2(client) => {
                *outgoing.uri_mut() = match &request.item {
                    Some(item) => addresses.below(request.operation, item),
                    None => addresses.uri(request.operation).clone(),
                };
                let mut alarm = Alarm::new(nap(inner.config.timeouts));
                let sending = client.request(outgoing);
                let sent = self.in_time(sending, &mut alarm, &mark, started).await;
                sent.and_then(|sent| sent.map_err(|error| self.read_error(&error, &mark)))
                    .map(|response| response.map(|body| BodySource::shared(body, alarm)))
            }
        };
        let head = inner.clock.now().mono;
        let response = match (outcome, recording) {
            (Ok(response), None) => response,
            (Ok(response), Some(recording)) => {
                return Ok(self
                    .answer(response, started, head, &mark)
                    .recorded(recording));
            }
            (Err(error), recording) => {
                if let Some(mut recording) = recording {
                    recording.failed(&error);
                }
                return Err(error);
            }
        };
        Ok(self.answer(response, started, head, &mark))
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

    /// Sends a call on a connection that it has for itself.
    async fn on_own_connection(
        &self,
        pool: &Arc<Pool>,
        mut outgoing: http::Request<SentBody>,
        mark: &SentMark,
        started: Instant,
    ) -> Result<http::Response<BodySource>, CallError> {
        loop {
            let (mut link, is_new) = match pool.take() {
                Some(link) => (link, false),
                // Boxed: most calls find a connection, and need no room for opening one.
                None => (Box::pin(self.connect(pool, started)).await?, true),
            };
            let mut alarm = std::mem::replace(&mut link.alarm, Alarm::new(IDLE_MAX));
            let sent = self
                .in_time(link.send(outgoing), &mut alarm, mark, started)
                .await?;
            link.alarm = alarm;
            let mut error = match sent {
                Ok(response) => {
                    return Ok(response.map(|body| BodySource::own(body, link, Arc::clone(pool))));
                }
                Err(error) => error,
            };
            // It was closed while it was idle, before the call was begun: as if it had never
            // been there.
            match error.take_message() {
                Some(unsent) if !is_new && !mark.touched() => outgoing = unsent,
                _ => return Err(self.without_answer(Cause::of(error.error()), mark)),
            }
        }
    }

    async fn connect(&self, pool: &Pool, started: Instant) -> Result<Link, CallError> {
        let total = self.inner.config.timeouts.total;
        let cause = match timeout_at(started + total, pool.open()).await {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(error)) => Cause::of(&*error),
            Err(_) => Cause::TotalTimeout(total),
        };
        Err(CallError::NotSent {
            authority: self.authority().to_owned(),
            cause,
        })
    }

    /// What comes of `sending`, unless the head of the answer is overdue first. Connecting has
    /// its own limit inside the connector, so this one counts from the moment the call was sent.
    async fn in_time<T>(
        &self,
        sending: impl Future<Output = T>,
        alarm: &mut Alarm,
        mark: &SentMark,
        started: Instant,
    ) -> Result<T, CallError> {
        let Timeouts {
            total, first_byte, ..
        } = self.inner.config.timeouts;
        let end = started + total;
        let mut look_again = (started + first_byte).min(end);
        let mut sending = pin!(sending);
        let sent = poll_fn(|context| {
            if let Poll::Ready(sent) = sending.as_mut().poll(context) {
                return Poll::Ready(Ok(sent));
            }
            loop {
                let now = ready!(alarm.poll_passed(look_again, context));
                if now >= end {
                    return Poll::Ready(Err(Cause::TotalTimeout(total)));
                }
                let waited = mark
                    .sent()
                    .map(|sent| self.inner.clock.now().mono.since(sent));
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

    fn answer(
        &self,
        response: http::Response<BodySource>,
        started: Instant,
        head: Timestamp,
        mark: &SentMark,
    ) -> Answer {
        let timeouts = self.inner.config.timeouts;
        let (parts, body) = response.into_parts();
        let times = Times {
            // A server may answer before it has read the whole call.
            sent: mark.sent().unwrap_or(head).min(head),
            head,
        };
        Answer::new(
            parts.status,
            parts.headers,
            times,
            body,
            Deadlines::new(timeouts, started),
            Arc::clone(&self.inner.addresses.authority),
            self.inner.config.answer_bytes_max,
        )
    }

    fn read_error(&self, error: &ClientError, mark: &SentMark) -> CallError {
        let cause = Cause::of(error);
        if error.is_connect() {
            return CallError::NotSent {
                authority: self.authority().to_owned(),
                cause,
            };
        }
        self.without_answer(cause, mark)
    }

    fn without_answer(&self, cause: Cause, mark: &SentMark) -> CallError {
        let authority = self.authority().to_owned();
        if mark.touched() {
            CallError::NoAnswer { authority, cause }
        } else {
            CallError::NotSent { authority, cause }
        }
    }
}

/// No deadline of a call is closer than this when it is set, but perhaps that of the whole call.
fn nap(timeouts: Timeouts) -> Duration {
    timeouts.first_byte.min(timeouts.idle)
}

fn client(
    config: &ProviderConfig,
    addresses: &Addresses,
    connector: Connector,
) -> Client<Connector, SentBody> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(usize::MAX);
    builder
        // Without TLS nobody can be asked, so both sides must know.
        .http2_only(!addresses.https)
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(HTTP2_PING)
        .http2_keep_alive_timeout(config.timeouts.connect);
    builder.build(connector)
}

/// The headers of every call.
fn headers(config: &ProviderConfig) -> Result<HeaderMap, ConfigError> {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(ACCEPT, JSON);
    // Compressed answers could not be forwarded as they come and read on their way.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let agent = concat!("llmq/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    if config.dialect == Dialect::Anthropic {
        let name = HeaderName::from_static("anthropic-version");
        headers.insert(name, ANTHROPIC_VERSION);
    }
    if let Some(key) = &config.api_key {
        let (name, text) = match (config.host, config.dialect) {
            (Host::Azure, Dialect::OpenAi) => (API_KEY, key.expose().to_owned()),
            (_, Dialect::Anthropic) => (X_API_KEY, key.expose().to_owned()),
            (_, Dialect::OpenAi) => (AUTHORIZATION, format!("Bearer {}", key.expose())),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| ConfigError::Key)?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

const API_KEY: HeaderName = HeaderName::from_static("api-key");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const NOT_THE_CALLERS: [HeaderName; 11] = [
    HOST,
    CONNECTION,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    TE,
    UPGRADE,
    ACCEPT_ENCODING,
    AUTHORIZATION,
    API_KEY,
    X_API_KEY,
    HeaderName::from_static("keep-alive"),
];

fn merged(ours: &HeaderMap, mut extra: HeaderMap) -> HeaderMap {
    let mut headers = ours.clone();
    if extra.is_empty() {
        return headers;
    }
    for name in NOT_THE_CALLERS {
        extra.remove(name);
    }
    for name in extra.keys() {
        headers.remove(name);
    }
    for (name, value) in &extra {
        headers.append(name, value.clone());
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    fn config(dialect: Dialect, url: &str) -> ProviderConfig {
        ProviderConfig::new(dialect, url).with_key(Secret::new("k-1"))
    }

    #[test]
    fn each_server_gets_the_key_where_it_looks_for_it() {
        let sent = |dialect, url, name: &str| {
            headers(&config(dialect, url))
                .unwrap()
                .remove(name)
                .unwrap()
        };
        let openai = sent(
            Dialect::OpenAi,
            "https://api.openai.com/v1",
            "authorization",
        );
        assert_eq!(openai, "Bearer k-1");
        assert!(openai.is_sensitive());
        let azure = "https://r.openai.azure.com/openai/v1";
        assert_eq!(sent(Dialect::OpenAi, azure, "api-key"), "k-1");
        let anthropic = "https://api.anthropic.com";
        assert_eq!(sent(Dialect::Anthropic, anthropic, "x-api-key"), "k-1");
    }

    #[test]
    fn a_key_with_a_line_end_is_refused_without_showing_it() {
        let config = ProviderConfig::new(Dialect::OpenAi, "http://localhost")
            .with_key(Secret::new("sk\nprivate"));
        assert_eq!(headers(&config).unwrap_err(), ConfigError::Key);
        assert!(!format!("{config:?}").contains("private"));
    }

    #[test]
    fn the_callers_version_wins_and_its_credentials_do_not() {
        let ours = headers(&config(Dialect::Anthropic, "https://api.anthropic.com")).unwrap();
        let mut extra = HeaderMap::new();
        extra.insert("anthropic-version", HeaderValue::from_static("2026-10-21"));
        extra.insert("x-api-key", HeaderValue::from_static("llmq-key"));
        extra.insert("accept-encoding", HeaderValue::from_static("gzip"));
        extra.append("anthropic-beta", HeaderValue::from_static("a"));
        extra.append("anthropic-beta", HeaderValue::from_static("b"));
        let merged = merged(&ours, extra);
        assert_eq!(merged["anthropic-version"], "2026-10-21");
        assert_eq!(merged["x-api-key"], "k-1");
        assert_eq!(merged["accept-encoding"], "identity");
        assert_eq!(merged.get_all("anthropic-beta").iter().count(), 2);
    }
}
