//! A gateway with a stand-in provider, and a caller.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use llmq_core::{Clock as _, LimitSpec};
use llmq_engine::config::Config;
use llmq_engine::{SystemClock, Tasks};
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_server::observe::{CallLog, CallLogForm};
use llmq_server::{Gateway, GatewayOptions, serve, store_settings};
use llmq_store_sqlite::{Options, Place, Store};
use llmq_testkit::{PATIENCE, zone_far_from_midnight};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub(crate) struct World {
    pub(crate) addr: SocketAddr,
    pub(crate) store: Store,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) log: Lines,
    /// Its configuration but for the models.
    accounts: String,
    mock: Option<MockServer>,
    tasks: Tasks,
}

/// The call log, as it is written.
#[derive(Clone, Default)]
pub(crate) struct Lines {
    text: Arc<Mutex<String>>,
    news: Arc<Notify>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = std::str::from_utf8(bytes).unwrap();
        self.text.lock().unwrap().push_str(text);
        self.news.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The lines, as soon as there are so many.
    pub(crate) async fn come_to(&self, count: usize) -> Vec<Value> {
        let wait = async {
            loop {
                let text = self.text.lock().unwrap().clone();
                if text.matches('\n').count() >= count {
                    return text;
                }
                self.news.notified().await;
            }
        };
        let text = tokio::time::timeout(PATIENCE, wait).await.unwrap();
        let lines = text.lines().map(serde_json::from_str);
        lines.map(Result::unwrap).collect()
    }
}

/// What a caller got.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Got {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{} {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    /// The status and the stable word of a problem.
    pub(crate) fn problem(&self) -> (u16, String) {
        let code = self.json()["code"].as_str().unwrap().to_owned();
        (self.status.as_u16(), code)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// The file of a server's store, open to a test too.
pub(crate) struct InFile {
    pub(crate) database: rusqlite::Connection,
    _directory: tempfile::TempDir,
}

/// A provider with these limits.
fn mock_with(limits: &[&str]) -> MockConfig {
    MockConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        limits: limits
            .iter()
            .map(|text| text.parse::<LimitSpec>().unwrap())
            .collect(),
        latency: Duration::from_millis(1),
        ..MockConfig::default()
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(&[], "").await
    }

    /// `limits` are the provider's, `settings` lines of the configuration.
    pub(crate) async fn with(limits: &[&str], settings: &str) -> Self {
        let mock = MockServer::start(mock_with(limits)).await.unwrap();
        Self::behind(mock, limits, settings).await
    }

    pub(crate) async fn behind(mock: MockServer, limits: &[&str], settings: &str) -> Self {
        Self::over(&Place::Memory, small(), mock, limits, settings).await
    }

    /// With these lines of `[quota]`.
    pub(crate) async fn with_quota(quota: &str) -> Self {
        let mock = MockServer::start(mock_with(&[])).await.unwrap();
        let provider = (mock.addr(), Some(mock));
        Self::opened(&Place::Memory, small(), provider, &[], ("", quota)).await
    }

    /// Over a store in a file, which a test may reach into beside the server.
    pub(crate) async fn in_file(limits: &[&str]) -> (Self, InFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("llmq.db");
        let options = Options {
            ballast_bytes: 0,
            ..Options::default()
        };
        let mock = MockServer::start(mock_with(limits)).await.unwrap();
        let place = Place::File(path.clone());
        let world = Self::over(&place, options, mock, limits, "").await;
        let database = rusqlite::Connection::open(path).unwrap();
        (
            world,
            InFile {
                database,
                _directory: directory,
            },
        )
    }

    /// In front of a provider of the test's own.
    pub(crate) async fn before(provider: SocketAddr, settings: &str) -> Self {
        let (place, options) = (&Place::Memory, small());
        Self::opened(place, options, (provider, None), &[], (settings, "")).await
    }

    /// Over a store at `place`, which is opened as `options` say but with the settings of the
    /// configuration.
    pub(crate) async fn over(
        place: &Place,
        options: Options,
        mock: MockServer,
        limits: &[&str],
        settings: &str,
    ) -> Self {
        let provider = (mock.addr(), Some(mock));
        Self::opened(place, options, provider, limits, (settings, "")).await
    }

    async fn opened(
        place: &Place,
        options: Options,
        (provider, mock): (SocketAddr, Option<MockServer>),
        limits: &[&str],
        (settings, quota): (&str, &str),
    ) -> Self {
        let custom: Vec<String> = limits.iter().map(|limit| format!("\"{limit}\"")).collect();
        let accounts = format!(
            "{settings}\n[quota]\n{quota}\ntime_zone = \"{}\"\n[webhooks]\nallow = [\"127.0.0.0/8\"]\n\
             [retry]\nserver = {{ base = \"10ms\", max = \"20ms\" }}\n\
             [upstreams.one]\nprovider = \"openai\"\nbase_url = \"http://{provider}/v1\"\n",
            zone_far_from_midnight()
        );
        let text = format!(
            "{accounts}[models.gpt]\non_unavailable = \"queue\"\nprice = {{ input = 1.0, output = 2.0 }}\n\
             upstreams = [ {{ upstream = \"one\", limits = {{ custom = [{}] }} }} ]\n",
            custom.join(", ")
        );
        let settings = Config::parse("test.toml", &text).unwrap().check().unwrap();
        let clock = SystemClock::new();
        let options = Options {
            settings: store_settings(&settings),
            ..options
        };
        let store = Store::open_with(place, options, clock.now().wall).unwrap();
        let log = Lines::default();
        let options = GatewayOptions {
            store: store.clone(),
            log: CallLog::to(log.clone(), CallLogForm::Json, clock.clone()).unwrap(),
            ..GatewayOptions::in_memory(&clock).unwrap()
        };
        let tasks = Tasks::new();
        let gateway = Gateway::new(&settings, options, clock, &tasks)
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = serve(Arc::clone(&gateway), listener, &tasks)
            .unwrap()
            .addr();
        Self {
            addr,
            store,
            gateway,
            log,
            accounts,
            mock,
            tasks,
        }
    }

    /// Takes over a configuration with these models in the place of its own.
    pub(crate) fn reload(&self, models: &str) {
        let text = format!("{}{models}", self.accounts);
        let settings = Config::parse("test.toml", &text).unwrap().check().unwrap();
        self.gateway.reload(&settings, false).unwrap();
    }

    /// How many calls the provider got.
    pub(crate) fn calls(&self) -> u64 {
        let mock = self.mock.as_ref();
        mock.map_or(0, |mock| mock.report().calls)
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Got {
        let asked = self.asked(method, path, headers, body.into());
        tokio::time::timeout(PATIENCE, asked)
            .await
            .expect("an answer in time")
    }

    async fn asked(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Got {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        self.tasks.spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "x");
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        Got {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Got {
        self.ask(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Got {
        self.ask(Method::POST, path, &[], body.to_string()).await
    }

    /// Hands one in, and tells its id.
    pub(crate) async fn submit(&self) -> String {
        let got = self.post("/api/requests", &request()).await;
        assert_eq!(got.status, 202, "{:?}", got.json());
        got.json()["queue_id"].as_str().unwrap().to_owned()
    }

    /// A request at its end.
    pub(crate) async fn end(&self, id: &str) -> Value {
        let got = self.get(&format!("/api/requests/{id}?wait=20")).await;
        let state = got.json();
        assert!(state["finished_at"].is_string(), "{state}");
        state
    }
}

/// A store that leaves the disk as it is.
fn small() -> Options {
    Options {
        ballast_bytes: 0,
        ..Options::default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

pub(crate) fn request() -> Value {
    json!({"endpoint": "/v1/chat/completions", "body": chat()})
}

pub(crate) fn chat() -> Value {
    json!({"model": "gpt", "messages": [{"role": "user", "content": "hello"}]})
}
