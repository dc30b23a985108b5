//! A store with something of everything, and all that it says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use llmq_core::{Now, WallTime};
use llmq_store::{
    Batch, Batches as _, Delivery, Endpoint, EndpointId, EnqueueError, Enqueued, FileId,
    Files as _, Filter, Idempotency, Job, JobId, Jobs as _, Lines as _, NewJob, Reads as _, Report,
    Start, StoreError, StoredAnswer, StoredFile, Webhooks as _, Worker,
};
use llmq_store_sqlite::{
    Budget, KeyRecord, KeyUsage, LearnedLimits, LimitBooks, OpenError, Place, Spend, Store,
    UsageRecord, UsedPart,
};
use uuid::Uuid;

/// All that a store says of its jobs, and of what is beside them.
pub(crate) type Said = (Vec<(Job, Option<Bytes>, Option<StoredAnswer>)>, Beside);

/// What a store says of all that is no job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Beside {
    endpoints: Vec<Endpoint>,
    deliveries: Vec<Delivery>,
    batches: Vec<Batch>,
    files: Vec<(StoredFile, Option<Bytes>)>,
    keys: Vec<KeyRecord>,
    usage: Vec<KeyUsage>,
    learned: Vec<LearnedLimits>,
    books: Option<LimitBooks>,
    /// What a key of a request made.
    by_key: Enqueued,
}

pub(crate) fn open(path: &Path) -> Result<Store, OpenError> {
    Store::open(&Place::File(path.to_owned()), WallTime::default())
}

/// A store with a page of every kind and a row of every table: jobs in all statuses, requests from
/// small to some pages long, events, an endpoint and what it is to be told, batches and files, and
/// what is kept of keys and limits.
pub(crate) async fn fill(store: &Store) -> Vec<JobId> {
    fill_with(store, 24, 6).await
}

/// The same with so many jobs, and so many batches and files.
pub(crate) async fn fill_with(store: &Store, jobs: u8, files: u8) -> Vec<JobId> {
    let now = Now::default();
    let endpoint = Endpoint {
        id: EndpointId::new(),
        tenant: None,
        url: "https://example.com".to_owned(),
        events: Vec::new(),
        disabled: false,
        state: serde_json::Value::Null,
        created_at: now.wall,
    };
    store.put_endpoint(endpoint, None, now).await.unwrap();
    for n in 0..files {
        add_batch_and_file(store, n).await;
    }
    add_keys_and_limits(store).await;
    store.enqueue(vec![keyed()], now).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..jobs {
        let body = vec![b'a' + n; 100 + usize::from(n) * 400];
        let job = NewJob::new(["m", "n"][usize::from(n % 2)], "t", body);
        let id = job.id;
        store.enqueue(vec![job], now).await.unwrap();
        ids.push(id);
        if n % 3 != 0 {
            let start = Start {
                job: id,
                worker: Worker::new("here"),
                lease: Duration::from_secs(30),
                upstream: None,
            };
            let lease = store
                .start(vec![start], now)
                .await
                .unwrap()
                .remove(0)
                .unwrap()
                .lease;
            let answer = StoredAnswer {
                status: 200,
                headers: Vec::new(),
                body: vec![b'A' + n; 2000].into(),
            };
            let report = Report::Completed {
                answer,
                usage: None,
                cost_nano_usd: None,
            };
            if n % 3 == 1 {
                store.report(lease, report, now).await.unwrap();
            }
        }
    }
    add_free_pages(store).await;
    ids
}

/// Removes something large.
async fn add_free_pages(store: &Store) {
    let file = StoredFile {
        id: FileId::new(),
        tenant: "t".to_owned(),
        filename: "gone".to_owned(),
        purpose: "batch".to_owned(),
        bytes: 0,
        created_at: WallTime::default(),
        expires_at: None,
    };
    let id = file.id;
    store.create_file(file).await.unwrap();
    store
        .append_file(id, vec![b'g'; 20_000].into())
        .await
        .unwrap();
    assert!(store.delete_file(id).await.unwrap());
    while store.tend(Now::default()).await.unwrap().more {}
}

/// A request with a key.
fn keyed() -> NewJob {
    let key = Idempotency {
        key: "k".to_owned(),
        request_hash: [7; 32],
    };
    NewJob {
        idempotency: Some(key),
        ..NewJob::new("keyed", "t", "{}")
    }
}

async fn add_keys_and_limits(store: &Store) {
    let id = Uuid::from_u128(77);
    let key = KeyRecord {
        id,
        name: "key".to_owned(),
        prefix: "llmq_abcdefgh".to_owned(),
        sha256: [9; 32],
        scopes: vec!["call".to_owned()],
        models: None,
        tenant: None,
        any_tenant: false,
        limits: vec!["rpm=60".to_owned()],
        budget: Budget::default(),
        created_at: WallTime::default(),
        revoked_at: None,
    };
    store.insert_key(key).await.unwrap();
    let usage = KeyUsage {
        key: id,
        period: "2026-01-31".to_owned(),
        input_tokens: 1,
        output_tokens: 2,
        nano_usd: 3,
        drawn: Spend {
            tokens: 4,
            nano_usd: 5,
        },
    };
    let saved = store.save_key_usage(vec![usage], UsageRecord::Running);
    saved.await.unwrap();
    let limits = vec!["requests=500/1m".to_owned()];
    store.save_learned("one", "host", limits).await.unwrap();
    let part = UsedPart {
        age_ms: 1,
        amount: 2,
    };
    let books = LimitBooks {
        alive_at: WallTime::from_micros(5),
        clean: true,
        used: [("rpm".to_owned(), vec![part])].into(),
        charged_per_million: [("tpm".to_owned(), 900_000)].into(),
        quota: [("one".to_owned(), "{}".to_owned())].into(),
    };
    store.save_limit_books(books).await.unwrap();
}

async fn add_batch_and_file(store: &Store, n: u8) {
    let now = Now::default();
    let batch = Batch::new(
        "t",
        serde_json::json!({"n": n, "notes": "x".repeat(200)}),
        now.wall,
    );
    store.create_batch(batch).await.unwrap();
    let file = StoredFile {
        id: FileId::new(),
        tenant: "t".to_owned(),
        // Long, so that an index of six has more than one page.
        filename: format!("{n:0>700}.jsonl"),
        purpose: "batch".to_owned(),
        bytes: 0,
        created_at: now.wall,
        expires_at: None,
    };
    let id = file.id;
    store.create_file(file).await.unwrap();
    let content = vec![b'0' + n; 700];
    store.append_file(id, content.into()).await.unwrap();
    store.publish_file(id).await.unwrap();
}

/// What the store says of all of them, or that it refuses to.
pub(crate) async fn said(store: &Store, ids: &[JobId]) -> Result<Said, StoreError> {
    Ok((said_of_jobs(store, ids).await?, beside(store).await?))
}

async fn beside(store: &Store) -> Result<Beside, StoreError> {
    let mut files = Vec::new();
    for file in store.files(None, None, 100).await? {
        let content = store.read_file(file.id, 0).await?;
        files.push((file, content));
    }
    Ok(Beside {
        endpoints: store.endpoints().await?,
        deliveries: store.deliveries(None, None, 100).await?,
        batches: store.batches(None, None, 100).await?,
        files,
        keys: store.list_keys(None, 100).await?,
        usage: store.key_usage(String::new(), String::new()).await?,
        learned: store.learned().await?,
        books: store.limit_books().await?,
        by_key: match store.enqueue(vec![keyed()], Now::default()).await {
            Ok(mut accepted) => accepted.remove(0),
            Err(EnqueueError::Store(error)) => return Err(error),
            Err(refused) => return Err(StoreError::damaged(refused.to_string())),
        },
    })
}

async fn said_of_jobs(
    store: &Store,
    ids: &[JobId],
) -> Result<Vec<(Job, Option<Bytes>, Option<StoredAnswer>)>, StoreError> {
    let mut said = Vec::new();
    for id in ids {
        let Some(job) = store.job(*id).await? else {
            // One that is not there is not told from one that never was, so `check` must find it.
            return Err(StoreError::damaged("a job is not there"));
        };
        said.push((job, store.body(*id).await?, store.answer(*id).await?));
    }
    store.list(&Filter::default(), None, 1000).await?;
    store.queues().await?;
    Ok(said)
}

/// A closed store's file and what it says, once it was opened and put in order.
pub(crate) async fn whole(directory: &Path) -> (PathBuf, Vec<JobId>, Said) {
    let path = directory.join("whole.db");
    let store = open(&path).unwrap();
    let ids = fill(&store).await;
    let all = said(&store, &ids).await.unwrap();
    store.close();
    (path, ids, all)
}

/// Copies a store as a kill leaves it: the log is there, and nobody said goodbye.
pub(crate) fn killed(path: &Path, to: &Path) -> PathBuf {
    std::fs::copy(path, to).unwrap();
    std::fs::copy(log_of(path), log_of(to)).unwrap();
    log_of(to)
}

/// The log beside a store's file.
pub(crate) fn log_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", path.display()))
}
