//! What calls are charged: as they say, whenever they say it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use llmq::{
    FailureClass, ModelConfig, ProcessorError, QueueManager, QueueRequest, TenantConfig, Uuid,
};
use tokio::time::{Instant, sleep};

type Manager = QueueManager<u64, u64>;

const MODEL: &str = "m";
const CALL: Duration = Duration::from_millis(20);

fn request(params: u64) -> QueueRequest<u64> {
    QueueRequest::new(MODEL, params)
}

/// A manager with one model whose calls take 20 ms and answer their parameter.
fn manager(config: ModelConfig) -> Manager {
    let manager = Manager::new();
    manager
        .register_queue(config, |request| async move {
            sleep(CALL).await;
            Ok::<_, ProcessorError>(request.params)
        })
        .unwrap();
    manager
}

#[tokio::test(start_paused = true)]
async fn usage_told_by_the_processor_or_later_is_what_counts() {
    let manager = Manager::new();
    let teller = manager.clone();
    manager
        .register_queue(
            ModelConfig::new(MODEL).tokens_per_minute(1_000),
            move |request: QueueRequest<u64>| {
                let teller = teller.clone();
                async move {
                    if request.params == 0 {
                        teller.update_token_usage(MODEL, request.id, 10, 10)?;
                    }
                    Ok::<_, ProcessorError>(request.params)
                }
            },
        )
        .unwrap();
    let used = || manager.get_queue_info(MODEL).unwrap().limits[0].in_use;
    let near = |share: f64| assert!((used() - share).abs() < 1e-9, "{} {share}", used());
    // Told in time: 20 instead of 600.
    let first = manager.submit_request(request(0).tokens(500, 100)).await;
    assert_eq!(first.unwrap().usage.unwrap().total(), 20);
    near(0.02);
    // Told late, and then told otherwise.
    let second = request(1).tokens(200, 100);
    let id = second.id;
    manager.submit_request(second).await.unwrap();
    assert!(manager.update_token_usage(MODEL, id, 100, 50).unwrap());
    near(0.17);
    assert!(manager.update_token_usage(MODEL, id, 400, 50).unwrap());
    near(0.47);
    assert!(
        !manager
            .update_token_usage(MODEL, Uuid::nil(), 1, 1)
            .unwrap()
    );
}

fn used(manager: &Manager, limit: usize) -> u64 {
    let limit = &manager.get_queue_info(MODEL).unwrap().limits[limit];
    limit.limit.count - limit.available()
}

/// What was charged was guessed when usage was told late, and by the cap: 644 were given back
/// beyond what had been taken, with every call.
#[tokio::test(start_paused = true)]
async fn usage_that_is_told_late_leaves_what_was_used() {
    let manager = manager(ModelConfig::new(MODEL).tokens_per_minute(10_000));
    let request = request(0).tokens(100, 2_000);
    let id = request.id;
    manager.submit_request(request).await.unwrap();
    assert!(manager.update_token_usage(MODEL, id, 100, 1_000).unwrap());
    assert_eq!(used(&manager, 0), 1_100);
}

/// Where no cap was said, the answer was never charged, and its length never learned.
#[tokio::test(start_paused = true)]
async fn usage_that_is_told_late_is_charged_and_learned() {
    let manager = manager(ModelConfig::new(MODEL).tokens_per_minute(100_000));
    for n in 0..10 {
        let id = manager.submit_request(request(n)).await.unwrap().request_id;
        assert!(manager.update_token_usage(MODEL, id, 0, 3_000).unwrap());
    }
    assert_eq!(used(&manager, 0), 30_000);
    manager.submit_request(request(10)).await.unwrap();
    assert_eq!(used(&manager, 0), 33_000, "what nobody tells is estimated");
}

/// What a call that had left the window had not used was taken from a newer one.
#[tokio::test(start_paused = true)]
async fn usage_that_is_told_after_the_window_changes_nothing() {
    let manager = manager(ModelConfig::new(MODEL).tokens_per_minute(1_000));
    let old = manager.submit_request(request(0).tokens(500, 0)).await;
    sleep(Duration::from_secs(40)).await;
    let newer = request(1).tokens(300, 0);
    manager.submit_request(newer).await.unwrap();
    sleep(Duration::from_secs(50)).await;
    let id = old.unwrap().request_id;
    assert!(manager.update_token_usage(MODEL, id, 0, 0).unwrap());
    assert_eq!(used(&manager, 0), 300);
}

/// Only the model's own limits were corrected.
#[tokio::test(start_paused = true)]
async fn usage_that_is_told_late_corrects_shared_limits_and_the_tenants() {
    let manager = Manager::new();
    let account = "tokens=10000/1m".parse().unwrap();
    manager.share_limit("account", account).unwrap();
    let tenant = TenantConfig::new("few").limit("tokens=1000/1m".parse().unwrap());
    manager.add_tenant(&tenant).unwrap();
    let config = ModelConfig::new(MODEL)
        .tokens_per_minute(20_000)
        .shared_limit("account");
    manager
        .register_queue(config, |request| async move {
            Ok::<_, ProcessorError>(request.params)
        })
        .unwrap();
    let of_few = |input| request(0).tokens(input, 0).tenant("few");
    let start = Instant::now();
    let first = manager.submit_request(of_few(900)).await.unwrap();
    let tell = |id, input| manager.update_token_usage(MODEL, id, input, 0).unwrap();
    assert!(tell(first.request_id, 100));
    assert_eq!((used(&manager, 0), used(&manager, 1)), (100, 100));
    // The tenant has room again, and then has not.
    let second = manager.submit_request(of_few(400)).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(tell(second.request_id, 900));
    assert_eq!((used(&manager, 0), used(&manager, 1)), (1_000, 1_000));
    manager.submit_request(of_few(1)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(60));
}

/// A request that was never sent was given back what it had not been charged.
#[tokio::test(start_paused = true)]
async fn usage_of_what_was_never_sent_or_was_refused_gives_nothing_back() {
    let manager = Manager::new();
    let config = ModelConfig::new(MODEL).tokens_per_minute(1_000);
    manager
        .register_queue(config, |request: QueueRequest<u64>| async move {
            match request.params {
                0 => Ok(0),
                _ => Err(ProcessorError::classified(
                    FailureClass::TooLarge,
                    None,
                    "too large",
                )),
            }
        })
        .unwrap();
    let sized = |n| request(n).tokens(100, 200);
    let spent = manager.submit_request(sized(0)).await.unwrap();
    let tell = |id| manager.update_token_usage(MODEL, id, 0, 0).unwrap();
    let before = used(&manager, 0);
    let refused = sized(1);
    let refused_id = refused.id;
    manager.submit_request(refused).await.unwrap_err();
    assert!(tell(refused_id));
    manager.pause(MODEL).unwrap();
    let waiting = sized(0).without_waiting();
    let waiting = manager.submit_request(waiting).await.unwrap();
    assert!(manager.cancel(MODEL, waiting.request_id).unwrap());
    let _ = manager.wait(MODEL, waiting.request_id).await;
    assert!(tell(waiting.request_id));
    assert_eq!(used(&manager, 0), before);
    assert!(tell(spent.request_id));
    assert_eq!(used(&manager, 0), 0);
}

/// What was told of one attempt was charged again for each that followed in silence.
#[tokio::test(start_paused = true)]
async fn each_attempt_is_charged_its_own_usage() {
    let manager = Manager::new();
    let teller = manager.clone();
    let attempts = AtomicUsize::new(0);
    let config = ModelConfig::new(MODEL)
        .tokens_per_minute(100_000)
        .max_attempts(3);
    manager
        .register_queue(config, move |request: QueueRequest<u64>| {
            if attempts.fetch_add(1, Ordering::SeqCst) == 0 {
                let told = teller.update_token_usage(MODEL, request.id, 0, 3_000);
                assert!(told.unwrap());
            }
            std::future::ready(Err::<u64, _>(ProcessorError::transient("cut off")))
        })
        .unwrap();
    let request = request(0);
    let id = request.id;
    let mut failing = Box::pin(manager.submit_request(request));
    assert!(failing.as_mut().now_or_never().is_none());
    assert_eq!(used(&manager, 0), 3_000);
    // It waits for the next one.
    assert!(manager.update_token_usage(MODEL, id, 0, 5_000).unwrap());
    assert_eq!(used(&manager, 0), 5_000);
    failing.await.unwrap_err();
    assert_eq!(used(&manager, 0), 5_000);
    let told = manager.get_status(MODEL, id).unwrap().unwrap();
    assert_eq!(told.usage.unwrap().output_tokens, 5_000);
}

/// What had been told of a call was forgotten when it was cut off.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_cut_off_is_charged_what_was_told_of_it() {
    let manager = Manager::new();
    let teller = manager.clone();
    let config = ModelConfig::new(MODEL).tokens_per_minute(10_000);
    manager
        .register_queue(config, move |request: QueueRequest<u64>| {
            let teller = teller.clone();
            async move {
                teller.update_token_usage(MODEL, request.id, 100, 7)?;
                std::future::pending::<Result<u64, ProcessorError>>().await
            }
        })
        .unwrap();
    let sized = || request(0).tokens(100, 2_000);
    let timed_out = manager.submit_request(sized().timeout(CALL));
    timed_out.await.unwrap_err();
    assert_eq!(used(&manager, 0), 107);
    let mut dropped = Box::pin(manager.submit_request(sized()));
    assert!(dropped.as_mut().now_or_never().is_none());
    drop(dropped);
    assert_eq!(used(&manager, 0), 214);
}

#[tokio::test(start_paused = true)]
async fn an_estimator_sizes_requests_that_do_not_say_how_large_they_are() {
    let manager = Manager::new();
    manager
        .register_queue_sized(
            ModelConfig::new(MODEL).input_tokens_per_minute(100),
            |request: QueueRequest<u64>| async move { Ok::<_, ProcessorError>(request.params) },
            |params| llmq::CallSize::of_input(u32::try_from(*params).unwrap()),
        )
        .unwrap();
    manager.submit_request(request(30)).await.unwrap();
    let limit = &manager.get_queue_info(MODEL).unwrap().limits[0];
    assert_eq!(limit.available(), 70);
}
