//! What a job counts for is what memory and file grow by, within a tenth; and its place in the
//! order is small.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::path::Path;
use std::time::Duration;

use llmq_core::{CallSize, Now, Timestamp, WallTime};
use llmq_store::{Callback, Idempotency, Jobs as _, NewJob, Reads as _};
use llmq_store_sqlite::{Options, Place, Store};
use llmq_testkit::{CountedMemory, scratch};
use uuid::Uuid;

#[global_allocator]
static MEMORY: CountedMemory = CountedMemory;

/// How jobs are.
#[derive(Debug, Clone, Copy)]
struct Shape {
    body_bytes: usize,
    beside: Beside,
}

/// What there is of a job beside its body.
#[derive(Debug, Clone, Copy)]
enum Beside {
    Nothing,
    /// An idempotency key of so many letters.
    Key(usize),
    /// A callback and ten notes.
    Notes,
}

impl Shape {
    fn job(self, number: usize) -> NewJob {
        let mut job = NewJob::new("gpt", "default", vec![b'x'; self.body_bytes]);
        job.size = CallSize::of_input(250);
        job.ttl = Some(Duration::from_secs(60 * 60));
        "/v1/chat/completions".clone_into(&mut job.details.endpoint);
        match self.beside {
            Beside::Nothing => {}
            Beside::Key(letters) => {
                job.idempotency = Some(Idempotency {
                    key: format!("{:x<letters$}", Uuid::new_v4().to_string()),
                    request_hash: [1; 32],
                });
            }
            Beside::Notes => {
                job.details.callback = Some(Callback {
                    url: format!("https://example.com/hooks/{number}"),
                    signed_by: None,
                });
                for note in 0..10 {
                    let name = format!("note-{note}");
                    job.details.metadata.insert(name, "what it is for".into());
                }
            }
        }
        job
    }
}

/// What jobs count for, and what memory and file grew by, in bytes.
struct Grown {
    counted: u64,
    memory: u64,
    file: u64,
}

impl Grown {
    /// Whether what was counted is right within a tenth.
    fn is_counted(&self) -> bool {
        let all = self.memory + self.file;
        (all * 9..=all * 11).contains(&(self.counted * 10))
    }
}

/// Hands in jobs, so many at once.
async fn hand_in(
    store: &Store,
    path: &Path,
    jobs: impl Iterator<Item = NewJob>,
    at_once: usize,
) -> Grown {
    // SQLite takes more room for larger numbers, so it is to be a day of ours.
    let now = Now {
        mono: Timestamp::from_nanos(1 << 60),
        wall: WallTime::from_micros(1_790_000_000_000_000),
    };
    let length = || std::fs::metadata(path).unwrap().len();
    let counted = async || store.counts().await.unwrap().bytes;
    let held = || CountedMemory::held_bytes() as u64;
    let before = (counted().await, held(), length());
    let mut jobs = jobs.peekable();
    while jobs.peek().is_some() {
        let some = jobs.by_ref().take(at_once).collect();
        store.enqueue(some, now).await.unwrap();
    }
    Grown {
        counted: counted().await - before.0,
        memory: held() - before.1,
        file: length() - before.2,
    }
}

fn open(path: &Path) -> Store {
    let options = Options {
        ballast_bytes: 0,
        // Each commit is copied into the file at once.
        log_bytes: 1,
        ..Options::default()
    };
    Store::open_with(&Place::File(path.to_owned()), options, WallTime::default()).unwrap()
}

#[tokio::test]
async fn a_job_counts_for_what_memory_and_file_grow_by() {
    let mut wrong = Vec::new();
    for (body_bytes, count) in [(100, 2_000), (1_000, 1_500), (3_000, 600), (20_000, 200)] {
        for beside in [
            Beside::Nothing,
            Beside::Key(36),
            Beside::Key(200),
            Beside::Notes,
        ] {
            for at_once in [1, 200] {
                let shape = Shape { body_bytes, beside };
                let directory = scratch();
                let path = directory.path().join("llmq.db");
                let store = open(&path);
                let jobs = |count| (0..count).map(|number| shape.job(number));
                // Every table has its first pages.
                hand_in(&store, &path, jobs(400), at_once).await;
                let grown = hand_in(&store, &path, jobs(count), at_once).await;
                let each = |bytes: u64| bytes / count as u64;
                let line = format!(
                    "{shape:?}, {at_once} at once: {} counted, {} in the file, {} in memory",
                    each(grown.counted),
                    each(grown.file),
                    each(grown.memory)
                );
                println!("{line}");
                assert!(each(grown.memory) < 64, "{line}");
                if !grown.is_counted() {
                    wrong.push(line);
                }
                store.close();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Long ones between short ones leave other room in a page than each kind among its own.
#[tokio::test]
async fn jobs_of_all_sizes_count_so_together() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut job = |number| {
        let body_bytes = 1 << random.usize(6..15);
        let body_bytes = random.usize(body_bytes..2 * body_bytes);
        let beside = [Beside::Nothing, Beside::Key(36), Beside::Notes][number % 3];
        Shape { body_bytes, beside }.job(number)
    };
    let directory = scratch();
    let path = directory.path().join("llmq.db");
    let store = open(&path);
    hand_in(&store, &path, (0..400).map(&mut job), 1).await;
    let grown = hand_in(&store, &path, (0..3_000).map(job), 50).await;
    let (counted, all) = (grown.counted, grown.memory + grown.file);
    println!("{counted} counted, {all} grown");
    assert!(grown.is_counted(), "{counted} counted, {all} grown");
    store.close();
}
