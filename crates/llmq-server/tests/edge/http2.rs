//! Callers over HTTP/2, many calls of which share a connection.

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use llmq_server::Bounds;
use llmq_testkit::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::world::{SHORT, World};

type Sender = http2::SendRequest<Full<Bytes>>;

/// What HTTP/2 gives each stream at first (RFC 9113, section 6.9.2).
const WINDOW: u32 = 65_535;

/// The head of a stream that ends with its connection.
const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

/// A connection to the gateway whose streams have this window.
async fn connect(world: &World, window: u32) -> (Sender, JoinSet<hyper::Result<()>>) {
    let io = TokioIo::new(world.connect().await);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(io).await.unwrap();
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    (sender, driving)
}

fn call(stream: bool) -> http::Request<Full<Bytes>> {
    let text = format!(r#"{{"model":"m","stream":{stream},"messages":[]}}"#);
    let request = http::Request::post("http://localhost/v1/chat/completions");
    request.body(Full::new(Bytes::from(text))).unwrap()
}

/// The next call that comes to the upstream.
async fn taken(listener: &TcpListener) -> TcpStream {
    let (mut upstream, _) = listener.accept().await.unwrap();
    let mut request = [0; 4_096];
    assert!(upstream.read(&mut request).await.unwrap() > 0);
    upstream
}

fn event(word: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{word}\"}}}}]}}\n\n")
}

fn whole_answer(text: &str) -> String {
    let body = format!(r#"{{"choices":[{{"message":{{"content":"{text}"}}}}]}}"#);
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A call over HTTP/2 that is answered with these bytes, as soon as its head is there.
async fn begun(
    sender: &mut Sender,
    listener: &TcpListener,
    stream: bool,
    said: &str,
) -> (TcpStream, Incoming) {
    let answers = async {
        let mut upstream = taken(listener).await;
        upstream.write_all(said.as_bytes()).await.unwrap();
        upstream
    };
    let (answer, upstream) = tokio::join!(sender.send_request(call(stream)), answers);
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    (upstream, answer.into_body())
}

/// The gateway leaves the upstream.
async fn is_left(mut upstream: TcpStream) {
    let read = timeout(PATIENCE, upstream.read(&mut [0; 16])).await;
    let read = read.expect("the gateway leaves the upstream");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn a_call_is_answered_and_one_that_is_reset_is_broken_off_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::before(listener.local_addr().unwrap(), Bounds::default()).await;
    let (mut sender, _driving) = connect(&world, WINDOW).await;
    for text in ["first", "last"] {
        let (_, answer) = begun(&mut sender, &listener, false, &whole_answer(text)).await;
        let answer = answer.collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&answer).contains(text));
        // Before its answer has begun …
        let reset = sender.send_request(call(false));
        let upstream = taken(&listener).await;
        drop(reset);
        is_left(upstream).await;
        // … and in the middle of it.
        let said = format!("{STREAM}{}", event("begun"));
        let (upstream, mut answer) = begun(&mut sender, &listener, true, &said).await;
        answer.frame().await.unwrap().unwrap();
        drop(answer);
        is_left(upstream).await;
    }
}

/// It answers pings, so it was never idle: one call without a key held a place for ever.
#[tokio::test]
async fn a_connection_is_closed_when_it_brings_nothing_more() {
    let world = World::new("", SHORT).await;
    let io = TokioIo::new(world.connect().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    let mut last = Instant::now();
    for _ in 0..3 {
        let request = http::Request::get("http://localhost/health");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        last = Instant::now();
        tokio::time::sleep(SHORT.idle_max / 2).await;
    }
    // The caller still has it, and would go on.
    let ended = timeout(PATIENCE, driving.join_next()).await;
    ended.expect("the gateway ends the connection");
    assert!(last.elapsed() >= SHORT.idle_max, "{:?}", last.elapsed());
    drop(sender);
}

/// A stream whose window its caller never opened held its place at the upstream without end. The
/// connection is as good as ever: another of its streams is read all the while.
#[tokio::test]
async fn a_caller_that_takes_nothing_of_one_answer_is_left_by_that_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::before(listener.local_addr().unwrap(), SHORT).await;
    let (mut sender, _driving) = connect(&world, 1_000).await;
    let (word, long) = (event("word"), event(&"a".repeat(2_000)));

    let text = "a".repeat(100_000);
    let said = whole_answer(&text);
    let (_, whole) = begun(&mut sender, &listener, false, &said).await;
    let said = format!("{STREAM}{long}");
    let (mut deaf, unread) = begun(&mut sender, &listener, true, &said).await;
    let said = format!("{STREAM}{word}");
    let (mut lively, mut read) = begun(&mut sender, &listener, true, &said).await;

    let goes_on = async {
        let mut written = Ok(());
        while written.is_ok() {
            written = deaf.write_all(long.as_bytes()).await;
        }
    };
    let is_read = async {
        loop {
            read.frame().await.unwrap().unwrap();
            lively.write_all(word.as_bytes()).await.unwrap();
        }
    };
    let left = async {
        tokio::select! {
            () = goes_on => {}
            () = is_read => unreachable!("it goes on"),
        }
    };
    let left = timeout(PATIENCE, left).await;
    left.expect("the gateway leaves the upstream");
    // What had come is read, and is no end.
    let rest = timeout(PATIENCE, async {
        tokio::join!(whole.collect(), unread.collect())
    });
    let (whole, unread) = rest.await.expect("they are reset");
    assert!(whole.is_err() && unread.is_err(), "{whole:?} {unread:?}");
    lively.write_all(b"data: [DONE]\n\n").await.unwrap();
    drop(lively);
    let rest = timeout(PATIENCE, read.collect()).await.expect("it ends");
    assert!(rest.unwrap().to_bytes().ends_with(b"[DONE]\n\n"));
}
