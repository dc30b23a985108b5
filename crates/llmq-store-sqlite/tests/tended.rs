//! Housekeeping, and writing anew, leave a row that is not what was written: whoever looks into the
//! damage finds it, and nothing is forgotten before its time.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::path::Path;
use std::time::Duration;

use llmq_core::{Now, WallTime};
use llmq_store::{
    Attempted, Batch, BatchStatus, BatchUpdate, Batches as _, Callback, Endpoint, EndpointId,
    EnqueueError, EventId, EventPage, Events as _, FileId, Files as _, Idempotency, Jobs as _,
    NewJob, NextTry, Reads as _, StoredFile, Take, Webhooks as _,
};
use llmq_store_sqlite::{Place, Store, StoreError};
use rusqlite::Connection;

const DAY: Duration = Duration::from_secs(86_400);

fn beginning() -> Now {
    Now {
        wall: WallTime::from_micros(1_767_225_600_000_000),
        ..Now::default()
    }
}

fn keyed() -> NewJob {
    NewJob {
        idempotency: Some(Idempotency {
            key: "k".to_owned(),
            request_hash: [1; 32],
        }),
        ..NewJob::new("m", "t", "{}")
    }
}

/// A store with one of each that housekeeping removes after days.
async fn filled(store: &Store, now: Now) {
    let mut job = keyed();
    job.details.callback = Some(Callback {
        url: "https://example.com/".to_owned(),
        signed_by: None,
    });
    store.enqueue(vec![job.clone()], now).await.unwrap();
    store.cancel(job.id, now).await.unwrap();
    let take = Take {
        max: 10,
        each: 10,
        each_failing: 10,
        hold: Duration::from_secs(60),
    };
    let due = store.due_deliveries(take, now).await.unwrap();
    let attempted = Attempted {
        delivery: due.deliveries[0].id,
        next: NextTry::Delivered,
        outcome: "200".to_owned(),
    };
    store.delivered(vec![attempted], now).await.unwrap();
    let batch = Batch::new("t", serde_json::Value::Null, now.wall);
    let (id, status) = (batch.id, batch.status);
    store.create_batch(batch).await.unwrap();
    let update = BatchUpdate {
        from: status,
        to: BatchStatus::Failed,
        details: serde_json::Value::Null,
        files: Vec::new(),
        event: None,
    };
    store.update_batch(id, update, now).await.unwrap().unwrap();
    let file = StoredFile {
        id: FileId::new(),
        tenant: "t".to_owned(),
        filename: "in".to_owned(),
        purpose: "batch".to_owned(),
        bytes: 0,
        created_at: now.wall,
        expires_at: Some(now.wall + 30 * DAY),
    };
    let id = file.id;
    store.create_file(file).await.unwrap();
    store.append_file(id, "{}".into()).await.unwrap();
    store.publish_file(id).await.unwrap();
}

/// A store whose file was changed by nobody's leave while it was closed.
async fn changed(path: &Path, sql: &str, now: Now) -> Store {
    let place = Place::File(path.to_owned());
    let store = Store::open(&place, now.wall).unwrap();
    filled(&store, now).await;
    store.close();
    let file = Connection::open(path).unwrap();
    assert_eq!(file.execute(sql, []).unwrap(), 1, "{sql}");
    drop(file);
    Store::open(&place, now.wall).unwrap()
}

async fn tended(store: &Store, now: Now) {
    for _ in 0..20 {
        store.tend(now).await.unwrap();
    }
}

fn rows(path: &Path, table: &str) -> i64 {
    let file = Connection::open(path).unwrap();
    let count = format!("SELECT count(*) FROM {table}");
    file.query_row(&count, [], |row| row.get(0)).unwrap()
}

/// A wall clock that was set forward for a moment took files away for good.
#[tokio::test]
async fn a_wall_that_is_ahead_for_a_moment_removes_nothing() {
    let now = beginning();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = Store::open(&Place::File(path.clone()), now.wall).unwrap();
    filled(&store, now).await;
    let ahead = Now {
        wall: now.wall + 40 * DAY,
        ..now
    };
    tended(&store, ahead).await;
    for table in ["files", "jobs", "batches", "deliveries", "idempotency"] {
        assert_eq!(rows(&path, table), 1, "{table}");
    }
}

/// What was made after the clock was set right was removed as soon as it was old by the wrong one:
/// events, what was delivered, and batches whose input was wrong.
#[tokio::test]
async fn a_wall_that_was_ahead_at_the_start_removes_nothing() {
    let now = beginning();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let store = Store::open(&Place::File(path.clone()), now.wall + 40 * DAY).unwrap();
    let ahead = Now {
        wall: now.wall + 40 * DAY,
        ..now
    };
    store.tend(ahead).await.unwrap();
    filled(&store, now).await;
    let events = rows(&path, "event_log");
    assert!(events > 1, "the newest is always kept");
    tended(&store, now).await;
    for table in ["files", "jobs", "batches", "deliveries", "idempotency"] {
        assert_eq!(rows(&path, table), 1, "{table}");
    }
    assert_eq!(rows(&path, "event_log"), events);
    tended(&store, now.after(40 * DAY)).await;
    for table in ["files", "jobs", "batches", "deliveries", "idempotency"] {
        assert_eq!(rows(&path, table), 0, "{table}");
    }
    assert_eq!(rows(&path, "event_log"), 1);
}

/// A bit that made an instant older removed what was to be kept, and nobody was told.
#[tokio::test]
async fn a_row_whose_time_is_damaged_is_not_removed() {
    let now = beginning();
    for (table, sql) in [
        ("files", "UPDATE files SET expires_at = 1"),
        ("files", "UPDATE files SET state = 2"),
        ("batches", "UPDATE batches SET ended = 1"),
        ("deliveries", "UPDATE deliveries SET last_attempt_at = 1"),
        ("idempotency", "UPDATE idempotency SET used_at = 1"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("llmq.db");
        let store = changed(&path, sql, now).await;
        tended(&store, now).await;
        assert_eq!(rows(&path, table), 1, "{sql}");
        // Those that are whole go in their time.
        tended(&store, now.after(40 * DAY)).await;
        assert_eq!(rows(&path, "jobs"), 0, "{sql}");
        for other in ["files", "batches", "deliveries", "idempotency"] {
            let left = i64::from(other == table);
            assert_eq!(rows(&path, other), left, "{other} after {sql}");
        }
        store.close();
        let checked = llmq_store_sqlite::check(&path, false).unwrap();
        assert!(!checked.is_sound(), "{sql}");
    }
}

/// A bit that made an event older let go of it, and one that made it newer held up all behind it.
#[tokio::test]
async fn events_that_are_damaged_stay_and_hold_up_no_others() {
    let now = beginning();
    for at in [1, i64::MAX / 2] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("llmq.db");
        let sql = format!(
            "UPDATE event_log SET at = {at} WHERE last = (SELECT min(last) FROM event_log)"
        );
        let store = changed(&path, &sql, now).await;
        let job = NewJob::new("m", "t", "{}");
        store.enqueue(vec![job], now).await.unwrap();
        assert_eq!(rows(&path, "event_log"), 3);
        tended(&store, now).await;
        assert_eq!(rows(&path, "event_log"), 3, "{sql}");
        tended(&store, now.after(40 * DAY)).await;
        assert_eq!(rows(&path, "event_log"), 2, "it and the newest: {sql}");
        store.close();
        // Who has heard of the damaged one is told that those behind it are gone.
        let store = Store::open(&Place::File(path), now.wall).unwrap();
        let page = store.events(EventId(1), 10).await.unwrap();
        assert!(matches!(page, EventPage::Gap { .. }), "{page:?}");
    }
}

/// What removed endpoints were to be told is removed; a damaged row may be another's.
#[tokio::test]
async fn a_delivery_that_is_damaged_stays_though_its_endpoint_is_removed() {
    let (now, directory) = (beginning(), tempfile::tempdir().unwrap());
    let path = directory.path().join("llmq.db");
    let endpoint = Endpoint {
        id: EndpointId::from_uuid(uuid::Uuid::from_u128(7)),
        tenant: None,
        url: "https://example.com/".to_owned(),
        events: Vec::new(),
        disabled: false,
        state: "".into(),
        created_at: now.wall,
    };
    let store = Store::open(&Place::File(path.clone()), now.wall).unwrap();
    let id = endpoint.id;
    store.put_endpoint(endpoint, None, now).await.unwrap();
    for _ in 0..2 {
        let job = NewJob::new("m", "t", "{}");
        store.enqueue(vec![job.clone()], now).await.unwrap();
        store.cancel(job.id, now).await.unwrap();
    }
    assert_eq!(rows(&path, "deliveries"), 2);
    let file = Connection::open(&path).unwrap();
    let damage = "UPDATE deliveries SET attempts = 9 WHERE number = 1";
    assert_eq!(file.execute(damage, []).unwrap(), 1);
    assert!(store.delete_endpoint(id).await.unwrap());
    tended(&store, now).await;
    assert_eq!(rows(&path, "deliveries"), 1);
    assert!(
        !store.tend(now).await.unwrap().more,
        "it is not tried again"
    );
}

/// Else the call would be sent a second time, in silence.
#[tokio::test]
async fn a_damaged_key_is_told_of_and_not_taken_for_an_old_one() {
    let (now, directory) = (beginning(), tempfile::tempdir().unwrap());
    let path = directory.path().join("llmq.db");
    let store = changed(&path, "UPDATE idempotency SET used_at = 1", now).await;
    let again = store.enqueue(vec![keyed()], now).await;
    let is_told = matches!(again, Err(EnqueueError::Store(StoreError::Damaged { .. })));
    assert!(is_told, "{again:?}");
    assert_eq!(store.counts().await.unwrap().queued, 0);
}

/// A new secret was written over one that a flipped bit had made unreadable, and receivers refused
/// everything from then on.
#[tokio::test]
async fn an_endpoint_that_is_damaged_is_not_written_over() {
    let (now, directory) = (beginning(), tempfile::tempdir().unwrap());
    let path = directory.path().join("llmq.db");
    let endpoint = |state: &str| Endpoint {
        id: EndpointId::from_uuid(uuid::Uuid::nil()),
        tenant: None,
        url: String::new(),
        events: Vec::new(),
        disabled: true,
        state: state.into(),
        created_at: now.wall,
    };
    let place = Place::File(path.clone());
    let store = Store::open(&place, now.wall).unwrap();
    store
        .put_endpoint(endpoint("old"), None, now)
        .await
        .unwrap();
    store
        .put_endpoint(endpoint("newer"), None, now)
        .await
        .unwrap();
    store.close();
    let sql = "UPDATE webhook_endpoints SET data = replace(data, 'newer', 'never')";
    let file = Connection::open(&path).unwrap();
    assert_eq!(file.execute(sql, []).unwrap(), 1);
    drop(file);
    let store = Store::open(&place, now.wall).unwrap();
    let refused = store.put_endpoint(endpoint("other"), None, now).await;
    assert!(
        matches!(refused, Err(StoreError::Damaged { .. })),
        "{refused:?}"
    );
    // Whoever knows what to do can remove it.
    assert!(store.delete_endpoint(endpoint("").id).await.unwrap());
    store
        .put_endpoint(endpoint("other"), None, now)
        .await
        .unwrap();
}
