//! A damaged file is refused, or what it held is refused when it is read, or `check` finds it:
//! it never says something else than what was written.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use llmq_core::{Now, WallTime};
use llmq_store::{
    Batch, BatchCounts, BatchId, BatchStatus, Batches, Delivery, Endpoint, EndpointId,
    EnqueueError, Enqueued, EventId, EventPage, Events, FileId, Files, Filter, Idempotency, Job,
    JobId, Jobs, Lines, NewJob, Reads, Report, Start, StoreError, StoredAnswer, StoredFile,
    Webhooks, Worker,
};
use llmq_store_sqlite::{
    Budget, KeyRecord, KeyUsage, LearnedLimits, LimitBooks, OpenError, Place, Spend, Store,
    UsageRecord, UsedPart, backup, check, compact,
};
use uuid::Uuid;

/// All that a store says of its jobs, and of what is beside them.
type Said = (Vec<(Job, Option<Bytes>, Option<StoredAnswer>)>, Beside);

/// What a store says of all that is no job.
#[derive(Debug, Clone, PartialEq)]
struct Beside {
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

fn open(path: &Path) -> Result<Store, OpenError> {
    Store::open(&Place::File(path.to_owned()), WallTime::default())
}

/// A store with a page of every kind and a row of every table: jobs in all statuses, requests from
/// small to some pages long, events, an endpoint and what it is to be told, batches and files, and
/// what is kept of keys and limits.
async fn fill(store: &Store) -> Vec<JobId> {
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
    for n in 0..4_u8 {
        add_batch_and_file(store, n).await;
    }
    add_keys_and_limits(store).await;
    store.enqueue(vec![keyed()], now).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..24_u8 {
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
    ids
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
    let batch = Batch {
        id: BatchId::new(),
        tenant: "t".to_owned(),
        status: BatchStatus::Validating,
        counts: BatchCounts::default(),
        created_at: now.wall,
        changed_at: now.wall,
        details: serde_json::json!({"n": n, "notes": "x".repeat(200)}),
    };
    store.create_batch(batch).await.unwrap();
    let file = StoredFile {
        id: FileId::new(),
        tenant: "t".to_owned(),
        filename: format!("{n}.jsonl"),
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
async fn said(store: &Store, ids: &[JobId]) -> Result<Said, StoreError> {
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
async fn whole(directory: &Path) -> (PathBuf, Vec<JobId>, Said) {
    let path = directory.join("whole.db");
    let store = open(&path).unwrap();
    let ids = fill(&store).await;
    let all = said(&store, &ids).await.unwrap();
    store.close();
    (path, ids, all)
}

#[tokio::test]
async fn no_bit_changes_what_a_store_says_unseen() {
    let directory = tempfile::tempdir().unwrap();
    let (path, ids, all) = whole(directory.path()).await;
    let bytes = std::fs::read(&path).unwrap();
    let damaged = directory.path().join("damaged.db");
    let (mut refused, mut found) = (0, 0);
    for at in (0..bytes.len()).step_by(512) {
        // Another place in each sector, so that headers, cells and free room all have their turn.
        let at = (at + at / 512 * 37 % 512).min(bytes.len() - 1);
        let mut copy = bytes.clone();
        copy[at] ^= 1 << (at / 512 % 8);
        std::fs::write(&damaged, copy).unwrap();
        let sound = check(&damaged, true).is_ok_and(|checked| checked.is_sound());
        found += u64::from(!sound);
        let Ok(store) = open(&damaged) else {
            refused += 1;
            assert!(
                !sound,
                "byte {at}: it cannot be opened and check finds nothing"
            );
            continue;
        };
        // What it says is what was written, whatever it refuses to say.
        match said(&store, &ids).await {
            Ok(now) => assert!(now == all || !sound, "byte {at} changed what is said"),
            Err(error) => assert!(!sound, "byte {at}: {error}, and check finds nothing"),
        }
        for (id, (_, body, answer)) in ids.iter().zip(&all.0) {
            if let Ok(read @ Some(_)) = store.body(*id).await {
                assert_eq!(read, *body, "byte {at} changed a request");
            }
            if let Ok(read @ Some(_)) = store.answer(*id).await {
                assert_eq!(read, *answer, "byte {at} changed an answer");
            }
        }
        store.close();
    }
    assert!(
        found > 50 && refused > 0,
        "{found} found, {refused} refused: too little was hit"
    );
}

/// Once it hid all the others, and no batch of anybody was led to its end.
#[tokio::test]
async fn one_damaged_batch_file_or_job_hides_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = open(&path).unwrap();
    fill(&store).await;
    let all = store.list(&Filter::default(), None, 100).await.unwrap();
    store.close();
    let connection = rusqlite::Connection::open(&path).unwrap();
    for (table, column) in [
        ("batches", "tenant"),
        ("files", "data"),
        ("jobs", "details"),
    ] {
        let lowest = format!("(SELECT min(id) FROM {table})");
        let damage = format!(
            "UPDATE {table} SET {column} = replace({column}, 't', 'u') || ' ' WHERE id = {lowest}"
        );
        assert_eq!(connection.execute(&damage, []).unwrap(), 1, "{table}");
    }
    drop(connection);
    let store = open(&path).unwrap();
    assert_eq!(store.batches(None, None, 100).await.unwrap().len(), 3);
    assert_eq!(store.files(None, None, 100).await.unwrap().len(), 3);
    let page = store.list(&Filter::default(), None, 100).await.unwrap();
    assert_eq!(page.items.len(), all.items.len() - 1);
    store.close();
    assert!(!check(&path, true).unwrap().is_sound());
}

/// Once one damaged row of what is only remembered kept a server from its start.
#[tokio::test]
async fn a_damaged_row_of_what_was_learned_keeps_nobody_from_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = open(&path).unwrap();
    for upstream in ["a", "b"] {
        let limits = vec!["requests=5/1m".to_owned()];
        store.save_learned(upstream, "host", limits).await.unwrap();
    }
    store.close();
    let connection = rusqlite::Connection::open(&path).unwrap();
    let damage =
        "UPDATE learned_limits SET limits = replace(limits, '5', '6') WHERE upstream = 'a'";
    assert_eq!(connection.execute(damage, []).unwrap(), 1);
    drop(connection);
    let store = open(&path).unwrap();
    let learned = store.learned().await.unwrap();
    assert_eq!(learned.len(), 1);
    assert_eq!(learned[0].upstream, "b");
    store.close();
    assert!(!check(&path, true).unwrap().is_sound());
}

/// Once whoever listened was let go at the damaged ones, again and again.
#[tokio::test]
async fn damaged_events_are_a_gap_between_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = open(&path).unwrap();
    for _ in 0..3 {
        let job = NewJob::new("m", "t", "{}");
        store.enqueue(vec![job], Now::default()).await.unwrap();
    }
    store.close();
    let connection = rusqlite::Connection::open(&path).unwrap();
    let damage = "UPDATE event_log SET at = at + 1 WHERE last = 2";
    assert_eq!(connection.execute(damage, []).unwrap(), 1);
    drop(connection);
    let store = open(&path).unwrap();
    let numbers = |page: EventPage| match page {
        EventPage::Events(events) => Ok(events.iter().map(|event| event.id.0).collect::<Vec<_>>()),
        EventPage::Gap { oldest } => Err(oldest.0),
    };
    let after = async |after| numbers(store.events(EventId(after), 100).await.unwrap());
    assert_eq!(after(0).await, Ok(vec![1]));
    assert_eq!(after(1).await, Err(3));
    assert_eq!(after(2).await, Ok(vec![3]));
}

/// Once each large insert left a row behind until the next start, and opening went over all of
/// them for each.
#[tokio::test]
async fn a_large_insert_is_forgotten_when_its_jobs_have_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = open(&path).unwrap();
    let now = Now::default();
    let jobs: Vec<_> = (0..600).map(|_| NewJob::new("m", "t", "{}")).collect();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    store.enqueue(jobs, now).await.unwrap();
    for id in ids {
        store.cancel(id, now).await.unwrap();
    }
    store.close();
    let connection = rusqlite::Connection::open(&path).unwrap();
    let count = "SELECT count(*) FROM stages";
    let left: i64 = connection.query_row(count, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_file_that_is_cut_off_is_refused_or_found() {
    let directory = tempfile::tempdir().unwrap();
    let (path, ids, all) = whole(directory.path()).await;
    let bytes = std::fs::read(&path).unwrap();
    let damaged = directory.path().join("damaged.db");
    for length in (1..bytes.len()).step_by(4096 * 3 + 512) {
        std::fs::write(&damaged, &bytes[..length]).unwrap();
        let sound = check(&damaged, false).is_ok_and(|checked| checked.is_sound());
        assert!(!sound, "{length} bytes pass for the whole");
        if let Ok(store) = open(&damaged) {
            let now = said(&store, &ids).await;
            assert!(now.is_err() || now.unwrap() == all, "{length} bytes");
            store.close();
        }
    }
}

/// Copies a store as a kill leaves it: the log is there, and nobody said goodbye.
fn killed(path: &Path, to: &Path) -> PathBuf {
    let log = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    std::fs::copy(path, to).unwrap();
    std::fs::copy(log(path), log(to)).unwrap();
    log(to)
}

#[tokio::test]
async fn a_log_with_a_damaged_beginning_is_not_taken_for_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = open(&path).unwrap();
    let ids = fill(&store).await;
    let all = said(&store, &ids).await.unwrap();
    let copy = directory.path().join("killed.db");
    let log = killed(&path, &copy);
    let opened = open(&copy).unwrap();
    assert_eq!(opened.opened().findings, [] as [String; 0]);
    assert_eq!(opened.opened().processing, 8);
    assert_eq!(said(&opened, &ids).await.unwrap(), all);
    opened.close();

    for at in 0..32 {
        killed(&path, &copy);
        let mut bytes = std::fs::read(&log).unwrap();
        bytes[at] ^= 0x10;
        std::fs::write(&log, bytes).unwrap();
        let refused = open(&copy).unwrap_err();
        assert!(
            matches!(refused, OpenError::Damaged { .. }),
            "byte {at}: {refused}"
        );
    }
    // A page of the log: what is behind it cannot be followed, and that is said.
    killed(&path, &copy);
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    // What is in front of it is read all the same.
    let checked = check(&copy, false).unwrap();
    assert_eq!(checked.findings.len(), 1, "{checked:?}");
    assert!(checked.jobs > 0, "{checked:?}");
    // Whoever has the store writes its log while it is looked at: it is not followed then.
    let owner = std::fs::File::create(format!("{}.lock", copy.display())).unwrap();
    owner.lock().unwrap();
    assert!(check(&copy, false).unwrap().is_sound());
    drop(owner);
    let opened = open(&copy).unwrap();
    assert_eq!(opened.opened().findings.len(), 1, "{:?}", opened.opened());
    opened.close();
    store.close();
}

#[tokio::test]
async fn a_backup_is_the_store_at_one_moment_and_a_compact_store_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = open(&path).unwrap();
    let ids = fill(&store).await;
    let all = said(&store, &ids).await.unwrap();
    let copy = directory.path().join("copy.db");
    backup(&path, &copy).unwrap();
    assert!(
        matches!(backup(&path, &copy), Err(OpenError::File { .. })),
        "it was there"
    );
    let now = Now::default();
    store
        .enqueue(vec![NewJob::new("m", "t", "later")], now)
        .await
        .unwrap();
    assert!(matches!(
        compact(&path, now.wall),
        Err(OpenError::Owned { .. })
    ));
    let checked = check(&copy, true).unwrap();
    assert_eq!(
        (checked.jobs, checked.findings, checked.broken),
        (25, vec![], vec![])
    );
    let restored = open(&copy).unwrap();
    assert_eq!(said(&restored, &ids).await.unwrap(), all);
    assert_eq!(restored.counts().await.unwrap().queued, 9);
    restored.close();
    store.close();
    let (before, after) = compact(&path, now.wall).unwrap();
    assert!(after <= before);
    let compacted = open(&path).unwrap();
    assert_eq!(said(&compacted, &ids).await.unwrap(), all);
    compacted.close();
    assert!(check(&path, true).unwrap().is_sound());
}

#[tokio::test]
async fn what_waits_and_runs_is_there_again_in_its_order() {
    let directory = tempfile::tempdir().unwrap();
    let (path, ids, all) = whole(directory.path()).await;
    let store = open(&path).unwrap();
    assert_eq!((store.opened().queued, store.opened().processing), (9, 8));
    assert_eq!(said(&store, &ids).await.unwrap(), all);
    let now = Now::default();
    let moved = store.recover(&Worker::new("anywhere"), now).await.unwrap();
    assert_eq!(moved.len(), 8);
    for lane in store.lanes(now).await.unwrap() {
        if lane.lane.queue == "keyed" {
            continue;
        }
        let window = store.next(&lane.lane, None, 100, now).await.unwrap();
        let found: Vec<_> = window.jobs.iter().map(|waiting| waiting.job).collect();
        let of_lane = |id: &&JobId| {
            let n = ids.iter().position(|other| other == *id).unwrap();
            lane.lane.queue == ["m", "n"][n % 2] && n % 3 != 1
        };
        assert_eq!(
            found,
            ids.iter().filter(of_lane).copied().collect::<Vec<_>>()
        );
    }
    store.close();
    assert!(check(&path, true).unwrap().is_sound());
}

#[tokio::test]
async fn a_flipped_bit_in_a_row_of_each_table_is_found_by_check() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _, _) = whole(directory.path()).await;
    let copy = directory.path().join("damaged.db");
    // In a column of each that no index holds, so that the structure is whole.
    for (table, column, value) in [
        ("names", "sum", "sum + 1"),
        ("jobs", "bytes", "bytes + 1"),
        ("blobs", "data", "x'00'"),
        ("event_log", "at", "at + 1"),
        ("webhook_endpoints", "data", "data || ' '"),
        ("deliveries", "attempts", "attempts + 1"),
        ("batches", "data", "data || ' '"),
        ("files", "data", "data || ' '"),
        ("file_chunks", "sum", "sum + 1"),
        ("keys", "any_tenant", "1"),
        ("key_usage", "drawn_tokens", "drawn_tokens - 1"),
        ("learned_limits", "limits", "'[]'"),
        ("limit_books", "used", "'[]'"),
        ("quota_books", "state", "'[]'"),
        ("charges", "charged_per_million", "1"),
        ("sign_of_life", "clean", "1 - clean"),
        ("store_facts", "value", "zeroblob(16)"),
        ("stages", "shift", "shift + 1"),
        ("idempotency", "hash", "zeroblob(32)"),
        ("queues", "paused", "1 - paused"),
    ] {
        std::fs::copy(&path, &copy).unwrap();
        let database = rusqlite::Connection::open(&copy).unwrap();
        let rows = database.execute(&format!("UPDATE {table} SET {column} = {value}"), []);
        assert!(rows.unwrap() > 0, "{table} has no row");
        drop(database);
        let checked = check(&copy, false).unwrap();
        assert!(!checked.is_sound(), "{table}.{column} says something else");
    }
    let database = rusqlite::Connection::open(&path).unwrap();
    let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table'
                  AND name NOT LIKE 'sqlite_%'";
    let tables: i64 = database.query_row(tables, [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 20, "a table that is not looked at here");
}
