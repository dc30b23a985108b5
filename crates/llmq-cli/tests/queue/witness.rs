//! A provider that writes down what is sent to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llmq_core::WallTime;
use serde_json::{Value, json};

use crate::server::PATIENCE;

/// A call that came.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// What its user says.
    pub(crate) text: String,
    pub(crate) at: WallTime,
}

/// See the module. It ends with the test's process.
pub(crate) struct Witness {
    pub(crate) addr: SocketAddr,
    book: Arc<Book>,
}

#[derive(Default)]
struct Book {
    sent: Mutex<Vec<Sent>>,
    in_flight: AtomicU64,
}

impl Witness {
    /// One that answers each call after `latency`.
    pub(crate) fn start(latency: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let book = Arc::new(Book::default());
        let shared = Arc::clone(&book);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let book = Arc::clone(&shared);
                std::thread::spawn(move || book.serve(&stream, latency));
            }
        });
        Self { addr, book }
    }

    /// All calls that came, in their order.
    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.book.sent.lock().unwrap().clone()
    }

    /// How many have no answer yet.
    pub(crate) fn in_flight(&self) -> u64 {
        self.book.in_flight.load(Ordering::Relaxed)
    }
}

impl Book {
    /// Serves one connection, until the other side leaves.
    fn serve(&self, stream: &TcpStream, latency: Duration) {
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader) {
            let number = self.note(&request.body);
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(latency);
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            let body = answer(number).to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let mut stream = stream;
            if stream.write_all((head + &body).as_bytes()).is_err() {
                return;
            }
        }
    }

    /// The number of a call that came just now.
    fn note(&self, body: &[u8]) -> usize {
        let body: Value = serde_json::from_slice(body).unwrap();
        let text = body["messages"][0]["content"].as_str().unwrap().to_owned();
        let mut sent = self.sent.lock().unwrap();
        let at = WallTime::from_micros(jiff::Timestamp::now().as_microsecond());
        sent.push(Sent { text, at });
        sent.len() - 1
    }
}

fn answer(number: usize) -> Value {
    json!({
        "id": number.to_string(),
        "object": "chat.completion",
        "created": 1,
        "model": "gpt",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": "A fine place."}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    })
}

/// The number of the call that a provider gave this answer to.
pub(crate) fn number_of(answer: &Value) -> Option<usize> {
    answer["id"].as_str()?.parse().ok()
}

/// A request over HTTP/1.1 with a stated length.
pub(crate) struct Request {
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The next one of a connection; none where its sender left before all of it came.
    pub(crate) fn read(reader: &mut BufReader<&TcpStream>) -> Option<Self> {
        let _ = reader.get_ref().set_read_timeout(Some(PATIENCE * 2));
        let mut line = String::new();
        let mut next = || {
            line.clear();
            let read = reader.read_line(&mut line).ok()?;
            (read > 0).then(|| line.trim_end().to_owned())
        };
        let path = next()?.split(' ').nth(1)?.to_owned();
        let mut headers = Vec::new();
        loop {
            let line = next()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ")?;
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut request = Self {
            path,
            headers,
            body: Vec::new(),
        };
        let length = request.header("content-length");
        request.body = vec![0; length.map_or(Ok(0), str::parse).ok()?];
        reader.read_exact(&mut request.body).ok()?;
        Some(request)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }
}
