//! What waits in the store is seen and started, whatever the store does meanwhile: no job is lost
//! sight of because an answer of the store came late or did not come.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use llmq_core::{Priority, Status};
use llmq_dispatch::Call;
use llmq_engine::Tasks;
use llmq_engine::jobs::Directory as _;
use llmq_store::{Cancelled, JobId, NewJob, Reads, Store};
use llmq_testkit::{FaultyStore, PATIENCE};

use crate::world::{Act, Upstream, World, job};

over_each_store! {
    who_comes_while_a_lane_is_read_is_seen,
    rows_of_a_large_insert_are_seen_behind_those_that_were_read,
    a_read_that_fails_keeps_no_lane_from_being_read,
    a_retry_whose_report_came_late_is_sent,
    what_cannot_be_recorded_takes_no_room_from_others,
    a_refusal_that_could_not_be_recorded_is_recorded_later,
    a_job_whose_route_is_gone_is_sent_when_there_is_one,
    one_job_that_cannot_be_read_keeps_no_other_from_being_followed,
    a_caller_that_goes_leaves_what_it_handed_in_to_the_runner,
    a_caller_that_goes_breaks_off_what_it_cancelled,
    a_stop_waits_for_what_is_about_to_start,
    what_is_cancelled_as_it_starts_is_not_sent,
    a_job_whose_budget_cannot_be_recorded_waits_until_it_can,
    a_job_whose_budget_waits_for_the_store_keeps_its_lease,
    long_housekeeping_costs_nobody_its_lease,
    an_outage_of_the_store_costs_nobody_its_lease,
    what_is_cancelled_as_it_is_accepted_and_started_is_not_sent,
    a_job_whose_line_is_anothers_for_a_moment_is_not_lost_sight_of,
    a_job_whose_lease_is_taken_for_lost_as_it_waits_again_is_not_lost_sight_of,
}

fn good(_: usize) -> Act {
    Act::Answer("hi".to_owned())
}

/// The first call waits until it is let go; the others are answered.
async fn busy_at_first() -> Upstream {
    Upstream::start(|call| match call {
        0 => Act::Wait,
        _ => good(call),
    })
    .await
}

/// Waits until the runner has taken up all of these.
async fn all_seen(world: &World, ids: &[JobId]) {
    let seen = async {
        while !ids.iter().all(|id| world.runner.look(*id).is_some()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("all are seen");
}

/// Both were accepted while the dispatcher was full, and the last was forgotten.
async fn who_comes_while_a_lane_is_read_is_seen(store: Arc<dyn Store>) {
    let (upstream, store) = (busy_at_first().await, FaultyStore::new(store));
    let world = World::over(store.clone(), &upstream, "concurrency = 1").await;
    let runs = world.accept().await;
    upstream.got(1).await;
    let reading = store.holds("next");
    let first = world.accept().await;
    reading.reached().await;
    let second = world.accept().await;
    drop(reading);
    upstream.go(1);
    for id in [runs, first, second] {
        assert_eq!(world.end(id).await.status, Status::Completed);
    }
}

/// A large insert takes its places in slices, long before it is published; a smaller one that came
/// between was read first.
async fn rows_of_a_large_insert_are_seen_behind_those_that_were_read(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Wait).await;
    let world = World::over(store, &upstream, "concurrency = 1").await;
    world.accept().await;
    upstream.got(1).await;
    let many = |count| {
        world
            .runner
            .accept_many((0..count).map(|_| job()).collect())
    };
    let (large, small) = tokio::join!(many(700), many(200));
    let accepted = large.unwrap().into_iter().chain(small.unwrap());
    let ids: Vec<JobId> = accepted.map(|accepted| accepted.id).collect();
    all_seen(&world, &ids).await;
}

/// All lanes that were to be read behind the one that failed were forgotten.
async fn a_read_that_fails_keeps_no_lane_from_being_read(store: Arc<dyn Store>) {
    let (upstream, store) = (Upstream::start(good).await, FaultyStore::new(store));
    let world = World::over(store.clone(), &upstream, "").await;
    store.fails("next", 1);
    let of = |priority| {
        let mut job = job();
        job.priority = priority;
        job
    };
    let jobs = [Priority::LOW, Priority::NORMAL, Priority::HIGH].map(of);
    let accepted = world.runner.accept_many(jobs.to_vec()).await.unwrap();
    for accepted in accepted {
        assert_eq!(world.end(accepted.id).await.status, Status::Completed);
    }
    assert_eq!(store.fails_left("next"), 0);
}

/// The store counted the wait from its own record of it, the dispatcher from the failure; what
/// was granted too early for the store was dropped.
async fn a_retry_whose_report_came_late_is_sent(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        0 => Act::Refuse(500, "oops"),
        _ => good(call),
    })
    .await;
    let store = FaultyStore::new(store);
    let world = World::over(store.clone(), &upstream, "").await;
    store.fails("report", 1);
    let id = world.accept().await;
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 2));
    assert_eq!(store.fails_left("report"), 0);
}

/// The next grant of a job whose failure could not be recorded was held until it could: calls that
/// need no store were refused, and nothing was at the provider.
async fn what_cannot_be_recorded_takes_no_room_from_others(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        0 => Act::Refuse(500, "oops"),
        _ => good(call),
    })
    .await;
    let store = FaultyStore::new(store);
    let world = World::over(store.clone(), &upstream, "concurrency = 1").await;
    store.fails("report", 1_000_000);
    let id = world.accept().await;
    // The time between two tries is longer than the backoff.
    let twice = async {
        while store.fails_left("report") > 1_000_000 - 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, twice).await.unwrap();
    let queue = world.models.queue("gpt").unwrap();
    let plain = Call::new(queue, world.models.tenant("default", None));
    let granted = world.hub.submit(plain).unwrap().granted();
    let granted = tokio::time::timeout(PATIENCE, granted).await;
    drop(granted.expect("nothing is sent").unwrap());
    store.fails("report", 0);
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 2));
    assert_eq!(upstream.count(), 2);
}

async fn a_refusal_that_could_not_be_recorded_is_recorded_later(store: Arc<dyn Store>) {
    let (upstream, store) = (Upstream::start(good).await, FaultyStore::new(store));
    let world = World::over(store.clone(), &upstream, "tpm = 10").await;
    store.fails("start", 1);
    let mut job = job();
    job.size.input_tokens = 1_000;
    let id = world.runner.accept(job).await.unwrap().id;
    let job = world.end(id).await;
    assert_eq!(job.error.unwrap().code, "too-large");
    assert_eq!(store.fails_left("start"), 0);
}

/// As when the configuration is read again between a grant and its attempt.
async fn a_job_whose_route_is_gone_is_sent_when_there_is_one(store: Arc<dyn Store>) {
    let (upstream, store) = (Upstream::start(good).await, FaultyStore::new(store));
    let world = World::over(store.clone(), &upstream, "").await;
    world.models.is_routeless.store(true, Ordering::SeqCst);
    let given_back = store.holds("report");
    let id = world.accept().await;
    given_back.reached().await;
    world.models.is_routeless.store(false, Ordering::SeqCst);
    drop(given_back);
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 1));
}

/// Two leases end together; the first of their jobs cannot be read.
async fn one_job_that_cannot_be_read_keeps_no_other_from_being_followed(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        0 | 1 => Act::Wait,
        _ => good(call),
    })
    .await;
    let store = FaultyStore::new(store);
    let lease = Duration::from_millis(300);
    let world = World::leasing(store.clone(), &upstream, "", lease).await;
    let ids = [world.accept().await, world.accept().await];
    upstream.got(2).await;
    store.fails("job", 1);
    store.fails("extend", 1_000_000);
    upstream.got(4).await;
    for id in ids {
        let job = world.end(id).await;
        assert_eq!(job.status, Status::Completed);
        assert!(job.may_have_been_sent);
    }
}

async fn a_caller_that_goes_leaves_what_it_handed_in_to_the_runner(store: Arc<dyn Store>) {
    let (upstream, store) = (Upstream::start(good).await, FaultyStore::new(store));
    let world = World::over(store.clone(), &upstream, "").await;
    let accepting = store.holds("enqueue");
    let jobs = vec![job(), job()];
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    tokio::select! {
        _ = world.runner.accept_many(jobs) => panic!("the answer is held back"),
        () = accepting.reached() => {}
    }
    drop(accepting);
    for id in ids {
        assert_eq!(world.end(id).await.status, Status::Completed);
    }
}

async fn a_caller_that_goes_breaks_off_what_it_cancelled(store: Arc<dyn Store>) {
    let (upstream, store) = (busy_at_first().await, FaultyStore::new(store));
    let world = World::over(store.clone(), &upstream, "concurrency = 1").await;
    let runs = world.accept().await;
    upstream.got(1).await;
    let next = world.accept().await;
    // The next sign of life would find out too, ten seconds later.
    store.fails("extend", 1_000_000);
    let cancelling = store.holds("cancel");
    tokio::select! {
        _ = world.runner.cancel(runs) => panic!("the answer is held back"),
        () = cancelling.reached() => {}
    }
    drop(cancelling);
    // It has the place of the one that was broken off.
    assert_eq!(world.end(next).await.status, Status::Completed);
    assert_eq!(world.status(runs).await, Status::Cancelled);
}

/// A job that was accepted and started as the process was told to end was sent, and its answer
/// thrown away.
async fn a_stop_waits_for_what_is_about_to_start(store: Arc<dyn Store>) {
    let (upstream, faulty) = (Upstream::start(good).await, FaultyStore::new(store));
    let world = World::over(faulty.clone(), &upstream, "").await;
    let starting = faulty.holds("enqueue_started");
    let runner = world.runner.clone();
    let accepting = Tasks::new().spawn(async move { runner.accept(job()).await });
    starting.reached().await;
    let stopping = world.stops(Duration::from_secs(20));
    tokio::pin!(stopping);
    tokio::select! {
        biased;
        () = &mut stopping => panic!("a job was about to start"),
        () = tokio::task::yield_now() => {}
    }
    drop(starting);
    stopping.await;
    let id = accepting.await.unwrap().unwrap().id;
    let job = faulty.job(id).await.unwrap().unwrap();
    assert_eq!(job.status, Status::Completed);
}

async fn what_is_cancelled_as_it_starts_is_not_sent(store: Arc<dyn Store>) {
    let (upstream, store) = (busy_at_first().await, FaultyStore::new(store));
    let world = World::over(store.clone(), &upstream, "concurrency = 1").await;
    world.accept().await;
    upstream.got(1).await;
    let starting = store.holds("start");
    let id = world.accept().await;
    upstream.go(1);
    starting.reached().await;
    let cancelled = world.runner.cancel(id).await.unwrap();
    assert!(matches!(cancelled, Cancelled::Now(_)));
    drop(starting);
    let next = world.accept().await;
    assert_eq!(world.end(next).await.status, Status::Completed);
    assert_eq!(upstream.count(), 2);
}

/// It failed for good, though nothing of it had been sent.
async fn a_job_whose_budget_cannot_be_recorded_waits_until_it_can(store: Arc<dyn Store>) {
    let upstream = Upstream::start(good).await;
    let world = World::over(store, &upstream, "").await;
    world.models.budget_fails.store(2, Ordering::SeqCst);
    let job = world.end(world.accept().await).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 1));
    assert_eq!(world.models.budget_fails.load(Ordering::SeqCst), 0);
    assert_eq!(upstream.count(), 1);
}

/// Its lease was not known until its budget was, so that it got no sign of life, and was counted
/// and marked as sent.
async fn a_job_whose_budget_waits_for_the_store_keeps_its_lease(store: Arc<dyn Store>) {
    let (upstream, store) = (Upstream::start(good).await, FaultyStore::new(store));
    let lease = Duration::from_millis(300);
    let world = World::leasing(store.clone(), &upstream, "", lease).await;
    world.models.budget_fails.store(1, Ordering::SeqCst);
    // Longer than a lease.
    store.fails("report", 3);
    let job = world.end(world.accept().await).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 1));
    assert!(!job.may_have_been_sent);
    assert_eq!(store.fails_left("report"), 0);
}

/// Signs of life were given before the first slice of housekeeping alone: with many slices at
/// once, those that looked at the leases found them silent, and calls that ran were sent again.
async fn long_housekeeping_costs_nobody_its_lease(store: Arc<dyn Store>) {
    let (upstream, store) = (busy_at_first().await, FaultyStore::new(store));
    let lease = Duration::from_millis(500);
    let world = World::leasing(store.clone(), &upstream, "concurrency = 1", lease).await;
    let runs = world.accept().await;
    upstream.got(1).await;
    // Housekeeping finds more than a slice of jobs whose time has passed.
    let idle = store.holds("tend");
    idle.reached().await;
    let late = |_| NewJob {
        ttl: Some(Duration::from_millis(1)),
        ..job()
    };
    let many = world.runner.accept_many((0..1_200).map(late).collect());
    let last = many.await.unwrap().pop().unwrap().id;
    let first_slice = store.holds("tend");
    drop(idle);
    first_slice.reached().await;
    // Nothing happens that could be waited for: a lease of which there is no sign is long enough.
    let silence = lease + Duration::from_millis(100);
    let _ = tokio::time::timeout(silence, std::future::pending::<()>()).await;
    drop(first_slice);
    assert_eq!(world.end(last).await.status, Status::Expired);
    upstream.go(1);
    let job = world.end(runs).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 1));
    assert!(!job.may_have_been_sent);
    assert_eq!(upstream.count(), 1);
}

/// A sign of life that could not be given was given again a third of a lease later: housekeeping,
/// which came sooner, found the leases silent, and calls that ran were sent and billed again.
async fn an_outage_of_the_store_costs_nobody_its_lease(store: Arc<dyn Store>) {
    let (upstream, store) = (busy_at_first().await, FaultyStore::new(store));
    let lease = Duration::from_secs(1);
    let world = World::leasing(store.clone(), &upstream, "", lease).await;
    let runs = world.accept().await;
    upstream.got(1).await;
    let outage = store.holds("tend");
    outage.reached().await;
    // Nothing happens that could be waited for: longer than a lease the store takes nothing.
    let silence = lease + Duration::from_millis(100);
    let _ = tokio::time::timeout(silence, std::future::pending::<()>()).await;
    store.fails("extend", 1);
    store.fails("tend", 1);
    drop(outage);
    // Housekeeping that the store carries out, twice over.
    for _ in 0..2 {
        store.holds("tend").reached().await;
    }
    assert_eq!(store.fails_left("extend"), 0);
    upstream.go(1);
    let job = world.end(runs).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 1));
    assert!(!job.may_have_been_sent);
    assert_eq!(upstream.count(), 1);
}

/// Whoever cancelled it as soon as the store had it found nobody here, and the call was sent.
async fn what_is_cancelled_as_it_is_accepted_and_started_is_not_sent(store: Arc<dyn Store>) {
    let (upstream, store) = (Upstream::start(good).await, FaultyStore::new(store));
    let world = World::over(store.clone(), &upstream, "").await;
    let starting = store.holds("enqueue_started");
    let (runner, job) = (world.runner.clone(), job());
    let id = job.id;
    let accepting = Tasks::new().spawn(async move { runner.accept(job).await });
    starting.reached().await;
    let cancelled = world.runner.cancel(id).await.unwrap();
    assert!(matches!(cancelled, Cancelled::Now(_)));
    drop(starting);
    accepting.await.unwrap().unwrap();
    let next = world.accept().await;
    assert_eq!(world.end(next).await.status, Status::Completed);
    assert_eq!(upstream.count(), 1);
}

/// It was found again when the lines were compared, five to ten seconds later.
async fn a_job_whose_line_is_anothers_for_a_moment_is_not_lost_sight_of(store: Arc<dyn Store>) {
    let upstream = Upstream::start(good).await;
    let world = World::over(store, &upstream, "").await;
    let begun = tokio::time::Instant::now();
    // As it is handed in, and once more when it was found in the store.
    world.models.moves.store(4, Ordering::SeqCst);
    let job = world.end(world.accept().await).await;
    assert_eq!(job.status, Status::Completed);
    assert_eq!(world.models.moves.load(Ordering::SeqCst), 0);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

/// The store knows of its retry before the runner does, and signs of life find its lease gone. It
/// was found again when the lines were compared, five to ten seconds later.
async fn a_job_whose_lease_is_taken_for_lost_as_it_waits_again_is_not_lost_sight_of(
    store: Arc<dyn Store>,
) {
    let upstream = Upstream::start(|call| match call {
        0 => Act::Refuse(500, "oops"),
        _ => good(call),
    })
    .await;
    let store = FaultyStore::new(store);
    let lease = Duration::from_millis(600);
    let world = World::leasing(store.clone(), &upstream, "", lease).await;
    let retry = store.holds("report");
    let id = world.accept().await;
    retry.reached().await;
    // The second one leaves the job, and with the third one that has happened.
    for _ in 0..3 {
        store.holds("extend").reached().await;
    }
    let begun = tokio::time::Instant::now();
    drop(retry);
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 2));
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}
