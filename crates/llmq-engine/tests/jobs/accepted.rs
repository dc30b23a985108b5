//! From acceptance to the result.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Clock as _, Priority, Status};
use llmq_dispatch::Event;
use llmq_engine::SystemClock;
use llmq_store::{Cancelled, Filter, Idempotency, Store};

use crate::world::{Act, BODY, Upstream, World, job};

over_each_store! {
    an_accepted_job_is_finished_and_its_answer_kept,
    many_at_once_are_each_finished_once_within_the_limits,
    the_more_urgent_start_first_and_the_first_come_first,
    the_same_key_and_request_make_one_job_and_another_request_is_refused,
    a_cancelled_job_is_not_sent_and_one_that_runs_is_broken_off,
    a_delayed_job_starts_when_it_comes_due,
    the_time_of_a_job_stands_with_its_queue,
    a_job_whose_time_passes_in_line_expires_there,
    it_is_told_what_a_waiting_job_waits_for,
}

fn good(_: usize) -> Act {
    Act::Answer("hi".to_owned())
}

async fn an_accepted_job_is_finished_and_its_answer_kept(store: Arc<dyn Store>) {
    let upstream = Upstream::start(good).await;
    let world = World::over(store, &upstream, "").await;
    let id = world.accept().await;
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 1));
    assert_eq!(job.upstream.as_deref(), Some("one/gpt"));
    assert_eq!(job.usage.unwrap().total(), 5);
    assert_eq!(job.cost_nano_usd, Some(50));
    let (status, body) = world.answer(id).await;
    assert_eq!(status, 200);
    assert!(body.contains("\"content\":\"hi\""), "{body}");
    assert_eq!(upstream.calls.lock().unwrap().as_slice(), [BODY]);
    // What belongs to the connection is not kept.
    let headers = world.store.answer(id).await.unwrap().unwrap().headers;
    let names: BTreeSet<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["content-type", "x-request-id"]));
}

async fn many_at_once_are_each_finished_once_within_the_limits(store: Arc<dyn Store>) {
    let upstream = Upstream::start(good).await;
    let world = World::over(store, &upstream, "concurrency = 4").await;
    let accepted = world.runner.accept_many((0..500).map(|_| job()).collect());
    let accepted = accepted.await.unwrap();
    assert!(accepted.iter().all(|one| one.new.is_some()));
    for one in &accepted {
        assert_eq!(world.end(one.id).await.status, Status::Completed);
    }
    assert_eq!(upstream.count(), 500);
    let counts = world.store.counts().await.unwrap();
    assert_eq!((counts.completed, counts.queued), (500, 0));
}

async fn the_more_urgent_start_first_and_the_first_come_first(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        0 => Act::Wait,
        _ => Act::Answer("hi".to_owned()),
    })
    .await;
    let world = World::over(store, &upstream, "concurrency = 1").await;
    world.accept().await;
    upstream.got(1).await;
    let mut ids = Vec::new();
    for (number, priority) in [Priority::LOW, Priority::HIGH, Priority::LOW, Priority::HIGH]
        .into_iter()
        .enumerate()
    {
        let mut job = job();
        job.priority = priority;
        job.body = BODY.replace("hello", &format!("number {number}")).into();
        ids.push(world.runner.accept(job).await.unwrap().id);
    }
    upstream.go(1);
    for id in ids {
        world.end(id).await;
    }
    let calls = upstream.calls.lock().unwrap().clone();
    let order: Vec<usize> = calls[1..]
        .iter()
        .map(|body| {
            (0..4)
                .find(|n| body.contains(&format!("number {n}")))
                .unwrap()
        })
        .collect();
    assert_eq!(order, [1, 3, 0, 2]);
}

async fn the_same_key_and_request_make_one_job_and_another_request_is_refused(
    store: Arc<dyn Store>,
) {
    let upstream = Upstream::start(good).await;
    let world = World::over(store, &upstream, "").await;
    let keyed = |hash| {
        let mut job = job();
        job.idempotency = Some(Idempotency {
            key: "k".to_owned(),
            request_hash: [hash; 32],
        });
        job
    };
    let first = world.runner.accept(keyed(1)).await.unwrap();
    world.end(first.id).await;
    let second = world.runner.accept(keyed(1)).await.unwrap();
    assert_eq!((second.id, second.new), (first.id, None));
    assert!(world.runner.accept(keyed(2)).await.is_err());
    assert_eq!(upstream.count(), 1);
}

async fn a_cancelled_job_is_not_sent_and_one_that_runs_is_broken_off(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Wait).await;
    let world = World::over(store, &upstream, "concurrency = 1").await;
    let (runs, waits) = (world.accept().await, world.accept().await);
    upstream.got(1).await;
    for id in [waits, runs] {
        let cancelled = world.runner.cancel(id).await.unwrap();
        assert!(matches!(cancelled, Cancelled::Now(_)));
        assert_eq!(world.end(id).await.status, Status::Cancelled);
        let again = world.runner.cancel(id).await.unwrap();
        assert!(matches!(again, Cancelled::Ended(_)));
    }
    // The place of the one that ran is free again.
    let next = world.accept().await;
    upstream.got(2).await;
    upstream.go(1);
    assert_eq!(world.end(next).await.status, Status::Completed);
    assert_eq!(upstream.count(), 2);
}

async fn a_delayed_job_starts_when_it_comes_due(store: Arc<dyn Store>) {
    let upstream = Upstream::start(good).await;
    let world = World::over(store, &upstream, "").await;
    let mut later = job();
    let wait = Duration::from_millis(300);
    later.not_before = Some(SystemClock::new().now().wall + wait);
    let begun = tokio::time::Instant::now();
    let id = world.runner.accept(later).await.unwrap().id;
    assert_eq!(world.status(id).await, Status::Queued);
    assert_eq!(world.end(id).await.status, Status::Completed);
    assert!(begun.elapsed() >= wait, "{:?}", begun.elapsed());
}

async fn the_time_of_a_job_stands_with_its_queue(store: Arc<dyn Store>) {
    let upstream = Upstream::start(good).await;
    let world = World::over(store, &upstream, "").await;
    let queue = world
        .hub
        .with(|dispatcher| dispatcher.queue_ids().next().unwrap());
    world.hub.handle(Event::Pause(queue));
    world.runner.queues_changed().await.unwrap();
    let mut short = job();
    short.ttl = Some(Duration::from_millis(200));
    let id = world.runner.accept(short).await.unwrap().id;
    // Three times as long as it may take.
    tokio::time::timeout(Duration::from_millis(600), std::future::pending::<()>())
        .await
        .unwrap_err();
    assert_eq!(world.status(id).await, Status::Queued, "its queue stands");
    world.hub.handle(Event::Resume(queue));
    world.runner.queues_changed().await.unwrap();
    assert_eq!(world.end(id).await.status, Status::Completed);
}

async fn a_job_whose_time_passes_in_line_expires_there(store: Arc<dyn Store>) {
    let busy = Upstream::start(|_| Act::Wait).await;
    let world = World::over(store, &busy, "concurrency = 1").await;
    world.accept().await;
    busy.got(1).await;
    let mut short = job();
    short.ttl = Some(Duration::from_millis(100));
    let id = world.runner.accept(short).await.unwrap().id;
    assert_eq!(world.end(id).await.status, Status::Expired);
    assert_eq!(busy.count(), 1);
}

async fn it_is_told_what_a_waiting_job_waits_for(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Wait).await;
    let world = World::over(store, &upstream, "concurrency = 1").await;
    world.accept().await;
    upstream.got(1).await;
    let id = world.accept().await;
    let look = async {
        loop {
            if let Some(look) = world
                .runner
                .look(id)
                .filter(|look| look.waiting_for.is_some())
            {
                return look;
            }
            tokio::task::yield_now().await;
        }
    };
    let look = tokio::time::timeout(llmq_testkit::PATIENCE, look)
        .await
        .unwrap();
    assert_eq!(look.waiting_for.as_deref(), Some("concurrency one/gpt"));
    let list = world
        .store
        .list(&Filter::default(), None, 10)
        .await
        .unwrap();
    assert_eq!(list.items.len(), 2);
}
