//! Connections in, and an end that lets calls finish.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use llmq_engine::Tasks;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::Gateway;
use crate::front::Front;
use crate::guest::{Closing, Guest, Protocols};

/// Calls in flight have so long to end once the gateway is told to stop.
const GRACE: Duration = Duration::from_secs(30);
/// When no connection can be accepted, there is a reason that takes a moment to pass.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Connections that the system may hold before they are accepted, where it has no lower limit of
/// its own. A client for whose connection there is no room tries again only after a second.
const NOT_ACCEPTED_MAX: i32 = 4_096;

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
/// The listener has no address, or is not a socket that listens.
pub fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    tasks: &Tasks,
) -> std::io::Result<Served> {
    let addr = listener.local_addr()?;
    SockRef::from(&listener).listen(NOT_ACCEPTED_MAX)?;
    let door = Door {
        protocols: Arc::new(Protocols::new(&gateway.bounds)),
        front: Arc::new(Front::new(gateway)),
        closing: Arc::default(),
        tasks: tasks.clone(),
    };
    let done = tasks.spawn(door.accept(listener));
    Ok(Served { addr, done })
}

/// Where connections come in.
struct Door {
    front: Arc<Front>,
    protocols: Arc<Protocols>,
    closing: Arc<Closing>,
    tasks: Tasks,
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
        let guest = Guest::new(&self.front, &self.protocols, &self.closing);
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
