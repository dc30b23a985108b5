//! A gateway, the upstreams behind it, and a caller.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use llmq_core::Clock as _;
use llmq_engine::config::Config;
use llmq_engine::{SystemClock, Tasks};
use llmq_server::{Gateway, GatewayOptions, serve, store_settings};
use llmq_store_sqlite::{Options, Place, Store};
pub(crate) use llmq_testkit::PATIENCE;
use llmq_testkit::{Guest, ScriptedServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::answers;

/// How a caller asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Whole,
    Stream,
}

pub(crate) const BOTH: [Mode; 2] = [Mode::Whole, Mode::Stream];

/// What an upstream does with one call.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// A good answer, whole or as a stream, as it was asked for.
    Answer,
    /// These bytes, and an orderly end of the connection.
    Say(String),
    /// These bytes, and nothing more until the gateway leaves.
    Hang(String),
    /// These bytes, and then the others again and again until the gateway leaves.
    Drip(String, String),
    /// These bytes, and then something else.
    Then(String, Box<Act>),
    /// A reset without a word.
    Reset,
    /// Nothing until it is told to go on, and then this.
    When(Arc<Notify>, Box<Act>),
}

/// A call as an upstream got it.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    at: Instant,
    /// The request line and the headers.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// An upstream that acts by a script and remembers its calls.
pub(crate) struct Upstream {
    pub(crate) name: &'static str,
    pub(crate) url: String,
    calls: Arc<Mutex<Vec<Heard>>>,
    _serving: JoinSet<()>,
}

impl Upstream {
    /// `script` gives the act for the call of that number, from 0.
    pub(crate) async fn start(
        name: &'static str,
        script: impl Fn(usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let server = ScriptedServer::start().await;
        let url = server.url();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (script, log) = (Arc::new(script), Arc::clone(&calls));
        let mut serving = JoinSet::new();
        serving.spawn(server.serve_each(move |mut guest| {
            let (script, log) = (Arc::clone(&script), Arc::clone(&log));
            async move {
                let (head, body) = guest.read_call().await;
                let number = {
                    let mut log = log.lock().unwrap();
                    log.push(Heard {
                        at: Instant::now(),
                        head,
                        body: String::from_utf8_lossy(&body).into_owned(),
                    });
                    log.len() - 1
                };
                act(name, script(number), guest, &body).await;
            }
        }));
        Self {
            name,
            url,
            calls,
            _serving: serving,
        }
    }

    /// How many calls it got.
    pub(crate) fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// The times between its calls.
    pub(crate) fn gaps(&self) -> Vec<Duration> {
        let calls = self.calls.lock().unwrap();
        calls
            .windows(2)
            .map(|pair| pair[1].at - pair[0].at)
            .collect()
    }

    /// The call of that number, from 0, as it came.
    pub(crate) fn heard(&self, number: usize) -> Heard {
        self.calls.lock().unwrap()[number].clone()
    }
}

async fn act(name: &str, what: Act, mut guest: Guest, body: &[u8]) {
    match what {
        Act::Answer => {
            let wish: serde_json::Value = serde_json::from_slice(body).unwrap();
            if wish["stream_options"]["include_usage"] == true {
                guest.say(&answers::stream_with_usage(name)).await;
            } else if wish["stream"] == true {
                guest.say(&answers::stream(name)).await;
            } else {
                guest.say(&answers::whole(name)).await;
            }
        }
        Act::Say(text) => guest.say(&text).await,
        Act::Hang(text) => {
            guest.say(&text).await;
            guest.closed().await;
        }
        Act::Drip(text, drop) => {
            guest.say(&text).await;
            let mut beat = tokio::time::interval(Duration::from_millis(50));
            loop {
                tokio::select! {
                    () = guest.closed() => return,
                    _ = beat.tick() => {}
                }
                guest.say(&drop).await;
            }
        }
        Act::Then(text, then) => {
            guest.say(&text).await;
            Box::pin(act(name, *then, guest, body)).await;
        }
        Act::Reset => guest.reset(),
        Act::When(told, then) => {
            told.notified().await;
            Box::pin(act(name, *then, guest, body)).await;
        }
    }
}

/// A running gateway.
pub(crate) struct World {
    addr: std::net::SocketAddr,
    tasks: Tasks,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

/// Waits that a test can live with.
const SHORT: &str = r#"
[retry]
max_attempts = 3
server = { base = "5ms", max = "10ms" }
rate_limit = { base = "10ms", max = "20ms" }
"#;

impl World {
    /// The model `m` is served by `upstreams`, the first of them as good as always asked first,
    /// each with these timeouts. `more` is added to the table of the model.
    pub(crate) async fn new(upstreams: &[&Upstream], timeouts: &str, more: &str) -> Self {
        let mut text = String::new();
        let mut routes = Vec::new();
        for (index, Upstream { name, url, .. }) in upstreams.iter().enumerate() {
            let weight = if index == 0 { 1e9 } else { 1e-9 };
            text += &format!(
                "[upstreams.{name}]\nprovider = \"openai\"\nbase_url = \"{url}\"\n\
                 timeouts = {{ {timeouts} }}\n"
            );
            routes.push(format!(
                r#"{{ upstream = "{name}", model = "{name}", weight = {weight:?} }}"#
            ));
        }
        text += &format!("[models.m]\nupstreams = [{}]\n{more}\n", routes.join(", "));
        Self::with(&text).await
    }

    /// The model `m` is served by `first`, and when that cannot, by `second`.
    pub(crate) async fn with_fallback(first: &Upstream, second: &Upstream) -> Self {
        Self::with_other(first, second, "fallback").await
    }

    /// The setting `role` of the model `m`, served by `first`, names one that `second` serves.
    pub(crate) async fn with_other(first: &Upstream, second: &Upstream, role: &str) -> Self {
        let more = format!(
            "{role} = [\"n\"]\n[models.n]\nupstreams = [{{ upstream = \"{0}\", model = \"{0}\" }}]\n\
             [upstreams.{0}]\nprovider = \"openai\"\nbase_url = \"{1}\"\n",
            second.name, second.url
        );
        Self::new(&[first], "", &more).await
    }

    /// A gateway with this configuration, short waits added.
    pub(crate) async fn with(text: &str) -> Self {
        Self::set(&format!("{SHORT}{text}")).await
    }

    /// A gateway with this configuration, as it stands.
    pub(crate) async fn set(text: &str) -> Self {
        let settings = Config::parse("llmq.toml", text).unwrap().check();
        let settings = settings.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let tasks = Tasks::new();
        let clock = SystemClock::new();
        let kept = Options {
            settings: store_settings(&settings),
            ..Options::default()
        };
        let store = Store::open_with(&Place::Memory, kept, clock.now().wall).unwrap();
        let options = GatewayOptions {
            any_model: settings.models.is_empty(),
            store,
            ..GatewayOptions::in_memory(&clock).unwrap()
        };
        let gateway = Gateway::new(&settings, options, clock, &tasks)
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let served = serve(gateway, listener, &tasks).unwrap();
        Self {
            addr: served.addr(),
            tasks,
        }
    }

    pub(crate) async fn ask(&self, mode: Mode) -> Seen {
        self.ask_with(mode, &[]).await
    }

    /// One call on a connection of its own, with these headers.
    pub(crate) async fn ask_with(&self, mode: Mode, headers: &[(&str, &str)]) -> Seen {
        timeout(PATIENCE, self.exchange(mode, headers))
            .await
            .expect("the gateway answers in time")
    }

    async fn exchange(&self, mode: Mode, headers: &[(&str, &str)]) -> Seen {
        let request = Request::post("/v1/chat/completions");
        self.send(request, headers, hello(mode)).await
    }

    /// A call for a stream, as soon as its first event has been passed on.
    pub(crate) async fn begin_stream(&self) -> Opened {
        self.begin_stream_with(&[]).await
    }

    pub(crate) async fn begin_stream_with(&self, headers: &[(&str, &str)]) -> Opened {
        let request = Request::post("/v1/chat/completions");
        let opening = self.open(request, headers, hello(Mode::Stream));
        let opened = timeout(PATIENCE, opening).await;
        opened.expect("the answer begins in time")
    }

    /// What these bytes are answered, until the gateway closes the connection.
    pub(crate) async fn raw(&self, bytes: &str) -> String {
        self.raw_bytes(bytes.as_bytes()).await
    }

    /// The same for what need not be text.
    pub(crate) async fn raw_bytes(&self, bytes: &[u8]) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.addr).await.unwrap();
            // It may be answered, and the connection closed, before all of it is read.
            let _written = stream.write_all(bytes).await;
            let mut reply = Vec::new();
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut piece).await {
                reply.extend_from_slice(&piece[..length]);
            }
            String::from_utf8_lossy(&reply).into_owned()
        };
        timeout(PATIENCE, exchange)
            .await
            .expect("the gateway closes the connection")
    }

    /// Any request, on a connection of its own.
    pub(crate) async fn send(
        &self,
        request: http::request::Builder,
        headers: &[(&str, &str)],
        body: String,
    ) -> Seen {
        self.open(request, headers, body).await.rest().await
    }

    /// The same, as soon as its head is there.
    pub(crate) async fn open(
        &self,
        request: http::request::Builder,
        headers: &[(&str, &str)],
        body: String,
    ) -> Opened {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Its error is told to the call.
            let _ended = connection.await;
        });
        let mut request = request.header("host", "gateway");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body)));
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        let seen = Seen {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::new(),
            clean: true,
        };
        Opened {
            seen,
            body,
            _driver: driver,
        }
    }
}

fn hello(mode: Mode) -> String {
    let body = serde_json::json!({
        "model": "m", "stream": mode == Mode::Stream,
        "messages": [{"role": "user", "content": "hello"}],
    });
    body.to_string()
}

/// An answer whose head is there.
pub(crate) struct Opened {
    pub(crate) seen: Seen,
    body: hyper::body::Incoming,
    _driver: JoinSet<()>,
}

impl Opened {
    /// Waits for the next piece of its body; whether there was one.
    pub(crate) async fn piece(&mut self) -> bool {
        let frame = timeout(PATIENCE, self.body.frame()).await;
        match frame.expect("the answer goes on in time") {
            None => return false,
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                let text = std::str::from_utf8(&data).unwrap();
                self.seen.body.push_str(text);
            }
            Some(Err(_)) => self.seen.clean = false,
        }
        true
    }

    /// All of it.
    pub(crate) async fn rest(mut self) -> Seen {
        while self.piece().await {}
        self.seen
    }
}

/// What the caller got.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    /// Whether the body had its proper end.
    pub(crate) clean: bool,
}

impl Seen {
    /// It is the whole answer of `upstream`, model and all, and of nobody else.
    #[track_caller]
    pub(crate) fn is_from(&self, upstream: &Upstream) {
        let name = upstream.name;
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.clean, "{self:?}");
        assert!(self.body.contains(&format!("from {name}")), "{self:?}");
        assert_eq!(self.body.matches("from ").count(), 1, "{self:?}");
        let model = format!(r#""model":"{name}""#);
        assert!(self.body.contains(&model), "{self:?}");
    }

    /// It is a failure with this status, whose body holds `text`.
    #[track_caller]
    pub(crate) fn failed(&self, status: u16, text: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.clean, "{self:?}");
        assert!(self.body.contains(text), "{self:?}");
    }

    /// It began, and is told to have broken off: by an event, and by a body without an end.
    #[track_caller]
    pub(crate) fn broke_off(&self) {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(!self.clean, "{self:?}");
        assert!(self.body.contains(r#""error""#), "{self:?}");
        assert!(!self.body.contains("[DONE]"), "{self:?}");
    }

    pub(crate) fn attempts(&self) -> u32 {
        let text = self.headers["x-llmq-attempts"].to_str().unwrap();
        text.parse().unwrap()
    }
}
