//! A provider with strict limits, and a gateway in front of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use llmq_core::LimitSpec;
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_testkit::PATIENCE;
use tokio::runtime::Runtime;

use crate::common::World;
use crate::running::Running;

/// A strict provider, beside the test.
pub(crate) struct Strict {
    mock: MockServer,
    _runtime: Runtime,
}

impl Strict {
    pub(crate) fn with(limits: &[&str]) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let config = MockConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            limits: limits
                .iter()
                .map(|text| text.parse::<LimitSpec>().unwrap())
                .collect(),
            latency: Duration::from_millis(5),
            ..MockConfig::default()
        };
        let mock = runtime.block_on(MockServer::start(config)).unwrap();
        Self {
            mock,
            _runtime: runtime,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.mock.addr()
    }

    /// How many calls it took, and how many it refused.
    pub(crate) fn counted(&self) -> (u64, u64) {
        let report = self.mock.report();
        (report.accepted, report.refused)
    }
}

/// A gateway as a process.
pub(crate) struct Served {
    pub(crate) running: Running,
    pub(crate) addr: SocketAddr,
}

impl Served {
    /// Starts one in a world with these further arguments.
    pub(crate) fn start(world: &World, arguments: &str) -> Self {
        Self::listening(Self::starting(world, arguments))
    }

    /// The same without waiting for it.
    pub(crate) fn starting(world: &World, arguments: &str) -> Running {
        Running::start(world, &format!("serve --listen 127.0.0.1:0 {arguments}"))
    }

    /// Waits until it listens.
    pub(crate) fn listening(mut running: Running) -> Self {
        let said = running.wait_for("listening: OpenAI http");
        let addr = said.split("://").nth(1).unwrap().split('/').next().unwrap();
        Self {
            addr: addr.parse().unwrap(),
            running,
        }
    }

    /// So many calls at once; their statuses, in the order of their ends.
    pub(crate) fn calls(&self, count: usize, headers: &str) -> Vec<u16> {
        let calls: Vec<_> = (0..count)
            .map(|_| {
                let (addr, headers) = (self.addr, headers.to_owned());
                thread::spawn(move || call(addr, &headers).0)
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    }

    /// So many calls that wait in the background.
    pub(crate) fn later(&self, count: usize) -> Vec<thread::JoinHandle<u16>> {
        let addr = self.addr;
        let calls = (0..count).map(|_| thread::spawn(move || call(addr, "").0));
        calls.collect()
    }

    /// Waits until `path` shows `part`.
    pub(crate) fn wait_until(&self, path: &str, part: &str) -> String {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (_, seen) = get(self.addr, path, "");
            if seen.contains(part) {
                return seen;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "no {part:?} in {seen}"
            );
            thread::yield_now();
        }
    }
}

/// A configuration in which `m` is served by `provider` within `limits`.
pub(crate) fn config(provider: SocketAddr, limits: &str) -> String {
    format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"http://{provider}/v1\"\n\
         api_key = \"sk-of-the-provider\"\nadaptive = {{ max = 0 }}\n\
         [models.m]\nupstreams = [{{ upstream = \"one\", limits = {{ {limits} }} }}]\n"
    )
}

/// A chat completion: its status and all that came.
pub(crate) fn call(addr: SocketAddr, headers: &str) -> (u16, String) {
    let body = r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    send(addr, &request)
}

/// What there is at a path.
pub(crate) fn get(addr: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    send(addr, &format!("{head}{headers}\r\n"))
}

pub(crate) fn send(addr: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|text| text.parse().ok());
    (status.unwrap_or(0), answer)
}
