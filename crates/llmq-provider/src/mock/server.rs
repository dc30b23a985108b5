use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::config::{MockConfig, OutageStyle};
use super::report::Report;
use super::service::serve;
use super::state::State;

/// How long to wait when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// A run opens more than a thousand connections at once, and one for which there is no room is
/// tried again by its system only after a second.
const NOT_ACCEPTED_MAX: i32 = 4_096;

/// A stand-in provider that listens and serves, HTTP/1.1 and HTTP/2 without TLS.
///
/// It stops when it is shut down or dropped; only [`shutdown`](Self::shutdown) waits until it
/// has.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// use llmq_provider::mock::{MockConfig, MockServer};
/// let config = MockConfig {
///     listen: "127.0.0.1:0".parse().unwrap(),
///     ..MockConfig::default()
/// };
/// let mock = MockServer::start(config).await?;
/// let base_url = format!("http://{}/v1", mock.addr());
/// assert_eq!(mock.report().calls, 0);
/// mock.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MockServer {
    addr: SocketAddr,
    state: Arc<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
}

impl MockServer {
    /// Binds the address and starts to serve on the present tokio runtime.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, the directory to record in cannot be made, or the one
    /// to replay from cannot be read.
    pub async fn start(config: MockConfig) -> io::Result<Self> {
        if let Some(directory) = &config.record {
            tokio::fs::create_dir_all(directory).await?;
        }
        if let Some(directory) = &config.replay {
            let _entries = tokio::fs::read_dir(directory).await?;
        }
        let listener = TcpListener::bind(config.listen).await?;
        SockRef::from(&listener).listen(NOT_ACCEPTED_MAX)?;
        let addr = listener.local_addr()?;
        let state = Arc::new(State::new(config, wall()));
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        tasks.spawn(accept(
            listener,
            Arc::clone(&state),
            tasks.clone(),
            stop.clone(),
        ));
        Ok(Self {
            addr,
            state,
            tasks,
            stop: stop.clone(),
            _stop_when_dropped: stop.drop_guard(),
        })
    }

    /// The address it listens on, with the port it got.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it saw so far; `GET /mock/report` answers the same as JSON.
    #[must_use]
    pub fn report(&self) -> Report {
        self.state.report()
    }

    /// Stops listening, lets the calls in flight end and waits for them. Returns the last
    /// report.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the server still stops, unwatched.
    pub async fn shutdown(self) -> Report {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.state.report()
    }
}

/// The time since 1970, read once: from here on time is counted from the start.
#[expect(
    clippy::disallowed_methods,
    reason = "the stand-in is a program of its own, and its wall clock is the system's"
)]
fn wall() -> Duration {
    std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

async fn accept(
    listener: TcpListener,
    state: Arc<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                if state.in_outage() && state.config.outage_style == OutageStyle::Refused {
                    continue;
                }
                let connection =
                    connection(stream, Arc::clone(&state), tasks.clone(), stop.clone());
                tasks.spawn(connection);
            }
            Err(error) => {
                tracing::warn!(%error, "the stand-in cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    state: Arc<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    // Without it small answers wait for the client's acknowledgements; failing is harmless.
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(Tracked(tasks));
    builder.http1().pipeline_flush(true);
    let service = service_fn(move |request| serve(Arc::clone(&state), request));
    let served = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the stand-in ended early");
    }
}

/// Starts the tasks of HTTP/2 streams where shutdown waits for them.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
