//! A server of files and batches that answers as a test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::server::PATIENCE;

/// What it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Method and path, without what is behind a question mark.
    pub(crate) what: String,
    pub(crate) idempotency_key: Option<String>,
}

/// What it answers.
pub(crate) enum Reply {
    Json(u16, Value),
    /// Lines of JSON.
    Lines(Vec<Value>),
    /// The connection ends without an answer.
    Cut,
    /// Nothing, for as long as the test runs.
    Silence,
}

type Script = Box<dyn FnMut(&Question) -> Option<Reply> + Send>;

/// See the module. It ends with the test's process.
pub(crate) struct Scripted {
    pub(crate) addr: SocketAddr,
    book: Arc<Mutex<Book>>,
}

struct Book {
    asked: Vec<Question>,
    script: Script,
    files: usize,
    batches: usize,
}

impl Scripted {
    /// Files and batches are taken; what the script has an answer to is answered so.
    pub(crate) fn start(script: impl FnMut(&Question) -> Option<Reply> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let book = Arc::new(Mutex::new(Book {
            asked: Vec::new(),
            script: Box::new(script),
            files: 0,
            batches: 0,
        }));
        let shared = Arc::clone(&book);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let book = Arc::clone(&shared);
                std::thread::spawn(move || answer(&stream, &book));
            }
        });
        Self { addr, book }
    }

    /// From here on it answers so.
    pub(crate) fn then(&self, script: impl FnMut(&Question) -> Option<Reply> + Send + 'static) {
        self.book.lock().unwrap().script = Box::new(script);
    }

    /// What it was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Question> {
        self.book.lock().unwrap().asked.clone()
    }

    /// How often it was asked this.
    pub(crate) fn count(&self, what: &str) -> usize {
        let asked = self.asked();
        asked
            .iter()
            .filter(|question| question.what == what)
            .count()
    }

    /// Returns as soon as it was asked this so often.
    pub(crate) fn comes_to(&self, what: &str, count: usize) {
        let begun = Instant::now();
        while self.count(what) < count {
            assert!(begun.elapsed() < PATIENCE, "{:?}", self.asked());
            std::thread::yield_now();
        }
    }
}

impl Book {
    fn reply(&mut self, question: Question) -> Reply {
        let reply = (self.script)(&question);
        self.asked.push(question.clone());
        if let Some(reply) = reply {
            return reply;
        }
        match question.what.as_str() {
            "GET /v1/batches" => Reply::Json(200, json!({"data": [], "has_more": false})),
            "POST /v1/files" => {
                self.files += 1;
                Reply::Json(200, json!({"id": format!("file-{}", self.files)}))
            }
            "POST /v1/batches" => {
                self.batches += 1;
                let id = format!("batch-{}", self.batches);
                Reply::Json(200, json!({"id": id, "status": "validating"}))
            }
            what if what.starts_with("DELETE /v1/files/") || what.starts_with("GET /v1/files/") => {
                Reply::Json(200, json!({}))
            }
            _ => Reply::Json(400, json!({"error": {"message": "not in the script"}})),
        }
    }
}

fn answer(mut stream: &TcpStream, book: &Mutex<Book>) {
    let Some(question) = read(stream) else { return };
    let reply = book.lock().unwrap().reply(question);
    let (status, body) = match reply {
        Reply::Json(status, body) => (status, body.to_string()),
        Reply::Lines(lines) => {
            let lines = lines.iter().map(|line| format!("{line}\n"));
            (200, lines.collect())
        }
        Reply::Cut => return,
        Reply::Silence => {
            // Until its caller goes.
            let _ = stream.read(&mut [0]);
            return;
        }
    };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    let _ = stream.write_all(text.as_bytes());
}

fn read(stream: &TcpStream) -> Option<Question> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let path = path.split('?').next()?;
    let mut question = Question {
        what: format!("{method} {path}"),
        idempotency_key: None,
    };
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else {
            break;
        };
        match name {
            "content-length" => length = value.parse().ok()?,
            "idempotency-key" => question.idempotency_key = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(question)
}
