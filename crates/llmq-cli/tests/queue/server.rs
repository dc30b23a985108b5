//! `llmq serve` over a file, a stand-in provider behind it, and a caller.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use llmq_core::{Status, WallTime};
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_store::{EventId, EventPage, Events as _, Filter, JobId, Reads as _, Subject};
use serde_json::{Value, json};

use crate::witness;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What outlives every server: the file, the configuration, the provider.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    mock: Option<MockServer>,
}

impl Place {
    /// A place with a stand-in provider.
    pub(crate) fn new(latency: Duration, limits: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let config = MockConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            latency,
            jitter: 0.0,
            ..MockConfig::default()
        };
        let mock = runtime.block_on(MockServer::start(config)).unwrap();
        let (addr, mock) = (mock.addr(), Some(mock));
        Self {
            mock,
            runtime,
            ..Self::before(addr, limits)
        }
    }

    /// A place before a provider of the test's own.
    pub(crate) fn before(provider: SocketAddr, limits: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[webhooks]\nallow = [\"127.0.0.0/8\"]\n\
             [upstreams.one]\nprovider = \"openai\"\nbase_url = \"http://{provider}/v1\"\n\
             [models.gpt]\nupstreams = [ {{ upstream = \"one\", limits = {{ {limits} }} }} ]\n"
        );
        std::fs::write(dir.path().join("llmq.toml"), text).unwrap();
        Self {
            dir,
            runtime: tokio::runtime::Runtime::new().unwrap(),
            mock: None,
        }
    }

    /// How many calls the stand-in got.
    pub(crate) fn calls(&self) -> u64 {
        self.mock.as_ref().map_or(0, |mock| mock.report().calls)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("queue.db")
    }

    /// More of the configuration.
    pub(crate) fn append(&self, text: &str) {
        let path = self.dir.path().join("llmq.toml");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, before + text).unwrap();
    }

    pub(crate) fn serve(&self) -> Server {
        self.serve_with(&["--store", "sqlite:queue.db"])
    }

    /// A server that has just begun, and whose words nobody hears.
    pub(crate) fn begin(&self) -> Child {
        self.command(&["--store", "sqlite:queue.db"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmq"));
        command
            .args(["serve", "--config", "llmq.toml", "--listen", "127.0.0.1:0"])
            .args(flags)
            .current_dir(self.dir.path())
            .env_remove("LLMQ_API_KEY")
            .stdout(Stdio::null());
        command
    }

    pub(crate) fn serve_with(&self, flags: &[&str]) -> Server {
        let mut child = self.command(flags).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let addr = loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended: {said}");
            said.push_str(&line);
            if let Some(rest) = line.strip_prefix("listening: OpenAI http://") {
                break rest.split('/').next().unwrap().parse().unwrap();
            }
        };
        // What it says from here on is of no interest, but must go somewhere.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Server { child, addr, said }
    }

    /// What the file holds when all is over: each request with its job, and all that was told of
    /// the jobs, in order.
    pub(crate) fn held(&self) -> Held {
        let place = llmq_store_sqlite::Place::File(self.file());
        let now = WallTime::from_micros(1);
        let store = llmq_store_sqlite::Store::open(&place, now).unwrap();
        let held = self.runtime.block_on(Held::read(&store));
        store.close();
        held
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) jobs: Vec<HeldJob>,
    /// In the order in which they were told.
    pub(crate) events: Vec<HeldEvent>,
}

#[derive(Debug)]
pub(crate) struct HeldJob {
    pub(crate) id: JobId,
    pub(crate) status: Status,
    /// What its user says.
    pub(crate) text: String,
    /// The call whose answer is its result, by its number at the provider.
    pub(crate) answered: Option<usize>,
}

/// Where a job stood since when.
#[derive(Debug, Clone)]
pub(crate) struct HeldEvent {
    pub(crate) job: JobId,
    pub(crate) status: Status,
    pub(crate) at: WallTime,
}

impl Held {
    async fn read(store: &llmq_store_sqlite::Store) -> Self {
        let mut held = Self::default();
        let mut after = None;
        loop {
            let page = store.list(&Filter::default(), after, 1_000).await.unwrap();
            for job in page.items {
                let body = store.body(job.id).await.unwrap().unwrap();
                let body: Value = serde_json::from_slice(&body).unwrap();
                let answer = store.answer(job.id).await.unwrap();
                let answer = answer.map(|answer| serde_json::from_slice(&answer.body).unwrap());
                held.jobs.push(HeldJob {
                    id: job.id,
                    status: job.status,
                    text: body["messages"][0]["content"].as_str().unwrap().to_owned(),
                    answered: answer.as_ref().and_then(witness::number_of),
                });
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let mut after = EventId(0);
        loop {
            let EventPage::Events(events) = store.events(after, 1_000).await.unwrap() else {
                panic!("no event of these was let go");
            };
            let Some(last) = events.last() else {
                return held;
            };
            after = last.id;
            for event in events {
                if let Subject::Job { id, status, .. } = event.event.subject {
                    held.events.push(HeldEvent {
                        job: id,
                        status,
                        at: event.at,
                    });
                }
            }
        }
    }
}

/// A server that runs; killed if a test leaves it.
pub(crate) struct Server {
    child: Child,
    pub(crate) addr: SocketAddr,
    /// What it said before it listened.
    pub(crate) said: String,
}

impl Server {
    /// SIGKILL: it has no moment for anything.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let (signal, pid) = (format!("-{name}"), self.child.id().to_string());
        let sent = Command::new("kill").args([signal, pid]).status().unwrap();
        assert!(sent.success());
    }

    /// SIGTERM: the exit code.
    pub(crate) fn stop(mut self) -> i32 {
        self.signal("TERM");
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        ask(self.addr, "GET", path, "").expect("the server answers")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        ask(self.addr, "POST", path, &body.to_string()).expect("the server answers")
    }

    pub(crate) fn submit(&self) -> String {
        let (status, state) = self.post("/api/requests", &request("hello"));
        assert_eq!(status, 202, "{state}");
        state["queue_id"].as_str().unwrap().to_owned()
    }

    /// A request at its end.
    pub(crate) fn end(&self, id: &str) -> Value {
        let (status, state) = self.get(&format!("/api/requests/{id}?wait=60"));
        assert_eq!(status, 200, "{state}");
        assert!(state["finished_at"].is_string(), "{state}");
        state
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn request(text: &str) -> Value {
    json!({
        "endpoint": "/v1/chat/completions",
        "body": {"model": "gpt", "messages": [{"role": "user", "content": text}]},
    })
}

/// An answer in JSON; none where the server went away before all of it came.
pub(crate) fn ask(addr: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    let (status, body) = fetch(addr, method, path, "application/json", body)?;
    Some((status, serde_json::from_str(&body).ok()?))
}

/// An answer; none where the server went away before all of it came.
pub(crate) fn fetch(
    addr: SocketAddr,
    method: &str,
    path: &str,
    content_type: &str,
    body: &str,
) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(PATIENCE * 2)).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let is_chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if is_chunked {
        unchunked(body)?
    } else {
        body.to_owned()
    };
    Some((status, body))
}

/// A body that came in chunks; none if it ends early.
fn unchunked(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..size)?);
        body = rest.get(size + 2..)?;
    }
}
