//! What is recorded is read back as it was written, in memory and in a file, also by the next
//! process.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::collections::BTreeMap;
use std::time::Duration;

use llmq_core::{Now, WallTime};
use llmq_store::{
    Callback, Delivery, Endpoint, EndpointId, Events as _, Filter, Jobs as _, NewEvent, NewJob,
    Reads as _, Subject, Take, Webhooks as _,
};
use llmq_store_sqlite::{
    Budget, InsertedKey, KeyRecord, KeyUsage, LimitBooks, OpenError, Place, RevokedKey, Spend,
    Store, StoreError, UsageRecord, UsedPart,
};
use uuid::Uuid;

/// The tables that the third layout gave sums to.
const SUMMED: [&str; 6] = [
    "names",
    "webhook_endpoints",
    "deliveries",
    "batches",
    "files",
    "file_chunks",
];

const NOW: WallTime = WallTime::from_micros(1_767_225_600_000_000);

fn key(number: u8) -> KeyRecord {
    KeyRecord {
        id: Uuid::now_v7(),
        name: format!("key {number}"),
        prefix: "llmq_abcdefgh".to_owned(),
        sha256: [number; 32],
        scopes: vec!["call".to_owned()],
        models: Some(vec!["a \"model\"".to_owned()]),
        tenant: None,
        any_tenant: number.is_multiple_of(2),
        limits: vec!["rpm=60".to_owned()],
        budget: Budget {
            tokens_per_day: Some(u64::from(number)),
            nano_usd_per_month: Some(i64::MAX as u64),
            ..Budget::default()
        },
        created_at: NOW,
        revoked_at: None,
    }
}

fn open(place: &Place) -> Store {
    Store::open(place, NOW).unwrap()
}

/// The same law for a store in memory and for one in a file.
async fn on_each<F: AsyncFn(Store)>(law: F) {
    law(open(&Place::Memory)).await;
    let directory = tempfile::tempdir().unwrap();
    law(open(&Place::File(directory.path().join("llmq.db")))).await;
}

#[tokio::test]
async fn keys_are_read_back_as_they_were_written() {
    on_each(async |store| {
        let keys = [key(1), key(2), key(3)];
        for key in &keys {
            let inserted = store.insert_key(key.clone()).await.unwrap();
            assert_eq!(inserted, InsertedKey::Inserted);
        }
        assert_eq!(store.keys_in_use().await.unwrap(), keys);
        assert_eq!(
            store.key(keys[1].id).await.unwrap().as_ref(),
            Some(&keys[1])
        );
        let page = store.list_keys(None, 2).await.unwrap();
        assert_eq!(page, [keys[2].clone(), keys[1].clone()]);
        let rest = store.list_keys(Some(keys[1].id), 2).await.unwrap();
        assert_eq!(rest, [keys[0].clone()]);
    })
    .await;
}

#[tokio::test]
async fn a_revoked_key_frees_its_name_and_keeps_its_time() {
    on_each(async |store| {
        let first = key(1);
        store.insert_key(first.clone()).await.unwrap();
        let mut second = key(2);
        second.name = first.name.clone();
        let taken = store.insert_key(second.clone()).await.unwrap();
        assert_eq!(taken, InsertedKey::NameTaken);
        for later in [1, 2] {
            let at = WallTime::from_micros(NOW.as_micros() + later);
            let revoked = store.revoke_key(first.id, at).await.unwrap();
            let RevokedKey::Revoked(revoked) = revoked else {
                panic!("{revoked:?}");
            };
            assert_eq!(revoked.revoked_at.unwrap().as_micros(), NOW.as_micros() + 1);
        }
        store.insert_key(second.clone()).await.unwrap();
        assert_eq!(store.keys_in_use().await.unwrap(), [second]);
        let unknown = store.revoke_key(Uuid::nil(), NOW).await.unwrap();
        assert_eq!(unknown, RevokedKey::Unknown);
    })
    .await;
}

fn usage(key: Uuid, period: &str, count: u64) -> KeyUsage {
    KeyUsage {
        key,
        period: period.to_owned(),
        input_tokens: count,
        output_tokens: count + 1,
        nano_usd: count + 2,
        drawn: Spend {
            tokens: count + 3,
            nano_usd: count + 4,
        },
    }
}

#[tokio::test]
async fn usage_only_grows_until_the_last_word() {
    on_each(async |store| {
        let key = key(1);
        store.insert_key(key.clone()).await.unwrap();
        let read = async || {
            let (day, month) = ("2026-01-02".to_owned(), "2026-01".to_owned());
            store.key_usage(day, month).await.unwrap()
        };
        // Two writers may overtake one another: the older figures must not undo the newer.
        for count in [10, 5] {
            let day = usage(key.id, "2026-01-02", count);
            store
                .save_key_usage(vec![day], UsageRecord::Running)
                .await
                .unwrap();
        }
        let old = usage(key.id, "2026-01-01", 7);
        let month = usage(key.id, "2026-01", 7);
        let both = vec![old, month.clone()];
        store
            .save_key_usage(both, UsageRecord::Running)
            .await
            .unwrap();
        let day = usage(key.id, "2026-01-02", 10);
        assert_eq!(read().await, [month.clone(), day]);
        let last = usage(key.id, "2026-01-02", 8);
        store
            .save_key_usage(vec![last.clone()], UsageRecord::Final)
            .await
            .unwrap();
        assert_eq!(read().await, [month, last]);
    })
    .await;
}

// A usage of no key breaks a reference: what fails must take nothing else with it.
#[tokio::test]
async fn work_that_fails_takes_back_all_of_itself_and_nothing_else() {
    on_each(async |store| {
        let key = key(1);
        store.insert_key(key.clone()).await.unwrap();
        let good = usage(key.id, "2026-01-02", 1);
        let bad = usage(Uuid::now_v7(), "2026-01-02", 1);
        let (failed, saved) = tokio::join!(
            store.save_key_usage(vec![good, bad], UsageRecord::Running),
            store.save_learned("up", "host", vec!["requests=5/1s".to_owned()]),
        );
        assert!(matches!(failed, Err(StoreError::Unavailable { .. })));
        saved.unwrap();
        let usage = store.key_usage(String::new(), String::new()).await.unwrap();
        assert_eq!(usage, []);
        assert_eq!(store.learned().await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn learned_limits_are_those_of_one_server() {
    on_each(async |store| {
        let limits = |text: &str| vec![text.to_owned()];
        store
            .save_learned("up", "a", limits("requests=5/1s"))
            .await
            .unwrap();
        store
            .save_learned("up", "b", limits("requests=6/1s"))
            .await
            .unwrap();
        store
            .save_learned("up", "a", limits("requests=7/1s"))
            .await
            .unwrap();
        store.save_learned("up", "b", Vec::new()).await.unwrap();
        let learned = store.learned().await.unwrap();
        assert_eq!(learned.len(), 1);
        assert_eq!(
            (learned[0].host.as_str(), learned[0].limits[0].as_str()),
            ("a", "requests=7/1s")
        );
    })
    .await;
}

#[tokio::test]
async fn books_replace_those_before() {
    on_each(async |store| {
        assert_eq!(store.limit_books().await.unwrap(), None);
        let part = UsedPart {
            age_ms: 7,
            amount: 9,
        };
        for name in ["rpm up", "rpd up"] {
            let books = LimitBooks {
                alive_at: NOW,
                clean: name == "rpd up",
                used: BTreeMap::from([(name.to_owned(), vec![part, part])]),
                charged_per_million: BTreeMap::from([(name.to_owned(), 1_150_000)]),
                quota: BTreeMap::from([(name.to_owned(), "{}".to_owned())]),
            };
            store.save_limit_books(books.clone()).await.unwrap();
            assert_eq!(store.limit_books().await.unwrap(), Some(books));
        }
    })
    .await;
}

#[tokio::test]
async fn the_next_process_finds_all_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::File(directory.path().join("llmq.db"));
    let key = key(1);
    for clone in [false, true] {
        let store = open(&place);
        if !clone {
            store.insert_key(key.clone()).await.unwrap();
        }
        assert_eq!(
            store.keys_in_use().await.unwrap(),
            std::slice::from_ref(&key)
        );
        let other = store.clone();
        store.close();
        assert!(matches!(other.keys_in_use().await, Err(StoreError::Closed)));
    }
}

#[tokio::test]
async fn what_a_killed_process_was_delivering_is_due_for_the_next_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::File(directory.path().join("llmq.db"));
    let now = Now::default();
    let mut job = NewJob::new("m", "t", "{}");
    job.details.callback = Some(Callback {
        url: "https://example.com/".to_owned(),
        signed_by: None,
    });
    let id = job.id;
    let store = open(&place);
    store.enqueue(vec![job], now).await.unwrap();
    store.cancel(id, now).await.unwrap();
    let due = due(&store, now).await;
    assert_eq!(due.len(), 1);
    assert_eq!(self::due(&store, now).await, [], "somebody has it");
    store.close();
    let store = open(&place);
    let next = self::due(&store, now).await;
    assert_eq!((next[0].id, &next[0].event), (due[0].id, &due[0].event));
}

async fn due(store: &Store, now: Now) -> Vec<Delivery> {
    let take = Take {
        max: 10,
        each: 10,
        each_failing: 10,
        hold: Duration::from_secs(60),
    };
    store.due_deliveries(take, now).await.unwrap().deliveries
}

#[tokio::test]
async fn what_a_removed_endpoint_was_told_goes_in_slices_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let place = Place::File(path.clone());
    let now = Now::default();
    let store = open(&place);
    let endpoints: Vec<_> = (0..2).map(|_| endpoint()).collect();
    for endpoint in &endpoints {
        let put = store.put_endpoint(endpoint.clone(), None, now);
        put.await.unwrap();
    }
    let told = |n: usize| NewEvent {
        kind: "quota.warning".to_owned(),
        tenant: None,
        subject: Subject::Other(n.to_string()),
        data: serde_json::Value::Null,
    };
    store
        .publish((0..1200).map(told).collect(), now)
        .await
        .unwrap();
    assert!(store.delete_endpoint(endpoints[0].id).await.unwrap());
    let rows = || {
        let database = rusqlite::Connection::open(&path).unwrap();
        let count = "SELECT count(*) FROM deliveries";
        database
            .query_row(count, [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(rows(), 2400);
    assert!(store.tend(now).await.unwrap().more);
    assert_eq!(rows(), 1900, "a slice at a time");
    store.close();
    let store = open(&place);
    let seen = store.deliveries(None, None, 2000).await.unwrap();
    assert_eq!(seen.len(), 1200);
    while store.tend(now).await.unwrap().more {}
    assert_eq!(rows(), 1200);
    assert_eq!(store.deliveries(None, None, 2000).await.unwrap(), seen);
    store.close();
}

fn endpoint() -> Endpoint {
    Endpoint {
        id: EndpointId::new(),
        tenant: None,
        url: "https://example.com".to_owned(),
        events: Vec::new(),
        disabled: false,
        state: serde_json::Value::Null,
        created_at: WallTime::default(),
    }
}

#[tokio::test]
async fn a_file_of_the_layout_before_sums_is_brought_forward_with_all_that_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let place = Place::File(path.clone());
    let store = open(&place);
    let now = Now::default();
    let mut told = NewJob::new("m", "t", "{}");
    told.details.callback = Some(Callback {
        url: "https://example.com/".to_owned(),
        signed_by: None,
    });
    let id = told.id;
    let jobs = vec![NewJob::new("m", "t", "{}"), told];
    store.enqueue(jobs, now).await.unwrap();
    store.cancel(id, now).await.unwrap();
    store.close();
    let database = rusqlite::Connection::open(&path).unwrap();
    // What came after sums.
    database
        .execute_batch(
            "DELETE FROM event_log; ALTER TABLE keys DROP COLUMN sum; ALTER TABLE key_usage DROP COLUMN sum;
             ALTER TABLE learned_limits DROP COLUMN sum; ALTER TABLE limit_books DROP COLUMN sum;
             ALTER TABLE quota_books DROP COLUMN sum; ALTER TABLE sign_of_life DROP COLUMN sum;
             ALTER TABLE store_facts DROP COLUMN sum; ALTER TABLE stages DROP COLUMN sum;
             ALTER TABLE idempotency DROP COLUMN sum; ALTER TABLE queues DROP COLUMN sum;
             DROP TABLE charges; DROP INDEX deliveries_due; DROP INDEX deliveries_by_age;
             ALTER TABLE deliveries DROP COLUMN addressee;
             CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL",
        )
        .unwrap();
    for table in SUMMED {
        let drop = format!("ALTER TABLE {table} DROP COLUMN sum");
        database.execute_batch(&drop).unwrap();
    }
    database.pragma_update(None, "user_version", 2).unwrap();
    drop(database);
    let older = llmq_store_sqlite::check(&path, true).unwrap_err();
    assert!(
        matches!(older, OpenError::Older { found: 2, .. }),
        "{older}"
    );
    let store = open(&place);
    let jobs = store.list(&Filter::default(), None, 10).await.unwrap();
    assert_eq!((jobs.items[0].queue.as_str(), jobs.items.len()), ("m", 2));
    assert_eq!(due(&store, now).await.len(), 1);
    store.close();
    assert!(llmq_store_sqlite::check(&path, true).unwrap().is_sound());
}

#[tokio::test]
async fn a_second_owner_is_told_who_has_it_under_whatever_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = open(&Place::File(path.clone()));
    let refused = |path: std::path::PathBuf| {
        let error = Store::open(&Place::File(path), NOW).unwrap_err();
        assert!(matches!(error, OpenError::Owned { .. }), "{error}");
        let message = error.to_string();
        let owner = format!("in use by process {} on ", std::process::id());
        assert!(message.contains(&owner), "{message}");
        assert!(message.contains("since 2026-01-01T00:00:00Z"), "{message}");
    };
    refused(path.clone());
    #[cfg(unix)]
    {
        let other = directory.path().join("other.db");
        std::os::unix::fs::symlink(&path, &other).unwrap();
        refused(other);
    }
    drop(store);
    open(&Place::File(path));
}

/// The locks that this process has of a file, as the system counts them: by what it has open,
/// since the list of everybody's locks is read piece by piece, and others' come and go meanwhile.
#[cfg(target_os = "linux")]
fn locks_of(path: &std::path::Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(":{}", std::fs::metadata(path).unwrap().ino());
    let open = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    // What was closed meanwhile is not this file.
    let infos = open.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let mut locks: Vec<String> = infos
        .flat_map(|info| info.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| {
            let lock = line.strip_prefix("lock:")?.split_once(": ")?.1.to_owned();
            let mut words = lock.split_whitespace();
            words.any(|word| word.ends_with(&inode)).then_some(lock)
        })
        .collect();
    locks.sort_unstable();
    locks.dedup();
    locks
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn whoever_asks_for_a_store_or_looks_at_it_takes_no_lock_from_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = open(&Place::File(path.clone()));
    store.insert_key(key(1)).await.unwrap();
    let locks = locks_of(&path);
    assert!(!locks.is_empty(), "SQLite holds one of a file with a log");
    Store::open(&Place::File(path.clone()), NOW).unwrap_err();
    assert_eq!(locks_of(&path), locks);
    assert!(llmq_store_sqlite::check(&path, false).unwrap().is_sound());
    llmq_store_sqlite::backup(&path, &directory.path().join("copy.db")).unwrap();
    assert_eq!(locks_of(&path), locks);
}

/// The books may be old when a process dies whose disk takes nothing.
#[tokio::test]
async fn when_a_process_was_touched_last_is_known_to_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::File(directory.path().join("llmq.db"));
    let store = open(&place);
    assert_eq!(store.touched_before(), None);
    let later = NOW + Duration::from_secs(600);
    store.touch(later).unwrap();
    store.close();
    let store = open(&place);
    assert_eq!(store.touched_before(), Some(later));
    let memory = open(&Place::Memory);
    memory.touch(later).unwrap();
    assert_eq!(memory.touched_before(), None);
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_to_what_is_not_there_yet_has_the_lock_of_what_it_leads_to() {
    let directory = tempfile::tempdir().unwrap();
    let (there, link) = (
        directory.path().join("there.db"),
        directory.path().join("llmq.db"),
    );
    std::os::unix::fs::symlink("there.db", &link).unwrap();
    let store = open(&Place::File(link));
    let refused = Store::open(&Place::File(there), NOW).unwrap_err();
    assert!(matches!(refused, OpenError::Owned { .. }), "{refused}");
    drop(store);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |name: &str, content: Option<&[u8]>| {
        let path = directory.path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = Store::open(&Place::File(path), NOW).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        error
    };
    let missing = refused("no/llmq.db", None);
    assert!(matches!(missing, OpenError::NoDirectory { .. }));
    let text = refused("notes.txt", Some(&b"not a database ".repeat(100)));
    assert!(matches!(text, OpenError::Database { .. }));
}

#[test]
fn a_newer_file_is_refused_by_its_version_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    drop(open(&Place::File(path.clone())));
    let database = rusqlite::Connection::open(&path).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    drop(database);
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(&Place::File(path.clone()), NOW).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }));
    assert!(
        error.to_string().contains("was written by a newer llmq"),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_can_read_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let store = open(&Place::File(directory.path().join("llmq.db")));
    store.insert_key(key(1)).await.unwrap();
    for name in ["llmq.db", "llmq.db-wal", "llmq.db-shm"] {
        let file = std::fs::metadata(directory.path().join(name)).unwrap();
        assert_eq!(file.permissions().mode() & 0o077, 0, "{name}");
    }
}
