//! apalis on Redis, measured as the other queues are.
//!
//! `apalis-rival REDIS_URL JOBS SINGLES CALLERS` prints one JSON object: jobs accepted a second
//! in bulk calls of 1,000, singly by CALLERS at once, and finished a second by one worker whose
//! processor does nothing but give 2 KB back.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use apalis::prelude::*;
use apalis_redis::{Config, RedisStorage};
use tokio::sync::Notify;

const BULK: usize = 1000;
const CONCURRENCY: usize = 50;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, jobs, singles, callers] = words.as_slice() else {
        return Err("usage: apalis-rival REDIS_URL JOBS SINGLES CALLERS".into());
    };
    let (jobs, singles, callers) = (jobs.parse()?, singles.parse()?, callers.parse()?);
    let bulk = bulk(url, jobs).await?;
    let lives = lives(url, jobs).await?;
    let single = single(url, singles, callers).await?;
    println!(
        "{}",
        serde_json::json!({ "bulk": bulk, "lives": lives, "single": single })
    );
    Ok(())
}

type Storage = RedisStorage<String, apalis_redis::ConnectionManager>;

async fn storage(url: &str, queue: &str) -> Result<Storage, Box<dyn Error>> {
    let connection = apalis_redis::connect(url).await?;
    let config = Config::default().queue(queue).batch_size(CONCURRENCY);
    Ok(RedisStorage::new(connection).with_config(config))
}

/// About 1 KB, as the other queues get.
fn payload() -> String {
    "x".repeat(1000)
}

async fn bulk(url: &str, jobs: usize) -> Result<f64, Box<dyn Error>> {
    let mut storage = storage(url, "lives").await?;
    let began = Instant::now();
    for _ in 0..jobs / BULK {
        storage.push_bulk(vec![payload(); BULK]).await?;
    }
    Ok(rate(jobs / BULK * BULK, began))
}

async fn lives(url: &str, jobs: usize) -> Result<f64, Box<dyn Error>> {
    let wanted = jobs / BULK * BULK;
    let done = Arc::new((AtomicUsize::new(0), Notify::new()));
    let counted = Arc::clone(&done);
    let began = Instant::now();
    let worker = WorkerBuilder::new("rival")
        .backend(storage(url, "lives").await?)
        .concurrency(CONCURRENCY)
        .build(move |_job: String| {
            let counted = Arc::clone(&counted);
            async move {
                if counted.0.fetch_add(1, Ordering::Relaxed) + 1 == wanted {
                    counted.1.notify_one();
                }
                Ok::<String, BoxDynError>("y".repeat(2000))
            }
        });
    tokio::select! {
        ended = worker.run() => ended?,
        () = done.1.notified() => {}
    }
    Ok(rate(wanted, began))
}

async fn single(url: &str, jobs: usize, callers: usize) -> Result<f64, Box<dyn Error>> {
    let shared = storage(url, "singles").await?;
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let mut storage = shared.clone();
        tasks.spawn(async move {
            for _ in 0..jobs / callers {
                storage.push(payload()).await.map_err(|e| e.to_string())?;
            }
            Ok::<(), String>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(rate(jobs / callers * callers, began))
}

fn rate(jobs: usize, began: Instant) -> f64 {
    jobs as f64 / began.elapsed().as_secs_f64()
}
