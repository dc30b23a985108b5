//! What the embedded store takes for jobs: accepts, bulk, whole lives, memory, opening.
//!
//! `cargo run --release -p llmq-store-sqlite --example bench [DIRECTORY] [JOBS]`: the directory
//! should lie on the disk that is meant; `JOBS` is how many wait for the last two figures
//! (1,000,000).
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that measures and says what it measured"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::{CallSize, Now, Timestamp, WallTime};
use llmq_store::{
    JobId, Jobs, NewJob, Reads, Report, Settings, Start, Started, StoredAnswer, Worker,
};
use llmq_store_sqlite::{Options, Place, Store};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The program's own.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static MEMORY: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn now() -> Now {
    let wall = jiff::Timestamp::now().as_microsecond();
    Now {
        mono: Timestamp::from_nanos(wall.cast_unsigned() * 1000),
        wall: WallTime::from_micros(wall),
    }
}

fn job() -> NewJob {
    let mut body = Vec::with_capacity(1024);
    body.extend_from_slice(br#"{"model":"m","messages":[{"role":"user","content":""#);
    body.resize(1020, b'x');
    body.extend_from_slice(b"\"}]}");
    NewJob {
        size: CallSize::of_input(256),
        ttl: Some(Duration::from_secs(4 * 60 * 60)),
        ..NewJob::new("m", "default", body)
    }
}

fn open(path: &Path) -> Store {
    let options = Options {
        settings: Settings {
            max_jobs: 100_000_000,
            max_bytes: 1 << 40,
            ..Settings::default()
        },
        in_place: true,
        ..Options::default()
    };
    Store::open_with(&Place::File(path.to_owned()), options, now().wall).unwrap()
}

/// Seconds of processor time that this process has used, in all its threads: what it says does
/// not depend on who else uses the machine.
fn processor() -> f64 {
    /// `USER_HZ`, which Linux fixes for what it tells programs.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS
}

/// What a part took.
struct Took {
    per_second: f64,
    processor_us: f64,
}

impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rate, us) = (self.per_second, self.processor_us);
        write!(f, "{rate:.0}/s, {us:.1} us of processor time each")
    }
}

/// Has `tasks` tasks do `work` until there were `count` of it, each being `jobs` jobs.
async fn rate<W, F>(store: &Store, tasks: usize, count: usize, jobs: usize, work: W) -> Took
where
    W: Fn(Store) -> F + Copy + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let (begin, processor_before) = (Instant::now(), processor());
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let store = store.clone();
        running.spawn(async move {
            for _ in 0..count / tasks {
                work(store.clone()).await;
            }
        });
    }
    running.join_all().await;
    let jobs = (count * jobs) as f64;
    Took {
        per_second: jobs / begin.elapsed().as_secs_f64(),
        processor_us: (processor() - processor_before) * 1e6 / jobs,
    }
}

async fn accept(store: Store) {
    store.enqueue(vec![job()], now()).await.unwrap();
}

async fn accept_thousand(store: Store) {
    let jobs = (0..1000).map(|_| job()).collect();
    store.enqueue(jobs, now()).await.unwrap();
}

/// Where there is room, a job is started as it is accepted.
async fn life(store: Store) {
    let job = job();
    let start = start_of(job.id);
    let (_, started) = store.enqueue_started(job, start, now()).await.unwrap();
    finish(&store, started.unwrap()).await;
}

/// Where there is none, it waits in between.
async fn life_in_line(store: Store) {
    let job = job();
    let start = start_of(job.id);
    store.enqueue(vec![job], now()).await.unwrap();
    let mut started = store.start(vec![start], now()).await.unwrap();
    finish(&store, started.remove(0).unwrap()).await;
}

fn start_of(job: JobId) -> Start {
    Start {
        job,
        worker: Worker {
            node: "bench".to_owned(),
            incarnation: uuid::Uuid::nil(),
        },
        lease: Duration::from_secs(30),
        upstream: Some("openai".to_owned()),
    }
}

async fn finish(store: &Store, started: Started) {
    let answer = StoredAnswer {
        status: 200,
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: vec![b'y'; 2048].into(),
    };
    let report = Report::Completed {
        answer,
        usage: None,
        cost_nano_usd: None,
    };
    store.report(started.lease, report, now()).await.unwrap();
}

/// Megabytes that this process has in memory.
fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kb.unwrap_or(f64::NAN) / 1024.0
}

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let directory = arguments.next().unwrap_or_else(|| ".".into());
    let directory = tempfile::tempdir_in(directory).unwrap();
    let waiting = arguments
        .next()
        .and_then(|text| text.to_str()?.parse().ok());
    let waiting: usize = waiting.unwrap_or(1_000_000);
    let only = arguments.next();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let wanted = |part: &str| only.as_ref().is_none_or(|only| only == part);
    runtime.block_on(async {
        if wanted("rates") {
            let store = open(&directory.path().join("rates.db"));
            rate(&store, 64, 6_400, 1, accept).await;
            let took = rate(&store, 64, 64_000, 1, accept).await;
            println!("accepts, 64 producers: {took}");
            println!(
                "accepts, one producer: {}",
                rate(&store, 1, 1_000, 1, accept).await
            );
            let took = rate(&store, 4, 200, 1000, accept_thousand).await;
            println!("bulk of 1,000, 4 producers: {took}");
            let took = rate(&store, 256, 51_200, 1, life).await;
            println!("whole lives, 256 at once: {took}");
            let took = rate(&store, 256, 51_200, 1, life_in_line).await;
            println!("lives that wait in line, 256 at once: {took}");
            store.close();
        }
        if wanted("waiting") {
            let path = directory.path().join("waiting.db");
            let before = resident_mb();
            let store = open(&path);
            let opened = resident_mb();
            rate(&store, 4, waiting / 1000, 1000, accept_thousand).await;
            let counts = store.counts().await.unwrap();
            let all = resident_mb();
            println!(
                "{waiting} waiting: {all:.0} MB resident ({before:.0} before, {opened:.0} opened \
                 empty); counted {:.0} MB",
                counts.bytes as f64 / 1e6,
            );
            let file = std::fs::metadata(&path).unwrap().len();
            println!("file: {:.0} MB", file as f64 / 1e6);
            // As a kill leaves it: the log is not copied, and nobody says goodbye.
            let killed = directory.path().join("killed.db");
            std::fs::copy(&path, &killed).unwrap();
            let log = |path: &Path| format!("{}-wal", path.display());
            std::fs::copy(log(&path), log(&killed)).unwrap();
            store.close();
            let (begin, processor_before) = (Instant::now(), processor());
            let store = open(&killed);
            let (ready, used) = (begin.elapsed(), processor() - processor_before);
            let counts = store.counts().await.unwrap();
            println!(
                "ready after a kill with {} waiting: {ready:.2?}, {used:.2} s of processor time",
                counts.queued
            );
            println!("{:.0} MB resident then", resident_mb());
            assert!(store.opened().findings.is_empty(), "{:?}", store.opened());
            drop(Arc::new(store));
        }
    });
}
