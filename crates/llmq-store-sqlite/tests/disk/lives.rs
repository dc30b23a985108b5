//! Lives that end in power cuts, one after another, over one store.

use std::time::Duration;

use llmq_core::{Now, Timestamp};
use llmq_store::{Jobs as _, Lines as _, Report, Start, StoredAnswer, Worker};
use llmq_store_sqlite::Store;
use llmq_testkit::disk::Disk;
use llmq_testkit::scratch;

use crate::book::Book;
use crate::caller::{Caller, beginning, open};
use crate::{runtime, seeds};

const LIVES: usize = 3;
/// Seeds of a run.
const SEEDS: u64 = 200;

/// Plays a seed. Answers how many cuts met calls that had not been answered.
async fn play(seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut directory = scratch();
    let (mut book, mut now) = (Book::default(), beginning());
    let mut hits = 0;
    for life in 0..LIVES {
        let disk = Disk::new();
        let path = directory.path().join("llmq.db");
        let mut caller = Caller::with_book(&disk, seed ^ (life as u64) << 32, book, now);
        let store = open(&disk, &path, now).unwrap();
        // A log knows a file from its opening on: before, all of an earlier life would be missing.
        let opened = disk.position();
        caller.begin(&store).await;
        if random.u8(..8) == 0 {
            caller.bulk(&store).await;
        }
        let calls = random.usize(3..30);
        caller.calls(&store, calls).await;
        now = next_life(caller.now, &mut random);
        store.close();
        book = caller.book.into_inner();
        assert_eq!(book.errors, [] as [String; 0], "LLMQ_DISK_SEED={seed}");

        let log = disk.log();
        // Where a sync was under way, three times in four.
        let points = log.sync_points();
        let at = match random.u8(..4) {
            0 => random.usize(..=log.len()),
            _ => random.choice(points).unwrap_or(0),
        };
        let at = at.max(opened);
        hits += usize::from(book.in_flight(at) > 0);
        let next = scratch();
        log.power_cut(at, &mut random).write(next.path());
        directory = next;
        book.forget_after(at);
    }
    let disk = Disk::new();
    let path = directory.path().join("llmq.db");
    let store = open(&disk, &path, now).unwrap();
    let broken = book.broken_in(&store, 0).await;
    assert_eq!(broken, [] as [String; 0], "LLMQ_DISK_SEED={seed}");
    finish(&store, &mut book, now).await;
    let broken = book.broken_in(&store, 0).await;
    assert_eq!(
        broken,
        [] as [String; 0],
        "LLMQ_DISK_SEED={seed}, at the end"
    );
    store.close();
    let checked = llmq_store_sqlite::check(&path, true).unwrap();
    assert!(checked.is_sound(), "LLMQ_DISK_SEED={seed}: {checked:?}");
    hits
}

/// Another process some time later, on a machine whose clock may have been wrong.
fn next_life(now: Now, random: &mut fastrand::Rng) -> Now {
    let away = Duration::from_secs(random.u64(..60));
    let mut wall = now.wall + away;
    if random.u8(..8) == 0 {
        wall = wall.before(Duration::from_secs(3_600));
    }
    Now {
        mono: Timestamp::from_nanos(random.u64(1_000_000_000..1_000_000_000_000)),
        wall,
    }
}

/// Brings all that can be started to its end.
async fn finish(store: &Store, book: &mut Book, now: Now) {
    let worker = Worker::new("here");
    store.recover(&worker, now).await.unwrap();
    while store.tend(now).await.unwrap().more {}
    for lane in store.lanes(now).await.unwrap() {
        loop {
            let window = store.next(&lane.lane, None, 100, now).await.unwrap();
            if window.jobs.is_empty() {
                break;
            }
            for waiting in window.jobs {
                let start = Start {
                    job: waiting.job,
                    worker: worker.clone(),
                    lease: Duration::from_secs(30),
                    upstream: None,
                };
                let started = store.start(vec![start], now).await.unwrap().remove(0);
                let lease = started.unwrap().lease;
                let answer = StoredAnswer {
                    status: 200,
                    headers: Vec::new(),
                    body: "late".into(),
                };
                let answers = book.answers.entry(waiting.job).or_default();
                answers.insert(answer.body.clone());
                let report = Report::Completed {
                    answer,
                    usage: None,
                    cost_nano_usd: None,
                };
                store.report(lease, report, now).await.unwrap();
            }
        }
    }
}

#[test]
fn lives_that_end_in_power_cuts_lose_nothing() {
    let (mut runs, mut hits) = (0, 0);
    for seed in seeds(SEEDS) {
        hits += runtime().block_on(play(seed));
        runs += 1;
    }
    println!(
        "{runs} seeds, {hits} of {} cuts with calls in flight",
        runs * LIVES
    );
    assert!(
        hits >= runs,
        "{hits} cuts in {runs} runs met calls in flight"
    );
}
