//! `llmq serve` over a file, a stand-in provider behind it, and a caller.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use llmq_provider::mock::{MockConfig, MockServer};
use serde_json::{Value, json};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What outlives every server: the file, the configuration, the provider.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    pub(crate) mock: MockServer,
}

impl Place {
    pub(crate) fn new(latency: Duration, limits: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let config = MockConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            latency,
            jitter: 0.0,
            ..MockConfig::default()
        };
        let mock = runtime.block_on(MockServer::start(config)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[webhooks]\nallow = [\"127.0.0.0/8\"]\n\
             [upstreams.one]\nprovider = \"openai\"\nbase_url = \"http://{}/v1\"\n\
             [models.gpt]\nupstreams = [ {{ upstream = \"one\", limits = {{ {limits} }} }} ]\n",
            mock.addr()
        );
        std::fs::write(dir.path().join("llmq.toml"), text).unwrap();
        Self { dir, runtime, mock }
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

    pub(crate) fn serve_with(&self, flags: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_llmq"))
            .args(["serve", "--config", "llmq.toml", "--listen", "127.0.0.1:0"])
            .args(flags)
            .current_dir(self.dir.path())
            .env_remove("LLMQ_API_KEY")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
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
        Server { child, addr }
    }

    /// What the store's log of events says: how often each request came to an end.
    pub(crate) fn ends(&self) -> std::collections::BTreeMap<String, Vec<String>> {
        use llmq_store::{EventId, EventPage, Events as _, Subject};
        let place = llmq_store_sqlite::Place::File(self.file());
        let now = llmq_core::WallTime::from_micros(1);
        let store = llmq_store_sqlite::Store::open(&place, now).unwrap();
        let mut ends = std::collections::BTreeMap::<String, Vec<String>>::new();
        let mut after = EventId(0);
        loop {
            let page = self.runtime.block_on(store.events(after, 1_000)).unwrap();
            let EventPage::Events(events) = page else {
                panic!("no event of these was let go");
            };
            let Some(last) = events.last() else { break };
            after = last.id;
            for event in events {
                if let Subject::Job { id, status, .. } = event.event.subject
                    && status.is_final()
                {
                    ends.entry(id.to_string())
                        .or_default()
                        .push(event.event.kind);
                }
            }
        }
        store.close();
        ends
    }
}

/// A server that runs; killed if a test leaves it.
pub(crate) struct Server {
    child: Child,
    pub(crate) addr: SocketAddr,
}

impl Server {
    /// SIGKILL: it has no moment for anything.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM: the exit code.
    pub(crate) fn stop(mut self) -> i32 {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(sent.success());
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

/// An answer; none where the server went away before all of it came.
pub(crate) fn ask(addr: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(PATIENCE * 2)).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).ok()?))
}
