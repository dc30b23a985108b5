//! A server that says exactly what a test tells it to, byte for byte.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Clock, Now, Timestamp, WallTime};
use llmq_provider::{Dialect, Operation, Provider, ProviderConfig, Request, Secret, Timeouts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longer than any test needs; reached only when something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A limit that a test waits for.
pub(crate) const SOON: Duration = Duration::from_millis(60);

/// Tokio's time as a clock.
#[derive(Debug)]
pub(crate) struct TokioClock(tokio::time::Instant);

impl TokioClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(tokio::time::Instant::now()))
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Now {
        Now {
            mono: Timestamp::ZERO + self.0.elapsed(),
            wall: WallTime::default(),
        }
    }
}

pub(crate) struct Server {
    listener: TcpListener,
}

/// A connection on the server's side.
pub(crate) struct Guest {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.listener.local_addr().unwrap())
    }

    pub(crate) fn config(&self) -> ProviderConfig {
        let mut config = ProviderConfig::new(Dialect::OpenAi, self.url())
            .with_key(Secret::new("sk-very-private"));
        config.timeouts = Timeouts {
            connect: PATIENCE,
            first_byte: PATIENCE,
            idle: PATIENCE,
            total: PATIENCE,
        };
        config
    }

    pub(crate) fn provider(&self) -> Provider {
        provider(self.config())
    }

    pub(crate) async fn accept(&self) -> Guest {
        let accepted = tokio::time::timeout(PATIENCE, self.listener.accept()).await;
        let (stream, _) = accepted.unwrap().unwrap();
        Guest {
            stream,
            read: Vec::new(),
        }
    }

    /// Accepts one connection and reads one call.
    pub(crate) async fn serve(&self) -> Guest {
        let mut guest = self.accept().await;
        guest.read_call().await;
        guest
    }
}

impl Guest {
    /// Reads one request with a stated length; gives its head and body.
    pub(crate) async fn read_call(&mut self) -> (String, Vec<u8>) {
        let head_end = loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.read_some().await > 0, "the call ended in its head");
        };
        let head = String::from_utf8(self.read[..head_end].to_vec()).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse::<usize>().unwrap());
        while self.read.len() < head_end + length {
            assert!(self.read_some().await > 0, "the call ended in its body");
        }
        let rest = self.read.split_off(head_end + length);
        let body = self.read.split_off(head_end);
        self.read = rest;
        (head, body)
    }

    /// Waits until something has come, and leaves it there.
    pub(crate) async fn readable(&self) {
        // `readable` alone may be told too early.
        let peek = async { self.stream.peek(&mut [0]).await.unwrap() };
        assert!(tokio::time::timeout(PATIENCE, peek).await.unwrap() > 0);
    }

    async fn read_some(&mut self) -> usize {
        let read = self.stream.read_buf(&mut self.read);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap()
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.say_bytes(text.as_bytes()).await;
    }

    pub(crate) async fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Answers 200 with `body`.
    pub(crate) async fn answer(&mut self, body: &str) {
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        self.say(&head).await;
    }

    /// Closes by reset instead of an orderly end.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Waits until the other side has closed.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        let end = self.stream.read_to_end(&mut rest);
        // A reset is an end too.
        let _ = tokio::time::timeout(PATIENCE, end).await.unwrap();
    }
}

pub(crate) fn provider(config: ProviderConfig) -> Provider {
    Provider::new(config, TokioClock::new()).unwrap()
}

pub(crate) fn chat(body: &'static str) -> Request {
    Request::new(Operation::ChatCompletions, body)
}
