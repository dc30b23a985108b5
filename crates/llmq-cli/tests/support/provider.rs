use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

/// A provider that answers as a test scripts it, badly formed answers included.
pub(crate) struct Provider {
    pub(crate) addr: SocketAddr,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
}

/// When a prompt came.
type Arrival = (String, Instant);

/// One call as the script sees it.
pub(crate) struct Call<'a> {
    /// What the user's message says.
    pub(crate) prompt: &'a str,
    /// How often this prompt came before.
    pub(crate) earlier: usize,
    /// How many calls came before, of any prompt.
    pub(crate) number: usize,
}

/// What the script answers.
pub(crate) enum Reply {
    /// A good answer of this text.
    Text(String),
    /// Status, further headers as they stand on the wire, body.
    Raw(&'static str, String, String),
    /// These bytes, and the connection is closed.
    Bytes(&'static str),
    /// Nothing, for as long as the other side waits.
    Silence,
}

impl Reply {
    pub(crate) fn ok() -> Self {
        Self::Text("A fine place.".to_owned())
    }

    /// A refusal of a limit with this `Retry-After`.
    pub(crate) fn refused(retry_after: &str) -> Self {
        let error = json!({"error": {"message": "Rate limit reached", "type": "requests",
                                     "code": "rate_limit_exceeded"}});
        let header = format!("retry-after: {retry_after}\r\n");
        Self::Raw("429 Too Many Requests", header, error.to_string())
    }
}

impl Provider {
    pub(crate) fn start(script: impl Fn(&Call<'_>) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let arrivals: Arc<Mutex<Vec<Arrival>>> = Arc::default();
        let (script, seen) = (Arc::new(script), Arc::clone(&arrivals));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                // A client that leaves ends its thread by an error.
                thread::spawn(move || serve(stream, &*script, &seen));
            }
        });
        Self { addr, arrivals }
    }

    /// What was asked so far, in the order of arrival.
    pub(crate) fn prompts(&self) -> Vec<String> {
        let arrivals = self.arrivals.lock().unwrap();
        arrivals.iter().map(|(prompt, _)| prompt.clone()).collect()
    }

    /// How long after the first call with `prompt` the next call came, whatever it asked.
    pub(crate) fn quiet_after(&self, prompt: &str) -> Duration {
        let arrivals = self.arrivals.lock().unwrap();
        let first = arrivals.iter().position(|(other, _)| other == prompt);
        let first = first.unwrap();
        arrivals[first + 1].1 - arrivals[first].1
    }

    /// How often each prompt came.
    pub(crate) fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for prompt in self.prompts() {
            *counts.entry(prompt).or_default() += 1;
        }
        counts
    }
}

/// One call a connection.
fn serve(
    stream: TcpStream,
    script: &dyn Fn(&Call<'_>) -> Reply,
    seen: &Mutex<Vec<Arrival>>,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let body: Value = serde_json::from_slice(&read_body(&mut reader)?).ok()?;
    let prompt = body["messages"][0]["content"].as_str()?;
    let reply = {
        let mut seen = seen.lock().unwrap();
        let at = Instant::now();
        let call = Call {
            prompt,
            earlier: seen.iter().filter(|(other, _)| other == prompt).count(),
            number: seen.len(),
        };
        let reply = script(&call);
        seen.push((prompt.to_owned(), at));
        reply
    };
    answer(stream, reader, reply)
}

fn read_body(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

fn answer(mut stream: TcpStream, mut reader: impl Read, reply: Reply) -> Option<()> {
    let (status, headers, body) = match reply {
        Reply::Text(text) => ("200 OK", String::new(), completion(&text)),
        Reply::Raw(status, headers, body) => (status, headers, body),
        Reply::Bytes(bytes) => return stream.write_all(bytes.as_bytes()).ok(),
        Reply::Silence => return reader.read_to_end(&mut Vec::new()).ok().map(|_| ()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()
}

fn completion(text: &str) -> String {
    let message = json!({"role": "assistant", "content": text});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10});
    json!({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice],
           "usage": usage})
    .to_string()
}
