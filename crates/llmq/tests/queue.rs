//! What a queue promises about limits, order and time.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use llmq::{
    ModelConfig, Priority, ProcessorError, QueueError, QueueManager, QueueRequest, QueueResponse,
    QuotaConfig, Status, Uuid,
};
use llmq_testkit::zone_far_from_midnight;
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

/// A manager whose processor notes the order of its calls.
fn noting(config: ModelConfig) -> (Manager, Arc<Mutex<Vec<u64>>>) {
    let manager = Manager::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&order);
    manager
        .register_queue(config, move |request: QueueRequest<u64>| {
            noted.lock().unwrap().push(request.params);
            async move {
                sleep(CALL).await;
                Ok::<_, ProcessorError>(request.params)
            }
        })
        .unwrap();
    (manager, order)
}

fn results(answers: Vec<Result<QueueResponse<u64>, QueueError>>) -> Vec<u64> {
    let result = |answer: Result<QueueResponse<u64>, QueueError>| answer.unwrap().result.unwrap();
    answers.into_iter().map(result).collect()
}

#[tokio::test(start_paused = true)]
async fn eight_at_once_really_overlap_and_never_nine() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let manager = Manager::new();
    let (inside, peak) = (Arc::clone(&running), Arc::clone(&most));
    manager
        .register_queue(
            ModelConfig::new(MODEL).concurrent(8),
            move |request: QueueRequest<u64>| {
                let (inside, peak) = (Arc::clone(&inside), Arc::clone(&peak));
                async move {
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    peak.fetch_max(now, Ordering::SeqCst);
                    sleep(CALL).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, ProcessorError>(request.params)
                }
            },
        )
        .unwrap();
    let start = Instant::now();
    let answers = manager.submit_all((0..40).map(request)).await;
    assert_eq!(results(answers), (0..40).collect::<Vec<_>>());
    assert_eq!(most.load(Ordering::SeqCst), 8);
    // 40 calls, 8 at once: five rounds.
    let took = start.elapsed();
    assert!(took >= CALL * 5 && took < CALL * 6, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn no_window_holds_more_calls_than_its_limit() {
    let starts = Arc::new(Mutex::new(Vec::new()));
    let manager = Manager::new();
    let noted = Arc::clone(&starts);
    let config = ModelConfig::new(MODEL).requests_per(5, Duration::from_secs(1));
    manager
        .register_queue(config, move |request: QueueRequest<u64>| {
            noted.lock().unwrap().push(Instant::now());
            async move { Ok::<_, ProcessorError>(request.params) }
        })
        .unwrap();
    let _ = results(manager.submit_all((0..20).map(request)).await);
    let starts = starts.lock().unwrap();
    for pair in starts.windows(6) {
        assert!(pair[5] - pair[0] >= Duration::from_secs(1));
    }
    let took = *starts.last().unwrap() - starts[0];
    assert!(took < Duration::from_millis(3_300), "idle: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn all_limits_hold_at_once() {
    // Tokens bind first: 100 a second at 25 a call are 4 calls a second, not 10.
    let config = ModelConfig::new(MODEL)
        .requests_per(10, Duration::from_secs(1))
        .limit("tokens=100/1s".parse().unwrap())
        .concurrent(3);
    let manager = manager(config);
    let start = Instant::now();
    let sized = |params| request(params).tokens(20, 5);
    let _ = results(manager.submit_all((0..12).map(sized)).await);
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    assert!(took < Duration::from_millis(2_300), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn models_that_share_a_limit_keep_it_together() {
    let manager = Manager::new();
    manager
        .share_limit("account", "requests=4/1s".parse().unwrap())
        .unwrap();
    let configs = ["a", "b"].map(|model| ModelConfig::new(model).shared_limit("account"));
    manager
        .register_all_queues(configs, |request: QueueRequest<u64>| async move {
            Ok::<_, ProcessorError>(request.params)
        })
        .unwrap();
    let start = Instant::now();
    let requests = (0..8).map(|n| QueueRequest::new(["a", "b"][usize::from(n % 2 == 0)], n));
    let _ = results(manager.submit_all(requests).await);
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn first_come_first_served_within_a_priority_and_higher_ones_before() {
    let (manager, order) = noting(ModelConfig::new(MODEL).concurrent(1));
    let urgency = |n: u64| match n {
        0..5 => Priority::NORMAL,
        5..8 => Priority::LOW,
        _ => Priority::HIGH,
    };
    let requests = (0..11).map(|n| request(n).priority(urgency(n)));
    let _ = results(manager.submit_all(requests).await);
    // The first found room before anything else came.
    assert_eq!(*order.lock().unwrap(), [0, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_ends_waiting_and_processing_alike() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(1));
    let mut long = Box::pin(manager.submit_request(request(0)));
    let waits = manager.submit_request(request(1).timeout(CALL / 2));
    let (first, second) = tokio::join!(&mut long, waits);
    assert_eq!(first.unwrap().result, Some(0));
    let error = second.unwrap_err();
    assert!(
        matches!(error, QueueError::QueueTimeout { attempts: 0, .. }),
        "{error}"
    );
    let runs = manager.submit_request(request(2).timeout(CALL / 2)).await;
    let error = runs.unwrap_err();
    assert!(
        matches!(error, QueueError::QueueTimeout { attempts: 1, .. }),
        "{error}"
    );
    // Neither holds the only place any longer.
    let start = Instant::now();
    assert!(manager.submit_request(request(3)).await.is_ok());
    assert_eq!(start.elapsed(), CALL);
    assert_eq!(manager.metrics().timed_out, 2);
}

#[tokio::test(start_paused = true)]
async fn a_models_timeout_holds_for_requests_without_one() {
    let manager = manager(ModelConfig::new(MODEL).timeout(CALL / 2));
    assert!(manager.submit_request(request(0)).await.is_err());
    assert!(
        manager
            .submit_request(request(1).timeout(CALL * 2))
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_drops_nothing() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(1).capacity(3));
    let accepted: Vec<_> = (0..3).map(|n| request(n).without_waiting()).collect();
    let ids: Vec<Uuid> = accepted.iter().map(|request| request.id).collect();
    for request in accepted {
        manager.submit_request(request).await.unwrap();
    }
    let error = manager.submit_request(request(3)).await.unwrap_err();
    assert!(
        matches!(error, QueueError::QueueFull { requests: 3, .. }),
        "{error}"
    );
    assert!(error.is_temporary());
    for id in ids {
        assert!(manager.wait(MODEL, id).await.is_ok());
    }
    assert!(manager.submit_request(request(4)).await.is_ok());
    let metrics = manager.metrics();
    assert_eq!((metrics.accepted, metrics.refused), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn submitting_more_than_a_queue_holds_at_once_fills_it_piece_by_piece() {
    let manager = manager(ModelConfig::new(MODEL).capacity(4_096));
    let answers = manager.submit_all((0..10_000).map(request)).await;
    assert_eq!(results(answers).len(), 10_000);
}

/// With less room than a few thousand, most were refused as soon as the first had filled it.
#[tokio::test(start_paused = true)]
async fn a_small_queue_takes_all_that_are_submitted_at_once() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(10).capacity(100));
    let requests = (0..1_000).map(|n| match n % 3 {
        0 => request(n).dedup_key(n.to_string()),
        _ => request(n),
    });
    let answers = manager.submit_all(requests).await;
    assert_eq!(results(answers), (0..1_000).collect::<Vec<_>>());
    assert_eq!(manager.metrics().refused, 0);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_others_have_filled_refuses() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(1).capacity(2));
    for n in 0..2 {
        let others = request(n).without_waiting();
        manager.submit_request(others).await.unwrap();
    }
    let answers = manager.submit_all((2..4).map(request)).await;
    for answer in answers {
        assert!(matches!(answer, Err(QueueError::QueueFull { .. })));
    }
    assert_eq!(manager.metrics().refused, 2);
}

#[tokio::test(start_paused = true)]
async fn a_paused_queue_starts_nothing_and_loses_nothing() {
    let manager = manager(ModelConfig::new(MODEL));
    manager.pause(MODEL).unwrap();
    let mut waiting = spawned(manager.submit_request(request(7)));
    sleep(Duration::from_secs(3_600)).await;
    let info = manager.get_queue_info(MODEL).unwrap();
    assert!(info.is_paused);
    assert_eq!((info.queue_size, info.processing), (1, 0));
    manager.resume(MODEL).unwrap();
    let answer = (&mut waiting).await.unwrap();
    assert_eq!(answer.unwrap().result, Some(7));
}

#[tokio::test(start_paused = true)]
async fn a_limit_can_be_changed_while_requests_wait_for_it() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(1));
    let queue = manager.queue(MODEL).unwrap();
    let all = spawned({
        let manager = manager.clone();
        async move { manager.submit_all((0..8).map(request)).await }
    });
    sleep(CALL / 2).await;
    queue.set_limit("concurrency=8".parse().unwrap()).unwrap();
    sleep(CALL / 4).await;
    assert_eq!(queue.info().processing, 8);
    let _ = results(all.await.unwrap());
    let error = queue.set_limit("requests=8/1s".parse().unwrap());
    assert!(matches!(
        error,
        Err(QueueError::InvalidConfiguration { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn what_a_model_used_of_its_limits_outlives_its_registration() {
    let per_minute = || ModelConfig::new(MODEL).requests_per_minute(2);
    let manager = manager(per_minute());
    let _ = results(manager.submit_all((0..2).map(request)).await);
    assert!(manager.shutdown_all(CALL).await.is_clean());
    manager
        .register_queue(per_minute(), |request| async move {
            Ok::<_, ProcessorError>(request.params)
        })
        .unwrap();
    let start = Instant::now();
    assert!(manager.submit_request(request(2)).await.is_ok());
    assert!(start.elapsed() > Duration::from_secs(59));
}

/// Registered again, a model began its day anew and had twice its places at once.
#[tokio::test(start_paused = true)]
async fn a_model_that_is_registered_again_has_one_day_and_its_places_once() {
    let of_the_day = || {
        ModelConfig::new(MODEL)
            .concurrent(2)
            .daily_quota(QuotaConfig {
                daily_request_limit: Some(10),
                time_zone: zone_far_from_midnight().to_owned(),
                ..QuotaConfig::default()
            })
    };
    let manager = Manager::new();
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let register = || {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        manager
            .register_queue(of_the_day(), move |request| {
                let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                async move {
                    let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    sleep(CALL).await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, ProcessorError>(request.params)
                }
            })
            .unwrap()
    };
    let queue = register();
    let before = spawned({
        let manager = manager.clone();
        async move { manager.submit_all((0..4).map(request)).await }
    });
    sleep(CALL / 2).await;
    let mut leaving = Box::pin(manager.remove_queue(MODEL, CALL * 10));
    assert!(leaving.as_mut().now_or_never().is_none(), "two calls run");
    let again = register();
    // Eight of ten are the day's threshold; of the four that are more, none goes.
    let after = spawned({
        let again = again.clone();
        async move {
            let more = (4..12).map(|n| again.submit(request(n)));
            futures_util::future::join_all(more).await
        }
    });
    assert!(leaving.await.unwrap().is_clean());
    let _ = results(before.await.unwrap());
    sleep(CALL * 10).await;
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert_eq!(queue.metrics().completed, 4);
    assert_eq!(again.metrics().completed, 4);
    assert!(manager.queue(MODEL).is_ok(), "the new one was not removed");
    after.abort();
}

#[tokio::test(start_paused = true)]
async fn a_request_above_a_whole_limit_is_told_so_at_once() {
    let manager = manager(ModelConfig::new(MODEL).tokens_per_minute(100));
    let error = manager
        .submit_request(request(0).tokens(200, 0))
        .await
        .unwrap_err();
    assert!(
        matches!(error, QueueError::RequestTooLarge { count: 100, .. }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_says_what_it_waits_for() {
    let manager = manager(ModelConfig::new(MODEL).requests_per_minute(1));
    manager.submit_request(request(0)).await.unwrap();
    let waiting = request(1).without_waiting();
    let id = waiting.id;
    let response = manager.submit_request(waiting).await.unwrap();
    assert_eq!(response.status, Status::Queued);
    let why = manager.why(MODEL, id).unwrap().unwrap();
    assert_eq!(why.blockers, [llmq::Blocker::Limit(format!("rpm {MODEL}"))]);
    manager.wait(MODEL, id).await.unwrap();
    assert_eq!(manager.why(MODEL, id).unwrap(), None);
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test that waits for its task itself"
)]
fn spawned<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(task)
}
