//! What outlives a process.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Clock as _, FailureClass, Status};
use llmq_dispatch::{Event, QueueSetup};
use llmq_engine::SystemClock;
use llmq_store::{NewJob, QueueState, Store};

use crate::world::{Act, Upstream, World, job};

over_each_store! {
    what_a_dead_process_held_is_sent_again_and_marked,
    a_stop_lets_what_runs_end_and_starts_nothing_more,
    what_does_not_end_in_time_is_given_back_marked,
    what_a_stop_cuts_off_fails_where_it_may_not_be_sent_again,
    a_pause_outlives_a_restart,
    a_model_that_is_not_offered_for_a_while_is_not_drained_for_good,
    a_pause_of_a_model_that_comes_back_later_is_kept,
    a_process_that_stood_still_for_longer_than_a_lease_goes_on_with_what_it_holds,
    a_long_attempt_keeps_its_lease,
}

async fn what_a_dead_process_held_is_sent_again_and_marked(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        0 => Act::Wait,
        _ => Act::Answer("hi".to_owned()),
    })
    .await;
    let world = World::over(Arc::clone(&store), &upstream, "concurrency = 1").await;
    let (ran, waited) = (world.accept().await, world.accept().await);
    upstream.got(1).await;
    world.dies().await;
    let world = World::over(store, &upstream, "concurrency = 1").await;
    let ran = world.end(ran).await;
    assert_eq!((ran.status, ran.attempts), (Status::Completed, 2));
    assert!(ran.may_have_been_sent);
    let waited = world.end(waited).await;
    assert_eq!((waited.status, waited.attempts), (Status::Completed, 1));
    assert!(!waited.may_have_been_sent);
}

async fn a_stop_lets_what_runs_end_and_starts_nothing_more(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Wait).await;
    let world = World::over(Arc::clone(&store), &upstream, "concurrency = 1").await;
    let (runs, waits) = (world.accept().await, world.accept().await);
    upstream.got(1).await;
    let stopping = world.stops(Duration::from_secs(20));
    tokio::pin!(stopping);
    tokio::select! {
        biased;
        () = &mut stopping => panic!("an attempt still ran"),
        () = tokio::task::yield_now() => {}
    }
    upstream.go(2);
    stopping.await;
    assert_eq!(
        store.job(runs).await.unwrap().unwrap().status,
        Status::Completed
    );
    assert_eq!(
        store.job(waits).await.unwrap().unwrap().status,
        Status::Queued
    );
    assert_eq!(upstream.count(), 1);
}

async fn what_does_not_end_in_time_is_given_back_marked(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Wait).await;
    let world = World::over(Arc::clone(&store), &upstream, "").await;
    let id = world.accept().await;
    upstream.got(1).await;
    world.stops(Duration::from_millis(50)).await;
    let job = store.job(id).await.unwrap().unwrap();
    assert_eq!((job.status, job.attempts), (Status::Queued, 1));
    assert!(job.may_have_been_sent);
}

/// A stop had them sent and billed again, as often as the server was stopped.
async fn what_a_stop_cuts_off_fails_where_it_may_not_be_sent_again(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Wait).await;
    let last = NewJob {
        max_attempts: 1,
        ..job()
    };
    for (is_once, job) in [(true, job()), (false, last)] {
        let before = upstream.count();
        let world = match is_once {
            true => World::sending_once(Arc::clone(&store), &upstream).await,
            false => World::over(Arc::clone(&store), &upstream, "").await,
        };
        let id = world.runner.accept(job).await.unwrap().id;
        upstream.got(before + 1).await;
        world.stops(Duration::from_millis(50)).await;
        let job = store.job(id).await.unwrap().unwrap();
        assert_eq!((job.status, job.attempts), (Status::Failed, 1));
        let error = job.error.unwrap();
        assert_eq!(error.class, Some(FailureClass::Ambiguous));
        assert_eq!(error.code, "stopped");
    }
}

async fn a_pause_outlives_a_restart(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Answer("hi".to_owned())).await;
    let world = World::over(Arc::clone(&store), &upstream, "").await;
    let queue = world
        .hub
        .with(|dispatcher| dispatcher.queue_ids().next().unwrap());
    world.hub.handle(Event::Pause(queue));
    world.runner.queues_changed().await.unwrap();
    let id = world.accept().await;
    world.dies().await;
    let world = World::over(store, &upstream, "").await;
    let queue = world
        .hub
        .with(|dispatcher| dispatcher.queue_ids().next().unwrap());
    assert!(
        world
            .hub
            .with(|dispatcher| dispatcher.queue_view(queue).paused)
    );
    assert_eq!(world.status(id).await, Status::Queued);
    world.hub.handle(Event::Resume(queue));
    assert_eq!(world.end(id).await.status, Status::Completed);
}

/// Once it was drained for good: the next process refused every call of a model that was back.
async fn a_model_that_is_not_offered_for_a_while_is_not_drained_for_good(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        0 => Act::Wait,
        _ => Act::Answer("hi".to_owned()),
    })
    .await;
    let world = World::over(Arc::clone(&store), &upstream, "concurrency = 1").await;
    let (runs, waits) = (world.accept().await, world.accept().await);
    upstream.got(1).await;
    let queue = |world: &World| {
        world
            .hub
            .with(|dispatcher| dispatcher.queue_ids().next().unwrap())
    };
    let gone = queue(&world);
    world.hub.with(|dispatcher| dispatcher.retire_queue(gone));
    world.runner.queues_changed().await.unwrap();
    world.dies().await;
    let world = World::over(store, &upstream, "concurrency = 1").await;
    let back = queue(&world);
    let view = world.hub.with(|dispatcher| dispatcher.queue_view(back));
    assert!(!view.draining);
    for id in [runs, waits, world.accept().await] {
        assert_eq!(world.end(id).await.status, Status::Completed);
    }
}

/// Once the pause was half lost: its requests ran, and their time stood still.
async fn a_pause_of_a_model_that_comes_back_later_is_kept(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Answer("hi".to_owned())).await;
    let stands = QueueState {
        paused: true,
        ..QueueState::default()
    };
    let now = SystemClock::new().now();
    store.set_queue("later", stands, now).await.unwrap();
    let world = World::over(Arc::clone(&store), &upstream, "").await;
    let queue = world.hub.with(|dispatcher| {
        let first = dispatcher.queue_ids().next().unwrap();
        let upstream = dispatcher.upstreams_of(first)[0];
        dispatcher.add_queue(QueueSetup::to("later", upstream))
    });
    world.runner.queues_changed().await.unwrap();
    let view = || world.hub.with(|dispatcher| dispatcher.queue_view(queue));
    assert!(view().paused);
    world.hub.handle(Event::Resume(queue));
    world.runner.queues_changed().await.unwrap();
    let queues = store.queues().await.unwrap();
    let later = queues.iter().find(|queue| queue.name == "later").unwrap();
    assert_eq!(later.state, QueueState::default());
}

/// As after SIGSTOP, or on a machine that slept: every task of the process stands still.
async fn a_process_that_stood_still_for_longer_than_a_lease_goes_on_with_what_it_holds(
    store: Arc<dyn Store>,
) {
    let upstream = Upstream::start(|_| Act::Wait).await;
    let lease = Duration::from_millis(300);
    let world = World::leasing(store, &upstream, "", lease).await;
    let id = world.accept().await;
    upstream.got(1).await;
    std::thread::sleep(lease * 3);
    upstream.go(1);
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 1));
    assert_eq!(upstream.count(), 1, "it was not sent twice");
}

async fn a_long_attempt_keeps_its_lease(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Wait).await;
    let lease = Duration::from_millis(300);
    let world = World::leasing(store, &upstream, "", lease).await;
    let id = world.accept().await;
    upstream.got(1).await;
    // Ten leases, in which nothing is to happen.
    tokio::time::timeout(lease * 10, std::future::pending::<()>())
        .await
        .unwrap_err();
    assert_eq!(world.status(id).await, Status::Processing);
    upstream.go(1);
    assert_eq!(world.end(id).await.attempts, 1);
    assert_eq!(upstream.count(), 1);
}
