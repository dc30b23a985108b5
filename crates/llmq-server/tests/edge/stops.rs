//! A server that is told to stop, with calls in flight.

use llmq_server::Bounds;
use llmq_testkit::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::world::{World, all, get, is};

/// Sends a call and waits until its upstream has it.
async fn begun(world: &World, upstream: &TcpListener, stream: bool) -> (TcpStream, TcpStream) {
    let body = format!(r#"{{"model":"m","stream":{stream},"messages":[]}}"#);
    let call = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut caller = world.connect().await;
    caller.write_all(call.as_bytes()).await.unwrap();
    let (mut provider, _) = upstream.accept().await.unwrap();
    let mut request = [0; 4_096];
    assert!(provider.read(&mut request).await.unwrap() > 0);
    (caller, provider)
}

#[tokio::test]
async fn calls_in_flight_end_well_and_nobody_new_comes_in() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = upstream.local_addr().unwrap();
    let mut world = World::before(at, Bounds::default()).await;
    let (mut whole, mut answers) = begun(&world, &upstream, false).await;
    let (mut stream, mut streams) = begun(&world, &upstream, true).await;
    let event = |word: &str| {
        let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{word}\"}}}}]}}\n\n");
        format!("{:x}\r\n{event}\r\n", event.len())
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let said = format!("{head}{}", event("begun"));
    streams.write_all(said.as_bytes()).await.unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).await.unwrap();
    let mut idle = world.connect().await;
    let asked = b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
    idle.write_all(asked).await.unwrap();
    idle.read_exact(&mut first).await.unwrap();

    let addr = world.addr;
    let served = world.stop();
    is(&format!("H{}", all(&mut idle).await), 200, "\"ok\"");
    let refused = async {
        while let Ok(mut late) = TcpStream::connect(addr).await {
            // One that came in before the door was shut is still answered, or left.
            let _ = late.write_all(get("/health/ready", "").as_bytes()).await;
            let answer = all(&mut late).await;
            assert!(!answer.contains(" 200 "), "{answer}");
        }
    };
    timeout(PATIENCE, refused).await.expect("it is refused");

    let body = r#"{"choices":[{"message":{"content":"late"}}]}"#;
    let said = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    answers.write_all(said.as_bytes()).await.unwrap();
    is(&all(&mut whole).await, 200, "late");
    let done = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    let rest = format!("{}{done}", event("ended"));
    streams.write_all(rest.as_bytes()).await.unwrap();
    let seen = format!("H{}", all(&mut stream).await);
    is(&seen, 200, "ended");
    assert!(seen.ends_with("[DONE]\n\n\r\n0\r\n\r\n"), "{seen}");
    let stopped = timeout(PATIENCE, served.stopped()).await;
    stopped.expect("it ends with the last call");
}
