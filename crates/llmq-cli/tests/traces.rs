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

/// A server that gives one answer of this type to all, and hands over what it was sent: head and
/// body.
fn server(kind: &'static str, answer: &'static str) -> (SocketAddr, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (heard, hears) = channel();
    thread::spawn(move || {
        for guest in listener.incoming() {
            let (mut guest, heard) = (guest.unwrap(), heard.clone());
            thread::spawn(move || {
                while let Some(request) = request(&mut guest) {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\
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

/// An attribute of a span (opentelemetry-proto, "common.proto"): its key, and its value by the
/// tag of its kind.
fn attribute(key: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = field(0x0a, key.as_bytes());
    bytes.extend(field(0x12, value));
    bytes
}

fn text(key: &str, value: &str) -> Vec<u8> {
    attribute(key, &field(0x0a, value.as_bytes()))
}

fn texts(key: &str, value: &str) -> Vec<u8> {
    let item = field(0x0a, value.as_bytes());
    attribute(key, &field(0x2a, &field(0x0a, &item)))
}

fn number(key: &str, value: u8) -> Vec<u8> {
    assert!(value < 128, "one byte");
    attribute(key, &[0x18, value])
}

fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    [&[tag, length], bytes].concat()
}

const ANSWER: &str = r#"{"id":"a-1","object":"chat.completion","model":"m-2026","choices":[{"index":0,"message":{"role":"assistant","content":"Yes."},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Sends one call whose caller is being traced, and waits for its answer.
fn call(addr: SocketAddr, path: &str, body: &str) -> String {
    call_with(addr, path, "", body)
}

/// The same with more headers, each with its line's end.
fn call_with(addr: SocketAddr, path: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         traceparent: 00-{TRACE}-{PARENT}-01\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const STREAM: &str = "data: {\"id\":\"a-1\",\"model\":\"m-2026\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Yes.\"},\"finish_reason\":null}]}\n\ndata: {\"id\":\"a-1\",\"model\":\"m-2026\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

/// A gateway before a provider, and the collector that it tells of its calls.
struct Traced {
    running: Running,
    gateway: SocketAddr,
    asked: Receiver<(String, Vec<u8>)>,
    told: Receiver<(String, Vec<u8>)>,
}

impl Traced {
    fn before(world: &World, kind: &'static str, answer: &'static str) -> Self {
        let (provider, asked) = server(kind, answer);
        let (collector, told) = server("application/json", "{}");
        let (url, endpoint) = (
            format!("http://{provider}/v1"),
            format!("http://{collector}"),
        );
        let mut running = Running::start_with(
            world,
            "serve --listen 127.0.0.1:0 --store memory:",
            &[
                ("OPENAI_API_KEY", "sk-x"),
                ("OPENAI_BASE_URL", &url),
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ],
        );
        let said = running.wait_for("listening: ");
        let addr = said.split("://").nth(1).unwrap().split('/').next().unwrap();
        let gateway = addr.parse().unwrap();
        Self {
            running,
            gateway,
            asked,
            told,
        }
    }

    /// Ends the gateway; what its collector has got then.
    fn spans(self) -> Vec<u8> {
        self.running.signal("-TERM");
        assert_eq!(self.running.end().0, 0);
        let mut spans = Vec::new();
        while let Ok((head, body)) = self.told.try_recv() {
            assert!(head.starts_with("post /v1/traces "), "{head}");
            spans.extend(body);
        }
        spans
    }
}

#[track_caller]
fn assert_holds(spans: &[u8], parts: &[Vec<u8>]) {
    for part in parts {
        assert!(holds(spans, part), "{:?}", String::from_utf8_lossy(part));
    }
}

#[test]
fn a_call_and_an_accepted_request_are_spans_below_those_of_their_callers() {
    let world = World::new();
    let traced = Traced::before(&world, "application/json", ANSWER);
    let chat = r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"a secret"}]}"#;
    let answer = call(traced.gateway, "/v1/chat/completions", chat);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let job = format!(
        r#"{{"model":"m","endpoint":"/v1/chat/completions","body":{chat},"wait_for_completion":true}}"#
    );
    let answer = call(traced.gateway, "/api/requests", &job);
    assert!(answer.contains("\"completed\""), "{answer}");
    let (head, _) = traced.asked.recv_timeout(PATIENCE).unwrap();
    let spans = traced.spans();

    let parent = head.split("traceparent: ").nth(1).unwrap();
    let parent = parent.split("\r\n").next().unwrap();
    let ours = parent.strip_prefix(&format!("00-{TRACE}-")).unwrap();
    let ours = ours.strip_suffix("-01").unwrap();
    assert_ne!(ours, PARENT, "the provider works for our span");
    assert_holds(
        &spans,
        &[
            bytes(TRACE),
            bytes(PARENT),
            bytes(ours),
            b"chat m".to_vec(),
            b"llmq.request_id".to_vec(),
            b"llmq.queue_id".to_vec(),
            b"llmq.upstream".to_vec(),
        ],
    );
    assert!(!holds(&spans, b"a secret"));
}

/// The attributes that OpenTelemetry's conventions ask for ("Generative AI spans", 2026).
#[test]
fn a_span_says_who_was_asked_for_what_and_who_answered() {
    let world = World::new();
    for (kind, answer, stream) in [
        ("application/json", ANSWER, "false"),
        ("text/event-stream", STREAM, "true"),
    ] {
        let traced = Traced::before(&world, kind, answer);
        let chat = format!(
            r#"{{"model":"m","max_tokens":5,"stream":{stream},"messages":[{{"role":"user","content":"x"}}]}}"#
        );
        let answer = call(traced.gateway, "/v1/chat/completions", &chat);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let spans = traced.spans();
        assert_holds(
            &spans,
            &[
                text("gen_ai.operation.name", "chat"),
                text("gen_ai.provider.name", "openai"),
                text("gen_ai.request.model", "m"),
                number("gen_ai.request.max_tokens", 5),
                text("gen_ai.response.model", "m-2026"),
                text("gen_ai.response.id", "a-1"),
                texts("gen_ai.response.finish_reasons", "stop"),
                text("server.address", "127.0.0.1"),
                b"server.port".to_vec(),
            ],
        );
        if stream == "true" {
            assert_holds(&spans, &[attribute("gen_ai.request.stream", &[0x10, 1])]);
        } else {
            assert_holds(
                &spans,
                &[
                    number("gen_ai.usage.input_tokens", 7),
                    number("gen_ai.usage.output_tokens", 2),
                ],
            );
        }
    }
}

#[test]
fn the_span_of_an_accepted_request_says_who_was_asked_for_what_and_who_answered() {
    let world = World::new();
    let job = r#"{"model":"m","endpoint":"/v1/chat/completions","body":{"model":"m","max_tokens":5,"messages":[]},"wait_for_completion":true}"#;
    // A stream is asked for by a plain call whose key makes it a request that is kept.
    let (chat, keyed) = ("/v1/chat/completions", "idempotency-key: k\r\n");
    let stream = r#"{"model":"m","max_tokens":5,"stream":true,"messages":[]}"#;
    for (kind, answer, path, headers, body) in [
        ("application/json", ANSWER, "/api/requests", "", job),
        ("text/event-stream", STREAM, chat, keyed, stream),
    ] {
        let traced = Traced::before(&world, kind, answer);
        let answer = call_with(traced.gateway, path, headers, body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let spans = traced.spans();
        assert_holds(
            &spans,
            &[
                b"llmq.queue_id".to_vec(),
                text("gen_ai.provider.name", "openai"),
                number("gen_ai.request.max_tokens", 5),
                text("gen_ai.response.model", "m-2026"),
                text("gen_ai.response.id", "a-1"),
                texts("gen_ai.response.finish_reasons", "stop"),
                text("server.address", "127.0.0.1"),
            ],
        );
        if body == stream {
            assert_holds(&spans, &[attribute("gen_ai.request.stream", &[0x10, 1])]);
        } else {
            assert_holds(&spans, &[number("gen_ai.usage.output_tokens", 2)]);
        }
    }
}
