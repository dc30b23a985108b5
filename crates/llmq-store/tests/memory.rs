//! What is true of the store in memory, as far as no other store shares it.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Now, Status};
use llmq_store::*;

fn store() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new(Settings::default()))
}

#[tokio::test]
async fn a_job_goes_through_its_life_and_is_told_of() {
    let store = store();
    let now = Now::default();
    let mut events = store.newest_event();
    let job = NewJob::new("m", "t", "body");
    let id = job.id;
    assert_eq!(
        store.enqueue(vec![job], now).await.unwrap(),
        [Enqueued::New(id)]
    );
    let lane = store.lanes(now).await.unwrap().remove(0).lane;
    let window = store.next(&lane, None, 32, now).await.unwrap();
    assert_eq!(window.jobs[0].job, id);
    assert_eq!(
        store.position(id).await.unwrap(),
        Some(Position::Exactly(1))
    );
    let start = Start {
        job: id,
        worker: Worker::new("here"),
        lease: Duration::from_secs(30),
        upstream: None,
    };
    let started = store
        .start(vec![start], now)
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(started.body, "body");
    let report = Report::Completed {
        answer: StoredAnswer {
            status: 200,
            headers: Vec::new(),
            body: "answer".into(),
        },
        usage: None,
        cost_nano_usd: None,
    };
    let done = store
        .report(started.lease, report.clone(), now)
        .await
        .unwrap();
    assert_eq!(done.status, Status::Completed);
    let again = store.report(started.lease, report, now).await;
    assert!(matches!(again, Err(ReportError::LeaseLost { .. })));
    assert_eq!(store.answer(id).await.unwrap().unwrap().body, "answer");
    assert!(events.has_changed().unwrap());
    assert_eq!(*events.borrow_and_update(), EventId(3));
    let EventPage::Events(told) = store.events(EventId(0), 10).await.unwrap() else {
        panic!("nothing was let go");
    };
    let kinds: Vec<_> = told.iter().map(|told| told.event.kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["request.queued", "request.started", "request.completed"]
    );
}

#[tokio::test]
async fn a_batch_appears_whole_and_its_members_are_counted() {
    let store = store();
    let now = Now::default();
    let batch = Batch {
        id: BatchId::new(),
        tenant: "t".into(),
        status: BatchStatus::Validating,
        counts: BatchCounts::default(),
        created_at: now.wall,
        changed_at: now.wall,
        details: serde_json::Value::Null,
    };
    let id = batch.id;
    store.create_batch(batch).await.unwrap();
    let jobs = (1..=3).map(|line| NewJob {
        member: Some(Member {
            batch: id,
            line,
            custom_id: format!("row-{line}"),
        }),
        ..NewJob::new("m", "t", "body")
    });
    store.stage(jobs.collect(), now).await.unwrap();
    assert!(store.lanes(now).await.unwrap().is_empty());
    let update = BatchUpdate {
        from: BatchStatus::Validating,
        to: BatchStatus::InProgress,
        details: serde_json::Value::Null,
        files: Vec::new(),
        event: None,
    };
    let batch = store.publish_batch(id, update, now).await.unwrap().unwrap();
    assert_eq!(batch.counts.total, 3);
    assert_eq!(store.counts().await.unwrap().queued, 3);
    assert_eq!(store.cancel_members(id, 10, now).await.unwrap(), 3);
    assert_eq!(store.batch(id).await.unwrap().unwrap().counts.cancelled, 3);
    assert_eq!(store.members(id, 1, 10).await.unwrap().len(), 2);
}
