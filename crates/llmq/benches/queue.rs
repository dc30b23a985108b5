//! What a queue costs: requests a second, time a request, memory a waiting one.
//!
//! `cargo bench -p llmq` prints one figure a line; without `--bench` (as `cargo test` runs it)
//! the counts are small and the figures mean nothing.

#![expect(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a program that measures, with figures for people"
)]

use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use llmq::{ModelConfig, ProcessorError, QueueManager, QueueRequest};
use tokio::time::Instant;

type Manager = QueueManager<Box<[u8]>, usize>;

const MODEL: &str = "m";
const IN_FLIGHT: usize = 64;

fn main() {
    let scale = if std::env::args().any(|arg| arg == "--bench") {
        1
    } else {
        100
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        // Memory first, while the allocator has nothing to reuse.
        memory(10_000 / scale).await;
        let requests = 1_000_000 / scale;
        one_by_one("no limits", ModelConfig::new(MODEL), requests).await;
        in_flight("no limits", ModelConfig::new(MODEL), requests).await;
        let limited = ModelConfig::new(MODEL)
            .requests_per_minute(1_000_000_000)
            .tokens_per_minute(1_000_000_000_000)
            .concurrent(1_000);
        in_flight("three limits", limited, requests).await;
        two_tasks(requests).await;
        nobody_waits(requests).await;
    });
}

fn manager(config: ModelConfig) -> Manager {
    let manager = Manager::new();
    manager
        .register_queue(config, |request| {
            std::future::ready(Ok::<_, ProcessorError>(request.params.len()))
        })
        .unwrap();
    manager
}

fn request() -> QueueRequest<Box<[u8]>> {
    QueueRequest::new(MODEL, vec![7; 100].into())
}

fn tell(what: &str, figure: f64, unit: &str) {
    println!("{what:<40} {figure:>12.1} {unit}");
}

/// One request after the other: how long each takes beside what the processor takes, nothing.
async fn one_by_one(name: &str, config: ModelConfig, requests: usize) {
    let manager = manager(config);
    let mut times = Vec::with_capacity(requests);
    let start = Instant::now();
    for _ in 0..requests {
        let before = Instant::now();
        manager.submit_request(request()).await.unwrap();
        times.push(before.elapsed());
    }
    let rate = requests as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    let micros = |share: usize| times[times.len() * share / 1_000].as_secs_f64() * 1e6;
    tell(&format!("one by one, {name}"), rate, "requests/s");
    tell(&format!("overhead p50, {name}"), micros(500), "us");
    tell(&format!("overhead p99, {name}"), micros(990), "us");
}

async fn keep_in_flight(manager: &Manager, requests: usize) {
    let mut left = requests;
    let mut running = FuturesUnordered::new();
    loop {
        while left > 0 && running.len() < IN_FLIGHT {
            left -= 1;
            running.push(manager.submit_request(request()));
        }
        match running.next().await {
            Some(answer) => assert!(answer.is_ok()),
            None => return,
        }
    }
}

async fn in_flight(name: &str, config: ModelConfig, requests: usize) {
    let manager = manager(config);
    let start = Instant::now();
    keep_in_flight(&manager, requests).await;
    let rate = requests as f64 / start.elapsed().as_secs_f64();
    tell(
        &format!("{IN_FLIGHT} in flight, {name}"),
        rate,
        "requests/s",
    );
}

async fn two_tasks(requests: usize) {
    let manager = manager(ModelConfig::new(MODEL));
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let manager = manager.clone();
        tasks.spawn(async move { keep_in_flight(&manager, requests / 2).await });
    }
    while tasks.join_next().await.is_some() {}
    let rate = requests as f64 / start.elapsed().as_secs_f64();
    tell("two tasks, no limits", rate, "requests/s");
}

/// Requests that go on without their submitter, a thousand in line at once.
async fn nobody_waits(requests: usize) {
    let manager = manager(ModelConfig::new(MODEL).concurrent(IN_FLIGHT as u64));
    let start = Instant::now();
    let mut last = None;
    for number in 0..requests {
        let request = request().without_waiting();
        last = Some(manager.submit_request(request).await.unwrap().request_id);
        if number % 1_000 == 0
            && let Some(last) = last.take()
        {
            manager.wait(MODEL, last).await.unwrap();
        }
    }
    let report = manager.shutdown_all(Duration::from_secs(60)).await;
    assert!(report.is_clean() && last.is_some());
    let rate = requests as f64 / start.elapsed().as_secs_f64();
    tell("nobody waits", rate, "requests/s");
}

/// What requests with 100 bytes of parameters cost while they wait.
async fn memory(requests: usize) {
    let manager = manager(ModelConfig::new(MODEL));
    manager.pause(MODEL).unwrap();
    let submit = || Box::pin(manager.submit_request(request()));
    tell("submission future", size_of_val(&*submit()) as f64, "bytes");
    let before = resident();
    let mut waiting: Vec<_> = (0..requests).map(|_| submit()).collect();
    for future in &mut waiting {
        assert!(future.now_or_never().is_none());
    }
    told_memory("waiting, polled by their submitter", before, requests);
    let before = resident();
    for _ in 0..requests {
        let request = request().without_waiting();
        manager.submit_request(request).await.unwrap();
    }
    told_memory("waiting, nobody polls", before, requests);
    drop(waiting);
    manager.shutdown_all(Duration::ZERO).await;
}

fn told_memory(what: &str, before: Option<u64>, requests: usize) {
    let (Some(before), Some(after)) = (before, resident()) else {
        return;
    };
    let grown = after.saturating_sub(before) as f64;
    tell(&format!("{what}, {requests}"), grown / 1e6, "MB");
    tell("… each", grown / requests.max(1) as f64, "bytes");
}

/// Resident memory in bytes, where the system tells.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4_096)
}
