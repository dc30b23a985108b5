//! An upstream that answers at once, so that what is measured is what stands before it.
//!
//! `instant_upstream LISTEN [BYTES]` speaks as much of OpenAI's chat API as a measurement needs. A
//! plain call gets one fixed answer of some 600 bytes, or of BYTES if that is more. With `"stream": true` it gets events; the
//! request's own fields say how, so that they pass any gateway that leaves bodies alone:
//!
//! - `"bench_events": 100`: how many events with content;
//! - `"bench_pace_us": 1000`: microseconds between them; 0 is a flood: as fast as the connection
//!   takes them;
//! - `"bench_burst": 1`: how many events of a flood go out in one write.
//!
//! The content of an event is the instant at which it was written, in nanoseconds of the
//! system's monotonic clock, which all processes of the machine share.

use std::cmp::Ordering;
use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

#[path = "measure/clock.rs"]
mod clock;

const SHORT_ANSWER: &str = r#"{"id":"chatcmpl-BenchBenchBenchBenchBenchBen","object":"chat.completion","created":1767225600,"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"It stands between the sea and the hills, where the old road from the harbour meets the one from the market, and has been rebuilt twice.","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":210,"completion_tokens":29,"total_tokens":239,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}},"service_tier":"default"}"#;

static ANSWER: OnceLock<Bytes> = OnceLock::new();

/// The answer, its content drawn out to `bytes` in all.
fn answer_of(bytes: usize) -> Bytes {
    const LAST_WORD: &str = "twice.";
    let more = " It stands.".repeat(bytes.saturating_sub(SHORT_ANSWER.len()).div_ceil(11));
    Bytes::from(SHORT_ANSWER.replacen(LAST_WORD, &format!("{LAST_WORD}{more}"), 1))
}

type Failure = Box<dyn Error + Send + Sync>;
type Answer = Response<Either<Full<Bytes>, Events>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let listen: SocketAddr = std::env::args()
        .nth(1)
        .ok_or("usage: instant_upstream LISTEN [BYTES]")?
        .parse()?;
    let bytes = std::env::args().nth(2).map_or(Ok(0), |size| size.parse())?;
    ANSWER.get_or_init(|| answer_of(bytes));
    let listener = TcpListener::bind(listen).await?;
    println!("listening: http://{}", listener.local_addr()?);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                connections.spawn(serve(stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream) {
    // A client that leaves ends its connection with an error, which concerns nobody else.
    let _ended = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
}

async fn answer(request: Request<Incoming>) -> Result<Answer, Infallible> {
    // A body that breaks off is answered like one without fields; nobody is there to read it.
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(match wish(&body) {
        Some(wish) if wish.stream => stream(&wish),
        _ => whole(),
    })
}

/// How a call wants to be answered.
#[derive(Deserialize)]
struct Wish {
    #[serde(default)]
    stream: bool,
    #[serde(default = "hundred")]
    bench_events: u32,
    #[serde(default)]
    bench_pace_us: u64,
    #[serde(default = "one")]
    bench_burst: u32,
}

fn hundred() -> u32 {
    100
}

fn one() -> u32 {
    1
}

/// The wish in a body; none without a look into it where it cannot be for a stream.
fn wish(body: &[u8]) -> Option<Wish> {
    memchr::memmem::find(body, b"\"stream\"")?;
    serde_json::from_slice(body).ok()
}

fn whole() -> Answer {
    let body = ANSWER.get_or_init(|| answer_of(0)).clone();
    let length = HeaderValue::from(body.len());
    let mut answer = Response::new(Either::Left(Full::new(body)));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, length);
    answer
}

fn stream(wish: &Wish) -> Answer {
    let mut answer = Response::new(Either::Right(Events::new(wish)));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// The events of one answer: content, the reason for its end, and `[DONE]`.
struct Events {
    content: u32,
    sent: u32,
    pace: Pace,
}

enum Pace {
    Even(Interval),
    /// So many at a time; after them the task gives way once, which makes hyper write them out.
    Flood {
        burst: u32,
        gave_way: bool,
    },
}

impl Events {
    fn new(wish: &Wish) -> Self {
        let pace = if wish.bench_pace_us == 0 {
            Pace::Flood {
                burst: wish.bench_burst.max(1),
                gave_way: false,
            }
        } else {
            let period = Duration::from_micros(wish.bench_pace_us);
            // The first event waits for no tick, which would be the next whole millisecond's.
            let mut ticks = interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Pace::Even(ticks)
        };
        Self {
            content: wish.bench_events,
            sent: 0,
            pace,
        }
    }

    /// Whether the next event is due.
    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.sent == 0 {
            return Poll::Ready(());
        }
        match &mut self.pace {
            Pace::Even(ticks) => ticks.poll_tick(context).map(|_| ()),
            Pace::Flood { burst, gave_way } => {
                if !self.sent.is_multiple_of(*burst) || std::mem::take(gave_way) {
                    return Poll::Ready(());
                }
                *gave_way = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.sent == self.content + 2 {
            return Poll::Ready(None);
        }
        ready!(self.poll_due(context));
        let event = match self.sent.cmp(&self.content) {
            Ordering::Less => content(),
            Ordering::Equal => Bytes::from_static(STOP.as_bytes()),
            Ordering::Greater => Bytes::from_static(b"data: [DONE]\n\n"),
        };
        self.sent += 1;
        Poll::Ready(Some(Ok(Frame::data(event))))
    }
}

const STOP: &str = concat!(
    r#"data: {"id":"chatcmpl-BenchBenchBenchBenchBenchBen","object":"chat.completion.chunk","#,
    r#""created":1767225600,"model":"bench","choices":[{"index":0,"delta":{},"#,
    r#""logprobs":null,"finish_reason":"stop"}]}"#,
    "\n\n"
);

/// An event that says when it was written.
fn content() -> Bytes {
    let now = clock::monotonic_ns();
    Bytes::from(format!(
        concat!(
            r#"data: {{"id":"chatcmpl-BenchBenchBenchBenchBenchBen","#,
            r#""object":"chat.completion.chunk","created":1767225600,"model":"bench","#,
            r#""choices":[{{"index":0,"delta":{{"content":" t={}"}},"#,
            r#""logprobs":null,"finish_reason":null}}]}}"#,
            "\n\n"
        ),
        now
    ))
}
