//! `llmq serve` tells a collector of its calls, and providers of its spans.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[expect(dead_code, reason = "the tests of the other commands use all of it")]
#[path = "cli/common.rs"]
mod common;
#[expect(dead_code, reason = "the tests of the gateway use all of it")]
#[path = "support/running.rs"]
mod running;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use common::World;
use llmq_testkit::PATIENCE;
use running::Running;

/// A server that gives one answer to all, and hands over what it was sent: head and body.
fn server(answer: &'static str) -> (SocketAddr, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (heard, hears) = channel();
    thread::spawn(move || {
        for guest in listener.incoming() {
            let (mut guest, heard) = (guest.unwrap(), heard.clone());
            thread::spawn(move || {
                while let Some(request) = request(&mut guest) {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                         content-length: {}\r\n\r\n",
                        answer.len()
                    );
                    // First, so that whoever sees the answer finds what was asked.
                    if heard.send(request).is_err() {
                        return;
                    }
                    guest.write_all((head + answer).as_bytes()).unwrap();
                }
            });
        }
    });
    (addr, hears)
}

/// The next request of a connection; none when it is closed.
fn request(guest: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        guest.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    guest.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn holds(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

const ANSWER: &str = r#"{"id":"a","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Yes."},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Sends one call whose caller is being traced, and waits for its answer.
fn call(addr: SocketAddr, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         traceparent: 00-{TRACE}-{PARENT}-01\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_call_and_an_accepted_request_are_spans_below_those_of_their_callers() {
    let (provider, asked) = server(ANSWER);
    let (collector, told) = server("{}");
    let world = World::new();
    let (url, endpoint) = (
        format!("http://{provider}/v1"),
        format!("http://{collector}"),
    );
    let mut running = Running::start_with(
        &world,
        "serve --listen 127.0.0.1:0 --store memory:",
        &[
            ("OPENAI_API_KEY", "sk-x"),
            ("OPENAI_BASE_URL", &url),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ],
    );
    let said = running.wait_for("listening: ");
    let addr = said.split("://").nth(1).unwrap().split('/').next().unwrap();
    let addr = addr.parse().unwrap();
    let chat = r#"{"model":"m","messages":[{"role":"user","content":"a secret"}]}"#;
    let answer = call(addr, "/v1/chat/completions", chat);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let job = format!(
        r#"{{"model":"m","endpoint":"/v1/chat/completions","body":{chat},"wait_for_completion":true}}"#
    );
    let answer = call(addr, "/api/requests", &job);
    assert!(answer.contains("\"completed\""), "{answer}");
    running.signal("-TERM");
    assert_eq!(running.end().0, 0);

    let (head, _) = asked.recv_timeout(PATIENCE).unwrap();
    let parent = head.split("traceparent: ").nth(1).unwrap();
    let parent = parent.split("\r\n").next().unwrap();
    let ours = parent.strip_prefix(&format!("00-{TRACE}-")).unwrap();
    let ours = ours.strip_suffix("-01").unwrap();
    assert_ne!(ours, PARENT, "the provider works for our span");
    let mut spans = Vec::new();
    while let Ok((head, body)) = told.try_recv() {
        assert!(head.starts_with("post /v1/traces "), "{head}");
        spans.extend(body);
    }
    for part in [
        bytes(TRACE),
        bytes(PARENT),
        bytes(ours),
        b"chat m".to_vec(),
        b"gen_ai.usage.input_tokens".to_vec(),
        b"llmq.request_id".to_vec(),
        b"llmq.queue_id".to_vec(),
        b"llmq.upstream".to_vec(),
    ] {
        assert!(holds(&spans, &part), "{part:?}");
    }
    assert!(!holds(&spans, b"a secret"));
}
