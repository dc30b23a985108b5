//! What becomes of attempts that fail.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::{FailureClass, Status};
use llmq_store::{NewJob, Store};

use crate::world::{Act, Upstream, World, job};

over_each_store! {
    a_fault_that_passes_is_tried_again_and_counted,
    a_job_whose_attempts_are_used_up_fails_with_the_providers_words,
    what_the_provider_cannot_take_is_sent_once,
    a_refusal_for_a_limit_is_no_attempt,
    a_refusal_that_another_upstream_makes_good_at_once_is_no_attempt,
    the_probes_of_an_outage_are_not_counted_as_throttles,
    an_account_without_money_ends_no_job,
    a_call_above_a_whole_limit_fails_without_being_sent,
    a_prompt_that_is_too_long_goes_to_larger_contexts_one_after_the_other,
    a_prompt_that_is_too_long_for_all_fails_with_the_first_ones_words,
    a_process_that_ends_on_the_way_to_a_larger_context_leaves_it_to_the_next,
}

async fn a_fault_that_passes_is_tried_again_and_counted(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        0 | 1 => Act::Refuse(500, "oops"),
        _ => Act::Answer("hi".to_owned()),
    })
    .await;
    let world = World::over(store, &upstream, "").await;
    let id = world.accept().await;
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 3));
    assert_eq!(upstream.count(), 3);
}

async fn a_job_whose_attempts_are_used_up_fails_with_the_providers_words(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Refuse(500, "oops")).await;
    let world = World::over(store, &upstream, "").await;
    let id = world.accept().await;
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Failed, 5));
    assert_eq!(job.error.unwrap().class, Some(FailureClass::Transient));
    let (status, body) = world.answer(id).await;
    assert_eq!(status, 500);
    assert!(body.contains("oops"), "{body}");
}

async fn what_the_provider_cannot_take_is_sent_once(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Refuse(400, "no such field")).await;
    let world = World::over(store, &upstream, "").await;
    let id = world.accept().await;
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Failed, 1));
    assert_eq!(world.answer(id).await.0, 400);
    assert_eq!(upstream.count(), 1);
}

async fn a_refusal_for_a_limit_is_no_attempt(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        0..3 => Act::Refuse(503, "overloaded"),
        _ => Act::Answer("hi".to_owned()),
    })
    .await;
    let world = World::over(store, &upstream, "").await;
    let id = world.accept().await;
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 1));
    assert_eq!(upstream.count(), 4);
}

/// The attempt that had begun meanwhile was taken for the one that had been refused: the store
/// counted the refusal, and a job of two attempts failed with a process that ended then.
async fn a_refusal_that_another_upstream_makes_good_at_once_is_no_attempt(store: Arc<dyn Store>) {
    for status in [429, 503] {
        let upstream = Upstream::start(move |call| match call {
            0 => Act::Refuse(status, "slow down"),
            1 => Act::Wait,
            _ => Act::Answer("hi".to_owned()),
        })
        .await;
        let world = World::over_two(Arc::clone(&store), &upstream).await;
        let twice = NewJob {
            max_attempts: 2,
            ..job()
        };
        let id = world.runner.accept(twice).await.unwrap().id;
        upstream.got(2).await;
        let kept = store.job(id).await.unwrap().unwrap();
        assert_eq!((kept.attempts, kept.throttles), (1, 1), "{status}");
        world.stops(Duration::from_millis(50)).await;
        let kept = store.job(id).await.unwrap().unwrap();
        assert_eq!(kept.status, Status::Queued, "{status}");
        let world = World::over_two(Arc::clone(&store), &upstream).await;
        let job = world.end(id).await;
        assert_eq!((job.status, job.attempts), (Status::Completed, 2));
        assert!(job.may_have_been_sent);
        world.stops(Duration::ZERO).await;
    }
}

/// The store counted each probe of an upstream that was down, and the next process failed the job
/// for its throttles.
async fn the_probes_of_an_outage_are_not_counted_as_throttles(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        // The first five open the breaker.
        0..6 => Act::Refuse(503, "overloaded"),
        _ => Act::Wait,
    })
    .await;
    let world = World::over(Arc::clone(&store), &upstream, "").await;
    let id = world.accept().await;
    upstream.got(7).await;
    let job = store.job(id).await.unwrap().unwrap();
    assert_eq!((job.attempts, job.throttles), (1, 5));
    upstream.go(1);
    assert_eq!(world.end(id).await.status, Status::Completed);
}

/// After twenty refusals, a night without money, what had been accepted had failed.
async fn an_account_without_money_ends_no_job(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| match call {
        0..30 => Act::Refuse(402, "no credit"),
        30 => Act::Wait,
        _ => Act::Answer("hi".to_owned()),
    })
    .await;
    let world = World::over(Arc::clone(&store), &upstream, "").await;
    let id = world.accept().await;
    upstream.got(31).await;
    let job = store.job(id).await.unwrap().unwrap();
    assert_eq!((job.attempts, job.throttles), (1, 1));
    upstream.go(1);
    assert_eq!(world.end(id).await.status, Status::Completed);
}

async fn a_call_above_a_whole_limit_fails_without_being_sent(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Answer("hi".to_owned())).await;
    let world = World::over(store, &upstream, "tpm = 10").await;
    let mut job = crate::world::job();
    job.size.input_tokens = 1_000;
    let id = world.runner.accept(job).await.unwrap().id;
    let job = world.end(id).await;
    assert_eq!(job.status, Status::Failed);
    assert_eq!(job.error.unwrap().code, "too-large");
    assert_eq!(upstream.count(), 0);
}

const TOO_LONG: &str = "prompt is too long: 9 tokens > 8 maximum";

/// The models that were asked, in their order.
fn asked(upstream: &Upstream) -> Vec<String> {
    let calls = upstream.calls.lock().unwrap();
    let bodies = calls.iter().map(|body| serde_json::from_str(body).unwrap());
    bodies
        .map(|body: serde_json::Value| body["model"].as_str().unwrap().to_owned())
        .collect()
}

async fn a_prompt_that_is_too_long_goes_to_larger_contexts_one_after_the_other(
    store: Arc<dyn Store>,
) {
    let upstream = Upstream::start(|call| match call {
        0 | 2 => Act::Refuse(400, TOO_LONG),
        1 => Act::Refuse(500, "oops"),
        _ => Act::Answer("hi".to_owned()),
    })
    .await;
    let world = World::over(store, &upstream, "").await;
    let id = world.accept().await;
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 4));
    assert_eq!(asked(&upstream), ["gpt", "huge", "huge", "vast"]);
    assert!(world.answer(id).await.1.contains("hi"));
}

async fn a_prompt_that_is_too_long_for_all_fails_with_the_first_ones_words(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|call| {
        let first = format!("{TOO_LONG} (the first)");
        Act::Refuse(400, if call == 0 { first.leak() } else { TOO_LONG })
    })
    .await;
    let world = World::over(store, &upstream, "").await;
    let id = world.accept().await;
    let job = world.end(id).await;
    assert_eq!((job.status, job.attempts), (Status::Failed, 3));
    assert_eq!(asked(&upstream), ["gpt", "huge", "vast"]);
    let (status, body) = world.answer(id).await;
    assert_eq!(status, 400);
    assert!(body.contains("the first"), "{body}");
}

async fn a_process_that_ends_on_the_way_to_a_larger_context_leaves_it_to_the_next(
    store: Arc<dyn Store>,
) {
    let upstream = Upstream::start(|call| match call {
        0 | 2 => Act::Refuse(400, TOO_LONG),
        1 => Act::Wait,
        _ => Act::Answer("hi".to_owned()),
    })
    .await;
    let world = World::over(Arc::clone(&store), &upstream, "").await;
    let id = world.accept().await;
    upstream.got(2).await;
    world.stops(std::time::Duration::ZERO).await;
    let world = World::over(store, &upstream, "").await;
    let job = world.end(id).await;
    assert_eq!(job.status, Status::Completed);
    assert_eq!(asked(&upstream), ["gpt", "huge", "gpt", "huge"]);
}
