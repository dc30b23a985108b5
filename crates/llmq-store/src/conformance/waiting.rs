use std::time::Duration;

use llmq_core::Status;

use super::World;
use super::world::{LEASE, lane, new_job};
use crate::{Idempotency, JobError, JobId, NewJob, QueueState, Report, Settings, StartError};

const SECOND: Duration = Duration::from_secs(1);

async fn with_ttl(world: &World, ttl: Duration) -> JobId {
    let job = NewJob {
        ttl: Some(ttl),
        ..new_job()
    };
    world.accept(job).await
}

pub async fn a_job_past_its_time_never_starts(mut world: World) {
    let (job, unasked) = (
        with_ttl(&world, 10 * SECOND).await,
        with_ttl(&world, 10 * SECOND).await,
    );
    assert_eq!(
        world.show(job).await.expires_at,
        Some(world.now.wall + 10 * SECOND)
    );
    let window = world
        .store
        .next(&lane("m", "t"), None, 9, world.now)
        .await
        .unwrap();
    assert_eq!(
        window.jobs[0].expires_at,
        Some(world.now.mono + 10 * SECOND)
    );
    world.advance(10 * SECOND - Duration::from_micros(1));
    assert!(world.tend().await.is_empty());
    world.advance(Duration::from_micros(1));
    assert!(matches!(
        world.try_start(job).await,
        Err(StartError::Expired { .. })
    ));
    assert_eq!(world.status(job).await, Status::Expired);
    assert_eq!(world.tend().await[0].job, unasked);
    assert_eq!(world.status(unasked).await, Status::Expired);
    // One that runs is not expired; one that comes back too late is.
    let late = with_ttl(&world, 5 * SECOND).await;
    let lease = world.start(late).await;
    world.advance(10 * SECOND);
    assert!(world.tend().await.is_empty());
    let report = Report::Retry {
        error: JobError::new("x", "y"),
        after: Duration::ZERO,
        may_have_been_sent: false,
    };
    world.report(lease, report).await.unwrap();
    assert_eq!(world.tend().await[0].status, Status::Expired);
}

pub async fn time_stands_while_a_queue_does(mut world: World) {
    let before = with_ttl(&world, 10 * SECOND).await;
    for (paused, parked) in [(true, false), (false, true), (true, true)] {
        let state = QueueState {
            paused,
            parked,
            drains: false,
        };
        world.store.set_queue("m", state, world.now).await.unwrap();
        world.advance(3600 * SECOND);
        assert!(world.tend().await.is_empty());
    }
    let meanwhile = with_ttl(&world, 10 * SECOND).await;
    let expires = world.show(before).await.expires_at;
    assert_eq!(expires, Some(world.now.wall + 10 * SECOND));
    world
        .store
        .set_queue("m", QueueState::default(), world.now)
        .await
        .unwrap();
    world.advance(9 * SECOND);
    assert!(world.tend().await.is_empty());
    world.advance(SECOND);
    let moved: Vec<_> = world.tend().await.iter().map(|moved| moved.job).collect();
    assert_eq!(moved, [before, meanwhile]);
}

pub async fn a_jump_of_the_wall_moves_no_wait(mut world: World) {
    let job = with_ttl(&world, 100 * SECOND).await;
    let retried = world.job().await;
    let lease = world.start(retried).await;
    let report = Report::Retry {
        error: JobError::new("x", "y"),
        after: 50 * SECOND,
        may_have_been_sent: false,
    };
    world.report(lease, report).await.unwrap();
    world.now.wall = world.now.wall + 1_000_000 * SECOND;
    assert!(world.tend().await.is_empty());
    assert!(matches!(
        world.try_start(retried).await,
        Err(StartError::NotDue { .. })
    ));
    world.now.wall = world.now.wall.before(2_000_000 * SECOND);
    world.advance(50 * SECOND);
    world.start(retried).await;
    assert_eq!(world.status(job).await, Status::Queued);
    world.advance(50 * SECOND);
    assert_eq!(
        world
            .tend()
            .await
            .iter()
            .filter(|moved| moved.job == job)
            .count(),
        1
    );
}

pub async fn an_announced_instant_is_of_the_calendar(mut world: World) {
    let at = world.now.wall + 3600 * SECOND;
    let job = NewJob {
        not_before: Some(at),
        ..new_job()
    };
    let job = world.accept(job).await;
    assert_eq!(world.show(job).await.not_before, Some(at));
    let window = world
        .store
        .next(&lane("m", "t"), None, 9, world.now)
        .await
        .unwrap();
    assert!(window.jobs.is_empty());
    assert_eq!(window.due_at, Some(world.now.mono + 3600 * SECOND));
    let lanes = world.store.lanes(world.now).await.unwrap();
    assert_eq!((lanes[0].due, lanes[0].delayed), (0, 1));
    let due_at = world.now.mono + 3600 * SECOND;
    let early = world.try_start(job).await;
    assert!(matches!(early, Err(StartError::NotDue { due_at: d, .. }) if d == due_at));
    world.now.wall = at;
    assert_eq!(world.waiting(&lane("m", "t")).await, [job]);
    world.start(job).await;
}

/// It was handed out as due and refused as not due, again and again, until its time came anew.
pub async fn a_due_instant_waits_again_when_the_wall_is_set_back(mut world: World) {
    let right = world.now.wall;
    let job = NewJob {
        not_before: Some(right),
        ttl: Some(7_200 * SECOND),
        ..new_job()
    };
    let job = world.accept(job).await;
    assert_eq!(world.waiting(&lane("m", "t")).await, [job]);
    world.now.wall = right.before(3_600 * SECOND);
    let in_an_hour = world.now.mono + 3_600 * SECOND;
    let early = world.try_start(job).await;
    assert!(matches!(early, Err(StartError::NotDue { due_at, .. }) if due_at == in_an_hour));
    let window = world.store.next(&lane("m", "t"), None, 9, world.now).await;
    let window = window.unwrap();
    assert!(window.jobs.is_empty());
    assert_eq!(window.due_at, Some(in_an_hour));
    world.advance(3_600 * SECOND);
    assert_eq!(world.waiting(&lane("m", "t")).await, [job]);
    world.advance(3_600 * SECOND);
    let moved = world.tend().await;
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].status, Status::Expired);
}

pub async fn a_retry_waits_and_keeps_its_place(mut world: World) {
    let (first, second) = (world.job().await, world.job().await);
    let lease = world.start(first).await;
    let report = Report::Retry {
        error: JobError::new("x", "y"),
        after: 5 * SECOND,
        may_have_been_sent: true,
    };
    let job = world.report(lease, report).await.unwrap();
    assert_eq!(job.not_before, Some(world.now.wall + 5 * SECOND));
    assert!(job.may_have_been_sent);
    assert_eq!(world.waiting(&lane("m", "t")).await, [second]);
    world.advance(5 * SECOND);
    assert_eq!(world.waiting(&lane("m", "t")).await, [first, second]);
    world.start(first).await;
    world.advance(LEASE);
    world.tend().await;
    assert_eq!(world.waiting(&lane("m", "t")).await, [first, second]);
}

pub async fn what_ended_is_kept_for_its_time(world: World) {
    let mut world = world
        .with(Settings {
            keep_results: 100 * SECOND,
            ..Settings::default()
        })
        .await;
    let old: Vec<_> = (0..1200).map(|_| new_job()).collect();
    let ids: Vec<_> = old.iter().map(|job| job.id).collect();
    world.store.enqueue(old, world.now).await.unwrap();
    let waiting = world.job().await;
    for id in &ids {
        world.store.cancel(*id, world.now).await.unwrap();
    }
    world.advance(99 * SECOND);
    let fresh = world.job().await;
    world.finish(fresh).await;
    world.tend().await;
    assert_eq!(world.store.counts().await.unwrap().cancelled, 1200);
    world.advance(SECOND);
    world.tend().await;
    let counts = world.store.counts().await.unwrap();
    assert_eq!(
        (counts.cancelled, counts.completed, counts.queued),
        (0, 1, 1)
    );
    assert_eq!(world.store.job(ids[0]).await.unwrap(), None);
    assert_eq!(world.status(waiting).await, Status::Queued);
    assert_eq!(world.status(fresh).await, Status::Completed);
}

/// A short time of results made repeats of a request errors for the rest of its key's day.
pub async fn a_job_is_kept_as_long_as_its_key(world: World) {
    let mut world = world
        .with(Settings {
            keep_results: 100 * SECOND,
            keep_idempotency: 1_000 * SECOND,
            ..Settings::default()
        })
        .await;
    let keyed = NewJob {
        idempotency: Some(Idempotency {
            key: "k".to_owned(),
            request_hash: [1; 32],
        }),
        ..new_job()
    };
    let first = world.accept(keyed.clone()).await;
    world.finish(first).await;
    world.advance(999 * SECOND);
    world.tend().await;
    let again = NewJob {
        id: JobId::new(),
        ..keyed
    };
    assert_eq!(world.accept(again).await, first);
    assert!(world.store.answer(first).await.unwrap().is_some());
    world.advance(SECOND);
    world.tend().await;
    assert_eq!(world.store.job(first).await.unwrap(), None);
}

/// Jobs that were accepted while the clock was a year ahead kept all that came after them.
pub async fn a_clock_that_ran_ahead_keeps_nothing_for_ever(mut world: World) {
    let right = world.now.wall;
    world.now.wall = right + 365 * 24 * 3_600 * SECOND;
    world.job().await;
    world.now.wall = right;
    let ended = world.job().await;
    world.finish(ended).await;
    world.advance(Settings::default().keep_results);
    world.tend().await;
    assert_eq!(world.store.job(ended).await.unwrap(), None);
}

/// One that had to stay among five hundred ended the housekeeping of that look.
pub async fn what_must_stay_holds_up_no_purge(world: World) {
    let mut world = world
        .with(Settings {
            keep_results: SECOND,
            ..Settings::default()
        })
        .await;
    let job = |n: usize| NewJob {
        idempotency: n.is_multiple_of(100).then(|| Idempotency {
            key: n.to_string(),
            request_hash: [1; 32],
        }),
        ..new_job()
    };
    let jobs = (0..1_800).map(job).collect();
    let accepted = world.store.enqueue(jobs, world.now).await.unwrap();
    for one in accepted {
        world.store.cancel(one.job, world.now).await.unwrap();
    }
    world.advance(2 * SECOND);
    world.tend().await;
    assert_eq!(world.store.counts().await.unwrap().cancelled, 18);
}
