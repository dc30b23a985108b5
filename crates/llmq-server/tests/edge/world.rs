//! A gateway, and connections to it byte for byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use llmq_engine::config::{Config, Settings};
use llmq_engine::{SystemClock, Tasks};
use llmq_server::{Bounds, Gateway, GatewayOptions, Served, serve};
use llmq_testkit::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A running gateway; its upstream is not there, and no test gets so far.
pub(crate) struct World {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) addr: SocketAddr,
    tasks: Tasks,
    accepting: Tasks,
    served: Option<Served>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.accepting.cancel();
        self.tasks.cancel();
    }
}

/// Patience that a test can live with.
pub(crate) const SHORT: Bounds = Bounds {
    connections_max: 64,
    first_request_within: Duration::from_millis(300),
    idle_max: Duration::from_millis(600),
    header_bytes_max: 64 << 10,
    body_within: Duration::from_millis(300),
    body_rate_min: 1_000_000,
    written_within: Duration::from_millis(300),
};

const BASE: &str = r#"
[upstreams.one]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"
[models.m]
upstreams = [{ upstream = "one" }]
"#;

/// The settings of a gateway; `server` stands in the table of that name.
pub(crate) fn settings(server: &str) -> Settings {
    let text = format!("[server]\n{server}\n{BASE}");
    let settings = Config::parse("llmq.toml", &text).unwrap().check();
    settings.unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

impl World {
    /// `server` stands in the table of that name.
    pub(crate) async fn new(server: &str, bounds: Bounds) -> Self {
        Self::over(&settings(server), bounds).await
    }

    /// One whose upstream is there, at this address.
    pub(crate) async fn before(upstream: SocketAddr, bounds: Bounds) -> Self {
        let text = BASE.replace("127.0.0.1:9", &upstream.to_string());
        let settings = Config::parse("llmq.toml", &text).unwrap().check();
        Self::over(&settings.unwrap(), bounds).await
    }

    async fn over(settings: &Settings, bounds: Bounds) -> Self {
        let (tasks, clock) = (Tasks::new(), SystemClock::new());
        let options = GatewayOptions {
            bounds,
            ..GatewayOptions::in_memory(&clock).unwrap()
        };
        let gateway = Gateway::new(settings, options, clock, &tasks)
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let accepting = Tasks::new();
        let served = serve(Arc::clone(&gateway), listener, &accepting).unwrap();
        Self {
            gateway,
            addr: served.addr(),
            tasks,
            accepting,
            served: Some(served),
        }
    }

    /// Tells it to stop, as a signal does; what is there comes to its end.
    pub(crate) fn stop(&mut self) -> Served {
        self.accepting.cancel();
        self.served.take().expect("it is stopped once")
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Sends `request` as it stands and reads until the gateway closes the connection.
    pub(crate) async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        // It may refuse before all is written.
        let _ = stream.write_all(request.as_ref()).await;
        all(&mut stream).await
    }
}

/// What comes until the connection ends, in whatever way.
pub(crate) async fn all(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // A reset is an end too.
    let _ = read.expect("the gateway ends the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads that a caller is to send its body, and nothing else.
pub(crate) async fn goes_on(stream: &mut TcpStream) {
    let told = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut said = vec![0; told.len()];
    let read = timeout(PATIENCE, stream.read_exact(&mut said)).await;
    read.expect("it is told in time").unwrap();
    assert_eq!(String::from_utf8_lossy(&said), told);
}

/// A request without a body, after which the connection is closed.
pub(crate) fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
}

/// Its status, and that it holds `part`.
#[track_caller]
pub(crate) fn is(answer: &str, status: u16, part: &str) {
    let start = format!("HTTP/1.1 {status} ");
    assert!(answer.starts_with(&start), "{status}: {answer}");
    assert!(answer.contains(part), "no {part:?} in {answer}");
}
