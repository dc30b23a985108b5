//! `llmq webhooks` at a running server, and `llmq webhooks listen` beside it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use llmq_client::webhooks::WebhookSecret;
use serde_json::{Value, json};

use crate::commands::llmq;
use crate::server::{PATIENCE, Place, Server};

/// `llmq webhooks listen` at a free port, and what it says.
struct Listener {
    child: Child,
    url: String,
    printed: Receiver<String>,
    said: Receiver<String>,
}

impl Listener {
    fn start(secret: &str, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_llmq"))
            .args(["webhooks", "listen", "--listen", "127.0.0.1:0"])
            .args(more)
            .env("LLMQ_WEBHOOK_SECRET", secret)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let printed = lines(child.stdout.take().unwrap());
        let said = lines(child.stderr.take().unwrap());
        let ready = said.recv_timeout(PATIENCE).unwrap();
        let url = ready.strip_prefix("listening: ").unwrap();
        let url = url.split(';').next().unwrap().to_owned();
        Self {
            child,
            url,
            printed,
            said,
        }
    }

    /// The next message: its id, and what it says.
    #[track_caller]
    fn hears(&self) -> (String, Value) {
        let said = self.said.recv_timeout(PATIENCE).unwrap();
        let id = said.strip_suffix(": verified").expect(&said).to_owned();
        let message = self.printed.recv_timeout(PATIENCE).unwrap();
        (id, serde_json::from_str(&message).unwrap())
    }

    /// Ctrl-C: its exit code.
    fn interrupt(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe, as they come.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn secret() -> String {
    WebhookSecret::generate().unwrap().expose()
}

/// What a command that ends well prints with `--format json`.
#[track_caller]
fn json_of(server: &Server, words: &[&str]) -> Value {
    let (code, printed, said) = llmq(server, &[words, &["--format", "json"]].concat());
    assert_eq!(code, 0, "{words:?}: {said}");
    serde_json::from_str(&printed).unwrap()
}

/// The same with `--format jsonl`: one of a list on each line.
#[track_caller]
fn lines_of(server: &Server, words: &[&str]) -> Vec<Value> {
    let (code, printed, said) = llmq(server, &[words, &["--format", "jsonl"]].concat());
    assert_eq!(code, 0, "{words:?}: {said}");
    let lines = printed.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

/// A webhook that is told of these events at `url`, signed with this secret: its id.
fn added(server: &Server, url: &str, secret: &str, event: &str) -> String {
    let words = ["webhooks", "add", url, "--secret", secret, "--event", event];
    let made = json_of(server, &words);
    assert_eq!(made["secret"], secret);
    made["id"].as_str().unwrap().to_owned()
}

/// The deliveries of a webhook, as soon as none of them is to come.
fn delivered(server: &Server, id: &str) -> Vec<Value> {
    let begun = tokio::time::Instant::now();
    loop {
        let all = lines_of(server, &["webhooks", "deliveries", id]);
        if all.iter().all(|one| one["status"] != "pending") {
            return all;
        }
        assert!(begun.elapsed() < PATIENCE, "{all:?}");
    }
}

#[test]
fn a_message_is_heard_listed_and_sent_again_from_a_shell() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let secret = secret();
    let ear = Listener::start(&secret, &[]);
    let id = added(&server, &ear.url, &secret, "request.*");
    let queue_id = server.submit();
    let (message, body) = ear.hears();
    assert_eq!(body["type"], "request.completed");
    assert_eq!(body["data"]["queue_id"], queue_id);
    let [one] = &delivered(&server, &id)[..] else {
        panic!("one message was sent");
    };
    assert_eq!(
        (&one["message_id"], &one["status"], &one["attempts"]),
        (&json!(message), &json!("delivered"), &json!(1))
    );
    let number = one["id"].to_string();
    let (code, table, said) = llmq(&server, &["webhooks", "redeliver", &number]);
    assert_eq!(code, 0, "{said}");
    assert!(
        table.starts_with("DELIVERY") && table.contains("request.completed"),
        "{table}"
    );
    assert_eq!(ear.hears().0, message, "it has the same id");
    server.submit();
    ear.hears();
    assert_eq!(delivered(&server, &id).len(), 2);
    let newest = lines_of(&server, &["webhooks", "deliveries", "--limit", "1"]);
    assert_eq!(newest.len(), 1);
    assert_ne!(newest[0]["message_id"], message, "the newest comes first");
    assert_eq!(llmq(&server, &["webhooks", "redeliver", "4711"]).0, 1);
    assert_eq!(ear.interrupt(), Some(0));
}

#[test]
fn a_secret_is_replaced_and_both_are_believed_for_a_while() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let old = secret();
    let ear = Listener::start(&old, &[]);
    let id = added(&server, &ear.url, &old, "*");
    let (code, new, said) = llmq(&server, &["webhooks", "rotate", &id]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains(&id) && new.starts_with("whsec_"),
        "{said}{new}"
    );
    let test = |webhook: &str| llmq(&server, &["webhooks", "test", webhook]);
    assert_eq!(test(&id).0, 0);
    assert_eq!(ear.hears().1["type"], "webhook.test");
    // Who knows the new one alone believes as well; who knows neither does not.
    let newer = Listener::start(new.trim(), &[]);
    json_of(&server, &["webhooks", "update", &id, "--url", &newer.url]);
    assert_eq!(test(&id).0, 0);
    assert_eq!(newer.hears().1["type"], "webhook.test");
    let stranger = Listener::start(&secret(), &[]);
    json_of(
        &server,
        &["webhooks", "update", &id, "--url", &stranger.url],
    );
    let (code, outcome, _) = test(&id);
    assert_eq!(code, 1);
    assert!(outcome.contains("401"), "{outcome}");
    let said = stranger.said.recv_timeout(PATIENCE).unwrap();
    assert!(said.starts_with("refused: no signature"), "{said}");
}

#[test]
fn a_webhook_is_changed_from_a_shell_one_thing_at_a_time() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let (secret, other) = (secret(), secret());
    let busy = Listener::start(&secret, &["--refuse"]);
    let id = added(&server, &busy.url, &secret, "request.completed");
    added(&server, "http://127.0.0.1:1/", &other, "*");
    let listed = || lines_of(&server, &["webhooks", "list"]);
    let update = |words: &[&str]| json_of(&server, &[&["webhooks", "update", &id], words].concat());
    let told = update(&["--event", "batch.*", "--event", "queue.paused"]);
    assert_eq!(told["events"], json!(["batch.*", "queue.paused"]));
    assert_eq!(told["url"], busy.url);
    // Once it was one array on one line.
    assert_eq!(listed().len(), 2);
    assert_eq!(listed()[0], told);
    // Once there was no way back to all.
    let told = update(&["--all-events"]);
    assert_eq!(told["events"], json!([]));
    let (_, table, _) = llmq(&server, &["webhooks", "get", &id]);
    assert!(table.contains("  all  "), "{table}");
    let told = update(&["--description", "mine"]);
    assert_eq!(
        (&told["description"], &told["events"]),
        (&json!("mine"), &json!([]))
    );
    assert_eq!(update(&["--enabled", "false"])["enabled"], false);
    let (_, table, _) = llmq(&server, &["webhooks", "list"]);
    assert!(table.contains("disabled"), "{table}");
    assert_eq!(update(&["--enabled", "true"])["enabled"], true);
    let (code, outcome, _) = llmq(&server, &["webhooks", "test", &id]);
    assert_eq!(code, 1);
    assert!(outcome.contains("503"), "{outcome}");
    assert_eq!(busy.hears().1["type"], "webhook.test");
    for (words, part) in [
        (&[][..], "--url"),
        (
            &["--all-events", "--event", "batch.*"],
            "cannot be used with",
        ),
        (&["--enabled", "perhaps"], "perhaps"),
    ] {
        let (code, _, said) = llmq(&server, &[&["webhooks", "update", &id], words].concat());
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(part), "{said}");
    }
    let (code, _, said) = llmq(
        &server,
        &["webhooks", "update", &id, "--event", "batch.done"],
    );
    assert_eq!(code, 1);
    assert!(
        said.contains("batch.completed"),
        "it says which there are: {said}"
    );
}

#[test]
fn the_callback_of_a_single_request_is_heard_with_the_secret_that_is_printed() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let (code, secret, said) = llmq(&server, &["webhooks", "secret"]);
    assert_eq!(code, 0, "{said}");
    let ear = Listener::start(secret.trim(), &[]);
    let submit = ["requests", "submit", "--model", "gpt", "--prompt", "hi"];
    let callback = ["--callback-url", &ear.url];
    let state = json_of(&server, &[&submit[..], &callback].concat());
    let (_, body) = ear.hears();
    assert_eq!(body["data"]["queue_id"], state["queue_id"]);
    let [one] = &lines_of(&server, &["webhooks", "deliveries"])[..] else {
        panic!("one message was sent");
    };
    assert_eq!(one["callback_url"], ear.url);
}
