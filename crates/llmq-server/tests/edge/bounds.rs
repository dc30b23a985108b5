//! Callers that are slow, too large, or too many.

use std::time::Duration;

use llmq_server::Bounds;
use llmq_testkit::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, interval, timeout};

use crate::world::{SHORT, World, all, get, goes_on, is};

const CHAT: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";

#[tokio::test]
async fn headers_of_100_kb_get_431_in_one_field_or_in_many() {
    let world = World::new("", SHORT).await;
    let long = "a".repeat(100_000);
    let one = get("/health", &format!("x-long: {long}\r\n"));
    is(&world.exchange(one).await, 431, "");
    let many: String = (0..100)
        .map(|n| format!("x-{n}: {}\r\n", "a".repeat(990)))
        .collect();
    is(&world.exchange(get("/health", &many)).await, 431, "");
    let fits = get("/health", &format!("x-long: {}\r\n", "a".repeat(50_000)));
    is(&world.exchange(fits).await, 200, "\"status\"");
}

#[tokio::test]
async fn a_body_over_the_limit_gets_413_whether_it_says_so_or_not() {
    let world = World::new("max_body = \"1MB\"", Bounds::default()).await;
    let stated = format!("{CHAT}content-length: 5000000\r\n\r\n");
    is(
        &world.exchange(stated.clone()).await,
        413,
        "server.max_body",
    );
    // One that goes on sending reads the answer all the same.
    let sent = [stated.into_bytes(), vec![b' '; 5_000_000]].concat();
    is(&world.exchange(sent).await, 413, "server.max_body");
    let chunk = format!("{:x}\r\n{}\r\n", 600_000, " ".repeat(600_000));
    let chunked = format!("{CHAT}transfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    is(&world.exchange(chunked).await, 413, "\"too_large\"");
}

/// The connection was closed with its body unread: a reset broke off the sending, and SDKs told of
/// that and not of the answer.
#[tokio::test]
async fn a_caller_that_sends_all_of_its_body_before_it_reads_gets_the_refusal() {
    for (server, status, part) in [
        ("max_body = \"1MB\"", 413, "server.max_body"),
        ("auth = \"keys\"", 401, "unauthenticated"),
    ] {
        let world = World::new(server, Bounds::default()).await;
        let mut stream = world.connect().await;
        let piece = vec![b' '; 1 << 20];
        let head = format!("{CHAT}content-length: {}\r\n\r\n", 60 * piece.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..60 {
            stream.write_all(&piece).await.unwrap();
        }
        is(&all(&mut stream).await, status, part);
    }
}

#[tokio::test]
async fn a_caller_that_never_ends_to_send_what_was_refused_is_left() {
    let world = World::new("max_body = \"1MB\"", SHORT).await;
    let mut stream = world.connect().await;
    let head = format!("{CHAT}content-length: 1000000000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b' '; 1 << 20];
    let sends = async { while stream.write_all(&piece).await.is_ok() {} };
    let left = timeout(PATIENCE, sends).await;
    left.expect("the gateway closes the connection");
}

#[tokio::test]
async fn other_methods_and_paths_get_an_answer_that_says_what_there_is() {
    let world = World::new("", SHORT).await;
    let end = "host: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    for (line, status, part) in [
        ("GET /v1/chat/completions", 405, "allow: POST"),
        ("DELETE /v1/messages", 405, "takes POST"),
        ("POST /v1/models", 405, "allow: GET"),
        ("POST /api/queues", 405, "does not take POST"),
        ("PUT /api/keys", 405, "does not take PUT"),
        ("POST /health", 405, "method_not_allowed"),
        ("GET /v1/nothing", 404, "/v1/chat/completions"),
        ("GET /api/nothing", 404, "/openapi.json"),
        ("GET /nothing", 404, "not_found"),
    ] {
        let answer = world.exchange(format!("{line} HTTP/1.1\r\n{end}")).await;
        is(&answer, status, part);
    }
    is(&world.exchange("no http at all\r\n\r\n").await, 400, "");
}

/// RFC 9110, 9.1: HEAD is there wherever GET is. The list of models answered 405.
#[tokio::test]
async fn head_is_answered_as_get_without_the_body() {
    let world = World::new("", SHORT).await;
    for (path, status) in [
        ("/v1/models", 200),
        ("/v1/models/m", 200),
        ("/v1/models/none", 404),
        ("/v1/responses/none", 404),
        ("/health", 200),
        ("/api/queues", 200),
        ("/v1/files", 200),
        ("/nothing", 404),
    ] {
        let whole = world.exchange(get(path, "")).await;
        let head = get(path, "").replacen("GET", "HEAD", 1);
        let head = world.exchange(head).await;
        is(&head, status, "");
        is(&whole, status, "");
        assert!(head.ends_with("\r\n\r\n"), "{path}: {head}");
        let length = |answer: &str| {
            let line = answer
                .lines()
                .find(|line| line.starts_with("content-length: "));
            line.map(str::to_owned)
        };
        if path.starts_with("/v1/models") {
            assert_eq!(length(&head), length(&whole), "{path}");
        }
    }
    let post = get("/v1/chat/completions", "").replacen("GET", "HEAD", 1);
    is(&world.exchange(post).await, 405, "allow: POST");
}

/// RFC 9110, 10.1.1: a caller that asks before it sends its body is told to go on, or at once why
/// not.
#[tokio::test]
async fn a_body_that_is_asked_for_first_is_taken_or_refused_before_it_comes() {
    let world = World::new("max_body = \"1MB\"", SHORT).await;
    let expects = |length: usize| {
        format!(
            "{CHAT}expect: 100-continue\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let refused = world.exchange(expects(5_000_000)).await;
    is(&refused, 413, "server.max_body");
    assert!(!refused.contains(" 100 "), "{refused}");
    let mut stream = world.connect().await;
    let body = r#"{"model":"none","messages":[]}"#;
    stream
        .write_all(expects(body.len()).as_bytes())
        .await
        .unwrap();
    goes_on(&mut stream).await;
    stream.write_all(body.as_bytes()).await.unwrap();
    is(&all(&mut stream).await, 404, "model_not_found");
}

/// Writes `bytes` one at a time until the other side ends the connection.
async fn trickle(world: &World, before: &str, byte: &str) -> (String, Duration) {
    let mut stream = world.connect().await;
    stream.write_all(before.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let start = Instant::now();
    let mut beat = interval(Duration::from_millis(20));
    let written = async {
        loop {
            beat.tick().await;
            if writer.write_all(byte.as_bytes()).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let answer = tokio::select! {
        answer = all(&mut reader) => answer,
        () = written => unreachable!("it never ends"),
    };
    (answer, start.elapsed())
}

#[tokio::test]
async fn a_caller_that_sends_its_headers_byte_by_byte_is_left() {
    let world = World::new("", SHORT).await;
    for before in ["", "P", "GET /health HTTP/1.1\r\nx-slow: "] {
        let (answer, took) = trickle(&world, before, "P").await;
        assert!(!answer.contains(" 200 "), "{before:?}: {answer}");
        assert!(
            took >= SHORT.first_request_within / 2,
            "{before:?}: {took:?}"
        );
    }
}

#[tokio::test]
async fn a_caller_that_sends_its_body_byte_by_byte_gets_408() {
    let world = World::new("", SHORT).await;
    for head in [
        "content-length: 1000\r\n\r\n{\"model\":\"",
        "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    ] {
        let byte = if head.contains("chunked") {
            "1\r\n \r\n"
        } else {
            "m"
        };
        let (answer, took) = trickle(&world, &format!("{CHAT}{head}"), byte).await;
        is(&answer, 408, "too slowly");
        assert!(took >= SHORT.body_within, "{took:?}");
    }
}

/// Once only calls were bounded so, and `connections_max` slow bodies shut the server.
#[tokio::test]
async fn a_slow_body_gets_408_on_every_path_that_takes_one() {
    let world = World::new("", SHORT).await;
    for path in ["/api/requests", "/api/webhooks", "/api/keys", "/v1/batches"] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: 1000\r\n\r\n{{\"a\":\""
        );
        let (answer, took) = trickle(&world, &head, "m").await;
        is(&answer, 408, "too slowly");
        assert!(took >= SHORT.body_within, "{path}: {took:?}");
    }
    let head = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\n\
                content-type: multipart/form-data; boundary=x\r\ncontent-length: 1000\r\n\r\n\
                --x\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n";
    let (answer, _) = trickle(&world, head, "m").await;
    is(&answer, 408, "too slowly");
}

/// Once a body of `max_body` was read before the key was looked at.
#[tokio::test]
async fn nothing_is_read_of_those_who_may_not_call() {
    let world = World::new("auth = \"keys\"", Bounds::default()).await;
    for path in [
        "/api/requests",
        "/api/webhooks",
        "/api/keys",
        "/v1/batches",
        "/v1/files",
    ] {
        let kind = match path {
            "/v1/files" => "multipart/form-data; boundary=x",
            _ => "application/json",
        };
        // The body never comes.
        let answer = world
            .exchange(format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                 content-type: {kind}\r\ncontent-length: 30000\r\n\r\n"
            ))
            .await;
        is(&answer, 401, "unauthenticated");
    }
}

#[tokio::test]
async fn a_connection_that_brings_nothing_is_closed_before_and_after_a_request() {
    let world = World::new("", SHORT).await;
    let mut silent = world.connect().await;
    assert_eq!(all(&mut silent).await, "");
    let mut idle = world.connect().await;
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let start = Instant::now();
    is(&all(&mut idle).await, 200, "\"status\"");
    assert!(start.elapsed() >= SHORT.idle_max, "{:?}", start.elapsed());
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_until_one_ends() {
    let bounds = Bounds {
        connections_max: 2,
        ..Bounds::default()
    };
    let world = World::new("", bounds).await;
    let held = [world.connect().await, world.connect().await];
    let mut third = world.connect().await;
    third
        .write_all(get("/health", "").as_bytes())
        .await
        .unwrap();
    let early = timeout(Duration::from_millis(200), third.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
    drop(held);
    is(&all(&mut third).await, 200, "\"status\"");
}

/// A stream whose caller read nothing held its place at the upstream without end: not even the
/// time for the whole call ended it, since nobody asked for more.
#[tokio::test]
async fn a_caller_that_takes_nothing_of_its_answer_is_left_and_its_upstream_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::before(listener.local_addr().unwrap(), SHORT).await;
    let body = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let call = format!(
        "{CHAT}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut caller = world.connect().await;
    caller.write_all(call.as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    let mut request = [0; 4_096];
    assert!(upstream.read(&mut request).await.unwrap() > 0);
    let word = "a".repeat(60_000);
    let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{word}\"}}}}]}}\n\n");
    let piece = format!("{:x}\r\n{event}\r\n", event.len());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\n\r\n";
    // It goes on for as long as the gateway listens.
    let says = async {
        let mut written = upstream.write_all(head.as_bytes()).await;
        while written.is_ok() {
            written = upstream.write_all(piece.as_bytes()).await;
        }
    };
    let left = timeout(PATIENCE, says).await;
    left.expect("the gateway leaves the upstream");
    drop(caller);
}
