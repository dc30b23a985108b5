//! What becomes of attempts that fail.

use std::sync::Arc;

use llmq_core::{FailureClass, Status};
use llmq_store::Store;

use crate::world::{Act, Upstream, World};

over_each_store! {
    a_fault_that_passes_is_tried_again_and_counted,
    a_job_whose_attempts_are_used_up_fails_with_the_providers_words,
    what_the_provider_cannot_take_is_sent_once,
    a_refusal_for_a_limit_is_no_attempt,
    a_call_above_a_whole_limit_fails_without_being_sent,
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
