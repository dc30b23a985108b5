//! The receiver over real connections.

#![expect(clippy::unwrap_used, reason = "tests and their helpers")]

use std::sync::{Arc, Mutex};

use llmq_client::webhooks::{Handling, Receiver, Verifier, WebhookSecret, sign};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[expect(
    clippy::disallowed_methods,
    reason = "the receiver reads the system's clock too"
)]
fn now_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_secs()).unwrap()
}

struct Heard {
    receiver: std::net::SocketAddr,
    secret: WebhookSecret,
    messages: Arc<Mutex<Vec<String>>>,
}

/// A receiver that says "later" to messages with `later` in them.
async fn receiver() -> Heard {
    let secret = WebhookSecret::generate().unwrap();
    let verifier = Verifier::new([secret.expose()]).unwrap();
    let receiver = Receiver::bind("127.0.0.1:0".parse().unwrap(), verifier);
    let receiver = receiver.await.unwrap();
    let addr = receiver.addr();
    let messages = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&messages);
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(receiver.serve(move |message, body| {
        let body = String::from_utf8_lossy(body).into_owned();
        let later = body.contains("later");
        heard.lock().unwrap().push(match message {
            Ok(message) => format!("{} {body}", message.id),
            Err(error) => format!("refused: {error}"),
        });
        if later {
            Handling::Later
        } else {
            Handling::Done
        }
    }));
    Heard {
        receiver: addr,
        secret,
        messages,
    }
}

impl Heard {
    async fn send(&self, head: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.receiver).await.unwrap();
        let request = format!(
            "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }

    async fn deliver(&self, id: &str, body: &str, signed: &str) -> String {
        let now = now_s();
        let signature = sign(
            std::slice::from_ref(&self.secret),
            id,
            now,
            signed.as_bytes(),
        );
        let mut stream = TcpStream::connect(self.receiver).await.unwrap();
        let request = format!(
            "POST /any/path HTTP/1.1\r\nhost: x\r\nconnection: close\r\nwebhook-id: {id}\r\n\
             webhook-timestamp: {now}\r\nwebhook-signature: {signature}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }
}

#[tokio::test]
async fn a_signed_message_is_handed_over_and_a_changed_one_is_refused() {
    let heard = receiver().await;
    let done = heard.deliver("msg_1", "{\"a\":1}", "{\"a\":1}").await;
    assert_eq!(done, "HTTP/1.1 204 No Content");
    let changed = heard.deliver("msg_2", "{\"a\":2}", "{\"a\":1}").await;
    assert_eq!(changed, "HTTP/1.1 401 Unauthorized");
    let later = heard.deliver("msg_3", "later", "later").await;
    assert_eq!(later, "HTTP/1.1 503 Service Unavailable");
    let messages = heard.messages.lock().unwrap().clone();
    assert_eq!(messages[0], "msg_1 {\"a\":1}");
    assert!(messages[1].starts_with("refused: "), "{messages:?}");
    assert_eq!(messages[2], "msg_3 later");
}

/// Those who sent a head and no body held every place for ever, and nobody else was heard again.
#[tokio::test(start_paused = true)]
async fn senders_that_fall_silent_keep_nobody_else_out() {
    let heard = receiver().await;
    let mut silent = Vec::new();
    for _ in 0..256 {
        let mut stream = TcpStream::connect(heard.receiver).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n";
        stream.write_all(head).await.unwrap();
        silent.push(stream);
    }
    let done = heard.deliver("msg_1", "{}", "{}").await;
    assert_eq!(done, "HTTP/1.1 204 No Content");
    let mut told = String::new();
    silent[0].read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 408"), "{told}");
}

#[tokio::test]
async fn what_is_no_webhook_is_refused() {
    let heard = receiver().await;
    assert!(heard.send("GET /", "").await.contains("405"));
    assert!(heard.send("POST /", "{}").await.contains("401"));
    let large = "x".repeat((1 << 20) + 1);
    assert!(heard.send("POST /", &large).await.contains("413"));
}
