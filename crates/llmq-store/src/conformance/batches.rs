use std::time::Duration;

use llmq_core::Status;

use super::World;
use super::world::{LEASE, lane, new_job};
use crate::{
    Batch, BatchId, BatchStatus, BatchUpdate, EnqueueError, EventId, EventKind, FileId, Filter,
    Member, NewEvent, NewJob, StoredFile, Subject,
};

fn batch(world: &World) -> Batch {
    Batch::new(
        "t",
        serde_json::json!({"endpoint": "/v1/chat/completions"}),
        world.now.wall,
    )
}

fn members(batch: BatchId, lines: std::ops::Range<u32>) -> Vec<NewJob> {
    let member = |line| NewJob {
        member: Some(Member {
            batch,
            line,
            custom_id: format!("row-{line}"),
        }),
        ttl: Some(Duration::from_secs(100)),
        ..new_job()
    };
    lines.map(member).collect()
}

fn update(from: BatchStatus, to: BatchStatus) -> BatchUpdate {
    BatchUpdate {
        from,
        to,
        details: serde_json::json!({"to": to}),
        files: Vec::new(),
        event: None,
    }
}

async fn publish(world: &World, lines: std::ops::Range<u32>) -> BatchId {
    let batch = batch(world);
    let id = batch.id;
    world.store.create_batch(batch).await.unwrap();
    world
        .store
        .stage(members(id, lines), world.now)
        .await
        .unwrap();
    let begin = update(BatchStatus::Validating, BatchStatus::InProgress);
    world
        .store
        .publish_batch(id, begin, world.now)
        .await
        .unwrap()
        .unwrap();
    id
}

pub async fn a_batch_appears_whole(mut world: World) {
    let store = std::sync::Arc::clone(&world.store);
    let new = batch(&world);
    let id = new.id;
    store.create_batch(new.clone()).await.unwrap();
    assert_eq!(store.batch(id).await.unwrap(), Some(new));
    for lines in [1..401, 401..801] {
        store.stage(members(id, lines), world.now).await.unwrap();
        world.advance(Duration::from_secs(50));
    }
    let staged = members(id, 801..802).remove(0);
    store.stage(vec![staged.clone()], world.now).await.unwrap();
    assert_eq!(store.job(staged.id).await.unwrap(), None);
    assert!(world.try_start(staged.id).await.is_err());
    assert!(store.lanes(world.now).await.unwrap().is_empty());
    assert_eq!(store.counts().await.unwrap().queued, 0);
    assert!(store.members(id, 0, 10).await.unwrap().is_empty());
    assert!(
        store
            .list(&Filter::default(), None, 10)
            .await
            .unwrap()
            .items
            .is_empty()
    );

    let begin = update(BatchStatus::Validating, BatchStatus::InProgress);
    let begun = store
        .publish_batch(id, begin.clone(), world.now)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (begun.counts.total, begun.status),
        (801, BatchStatus::InProgress)
    );
    assert_eq!(begun.details, begin.details);
    assert_eq!(
        store.publish_batch(id, begin, world.now).await.unwrap(),
        None
    );
    let too_late = store.stage(members(id, 900..901), world.now).await;
    assert!(too_late.is_err());
    let job = world.show(staged.id).await;
    assert_eq!(job.member, staged.member);
    let waiting = store
        .next(&lane("m", "t"), None, 1, world.now)
        .await
        .unwrap();
    // The time of its members begins when it does.
    let wanted = world.now.mono + Duration::from_secs(100);
    assert_eq!(waiting.jobs[0].expires_at, Some(wanted));
    assert_eq!(
        job.expires_at,
        Some(world.now.wall + Duration::from_secs(100))
    );
    let lines = store.members(id, 398, 4).await.unwrap().into_iter();
    let lines: Vec<_> = lines.map(|job| job.member.unwrap().line).collect();
    assert_eq!(lines, [399, 400, 401, 402]);
    let filter = Filter {
        batch: Some(id),
        ..Filter::default()
    };
    world.job().await;
    assert_eq!(
        store.list(&filter, None, 1000).await.unwrap().items.len(),
        801
    );
    world.start(staged.id).await;
    world.advance(LEASE);
    world.tend().await;
    assert_eq!(world.show(staged.id).await.status, Status::Queued);
    world.advance(Duration::from_secs(70));
    assert_eq!(world.tend().await.len(), 801);
}

pub async fn a_bad_batch_leaves_nothing(world: World) {
    let store = &world.store;
    let new = batch(&world);
    let id = new.id;
    store.create_batch(new).await.unwrap();
    let before = store.counts().await.unwrap();
    store.stage(members(id, 1..301), world.now).await.unwrap();
    let mut twice = members(id, 301..303);
    twice[1].id = twice[0].id;
    let refused = store.stage(twice, world.now).await;
    assert!(matches!(refused, Err(EnqueueError::DuplicateId { .. })));
    let refused = store.stage(members(id, 400..901), world.now).await;
    assert!(matches!(refused, Err(EnqueueError::TooMany { count: 501 })));
    let fail = update(BatchStatus::Validating, BatchStatus::Failed);
    let failed = store
        .update_batch(id, fail.clone(), world.now)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(failed.status, BatchStatus::Failed);
    assert_eq!(store.update_batch(id, fail, world.now).await.unwrap(), None);
    assert_eq!(store.counts().await.unwrap(), crate::Counts { ..before });
    assert!(store.members(id, 0, 10).await.unwrap().is_empty());
    let unknown = store.stage(members(BatchId::new(), 1..2), world.now).await;
    assert!(unknown.is_err());
}

pub async fn a_batch_is_told_when_its_last_member_ends(world: World) {
    let store = &world.store;
    let id = publish(&world, 1..5).await;
    let members = store.members(id, 0, 10).await.unwrap();
    let done = || async {
        let told = world.events(EventId(0)).await;
        let done = told
            .iter()
            .filter(|told| told.event.kind == EventKind::BATCH_WORK_DONE);
        done.filter(|told| told.event.subject == Subject::Batch(id))
            .count()
    };
    world.finish(members[0].id).await;
    let lease = world.start(members[1].id).await;
    for member in &members[1..] {
        assert_eq!(done().await, 0);
        store.cancel(member.id, world.now).await.unwrap();
    }
    assert!(
        world
            .report(lease, super::world::completed())
            .await
            .is_err()
    );
    assert_eq!(done().await, 1);
    let counts = store.batch(id).await.unwrap().unwrap().counts;
    assert_eq!(
        (counts.total, counts.completed, counts.cancelled),
        (4, 1, 3)
    );
    let empty = publish(&world, 1..1).await;
    let told = world.events(EventId(0)).await;
    assert_eq!(told.last().unwrap().event.subject, Subject::Batch(empty));
    let ids: Vec<_> = store.batches(Some("t"), None, 10).await.unwrap();
    let ids: Vec<_> = ids.iter().map(|batch| batch.id).collect();
    assert_eq!(ids, [empty, id]);
    assert_eq!(store.batches(None, Some(empty), 10).await.unwrap().len(), 1);
    assert!(
        store
            .batches(Some("other"), None, 10)
            .await
            .unwrap()
            .is_empty()
    );
}

fn file(world: &World) -> StoredFile {
    StoredFile {
        id: FileId::new(),
        tenant: "t".to_owned(),
        filename: "in.jsonl".to_owned(),
        purpose: "batch".to_owned(),
        bytes: 0,
        created_at: world.now.wall,
        expires_at: Some(world.now.wall + Duration::from_secs(100)),
    }
}

pub async fn a_file_is_seen_when_it_is_whole(mut world: World) {
    let store = std::sync::Arc::clone(&world.store);
    let new = file(&world);
    let id = new.id;
    let unnamed = StoredFile {
        filename: String::new(),
        purpose: String::new(),
        expires_at: None,
        ..new.clone()
    };
    store.create_file(unnamed).await.unwrap();
    assert_eq!(store.append_file(id, "one".into()).await.unwrap(), Some(3));
    assert_eq!(
        store.append_file(id, "three".into()).await.unwrap(),
        Some(8)
    );
    assert_eq!(store.file(id).await.unwrap(), None);
    assert_eq!(store.read_file(id, 0).await.unwrap(), None);
    assert!(store.files(None, None, 10).await.unwrap().is_empty());
    assert!(store.describe_file(new.clone()).await.unwrap());
    let whole = StoredFile {
        bytes: 8,
        ..new.clone()
    };
    assert_eq!(store.publish_file(id).await.unwrap(), Some(whole.clone()));
    assert_eq!(store.file(id).await.unwrap(), Some(whole));
    assert!(!store.describe_file(new).await.unwrap());
    assert_eq!(store.publish_file(id).await.unwrap(), None);
    assert_eq!(store.append_file(id, "x".into()).await.unwrap(), None);
    let other = file(&world);
    store.create_file(other.clone()).await.unwrap();
    store.publish_file(other.id).await.unwrap();
    let listed = store.files(Some("t"), None, 10).await.unwrap();
    assert_eq!(
        listed.iter().map(|file| file.id).collect::<Vec<_>>(),
        [other.id, id]
    );
    assert_eq!(
        store.files(None, Some(other.id), 10).await.unwrap().len(),
        1
    );
    let mut content = Vec::new();
    for chunk in 0.. {
        match store.read_file(id, chunk).await.unwrap() {
            Some(bytes) => content.extend_from_slice(&bytes),
            None => break,
        }
    }
    assert_eq!(content, b"onethree");
    assert!(store.delete_file(other.id).await.unwrap());
    assert!(!store.delete_file(other.id).await.unwrap());
    assert_eq!(store.file(other.id).await.unwrap(), None);
    world.advance(Duration::from_secs(100));
    world.tend().await;
    assert_eq!(store.file(id).await.unwrap(), None);
    assert_eq!(store.read_file(id, 0).await.unwrap(), None);
}

pub async fn the_output_appears_with_the_end_of_its_batch(world: World) {
    let store = &world.store;
    let id = publish(&world, 1..2).await;
    let output = file(&world);
    store.create_file(output.clone()).await.unwrap();
    store.append_file(output.id, "{}\n".into()).await.unwrap();
    let event = NewEvent {
        kind: "batch.completed".to_owned(),
        tenant: Some("t".to_owned()),
        subject: Subject::Batch(id),
        data: serde_json::Value::Null,
    };
    let end = BatchUpdate {
        files: vec![output.id],
        event: Some(event.clone()),
        ..update(BatchStatus::Finalizing, BatchStatus::Completed)
    };
    // It is not there yet.
    assert_eq!(
        store
            .update_batch(id, end.clone(), world.now)
            .await
            .unwrap(),
        None
    );
    assert_eq!(store.file(output.id).await.unwrap(), None);
    let finalize = update(BatchStatus::InProgress, BatchStatus::Finalizing);
    store
        .update_batch(id, finalize, world.now)
        .await
        .unwrap()
        .unwrap();
    store
        .update_batch(id, end, world.now)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(store.file(output.id).await.unwrap().unwrap().bytes, 3);
    let told = world.events(EventId(0)).await;
    assert_eq!(told.last().unwrap().event, event);
}

/// A reader that was broken off begins anew, with new ids.
pub async fn a_line_is_staged_once(world: World) {
    let new = batch(&world);
    let id = new.id;
    world.store.create_batch(new).await.unwrap();
    for lines in [1..4, 1..6] {
        let staged = world.store.stage(members(id, lines), world.now).await;
        staged.unwrap();
    }
    let begin = update(BatchStatus::Validating, BatchStatus::InProgress);
    let published = world.store.publish_batch(id, begin, world.now).await;
    assert_eq!(published.unwrap().unwrap().counts.total, 5);
    let members = world.store.members(id, 0, 100).await.unwrap();
    let lines = members.iter().map(|job| job.member.as_ref().unwrap().line);
    assert_eq!(lines.collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

pub async fn a_draining_queue_takes_no_members(world: World) {
    let new = batch(&world);
    let id = new.id;
    world.store.create_batch(new).await.unwrap();
    let drains = crate::QueueState {
        drains: true,
        ..crate::QueueState::default()
    };
    let set = world.store.set_queue("m", drains, world.now).await;
    set.unwrap();
    let refused = world.store.stage(members(id, 1..3), world.now).await;
    assert!(matches!(refused, Err(EnqueueError::Draining { queue }) if queue == "m"));
}

/// A batch that takes longer than results are kept still writes all of its output.
pub async fn what_is_still_to_be_written_is_kept(mut world: World) {
    let id = publish(&world, 1..3).await;
    let members = world.store.members(id, 0, 100).await.unwrap();
    for job in &members {
        world.finish(job.id).await;
    }
    world.advance(Duration::from_secs(30 * 24 * 60 * 60));
    world.tend().await;
    assert_eq!(world.store.members(id, 0, 100).await.unwrap().len(), 2);
    assert!(world.store.answer(members[0].id).await.unwrap().is_some());
    let done = update(BatchStatus::InProgress, BatchStatus::Completed);
    let done = world.store.update_batch(id, done, world.now).await;
    done.unwrap().unwrap();
    world.tend().await;
    assert_eq!(world.store.members(id, 0, 100).await.unwrap(), []);
}
