//! What a limiter without a queue promises.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::pin::pin;
use std::time::Duration;

use llmq::{CallSize, QueueError, RateLimiter, Usage};
use llmq_testkit::PATIENCE;
use tokio::time::Instant;

fn limiter(limits: &[&str]) -> RateLimiter {
    RateLimiter::new(limits.iter().map(|limit| limit.parse().unwrap())).unwrap()
}

#[tokio::test(start_paused = true)]
async fn permits_come_as_the_window_frees_them() {
    let limiter = limiter(&["requests=2/1s"]);
    let start = Instant::now();
    for _ in 0..5 {
        drop(limiter.acquire().await.unwrap());
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    assert!(took < Duration::from_millis(2_100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_permit_frees_its_place_and_keeps_its_charge() {
    let limiter = limiter(&["concurrency=1", "requests=2/1m"]);
    let permit = limiter.acquire().await.unwrap();
    assert!(limiter.try_acquire().is_err());
    drop(permit);
    let permit = limiter.try_acquire().unwrap();
    assert_eq!(limiter.limits()[1].available(), 0);
    drop(permit);
    let error = limiter.try_acquire().unwrap_err();
    let QueueError::RateLimitExceeded { retry_after, .. } = error else {
        panic!("{error}");
    };
    assert!(retry_after.unwrap() > Duration::from_secs(59));
    assert!(limiter.wait_time().unwrap() > Duration::from_secs(59));
}

#[tokio::test(start_paused = true)]
async fn asking_how_long_takes_nothing() {
    let limiter = limiter(&["requests=1/1m", "concurrency=1"]);
    for _ in 0..3 {
        assert_eq!(limiter.wait_time(), Some(Duration::ZERO));
    }
    let _permit = limiter.try_acquire().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_leaves_the_line() {
    let limiter = limiter(&["concurrency=1"]);
    let permit = limiter.acquire().await.unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(1), limiter.acquire()).await;
    assert!(waited.is_err());
    drop(permit);
    assert!(limiter.try_acquire().is_ok());
}

#[tokio::test(start_paused = true)]
async fn tokens_are_settled_to_what_was_used() {
    let limiter = limiter(&["tokens=100/1m"]);
    let size = CallSize {
        input_tokens: 50,
        max_output_tokens: Some(50),
        choices: 1,
    };
    let permit = limiter.acquire_sized(size).await.unwrap();
    permit.settle(Usage {
        input_tokens: 5,
        output_tokens: 5,
        ..Usage::default()
    });
    assert_eq!(limiter.limits()[0].available(), 90);
    let too_large = CallSize::of_input(101);
    assert!(matches!(
        limiter.acquire_sized(too_large).await,
        Err(QueueError::RequestTooLarge { count: 100, .. })
    ));
}

#[tokio::test]
async fn a_limit_that_cannot_be_meant_is_refused() {
    let error = RateLimiter::new([llmq::LimitSpec::concurrency(0)]).unwrap_err();
    assert!(error.to_string().contains("a limit of 0"), "{error}");
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap()
}

#[test]
fn after_its_runtimes_end_nobody_waits_for_a_timer_that_is_gone() {
    let first = runtime();
    let limits = ["requests=2/1m".parse().unwrap()];
    let limiter = first.block_on(async { RateLimiter::new(limits) }).unwrap();
    drop(first);
    let refused = runtime().block_on(limiter.acquire()).unwrap_err();
    assert!(refused.to_string().contains("runtime"), "{refused}");
    // What needs no timer goes on.
    assert!(limiter.try_acquire().is_ok());
}

/// It waited for ever.
#[test]
fn whoever_stands_in_line_elsewhere_as_its_runtime_ends_is_told() {
    let first = runtime();
    let limits = ["requests=1/1h".parse().unwrap()];
    let limiter = first.block_on(async { RateLimiter::new(limits) }).unwrap();
    let _permit = limiter.try_acquire().unwrap();
    let waits = async {
        let mut waiting = pin!(limiter.acquire());
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("the limit is used up"),
            () = std::future::ready(()) => {}
        }
        first.shutdown_background();
        tokio::time::timeout(PATIENCE, waiting).await
    };
    let refused = runtime().block_on(waits).expect("it is told in time");
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("runtime"), "{refused}");
}
