//! Connections in, requests to where they belong, and an end that lets calls finish.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulConnection;
use llmq_engine::Tasks;
use llmq_provider::{Dialect, Operation};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tower_service::Service as _;

use crate::Gateway;
use crate::call::{self, Reply, ReplyBody};
use crate::dialect::Refusal;
use crate::pages;

/// Calls in flight have so long to end once the gateway is told to stop.
const GRACE: Duration = Duration::from_secs(30);
/// A caller that sends headers for longer sends none.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// All headers of a request together.
const HEADER_BYTES_MAX: usize = 64 << 10;
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
    let front = Arc::new(Front {
        pages: pages::router(&gateway),
        gateway,
        closing: Closing::default(),
    });
    let done = tasks.spawn(accept(front, listener, tasks.clone()));
    Ok(Served { addr, done })
}

/// What requests come to: the calls, and the small routes beside them.
struct Front {
    gateway: Arc<Gateway>,
    pages: Router,
    closing: Closing,
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

    /// Carries a connection to its end: after its call in flight once closing has begun.
    async fn carry(&self, connection: impl GracefulConnection) {
        let mut connection = pin!(connection);
        let mut news = pin!(self.news.notified());
        let (mut listens, mut told) = (false, false);
        let end = poll_fn(|context| {
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
            connection.as_mut().poll(context)
        });
        // How a connection ends is its caller's affair.
        let _ = end.await;
    }
}

async fn accept(front: Arc<Front>, listener: TcpListener, tasks: Tasks) {
    // Each connection holds one; the last that ends is heard of.
    let (open, mut all_closed) = mpsc::channel::<Infallible>(1);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(Duration::from_secs(20)));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            },
            () = tasks.cancelled() => break,
        };
        connect(&front, &builder, open.clone(), stream, &tasks);
    }
    drop((listener, open));
    front.gateway.observed.drain();
    front.closing.begin();
    if tokio::time::timeout(GRACE, all_closed.recv())
        .await
        .is_err()
    {
        tracing::warn!("calls in flight did not end within {GRACE:?}");
    }
}

fn connect(
    front: &Arc<Front>,
    builder: &Builder<TokioExecutor>,
    open: mpsc::Sender<Infallible>,
    stream: TcpStream,
    tasks: &Tasks,
) {
    // Small writes go out at once: each may be an event of a stream.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection broke at once");
        return;
    }
    let front = Arc::clone(front);
    let serving = Arc::clone(&front);
    let service = service_fn(move |request| {
        let front = Arc::clone(&serving);
        async move { Ok::<_, Infallible>(route(&front, request).await) }
    });
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    tasks.spawn(async move {
        front.closing.carry(connection).await;
        drop(open);
    });
}

/// The calls first: they are nearly all there is.
async fn route(front: &Front, request: Request<Incoming>) -> Reply {
    let gateway = &front.gateway;
    let path = request.uri().path();
    match Operation::from_path(path) {
        Some(Operation::Models) => models(gateway, &request, None),
        Some(operation) if request.method() == Method::POST => {
            Box::pin(call::call(Arc::clone(gateway), operation, request)).await
        }
        Some(operation) => {
            let message = format!("{path} takes POST");
            wrong_method(&message, call::spoken(operation), "POST")
        }
        None => match path.strip_prefix("/v1/models/") {
            Some(name) => models(gateway, &request, Some(name)),
            None if pages::has(path) => page(front, request).await,
            None => unknown_path(path, spoken(&request)),
        },
    }
}

async fn page(front: &Front, request: Request<Incoming>) -> Reply {
    // A router is always ready.
    let Ok(response) = front.pages.clone().call(request).await;
    response.map(ReplyBody::Other)
}

fn wrong_method(message: &str, dialect: Dialect, allowed: &'static str) -> Reply {
    let refusal = Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    );
    let mut reply = call::refused(&refusal, dialect);
    reply
        .headers_mut()
        .insert(http::header::ALLOW, http::HeaderValue::from_static(allowed));
    reply
}

/// In which dialect a caller expects an answer where the path does not tell.
fn spoken(request: &Request<Incoming>) -> Dialect {
    if request.headers().contains_key("anthropic-version") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    }
}

fn unknown_path(path: &str, dialect: Dialect) -> Reply {
    let shown: String = path.chars().take(200).collect();
    let refusal = Refusal::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("there is nothing at {shown}; calls go to /v1/chat/completions and its like"),
    );
    call::refused(&refusal, dialect)
}

/// The models, as the API that the caller speaks lists them.
fn models(gateway: &Gateway, request: &Request<Incoming>, name: Option<&str>) -> Reply {
    let dialect = spoken(request);
    if let Err(error) = gateway.keys.authenticate(request.headers()) {
        let refusal = Refusal::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            error.to_string(),
        );
        return call::refused(&refusal, dialect);
    }
    if *request.method() != Method::GET {
        return wrong_method("models are listed with GET", dialect, "GET");
    }
    let model = |name: &str| match dialect {
        Dialect::OpenAi => {
            json!({"id": name, "object": "model", "created": 0, "owned_by": "llmq"})
        }
        Dialect::Anthropic => json!({
            "type": "model", "id": name, "display_name": name, "lifecycle": "active",
            "created_at": "1970-01-01T00:00:00Z",
        }),
    };
    let names = gateway.models.names();
    let body = match name {
        None => {
            let data: Vec<_> = names.iter().map(|name| model(name)).collect();
            match dialect {
                Dialect::OpenAi => json!({"object": "list", "data": data}),
                Dialect::Anthropic => json!({
                    "data": data, "has_more": false,
                    "first_id": names.first(), "last_id": names.last(),
                }),
            }
        }
        Some(name) if names.iter().any(|known| known == name) => model(name),
        Some(name) => {
            let refusal = call::unknown_model(gateway, name);
            return call::refused(&refusal, dialect);
        }
    };
    let mut reply = Response::new(ReplyBody::whole(body.to_string().into()));
    reply.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    reply
}
