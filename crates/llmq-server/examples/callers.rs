//! Callers in a closed loop: each sends its next call when the last one is answered.
//!
//! `callers ADDRESS --seconds 30 --group JSON…` prints one JSON object: for each group its
//! answers by status and how long they took, and for all of them the instants of the good
//! answers. A group is
//! `{"name": "low", "callers": 85, "think_ms": 0, "headers": ["X-LLMQ-Priority: low"]}`.
//! With `--hold` it says `sent` once every caller's first request is on its way, which is how a
//! crowd of waiting clients is made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

mod measure;

use measure::{Caller, Failure, Times, clock};

#[derive(Parser)]
struct Args {
    /// Where to connect, as host:port
    address: String,
    /// For how long new calls begin; none is waited for beyond it
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Callers that are alike, as JSON; may be repeated
    #[arg(long = "group")]
    groups: Vec<String>,
    /// Good answers of so many seconds count for no group: who came first had them, before anybody
    /// waited
    #[arg(long, default_value_t = 0)]
    warm_up: u64,
    /// Say `sent` once every caller's first request is on its way
    #[arg(long)]
    hold: bool,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    callers: usize,
    #[serde(default)]
    think_ms: u64,
    #[serde(default)]
    headers: Vec<String>,
}

/// What callers saw; times in nanoseconds.
#[derive(Default)]
struct Seen {
    status: BTreeMap<u16, u64>,
    broken: u64,
    took: Vec<u64>,
    answered_at: Vec<u64>,
}

#[derive(Serialize)]
struct GroupReport {
    name: String,
    status: BTreeMap<u16, u64>,
    /// Calls without an answer, connections without a call among them.
    broken: u64,
    took_us: Times,
}

#[derive(Serialize)]
struct Report {
    groups: Vec<GroupReport>,
    /// When each good answer was there, in milliseconds since the start, in order.
    answered_ms: Vec<f64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let groups: Vec<Group> = args
        .groups
        .iter()
        .map(|text| serde_json::from_str(text))
        .collect::<Result<_, _>>()?;
    let body = Bytes::from_static(
        br#"{"model":"bench","messages":[{"role":"user","content":"Describe the place."}],"max_tokens":20}"#,
    );
    let start = clock::monotonic_ns();
    let counts_from = start + args.warm_up * 1_000_000_000;
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let sent = Arc::new(Semaphore::new(0));
    let mut callers = JoinSet::new();
    let mut count = 0;
    let until = Until { counts_from, end };
    for (index, group) in groups.iter().enumerate() {
        let headers = measure::headers(&group.headers)?;
        for _ in 0..group.callers {
            let (address, headers, body) = (args.address.clone(), headers.clone(), body.clone());
            let (sent, think) = (sent.clone(), Duration::from_millis(group.think_ms));
            count += 1;
            callers.spawn(async move {
                (
                    index,
                    caller(&address, &headers, &body, think, until, &sent).await,
                )
            });
        }
    }
    if args.hold {
        // Fails only when the semaphore is closed, which nobody does.
        let _all = sent.acquire_many(count).await?;
        println!("sent");
    }
    let mut seen: Vec<Seen> = groups.iter().map(|_| Seen::default()).collect();
    while let Some(ended) = callers.join_next().await {
        let (index, one) = ended?;
        merge(&mut seen[index], one);
    }
    println!("{}", serde_json::to_string(&report(groups, seen, start))?);
    Ok(())
}

fn merge(all: &mut Seen, one: Seen) {
    for (status, count) in one.status {
        *all.status.entry(status).or_default() += count;
    }
    all.broken += one.broken;
    all.took.extend(one.took);
    all.answered_at.extend(one.answered_at);
}

fn report(groups: Vec<Group>, seen: Vec<Seen>, start: u64) -> Report {
    let mut answered_ms: Vec<f64> = seen
        .iter()
        .flat_map(|seen| &seen.answered_at)
        .map(|at| (at - start) as f64 / 1e6)
        .collect();
    answered_ms.sort_unstable_by(f64::total_cmp);
    let groups = groups.into_iter().zip(seen);
    Report {
        groups: groups
            .map(|(group, seen)| GroupReport {
                name: group.name,
                status: seen.status,
                broken: seen.broken,
                took_us: Times::of(seen.took),
            })
            .collect(),
        answered_ms,
    }
}

/// Of when on answers count, and until when callers call.
#[derive(Clone, Copy)]
struct Until {
    counts_from: u64,
    end: Instant,
}

/// One caller until the end.
async fn caller(
    address: &str,
    headers: &HeaderMap,
    body: &Bytes,
    think: Duration,
    Until { counts_from, end }: Until,
    sent: &Semaphore,
) -> Seen {
    let mut seen = Seen::default();
    let Ok(mut caller) = Caller::connect(address, headers, body).await else {
        seen.broken += 1;
        sent.add_permits(1);
        return seen;
    };
    let mut first = true;
    while Instant::now() < end {
        let called = clock::monotonic_ns();
        let call = async {
            let answer = caller.call().await?;
            let status = answer.status().as_u16();
            answer.into_body().collect().await?;
            Ok::<_, Failure>(status)
        };
        if std::mem::take(&mut first) {
            sent.add_permits(1);
        }
        match timeout_at(end, call).await {
            Ok(Ok(status)) => {
                let now = clock::monotonic_ns();
                if status == 200 {
                    seen.answered_at.push(now);
                }
                if status != 200 || now >= counts_from {
                    *seen.status.entry(status).or_default() += 1;
                }
                if status == 200 && now >= counts_from {
                    seen.took.push(now - called);
                }
            }
            Ok(Err(_)) => {
                seen.broken += 1;
                return seen;
            }
            // The end came first; the call under way is nobody's fault.
            Err(_) => return seen,
        }
        if !think.is_zero() {
            sleep(think).await;
        }
    }
    seen
}
