//! What the load tools have in common: a connection, and what a list of times says.

pub(crate) mod clock;

use std::error::Error;

use http::header::{CONTENT_TYPE, HOST, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// One keep-alive connection and the calls that go over it.
pub(crate) struct Caller {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
    headers: HeaderMap,
    body: Bytes,
}

impl Caller {
    /// Connects to `address`. All calls carry `headers` and `body`.
    pub(crate) async fn connect(
        address: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let mut headers = headers.clone();
        headers.insert(HOST, HeaderValue::from_str(address)?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        #[expect(
            clippy::disallowed_methods,
            reason = "the caller aborts it when it is dropped, and the process ends with its work"
        )]
        let driver = tokio::spawn(async move {
            // Its error is told to the call that is under way.
            let _ended = connection.await;
        })
        .abort_handle();
        Ok(Self {
            sender,
            driver,
            headers,
            body: body.clone(),
        })
    }

    /// Sends one chat call; the head of its answer.
    pub(crate) async fn call(&mut self) -> Result<Response<Incoming>, Failure> {
        self.sender.ready().await?;
        let mut request =
            Request::post("/v1/chat/completions").body(Full::new(self.body.clone()))?;
        *request.headers_mut() = self.headers.clone();
        Ok(self.sender.send_request(request).await?)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Headers written as `Name: value`.
pub(crate) fn headers<'a>(
    lines: impl IntoIterator<Item = &'a String>,
) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header is Name: value")?;
        headers.insert(
            HeaderName::try_from(name.trim())?,
            HeaderValue::from_str(value.trim())?,
        );
    }
    Ok(headers)
}

/// What a list of times says, in microseconds.
#[derive(Serialize)]
pub(crate) struct Times {
    count: usize,
    mean: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Times {
    /// From nanoseconds in any order.
    pub(crate) fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let us = |ns: u64| ns as f64 / 1_000.0;
        let at = |percent: usize| {
            let last = times.len().saturating_sub(1);
            us(times.get(last * percent / 100).copied().unwrap_or(0))
        };
        Self {
            count: times.len(),
            mean: us(times.iter().sum()) / times.len().max(1) as f64,
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}
