//! One connection: which protocol it speaks, its calls, and its end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::Bounds;
use crate::call::{Broken, ReplyBody};
use crate::front::{self, Front};
use crate::taken::Streams;
use crate::watched::Watched;
use crate::written::Written;

/// How HTTP/2 begins without TLS (RFC 9113, section 3.4).
const HTTP_2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Calls at once on one connection of HTTP/2. With what each may hold (`taken.rs`), this bounds
/// what a caller that takes nothing costs.
const STREAMS_MAX: u32 = 200;

/// How connections are spoken to. How long they may be idle is seen to here ([`Patience`]), by one
/// timer for a connection instead of one for each of its requests.
pub(crate) struct Protocols {
    /// A caller that leaves is heard of by [`Watched`].
    http1: http1::Builder,
    either: auto::Builder<TokioExecutor>,
}

impl Protocols {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let mut http1 = http1::Builder::new();
        http1.half_close(true).max_buf_size(bounds.header_bytes_max);
        let mut either = auto::Builder::new(TokioExecutor::new());
        either.http1().max_buf_size(bounds.header_bytes_max);
        either
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(bounds.header_bytes_max).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(Duration::from_secs(20)));
        Self { http1, either }
    }
}

/// Tells connections that no more calls are wanted.
#[derive(Default)]
pub(crate) struct Closing {
    begun: AtomicBool,
    news: Notify,
}

impl Closing {
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.news.notify_waiters();
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Completes when closing has begun.
    async fn begun(&self) {
        let news = self.news.notified();
        if !self.has_begun() {
            news.await;
        }
    }

    /// Carries a connection to its end: after its call in flight once closing has begun, and when
    /// `patience` with it is over.
    async fn carry(
        &self,
        mut connection: Pin<&mut impl GracefulConnection>,
        busy: &Busy,
        patience: Patience,
    ) {
        let mut kept = pin!(patience.kept(busy));
        let mut news = pin!(self.news.notified());
        let (mut listens, mut told) = (false, false);
        poll_fn(|context| {
            // Once is enough: a task keeps its waker. Asking again takes a lock that all
            // connections share, with every piece of every call.
            if !listens {
                listens = true;
                let _ = news.as_mut().poll(context);
            }
            if !told && self.has_begun() {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            loop {
                // How a connection ends is its caller's affair.
                if connection.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
                ready!(kept.as_mut().poll(context));
                if told || !busy.has_asked() {
                    return Poll::Ready(());
                }
                // Over HTTP/2 a call may be on its way: its caller is told first, and has as long
                // again.
                told = true;
                connection.as_mut().graceful_shutdown();
                kept.set(patience.kept(busy));
            }
        })
        .await;
    }
}

/// What a connection does.
#[derive(Debug, Default)]
struct Busy {
    /// Calls that came, and those of them that are over.
    began: AtomicU64,
    ended: AtomicU64,
}

/// A call, until its answer is written.
#[derive(Debug)]
struct InFlight(Arc<Busy>);

impl Busy {
    fn begins(self: &Arc<Self>) -> InFlight {
        self.began.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    fn has_asked(&self) -> bool {
        self.began.load(Ordering::Relaxed) != 0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

/// For how long a connection may have no call.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Until it has brought its first one.
    deadline: Instant,
    /// From one to the next.
    idle_max: Duration,
}

impl Patience {
    /// Completes when a connection has been without a call for too long: it has been looked at
    /// twice, `idle_max` apart, and nothing had happened in between. So no call pays for a timer.
    async fn kept(self, busy: &Busy) {
        tokio::time::sleep_until(self.deadline).await;
        let mut idle_since = 0;
        loop {
            let ended = busy.ended.load(Ordering::Acquire);
            let began = busy.began.load(Ordering::Relaxed);
            if began == ended && began == idle_since {
                return;
            }
            idle_since = match began == ended {
                true => began,
                false => u64::MAX,
            };
            tokio::time::sleep(self.idle_max).await;
        }
    }
}

/// Whoever came in by a connection.
pub(crate) struct Guest {
    front: Arc<Front>,
    protocols: Arc<Protocols>,
    closing: Arc<Closing>,
    busy: Arc<Busy>,
    patience: Patience,
    written_within: Duration,
}

impl Guest {
    pub(crate) fn new(
        front: &Arc<Front>,
        protocols: &Arc<Protocols>,
        closing: &Arc<Closing>,
    ) -> Self {
        let bounds = &front.gateway.bounds;
        Self {
            front: Arc::clone(front),
            protocols: Arc::clone(protocols),
            closing: Arc::clone(closing),
            busy: Arc::default(),
            patience: Patience {
                deadline: Instant::now() + bounds.first_request_within,
                idle_max: bounds.idle_max,
            },
            written_within: bounds.written_within,
        }
    }

    /// Answers what comes, until the connection ends. What few connections need is boxed, so that
    /// thousands do not hold room for it.
    pub(crate) async fn serve(self, stream: TcpStream) {
        let tls = self.front.gateway.live.load().tls.clone();
        if let Some(acceptor) = tls {
            Box::pin(self.serve_tls(acceptor, stream)).await;
            return;
        }
        match self.begins_like_http_2(&stream).await {
            Some(false) => {
                let stream = Written::new(Watched::new(stream), self.written_within);
                let io = TokioIo::new(stream);
                let service = self.service(|counted| counted);
                let connection = self.protocols.http1.serve_connection(io, service);
                self.carry(pin!(connection)).await;
            }
            Some(true) => Box::pin(self.serve_either(stream)).await,
            None => {}
        }
    }

    async fn serve_tls(self, acceptor: TlsAcceptor, stream: TcpStream) {
        match tokio::time::timeout_at(self.patience.deadline, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => self.serve_either(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS came about"),
            Err(_) => tracing::debug!("no TLS came about in time"),
        }
    }

    /// HTTP/1.1 or HTTP/2, as it turns out.
    async fn serve_either<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Written::new(stream, self.written_within));
        let streams = Arc::new(Streams::default());
        let watched = Arc::clone(&streams);
        let service = self.service(move |counted| watched.watch(counted));
        let connection = self.protocols.either.serve_connection(io, service);
        let connection = pin!(connection);
        tokio::select! {
            () = self.carry(connection) => {}
            () = streams.leave_those_that_take_nothing(self.written_within) => {}
        }
    }

    fn carry(&self, connection: Pin<&mut impl GracefulConnection>) -> impl Future<Output = ()> {
        self.closing.carry(connection, &self.busy, self.patience)
    }

    /// Whether the first bytes may be HTTP/2's; none: nothing comes. They are left where they are.
    async fn begins_like_http_2(&self, stream: &TcpStream) -> Option<bool> {
        let mut first = [0; HTTP_2.len()];
        tokio::select! {
            count = stream.peek(&mut first) => match count {
                Ok(0) | Err(_) => None,
                Ok(count) => Some(HTTP_2.starts_with(&first[..count])),
            },
            () = self.closing.begun() => None,
            () = tokio::time::sleep_until(self.patience.deadline) => None,
        }
    }

    /// Answers each request, its body as `kept` hands it over.
    fn service<B, K>(
        &self,
        kept: K,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<B>,
        Error = Infallible,
        Future: Send + 'static,
    > + use<B, K>
    where
        B: Body,
        K: Fn(Counted) -> B + Clone + Send + 'static,
    {
        let (front, busy) = (Arc::clone(&self.front), Arc::clone(&self.busy));
        service_fn(move |request: Request<Incoming>| {
            let in_flight = busy.begins();
            let answer = front::answer(&front, request);
            let kept = kept.clone();
            async move {
                let reply = answer.await.map(|body| Counted {
                    body,
                    _in_flight: in_flight,
                });
                Ok::<_, Infallible>(reply.map(kept))
            }
        })
    }
}

/// An answer's body, whose call is in flight until it is written.
struct Counted {
    body: ReplyBody,
    _in_flight: InFlight,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
