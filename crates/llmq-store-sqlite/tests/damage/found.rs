//! What becomes of damage that is met: who meets it is told, and the others go on.

use llmq_core::Now;
use llmq_store::{
    Batches as _, EventId, EventPage, Events as _, Files as _, Filter, JobId, Jobs as _,
    Lines as _, NewJob, Reads as _, Store as _, Worker,
};
use llmq_store_sqlite::{OpenError, Store, backup, check, compact};

use crate::filled::{fill, killed, open, said, whole};

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
    assert_eq!(store.batches(None, None, 100).await.unwrap().len(), 5);
    assert_eq!(store.files(None, None, 100).await.unwrap().len(), 5);
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
    // What is told from here on has other ids than what the original tells.
    let id = |store: &Store| llmq_store::Store::id(store);
    assert_ne!(id(&restored), id(&store));
    restored.close();
    store.close();
    let (before, after) = compact(&path, now.wall).unwrap();
    assert!(after <= before);
    let compacted = open(&path).unwrap();
    assert_eq!(said(&compacted, &ids).await.unwrap(), all);
    compacted.close();
    assert!(check(&path, true).unwrap().is_sound());
}

/// It failed with SQLite's words until the new llmq had changed the very file that was to be kept.
#[tokio::test]
async fn a_file_of_an_older_layout_is_copied_as_it_is() {
    const STEPS: [&str; 2] = [
        include_str!("../../src/migrations/0001_keys_and_limits.sql"),
        include_str!("../../src/migrations/0002_jobs.sql"),
    ];
    let directory = tempfile::tempdir().unwrap();
    for version in [1, 2] {
        let path = directory.path().join(format!("{version}.db"));
        let copy = directory.path().join(format!("{version}-copy.db"));
        let file = rusqlite::Connection::open(&path).unwrap();
        for step in &STEPS[..version] {
            file.execute_batch(step).unwrap();
        }
        file.pragma_update(None, "application_id", 0x6c6c_6d71)
            .unwrap();
        file.pragma_update(None, "user_version", version as i64)
            .unwrap();
        let fact = "INSERT INTO store_facts (name, value) VALUES ('id', zeroblob(16))";
        if version > 1 {
            file.execute(fact, []).unwrap();
        }
        drop(file);
        backup(&path, &copy).unwrap();
        let file = rusqlite::Connection::open(&copy).unwrap();
        let found: i64 = file
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(found, version as i64);
        drop(file);
        // Another store than the original, and whole.
        let (original, copied) = (open(&path).unwrap(), open(&copy).unwrap());
        assert_ne!(original.id(), copied.id());
        copied.close();
        assert!(check(&copy, true).unwrap().is_sound());
    }
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
