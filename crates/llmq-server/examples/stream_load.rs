//! Streams chat answers from `instant_upstream` through whatever stands before it, and times
//! them.
//!
//! `stream_load ADDRESS` prints one JSON object: the time from a call to its first event, the
//! delay of each event from its writing upstream to its arrival here (both read from the
//! machine's monotonic clock), events a second, and how many streams broke. With `--hold` it
//! prints a line `open` once every stream has had its first event.

use std::sync::Arc;

use bytes::BytesMut;
use clap::Parser;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use memchr::memmem;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

mod measure;

use measure::{Caller, Failure, Times, clock};

/// A chat call of 1 KB, as the request load has it.
const PROMPT: &str = "Describe the place in two sentences. ";

#[derive(Parser)]
struct Args {
    /// Where to connect, as host:port
    address: String,
    /// Streams open at the same time, each on a connection of its own
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Streams that each connection asks for, one after the other
    #[arg(long, default_value_t = 1)]
    turns: usize,
    /// Events of each stream
    #[arg(long, default_value_t = 100)]
    events: u32,
    /// Microseconds between them; 0 is a flood
    #[arg(long, default_value_t = 1000)]
    pace_us: u64,
    /// Events of a flood that go out in one write
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// A header for every call, as Name: value
    #[arg(long = "header")]
    headers: Vec<String>,
    /// Say `open` once every stream has begun
    #[arg(long)]
    hold: bool,
}

/// What one connection saw, in nanoseconds.
#[derive(Default)]
struct Seen {
    first: Vec<u64>,
    events: Vec<u64>,
    broken: u64,
}

#[derive(Serialize)]
struct Report {
    first_byte_us: Times,
    event_us: Times,
    seconds: f64,
    events_per_s: f64,
    broken: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args = Arc::new(Args::parse());
    let headers = measure::headers(&args.headers)?;
    let body = Bytes::from(
        serde_json::json!({
            "model": "bench", "stream": true,
            "bench_events": args.events, "bench_pace_us": args.pace_us, "bench_burst": args.burst,
            "messages": [{"role": "user", "content": PROMPT.repeat(24)}],
        })
        .to_string(),
    );
    let begun = Arc::new(Semaphore::new(0));
    let start = clock::monotonic_ns();
    let mut connections = JoinSet::new();
    for _ in 0..args.streams {
        connections.spawn(connection(
            args.clone(),
            headers.clone(),
            body.clone(),
            begun.clone(),
        ));
    }
    if args.hold {
        let all = u32::try_from(args.streams)?;
        // Fails only when the semaphore is closed, which nobody does.
        let _all = begun.acquire_many(all).await?;
        println!("open");
    }
    let mut all = Seen::default();
    while let Some(seen) = connections.join_next().await {
        let seen = seen??;
        all.first.extend(seen.first);
        all.events.extend(seen.events);
        all.broken += seen.broken;
    }
    let seconds = (clock::monotonic_ns() - start) as f64 / 1e9;
    let report = Report {
        events_per_s: all.events.len() as f64 / seconds,
        first_byte_us: Times::of(all.first),
        event_us: Times::of(all.events),
        seconds,
        broken: all.broken,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

async fn connection(
    args: Arc<Args>,
    headers: HeaderMap,
    body: Bytes,
    begun: Arc<Semaphore>,
) -> Result<Seen, Failure> {
    let mut caller = Caller::connect(&args.address, &headers, &body).await?;
    let mut seen = Seen::default();
    for _ in 0..args.turns {
        let called = clock::monotonic_ns();
        let answer = caller.call().await?;
        let good = answer.status().is_success();
        let mut stream = Stream::new(answer.into_body());
        let mut events = 0;
        while let Some((sent, received)) = stream.next().await {
            if events == 0 {
                seen.first.push(received - called);
                begun.add_permits(1);
            }
            events += 1;
            seen.events.push(received.saturating_sub(sent));
        }
        let whole = good && stream.done && events == args.events;
        seen.broken += u64::from(!whole);
    }
    Ok(seen)
}

/// Reads events of the form that `instant_upstream` writes.
struct Stream {
    body: Incoming,
    buffer: BytesMut,
    /// When the last bytes came.
    received: u64,
    done: bool,
}

impl Stream {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            received: 0,
            done: false,
        }
    }

    /// When the next event with content was sent and received; `None` at the stream's end.
    async fn next(&mut self) -> Option<(u64, u64)> {
        loop {
            while let Some(end) = memmem::find(&self.buffer, b"\n\n") {
                let event = self.buffer.split_to(end + 2);
                self.done |= event.starts_with(b"data: [DONE]");
                if let Some(sent) = sent_at(&event) {
                    return Some((sent, self.received));
                }
            }
            // A stream that breaks off lacks its `[DONE]`.
            let frame = self.body.frame().await?.ok()?;
            self.received = clock::monotonic_ns();
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// The instant that an event carries.
fn sent_at(event: &[u8]) -> Option<u64> {
    let begin = memmem::find(event, b"\" t=")? + 4;
    let digits = event[begin..].split(|byte| *byte == b'"').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
