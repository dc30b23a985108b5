//! A stand-in to ask, the client that asks it, and the calls it sends.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use llmq_core::LimitSpec;
use llmq_provider::mock::{MockConfig, MockServer};
use serde_json::{Value, json};

pub(crate) const CHAT: &str = "/v1/chat/completions";

pub(crate) async fn start(config: MockConfig) -> (MockServer, Caller) {
    let server = MockServer::start(config).await.expect("an answer");
    let caller = Caller::of(&server);
    (server, caller)
}

/// A server without latency on a free port.
pub(crate) fn instant() -> MockConfig {
    MockConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        latency: Duration::ZERO,
        ..MockConfig::default()
    }
}

pub(crate) fn limits(texts: &[&str]) -> Vec<LimitSpec> {
    texts
        .iter()
        .map(|text| text.parse().expect("a limit"))
        .collect()
}

pub(crate) fn chat(prompt: &str) -> Value {
    json!({"model": "gpt-x", "messages": [{"role": "user", "content": prompt}]})
}

pub(crate) fn message(prompt: &str) -> Value {
    json!({"model": "claude-x", "max_tokens": 5, "messages": [{"role": "user", "content": prompt}]})
}

#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    pub(crate) key: &'static str,
}

impl Caller {
    pub(crate) fn of(server: &MockServer) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            base: format!("http://{}", server.addr()),
            key: "sk-a-key-of-the-test",
        }
    }

    pub(crate) async fn try_post(&self, path: &str, body: &str) -> Result<Answer, String> {
        let request = Request::post(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(Full::from(body.to_owned()))
            .expect("a request");
        self.send(request).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.try_post(path, &body.to_string())
            .await
            .expect("an answer")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let request = Request::get(format!("{}{path}", self.base)).body(Full::default());
        self.send(request.expect("a request"))
            .await
            .expect("an answer")
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let answer = self
            .client
            .request(request)
            .await
            .map_err(|error| error.to_string())?;
        let (parts, body) = answer.into_parts();
        let bytes = body
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).expect("UTF-8"),
        })
    }
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
            .to_str()
            .expect("ASCII")
    }

    /// The `data:` of each event, with its `event:` if it has one.
    pub(crate) fn events(&self) -> Vec<(Option<&str>, &str)> {
        assert_eq!(
            self.header("content-type"),
            "text/event-stream; charset=utf-8"
        );
        let blocks = self.text.split_terminator("\n\n");
        blocks.map(event_of).collect()
    }
}

fn event_of(block: &str) -> (Option<&str>, &str) {
    let (event, data) = match block.split_once('\n') {
        Some((event, data)) => (event.strip_prefix("event: "), data),
        None => (None, block),
    };
    (
        event,
        data.strip_prefix("data: ")
            .unwrap_or_else(|| panic!("{block}")),
    )
}
