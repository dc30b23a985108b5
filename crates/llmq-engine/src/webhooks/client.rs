//! One try of one delivery.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use llmq_client::webhooks::{HEADER_ID, HEADER_SIGNATURE, HEADER_TIMESTAMP, WebhookSecret, sign};
use llmq_core::WallTime;

use super::Reach;
use super::connect::{Closed, Connector};

/// An endpoint has so long to take a message.
pub const TIMEOUT: Duration = Duration::from_secs(15);
/// So much of an answer is read; the rest is not waited for.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// So much of an answer is kept to be shown.
const EXCERPT_CHARS: usize = 500;
/// A quiet connection is kept so long for the next message.
const IDLE: Duration = Duration::from_secs(20);
const IDLE_PER_HOST: usize = 4;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("llmq/", env!("CARGO_PKG_VERSION")));

/// Sends messages to endpoints.
#[derive(Clone)]
pub struct DeliveryClient {
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
}

impl std::fmt::Debug for DeliveryClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeliveryClient").finish_non_exhaustive()
    }
}

/// A message and where it goes.
#[derive(Debug, Clone)]
pub struct Outgoing<'a> {
    /// Where to.
    pub url: &'a str,
    /// The message's id, the same over all tries.
    pub id: &'a str,
    /// What it says.
    pub body: Bytes,
    /// The secrets that it is signed with.
    pub secrets: &'a [WebhookSecret],
}

/// What an endpoint answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointAnswer {
    /// Its status. Only 2xx counts as taken.
    pub status: StatusCode,
    /// How long it wants to be left alone (`Retry-After`).
    pub retry_after: Option<Duration>,
    /// The beginning of its words, for people.
    pub excerpt: String,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// The address is none.
    #[error("the address cannot be used: {0}")]
    Url(String),
    /// It leads to where webhooks may not go.
    #[error("{0}")]
    Closed(String),
    /// No answer came in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
    /// Nobody could be asked.
    #[error("{0}")]
    Failed(String),
}

impl DeliveryClient {
    /// A client that reaches what `reach` permits.
    ///
    /// # Errors
    ///
    /// The system's certificate authorities cannot be read.
    pub fn new(reach: Reach) -> std::io::Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(reach));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .build(connector);
        Ok(Self { client })
    }

    /// Sends a message once and waits for the answer, at most [`TIMEOUT`]. Redirects are answers
    /// like any other.
    ///
    /// # Errors
    ///
    /// [`DeliveryError`]: there is no answer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection; the endpoint may have taken the message.
    pub async fn deliver(
        &self,
        outgoing: Outgoing<'_>,
        now: WallTime,
    ) -> Result<EndpointAnswer, DeliveryError> {
        let request = request(&outgoing, now)?;
        tokio::time::timeout(TIMEOUT, self.ask(request, now))
            .await
            .unwrap_or(Err(DeliveryError::TimedOut))
    }

    async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        now: WallTime,
    ) -> Result<EndpointAnswer, DeliveryError> {
        let answer = self.client.request(request).await;
        let mut answer = answer.map_err(|error| failed(&error))?;
        let mut read = Vec::new();
        // What an endpoint says beside its status is only for people: if it breaks off, so be it.
        while read.len() < ANSWER_BYTES_MAX {
            let Some(Ok(frame)) = answer.body_mut().frame().await else {
                break;
            };
            if let Ok(data) = frame.into_data() {
                let left = ANSWER_BYTES_MAX - read.len();
                read.extend_from_slice(&data[..data.len().min(left)]);
            }
        }
        let text = String::from_utf8_lossy(&read);
        Ok(EndpointAnswer {
            status: answer.status(),
            retry_after: retry_after(answer.headers(), now),
            excerpt: text.chars().take(EXCERPT_CHARS).collect(),
        })
    }
}

fn request(outgoing: &Outgoing<'_>, now: WallTime) -> Result<Request<Full<Bytes>>, DeliveryError> {
    let url = |error: &dyn Error| DeliveryError::Url(error.to_string());
    let uri: Uri = outgoing.url.parse().map_err(|error| url(&error))?;
    let timestamp_s = now.as_micros().div_euclid(1_000_000);
    let signature = sign(outgoing.secrets, outgoing.id, timestamp_s, &outgoing.body);
    Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, AGENT)
        .header(HEADER_ID, outgoing.id)
        .header(HEADER_TIMESTAMP, timestamp_s)
        .header(HEADER_SIGNATURE, signature)
        .body(Full::from(outgoing.body.clone()))
        .map_err(|error| url(&error))
}

/// In seconds or as a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap, now: WallTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    let at = at.duration_since(std::time::UNIX_EPOCH).ok()?;
    let at = WallTime::from_micros(i64::try_from(at.as_micros()).ok()?);
    Some(at.since(now))
}

/// The error with its causes; they hold addresses and no bodies.
fn failed(error: &(dyn Error + 'static)) -> DeliveryError {
    let mut next = Some(error);
    let mut text = String::new();
    while let Some(cause) = next {
        if let Some(closed) = cause.downcast_ref::<Closed>() {
            return DeliveryError::Closed(closed.to_string());
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    DeliveryError::Failed(text)
}
