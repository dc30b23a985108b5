//! What a queue learns of the headers that its processor tells.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use llmq::{Host, ModelConfig, ProcessorError, QueueManager, QueueRequest, Uuid};
use tokio::time::Instant;

type Manager = QueueManager<u64, ()>;

const MODEL: &str = "claude";
const LIMIT: &str = "anthropic-ratelimit-requests-limit";
const REMAINING: &str = "anthropic-ratelimit-requests-remaining";

/// A manager whose calls get `headers` of their parameter, and may be refused.
fn manager(
    config: ModelConfig,
    headers: impl Fn(u64) -> Vec<(&'static str, String)> + Send + Sync + 'static,
    outcome: impl Fn(u64) -> Result<(), ProcessorError> + Send + Sync + 'static,
) -> Manager {
    let manager = Manager::new();
    let teller = manager.clone();
    let processor = move |request: QueueRequest<u64>| {
        let headers = headers(request.params);
        let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
        let told = teller.update_from_response(MODEL, request.id, headers);
        assert!(told.unwrap());
        std::future::ready(outcome(request.params))
    };
    manager.register_queue(config, processor).unwrap();
    manager
}

fn config() -> ModelConfig {
    ModelConfig::new(MODEL).host(Host::Anthropic)
}

fn request(params: u64) -> QueueRequest<u64> {
    QueueRequest::new(MODEL, params)
}

#[tokio::test(start_paused = true)]
async fn what_others_used_of_the_account_is_not_used_again() {
    let headers = |calls| {
        let left = 47_u64.saturating_sub(calls);
        vec![(LIMIT, "50".to_owned()), (REMAINING, left.to_string())]
    };
    let sliding = "requests=50/1m".parse().unwrap();
    let manager = manager(config().limit(sliding), headers, |_| Ok(()));
    manager.submit_request(request(1)).await.unwrap();
    let info = manager.get_queue_info(MODEL).unwrap();
    assert_eq!(info.limits[0].available(), 46);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_the_provider_states_lower_is_lowered() {
    let headers = |_| vec![(LIMIT, "5".to_owned()), (REMAINING, "4".to_owned())];
    let manager = manager(config().requests_per_minute(50), headers, |_| Ok(()));
    manager.submit_request(request(0)).await.unwrap();
    let info = manager.get_queue_info(MODEL).unwrap();
    assert_eq!(info.limits[0].limit.count, 5);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_nobody_named_is_kept_once_three_answers_have_stated_it() {
    let headers = |calls: u64| {
        let left = 10_u64.saturating_sub(calls);
        vec![(LIMIT, "10".to_owned()), (REMAINING, left.to_string())]
    };
    let manager = manager(config(), headers, |_| Ok(()));
    let start = Instant::now();
    for calls in 1..=3 {
        let info = manager.get_queue_info(MODEL).unwrap();
        assert!(info.limits.is_empty());
        manager.submit_request(request(calls)).await.unwrap();
    }
    let info = manager.get_queue_info(MODEL).unwrap();
    assert_eq!((info.limits[0].limit.count, info.limits.len()), (10, 1));
    for calls in 4..=10 {
        manager.submit_request(request(calls)).await.unwrap();
    }
    let before = start.elapsed();
    manager.submit_request(request(11)).await.unwrap();
    assert!(start.elapsed() > before, "the eleventh waits");
}

/// The next answer undid what a person had said: down to the provider's count, or up to it.
#[tokio::test(start_paused = true)]
async fn a_count_that_a_person_sets_holds_whatever_was_configured() {
    for (stated, set) in [(50, 10), (100, 100)] {
        let headers = move |calls: u64| {
            let left = stated - calls;
            vec![(LIMIT, stated.to_string()), (REMAINING, left.to_string())]
        };
        let manager = manager(config().requests_per_minute(50), headers, |_| Ok(()));
        let queue = manager.queue(MODEL).unwrap();
        let count = || queue.info().limits[0].limit.count;
        for calls in 1..=3 {
            queue.submit(request(calls)).await.unwrap();
        }
        let limit = ModelConfig::new(MODEL).requests_per_minute(set).limits[0];
        queue.set_limit(limit).unwrap();
        queue.submit(request(4)).await.unwrap();
        assert_eq!(count(), set);
        // Registered again as it was, it is what that says.
        manager.shutdown_all(Duration::from_secs(1)).await;
        let again = manager.register_queue(config().requests_per_minute(50), |_| async {
            Ok::<_, ProcessorError>(())
        });
        assert_eq!(again.unwrap().info().limits[0].limit.count, 50);
    }
}

/// What had been used of it was open once more.
#[tokio::test(start_paused = true)]
async fn a_learned_limit_that_is_then_stated_keeps_what_was_used_of_it() {
    let headers = |calls: u64| {
        let used = 30 + calls;
        vec![
            ("x-ratelimit-limit-requests", "60".to_owned()),
            ("x-ratelimit-remaining-requests", (60 - used).to_string()),
            ("x-ratelimit-reset-requests", format!("{used}s")),
        ]
    };
    let config = || ModelConfig::new(MODEL).host(Host::OpenAi);
    let manager = manager(config(), headers, |_| Ok(()));
    for calls in 1..=3 {
        manager.submit_request(request(calls)).await.unwrap();
    }
    manager.shutdown_all(Duration::from_secs(1)).await;
    let stated = config().requests_per_minute(60);
    let again = manager.register_queue(stated, |_| async { Ok::<_, ProcessorError>(()) });
    let info = again.unwrap().info();
    assert_eq!(info.limits.len(), 1);
    assert!(info.limits[0].available() < 40, "{:?}", info.limits);
}

#[tokio::test(start_paused = true)]
async fn where_the_error_names_no_wait_that_of_the_headers_holds() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let headers = |_| vec![("retry-after", "7".to_owned())];
    let manager = manager(config(), headers, move |_| {
        if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            return Err(ProcessorError::rate_limited(None));
        }
        Ok(())
    });
    let start = Instant::now();
    manager.submit_request(request(0)).await.unwrap();
    let took = start.elapsed();
    let wait = Duration::from_secs(7);
    assert!(took >= wait && took < wait * 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn headers_of_no_running_attempt_are_not_taken() {
    let manager = manager(config(), |_| Vec::new(), |_| Ok(()));
    let tell = |id| manager.update_from_response(MODEL, id, [(LIMIT, "5")]);
    assert!(!tell(Uuid::nil()).unwrap());
    manager.pause(MODEL).unwrap();
    let waiting = manager.submit_request(request(0).without_waiting());
    let id = waiting.await.unwrap().request_id;
    assert!(!tell(id).unwrap());
    manager.resume(MODEL).unwrap();
    manager.wait(MODEL, id).await.unwrap();
    assert!(!tell(id).unwrap());
}
