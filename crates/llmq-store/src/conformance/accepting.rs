use std::time::Duration;

use llmq_core::{FailureClass, Status, Verdict};

use super::World;
use super::world::{LEASE, ids, lane, new_job};
use crate::{
    EnqueueError, Enqueued, FullOf, Idempotency, JobError, NewJob, QueueState, Report, Settings,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn keyed(key: &str, request: u8) -> NewJob {
    NewJob {
        idempotency: Some(Idempotency {
            key: key.to_owned(),
            request_hash: [request; 32],
        }),
        ..new_job()
    }
}

fn failed(class: FailureClass) -> Report {
    Report::Failed {
        error: JobError {
            class: Some(class),
            ..JobError::new("x", "y")
        },
        answer: None,
        cost_nano_usd: None,
    }
}

pub async fn one_key_makes_one_job(world: World) {
    let first = world.accept(keyed("k", 1)).await;
    let again = world
        .store
        .enqueue(vec![keyed("k", 1)], world.now)
        .await
        .unwrap();
    assert_eq!(again, [Enqueued::existing(first)]);
    // One job of the call is refused, so all are.
    let plain = new_job();
    let id = plain.id;
    let refused = world
        .store
        .enqueue(vec![plain, keyed("k", 2)], world.now)
        .await;
    assert!(
        matches!(refused, Err(EnqueueError::Conflict { index: 1, existing }) if existing == first)
    );
    assert_eq!(world.store.job(id).await.unwrap(), None);
    // Within one call, too.
    let (one, two) = (keyed("j", 1), keyed("j", 1));
    let id = one.id;
    let both = world.store.enqueue(vec![one, two], world.now).await;
    let both: [Enqueued; 2] = both.unwrap().try_into().unwrap();
    let both = both.map(|enqueued| (enqueued.job, enqueued.is_new));
    assert_eq!(both, [(id, true), (id, false)]);
    assert_eq!(world.store.counts().await.unwrap().queued, 2);
}

pub async fn a_key_is_of_its_tenant_and_is_forgotten(mut world: World) {
    let first = world.accept(keyed("k", 1)).await;
    let other = NewJob {
        tenant: "other".to_owned(),
        ..keyed("k", 2)
    };
    assert_ne!(world.accept(other).await, first);
    world.advance(DAY - Duration::from_secs(1));
    assert_eq!(world.accept(keyed("k", 1)).await, first);
    world.advance(Duration::from_secs(2));
    assert_ne!(world.accept(keyed("k", 2)).await, first);
    world.tend().await;
    let kept = world.store.enqueue(vec![keyed("k", 1)], world.now).await;
    assert!(matches!(kept, Err(EnqueueError::Conflict { .. })));
}

/// Whether a key finds a job that failed so, or makes a new one.
async fn is_kept_after(world: &World, class: FailureClass) -> bool {
    let key = class.as_str();
    let first = world.accept(keyed(key, 1)).await;
    let lease = world.start(first).await;
    world.report(lease, failed(class)).await.unwrap();
    world.accept(keyed(key, 1)).await == first
}

pub async fn what_a_retry_cures_may_be_asked_for_again(world: World) {
    for (class, is_kept) in [
        (FailureClass::RowFault, true),
        (FailureClass::Transient, false),
        (FailureClass::Ambiguous, false),
    ] {
        assert_eq!(is_kept_after(&world, class).await, is_kept, "{class}");
    }
}

/// A call that may have been billed was sent again for whoever asked with its key, though another
/// attempt was not to be made.
pub async fn what_may_not_be_sent_again_keeps_its_key(world: World) {
    let world = world
        .with(Settings {
            lost_attempt: Verdict::GiveUp,
            ..Settings::default()
        })
        .await;
    for (class, is_kept) in [
        (FailureClass::Ambiguous, true),
        (FailureClass::Transient, false),
    ] {
        assert_eq!(is_kept_after(&world, class).await, is_kept, "{class}");
    }
    // Nobody said how it ended.
    let mut world = world;
    let lost = world.accept(keyed("lost", 1)).await;
    world.start(lost).await;
    world.advance(LEASE);
    assert_eq!(world.tend().await[0].status, Status::Failed);
    assert_eq!(world.accept(keyed("lost", 1)).await, lost);
}

pub async fn many_are_accepted_whole_or_not_at_all(world: World) {
    let known = world.job().await;
    for count in [2, 20, 1200] {
        let before = world.store.counts().await.unwrap();
        let mut jobs: Vec<_> = (0..count).map(|_| new_job()).collect();
        jobs[count - 1].id = known;
        let refused = world.store.enqueue(jobs.clone(), world.now).await;
        assert!(matches!(refused, Err(EnqueueError::DuplicateId { job }) if job == known));
        assert_eq!(world.store.job(jobs[0].id).await.unwrap(), None);
        assert_eq!(world.store.counts().await.unwrap(), before);
    }
    let many = (0..10_001).map(|_| NewJob::new("m", "t", "")).collect();
    let refused = world.store.enqueue(many, world.now).await;
    assert!(matches!(
        refused,
        Err(EnqueueError::TooMany { count: 10_001 })
    ));
    assert_eq!(world.waiting(&lane("m", "t")).await, [known]);
}

pub async fn ten_thousand_at_once_are_seen_together(world: World) {
    let jobs: Vec<_> = (0..10_000).map(|_| new_job()).collect();
    let wanted: Vec<_> = jobs.iter().map(|job| job.id).collect();
    let store = std::sync::Arc::clone(&world.store);
    let now = world.now;
    let mut accepting = tokio::task::JoinSet::new();
    accepting.spawn(async move { store.enqueue(jobs, now).await });
    // Whoever looks meanwhile sees none or all.
    loop {
        let queued = world.store.counts().await.unwrap().queued;
        assert!(queued == 0 || queued == 10_000, "{queued} are seen");
        let seen = world.store.job(wanted[0]).await.unwrap();
        if queued == 10_000 {
            assert!(seen.is_some());
            break;
        }
        tokio::task::yield_now().await;
    }
    let accepted = accepting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(ids(&accepted), wanted);
    let of = lane("m", "t");
    let line = world.store.next(&of, None, 1000, world.now);
    let line = line.await.unwrap().jobs.into_iter();
    let line: Vec<_> = line
        .map(|waiting| (waiting.job, Some(waiting.place)))
        .collect();
    let told = accepted
        .iter()
        .map(|accepted| (accepted.job, accepted.place));
    assert_eq!(line, told.take(1000).collect::<Vec<_>>());
    assert_eq!(
        world.status(world.finish(wanted[9_999]).await.id).await,
        Status::Completed
    );
}

pub async fn it_refuses_between_its_watermarks(world: World) {
    let world = world
        .with(Settings {
            max_jobs: 10,
            ..Settings::default()
        })
        .await;
    let mut jobs = Vec::new();
    for _ in 0..8 {
        jobs.push(world.job().await);
    }
    let refused = world.store.enqueue(vec![new_job()], world.now).await;
    let what = FullOf::Jobs;
    assert!(matches!(refused, Err(EnqueueError::Full { what: w, waiting: 8 }) if w == what));
    for job in jobs.drain(..2) {
        world.finish(job).await;
    }
    let refused = world.store.enqueue(vec![new_job()], world.now).await;
    assert!(
        refused.is_err(),
        "six of ten are not below the low watermark"
    );
    world.store.cancel(jobs[0], world.now).await.unwrap();
    world.job().await;
    let too_many = (0..5).map(|_| new_job()).collect();
    assert!(world.store.enqueue(too_many, world.now).await.is_err());
}

pub async fn bytes_are_counted_and_given_back(world: World) {
    let world = world
        .with(Settings {
            max_bytes: 100_000,
            ..Settings::default()
        })
        .await;
    let large = || NewJob::new("m", "t", vec![b'x'; 40_000]);
    let first = world.accept(large()).await;
    world.accept(large()).await;
    let bytes = world.store.counts().await.unwrap().bytes;
    assert!((80_000..90_000).contains(&bytes), "{bytes}");
    let refused = world.store.enqueue(vec![large()], world.now).await;
    assert!(matches!(
        refused,
        Err(EnqueueError::Full {
            what: FullOf::Bytes,
            ..
        })
    ));
    world.finish(first).await;
    world.accept(large()).await;
    assert_eq!(world.store.counts().await.unwrap().bytes, bytes);
}

pub async fn a_draining_queue_takes_none(world: World) {
    let job = world.job().await;
    let drains = QueueState {
        drains: true,
        ..QueueState::default()
    };
    world.store.set_queue("m", drains, world.now).await.unwrap();
    let refused = world.store.enqueue(vec![new_job()], world.now).await;
    assert!(matches!(refused, Err(EnqueueError::Draining { .. })));
    world.finish(job).await;
    let other = NewJob::new("other", "t", "");
    world.accept(other).await;
    let before = world
        .store
        .set_queue("m", QueueState::default(), world.now)
        .await;
    assert_eq!(before.unwrap(), drains);
    world.job().await;
}

pub async fn what_finds_room_is_accepted_and_started_at_once(world: World) {
    let job = keyed("k", 1);
    let start = world.start_of(job.id);
    let (accepted, started) = world
        .store
        .enqueue_started(job.clone(), start, world.now)
        .await
        .unwrap();
    assert_eq!((accepted.job, accepted.is_new), (job.id, true));
    let started = started.unwrap();
    assert_eq!(started.job.status, Status::Processing);
    assert_eq!(started.job.attempts, 1);
    assert_eq!(started.body, job.body);
    let again = keyed("k", 1);
    let start = world.start_of(again.id);
    let (accepted, none) = world
        .store
        .enqueue_started(again, start, world.now)
        .await
        .unwrap();
    assert_eq!((accepted, none), (Enqueued::existing(job.id), None));
}

/// The answer to the first call may have been lost on its way: whoever asks again with the same
/// key is told which job it made, whether or not there is room for another one.
pub async fn a_key_finds_its_job_where_nothing_new_is_taken(world: World) {
    let world = world
        .with(Settings {
            max_jobs: 10,
            ..Settings::default()
        })
        .await;
    let first = world.accept(keyed("k", 1)).await;
    for _ in 0..7 {
        world.job().await;
    }
    let is_full = |refused| matches!(refused, Err(EnqueueError::Full { .. }));
    let enqueue = |jobs| world.store.enqueue(jobs, world.now);
    assert!(is_full(enqueue(vec![new_job()]).await));
    let again = enqueue(vec![keyed("k", 1), keyed("k", 1)]).await.unwrap();
    assert_eq!(again, [Enqueued::existing(first); 2]);
    // One that is new beside it is refused still, and so are both.
    assert!(is_full(enqueue(vec![keyed("k", 1), new_job()]).await));
    let other = enqueue(vec![keyed("k", 2)]).await;
    assert!(matches!(other, Err(EnqueueError::Conflict { existing, .. }) if existing == first));

    let drains = QueueState {
        drains: true,
        ..QueueState::default()
    };
    world.store.set_queue("m", drains, world.now).await.unwrap();
    let again = enqueue(vec![keyed("k", 1)]).await.unwrap();
    assert_eq!(again, [Enqueued::existing(first)]);
    let job = keyed("k", 1);
    let start = world.start_of(job.id);
    let again = world.store.enqueue_started(job, start, world.now).await;
    assert_eq!(again.unwrap(), (Enqueued::existing(first), None));
    let new = enqueue(vec![keyed("j", 1)]).await;
    assert!(matches!(new, Err(EnqueueError::Draining { .. })));
}
