use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Message, Verifier, VerifyError};

/// A larger message is refused. Those of llmq are far smaller.
const BODY_MAX: usize = 1 << 20;
/// A sender whose head takes so long is let go …
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// … and so is one whose body does.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// So many senders are heard at once; others wait to be accepted.
const SENDERS_MAX: usize = 256;
/// When no connection can be accepted, there is a reason that takes a moment to pass.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What became of a message, as its sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// It is dealt with: 204. The sender never sends it again.
    Done,
    /// It could not be dealt with now: 503. The sender tries again later.
    Later,
}

/// The receiver cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}")]
pub struct ReceiverError {
    /// Where it was to listen.
    pub addr: SocketAddr,
    /// Why it cannot.
    pub source: io::Error,
}

/// A small server that takes webhooks: any path, `POST` only. Messages that cannot be believed
/// are refused with 401 before anybody sees them as true.
///
/// ```no_run
/// # async fn take() -> Result<(), Box<dyn std::error::Error>> {
/// use llmq_client::webhooks::{Handling, Receiver, Verifier};
/// let verifier = Verifier::new([std::env::var("WEBHOOK_SECRET")?])?;
/// let receiver = Receiver::bind("127.0.0.1:9000".parse()?, verifier).await?;
/// receiver
///     .serve(|message, body| match message {
///         Ok(message) => {
///             println!("{} {}", message.id, String::from_utf8_lossy(body));
///             Handling::Done
///         }
///         Err(_) => Handling::Later,
///     })
///     .await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Receiver {
    listener: TcpListener,
    addr: SocketAddr,
    verifier: Verifier,
}

impl Receiver {
    /// Listens at `addr`; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// [`ReceiverError`], such as when another program listens there.
    pub async fn bind(addr: SocketAddr, verifier: Verifier) -> Result<Self, ReceiverError> {
        let bound = async {
            let listener = TcpListener::bind(addr).await?;
            let addr = listener.local_addr()?;
            Ok((listener, addr))
        };
        let (listener, addr) = bound
            .await
            .map_err(|source| ReceiverError { addr, source })?;
        Ok(Self {
            listener,
            addr,
            verifier,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes messages for ever. `handle` is told of each one: whether it is to be believed, and
    /// its bytes. What it answers for one that is not has no effect: that is refused.
    ///
    /// `handle` must not block for long; its sender waits for it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends every connection.
    pub async fn serve<F>(self, handle: F) -> Infallible
    where
        F: Fn(Result<&Message<'_>, &VerifyError>, &[u8]) -> Handling + Send + Sync + 'static,
    {
        let front = Arc::new(Front {
            verifier: self.verifier,
            handle,
        });
        let mut senders = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if senders.len() < SENDERS_MAX => match accepted {
                    Ok((stream, _)) => { senders.spawn(talk(Arc::clone(&front), stream)); }
                    Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
                },
                Some(_) = senders.join_next() => {}
            }
        }
    }
}

struct Front<F> {
    verifier: Verifier,
    handle: F,
}

async fn talk<F>(front: Arc<Front<F>>, stream: TcpStream)
where
    F: Fn(Result<&Message<'_>, &VerifyError>, &[u8]) -> Handling + Send + Sync + 'static,
{
    let service = service_fn(move |request| {
        let front = Arc::clone(&front);
        async move { Ok::<_, Infallible>(front.take(request).await) }
    });
    // How a connection ends is its sender's affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl<F> Front<F>
where
    F: Fn(Result<&Message<'_>, &VerifyError>, &[u8]) -> Handling,
{
    async fn take(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if *request.method() != Method::POST {
            return answer(StatusCode::METHOD_NOT_ALLOWED, "webhooks come by POST");
        }
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, BODY_MAX).collect();
        match tokio::time::timeout(BODY_WITHIN, body).await {
            Ok(Ok(body)) => self.judge(&parts.headers, &body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                answer(StatusCode::PAYLOAD_TOO_LARGE, "the message is too large")
            }
            Ok(Err(_)) => answer(StatusCode::BAD_REQUEST, "the message breaks off"),
            Err(_) => {
                let mut late = answer(StatusCode::REQUEST_TIMEOUT, "the message took too long");
                // Its rest may still come, and is no next message.
                let close = HeaderValue::from_static("close");
                late.headers_mut().insert(header::CONNECTION, close);
                late
            }
        }
    }

    fn judge(&self, headers: &HeaderMap, body: &[u8]) -> Response<Full<Bytes>> {
        match self.verifier.verify(headers, body, now_s()) {
            Ok(message) => match (self.handle)(Ok(&message), body) {
                Handling::Done => answer(StatusCode::NO_CONTENT, ""),
                Handling::Later => answer(StatusCode::SERVICE_UNAVAILABLE, "not now"),
            },
            Err(error) => {
                (self.handle)(Err(&error), body);
                let mut refused = answer(StatusCode::UNAUTHORIZED, "");
                *refused.body_mut() = Full::from(error.to_string());
                refused
            }
        }
    }
}

fn answer(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

#[expect(
    clippy::disallowed_methods,
    reason = "a receiver has no clock but the system's"
)]
fn now_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}
