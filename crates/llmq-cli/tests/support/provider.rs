use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llmq_testkit::{Guest, ScriptedServer};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::Instant;

/// A provider that answers as a test scripts it, badly formed answers included.
pub(crate) struct Provider {
    pub(crate) addr: SocketAddr,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    /// Dropped with it, and all connections with that.
    _runtime: Runtime,
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

    /// A refusal that does not say when the day is over.
    pub(crate) fn day_used_up() -> Self {
        let message = "Rate limit reached for requests per day (RPD): Limit 200, Used 200";
        let error = json!({"error": {"message": message, "type": "requests",
                                     "code": "rate_limit_exceeded"}});
        Self::Raw("429 Too Many Requests", String::new(), error.to_string())
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
        let runtime = one_thread();
        let server = runtime.block_on(ScriptedServer::start());
        let addr = server.addr();
        let arrivals: Arc<Mutex<Vec<Arrival>>> = Arc::default();
        let (script, seen) = (Arc::new(script), Arc::clone(&arrivals));
        runtime.spawn(server.serve_each(move |guest| {
            let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
            async move { serve(guest, &*script, &seen).await }
        }));
        Self {
            addr,
            arrivals,
            _runtime: runtime,
        }
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

/// A runtime that works beside the test.
fn one_thread() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

/// One call a connection.
async fn serve(
    mut guest: Guest,
    script: &(dyn Fn(&Call<'_>) -> Reply + Send + Sync),
    seen: &Mutex<Vec<Arrival>>,
) {
    let (_, body) = guest.read_call().await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    let prompt = body["messages"][0]["content"].as_str().unwrap();
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
    answer(guest, reply).await;
}

async fn answer(mut guest: Guest, reply: Reply) {
    let (status, headers, body) = match reply {
        Reply::Text(text) => ("200 OK", String::new(), completion(&text)),
        Reply::Raw(status, headers, body) => (status, headers, body),
        Reply::Bytes(bytes) => return guest.say(bytes).await,
        Reply::Silence => return guest.closed().await,
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n{headers}\r\n",
        body.len()
    );
    guest.say(&head).await;
    guest.say(&body).await;
}

fn completion(text: &str) -> String {
    let message = json!({"role": "assistant", "content": text});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10});
    json!({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice],
           "usage": usage})
    .to_string()
}
