//! Connections in, and an end that lets calls finish.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulConnection;
use llmq_engine::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::call::{Broken, ReplyBody};
use crate::front::{self, Front};
use crate::{Bounds, Gateway};

/// Calls in flight have so long to end once the gateway is told to stop.
const GRACE: Duration = Duration::from_secs(30);
/// When no connection can be accepted, there is a reason that takes a moment to pass.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// A gateway that accepts connections.
#[derive(Debug)]
pub struct Served {
    addr: SocketAddr,
    done: tokio::task::JoinHandle<()>,
}

impl Served {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits until it has stopped: after its tasks are cancelled and the calls in flight have
    /// ended, or the time for that is over.
    pub async fn stopped(self) {
        // A panic in the loop that accepts has been told by the runtime.
        let _ = self.done.await;
    }
}

/// Accepts connections on `listener` until `tasks` are cancelled; then lets calls in flight end,
/// for at most 30 s.
///
/// # Errors
///
/// The listener has no address.
pub fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    tasks: &Tasks,
) -> std::io::Result<Served> {
    let addr = listener.local_addr()?;
    let door = Door {
        builder: builder(&gateway.bounds),
        front: Arc::new(Front::new(gateway)),
        closing: Arc::default(),
        tasks: tasks.clone(),
    };
    let done = tasks.spawn(door.accept(listener));
    Ok(Served { addr, done })
}

fn builder(bounds: &Bounds) -> Arc<Builder<TokioExecutor>> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // From the end of one request to the end of the next one's header.
        .header_read_timeout(bounds.idle_max)
        .max_buf_size(bounds.header_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(bounds.header_bytes_max).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(Duration::from_secs(20)));
    Arc::new(builder)
}

/// Where connections come in.
struct Door {
    front: Arc<Front>,
    builder: Arc<Builder<TokioExecutor>>,
    closing: Arc<Closing>,
    tasks: Tasks,
}

/// Tells connections that no more calls are wanted.
#[derive(Default)]
struct Closing {
    begun: AtomicBool,
    news: Notify,
}

impl Closing {
    fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.news.notify_waiters();
    }

    /// Carries a connection to its end: after its call in flight once closing has begun, at the
    /// `deadline` if it has not asked for anything by then, and when it has been `idle_max` without
    /// a call.
    async fn carry(
        &self,
        connection: impl GracefulConnection,
        busy: &Busy,
        deadline: Instant,
        idle_max: Duration,
    ) {
        let mut connection = pin!(connection);
        let mut news = pin!(self.news.notified());
        let mut patience = pin!(tokio::time::sleep_until(deadline));
        let (mut listens, mut told) = (false, false);
        let mut idle = Idle::default();
        poll_fn(|context| {
            // Once is enough: a task keeps its waker. Asking again takes a lock that all
            // connections share, with every piece of every call.
            if !listens {
                listens = true;
                let _ = news.as_mut().poll(context);
            }
            if !told && self.begun.load(Ordering::Acquire) {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            // How a connection ends is its caller's affair.
            let end = connection.as_mut().poll(context).map(drop);
            if end.is_ready() {
                return end;
            }
            if !busy.has_asked.load(Ordering::Relaxed) {
                return patience.as_mut().poll(context);
            }
            if !told && idle.is_over(busy, idle_max, context) {
                told = true;
                connection.as_mut().graceful_shutdown();
                return connection.as_mut().poll(context).map(drop);
            }
            Poll::Pending
        })
        .await;
    }
}

impl Door {
    async fn accept(self, listener: TcpListener) {
        let bounds = self.front.gateway.bounds;
        let places = Arc::new(Semaphore::new(bounds.connections_max.max(1)));
        // Each connection holds one; the last that ends is heard of.
        let (open, mut all_closed) = mpsc::channel::<Infallible>(1);
        loop {
            let (stream, place) = tokio::select! {
                next = next(&listener, &places) => next,
                () = self.tasks.cancelled() => break,
            };
            self.connect(stream, place, open.clone());
        }
        drop((listener, open));
        self.front.gateway.observed.drain();
        self.closing.begin();
        if tokio::time::timeout(GRACE, all_closed.recv())
            .await
            .is_err()
        {
            tracing::warn!("calls in flight did not end within {GRACE:?}");
        }
    }

    fn connect(
        &self,
        stream: TcpStream,
        place: OwnedSemaphorePermit,
        open: mpsc::Sender<Infallible>,
    ) {
        // Small writes go out at once: each may be an event of a stream.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection broke at once");
            return;
        }
        let guest = Guest {
            front: Arc::clone(&self.front),
            builder: Arc::clone(&self.builder),
            closing: Arc::clone(&self.closing),
            busy: Arc::default(),
        };
        self.tasks.spawn(async move {
            guest.serve(stream).await;
            drop((place, open));
        });
    }
}

/// The next connection, when there is a place for it.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let place = match Arc::clone(places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                tracing::warn!("as many connections are open as may be; more wait until one ends");
                match Arc::clone(places).acquire_owned().await {
                    Ok(place) => place,
                    // It is never closed.
                    Err(_) => std::future::pending().await,
                }
            }
        };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// What a connection does.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    /// Whether a request came.
    has_asked: AtomicBool,
    /// It speaks HTTP/2: nothing else sees that it is idle, since its pings are answered.
    multiplexes: AtomicBool,
    /// Calls that came over HTTP/2, and those of them that are over.
    began: AtomicU64,
    ended: AtomicU64,
    /// Whoever carries the connection: calls end in tasks of their own.
    carrier: AtomicWaker,
}

/// A call that came over HTTP/2, until its answer is written.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Busy>);

impl Busy {
    fn begins(self: &Arc<Self>, version: Version) -> Option<InFlight> {
        self.has_asked.store(true, Ordering::Relaxed);
        if version != Version::HTTP_2 {
            return None;
        }
        self.multiplexes.store(true, Ordering::Relaxed);
        self.began.fetch_add(1, Ordering::Relaxed);
        Some(InFlight(Arc::clone(self)))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
        self.0.carrier.wake();
    }
}

/// For how long a connection has had no call.
#[derive(Debug, Default)]
struct Idle {
    /// After so many calls, until then.
    wait: Option<(u64, Pin<Box<tokio::time::Sleep>>)>,
}

impl Idle {
    /// Whether it has been too long. Looked at whenever the connection has moved, or a call of it
    /// has ended.
    fn is_over(&mut self, busy: &Busy, max: Duration, context: &mut Context<'_>) -> bool {
        if !busy.multiplexes.load(Ordering::Relaxed) {
            return false;
        }
        busy.carrier.register(context.waker());
        let began = busy.began.load(Ordering::Relaxed);
        if busy.ended.load(Ordering::Acquire) != began {
            self.wait = None;
            return false;
        }
        if self.wait.as_ref().is_none_or(|(after, _)| *after != began) {
            self.wait = Some((began, Box::pin(tokio::time::sleep(max))));
        }
        let wait = self.wait.as_mut();
        wait.is_some_and(|(_, until)| until.as_mut().poll(context).is_ready())
    }
}

/// One connection.
struct Guest {
    front: Arc<Front>,
    builder: Arc<Builder<TokioExecutor>>,
    closing: Arc<Closing>,
    busy: Arc<Busy>,
}

impl Guest {
    async fn serve(self, stream: TcpStream) {
        let within = self.front.gateway.bounds.first_request_within;
        let deadline = Instant::now() + within;
        let tls = self.front.gateway.live.load().tls.clone();
        match tls {
            None => self.speak(stream, deadline).await,
            Some(acceptor) => {
                match tokio::time::timeout_at(deadline, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => Box::pin(self.speak(stream, deadline)).await,
                    Ok(Err(error)) => tracing::debug!(%error, "no TLS came about"),
                    Err(_) => tracing::debug!("no TLS came about in time"),
                }
            }
        }
    }

    async fn speak<S>(self, stream: S, deadline: Instant)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (front, busy) = (self.front, Arc::clone(&self.busy));
        let Bounds {
            idle_max,
            written_within,
            ..
        } = front.gateway.bounds;
        let stream = crate::written::Written::new(stream, written_within);
        let service = service_fn(move |request: Request<Incoming>| {
            let in_flight = busy.begins(request.version());
            let front = Arc::clone(&front);
            async move {
                let reply = front::answer(&front, request).await;
                Ok::<_, Infallible>(reply.map(|body| Written {
                    body,
                    _in_flight: in_flight,
                }))
            }
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        let carried = self
            .closing
            .carry(connection, &self.busy, deadline, idle_max);
        carried.await;
    }
}

/// An answer's body, whose call is in flight until it is written.
struct Written {
    body: ReplyBody,
    _in_flight: Option<InFlight>,
}

impl Body for Written {
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
