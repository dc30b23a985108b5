//! How requests end before their time: cancelled, dropped, or with their queue.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use llmq::{ModelConfig, ProcessorError, QueueError, QueueManager, QueueRequest, Status, Uuid};
use tokio::time::{Instant, sleep};

type Manager = QueueManager<u64, u64>;

const MODEL: &str = "m";
const CALL: Duration = Duration::from_millis(20);

fn request(params: u64) -> QueueRequest<u64> {
    QueueRequest::new(MODEL, params)
}

fn manager(config: ModelConfig) -> Manager {
    let manager = Manager::new();
    register(&manager, config);
    manager
}

fn register(manager: &Manager, config: ModelConfig) {
    manager
        .register_queue(config, |request| async move {
            sleep(CALL).await;
            Ok::<_, ProcessorError>(request.params)
        })
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn cancelling_takes_a_request_out_of_the_line_or_drops_its_processor() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(1));
    let (running, waiting) = (request(0), request(1));
    let ids = [running.id, waiting.id];
    let both = async {
        tokio::join!(
            manager.submit_request(running),
            manager.submit_request(waiting)
        )
    };
    let cancel = async {
        sleep(CALL / 2).await;
        assert!(manager.cancel(MODEL, ids[1]).unwrap());
        assert!(manager.cancel(MODEL, ids[0]).unwrap());
        assert!(!manager.cancel(MODEL, ids[0]).unwrap(), "once is enough");
    };
    let start = Instant::now();
    let ((first, second), ()) = tokio::join!(both, cancel);
    for answer in [first, second] {
        assert!(matches!(answer, Err(QueueError::Cancelled { .. })));
    }
    assert_eq!(start.elapsed(), CALL / 2);
    let status = manager.get_status(MODEL, ids[0]).unwrap().unwrap();
    assert_eq!(status.status, Status::Cancelled);
    assert!(!manager.cancel(MODEL, ids[0]).unwrap());
    assert!(manager.submit_request(request(2)).await.is_ok());
}

/// A manager that counts the calls of its processor, which take 20 ms.
fn counting(config: ModelConfig) -> (Manager, Arc<AtomicUsize>) {
    let manager = Manager::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    manager
        .register_queue(config, move |request: QueueRequest<u64>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                sleep(CALL).await;
                Ok::<_, ProcessorError>(request.params)
            }
        })
        .unwrap();
    (manager, calls)
}

/// Cancelling said that it was, and then it ran: its turn had come and nobody had polled it since.
#[tokio::test(start_paused = true)]
async fn what_was_cancelled_does_not_begin() {
    let (manager, calls) = counting(ModelConfig::new(MODEL).concurrent(1));
    let first = manager.submit_request(request(0).without_waiting()).await;
    let second = request(1);
    let id = second.id;
    let mut waiting = Box::pin(manager.submit_request(second));
    assert!(waiting.as_mut().now_or_never().is_none());
    manager
        .wait(MODEL, first.unwrap().request_id)
        .await
        .unwrap();
    assert!(manager.cancel(MODEL, id).unwrap());
    let answer = waiting.await;
    assert!(matches!(answer, Err(QueueError::Cancelled { .. })));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let status = manager.get_status(MODEL, id).unwrap().unwrap();
    assert_eq!((status.status, status.attempts), (Status::Cancelled, 0));
    // Its place is free.
    assert!(manager.submit_request(request(2)).await.is_ok());
}

/// Named as cancelled by the report, it completed when it was polled again.
#[tokio::test(start_paused = true)]
async fn what_a_report_names_as_cancelled_has_no_result() {
    let (manager, _) = counting(ModelConfig::new(MODEL));
    let request = request(0);
    let id = request.id;
    let mut running = Box::pin(manager.submit_request(request));
    assert!(running.as_mut().now_or_never().is_none());
    // Its answer comes meanwhile, and nobody looks.
    let report = manager.shutdown_all(CALL * 3).await;
    assert_eq!(report.cancelled, [(Arc::from(MODEL), id)]);
    let answer = running.await;
    assert!(matches!(answer, Err(QueueError::ShuttingDown { .. })));
    assert_eq!(manager.metrics().completed, 0);
}

#[tokio::test(start_paused = true)]
async fn who_hears_that_it_is_cancelled_hears_the_truth_to_the_last_moment() {
    let manager = Manager::new();
    let canceller = manager.clone();
    manager
        .register_queue(
            ModelConfig::new(MODEL),
            move |request: QueueRequest<u64>| {
                assert!(canceller.cancel(MODEL, request.id).unwrap());
                std::future::ready(Ok::<_, ProcessorError>(request.params))
            },
        )
        .unwrap();
    let answer = manager.submit_request(request(0)).await;
    assert!(matches!(answer, Err(QueueError::Cancelled { .. })));
}

#[tokio::test(start_paused = true)]
async fn dropping_a_submission_frees_its_place_wherever_it_stood() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(1));
    let (running, waiting) = (request(0), request(1));
    let ids = [running.id, waiting.id];
    {
        let running = manager.submit_request(running);
        let waiting = manager.submit_request(waiting);
        let both = async { tokio::join!(running, waiting) };
        assert!(tokio::time::timeout(CALL / 2, both).await.is_err());
    }
    for id in ids {
        let status = manager.get_status(MODEL, id).unwrap().unwrap();
        assert_eq!(status.status, Status::Cancelled);
    }
    let info = manager.get_queue_info(MODEL).unwrap();
    assert_eq!((info.queue_size, info.processing), (0, 0));
    let start = Instant::now();
    assert!(manager.submit_request(request(2)).await.is_ok());
    assert_eq!(start.elapsed(), CALL);
    assert_eq!(manager.metrics().cancelled, 2);
}

#[tokio::test(start_paused = true)]
async fn a_submission_that_was_never_polled_was_never_made() {
    let manager = manager(ModelConfig::new(MODEL));
    drop(manager.submit_request(request(0)));
    assert_eq!(manager.metrics().accepted, 0);
}

#[tokio::test(start_paused = true)]
async fn shutting_down_finishes_what_was_accepted_and_accepts_nothing_more() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(2));
    let requests: Vec<_> = (0..10).map(|n| request(n).without_waiting()).collect();
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
    for request in requests {
        manager.submit_request(request).await.unwrap();
    }
    let late = async {
        sleep(CALL).await;
        manager.submit_request(request(99)).await
    };
    let (report, late) = tokio::join!(manager.shutdown_all(Duration::from_secs(1)), late);
    assert!(report.is_clean());
    assert!(matches!(late, Err(QueueError::ShuttingDown { .. })));
    for (params, id) in ids.into_iter().enumerate() {
        let response = manager.get_status(MODEL, id).unwrap().unwrap();
        assert_eq!(response.result, Some(params as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_finish_in_time_is_cancelled_and_told_of() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(1));
    let requests: Vec<_> = (0..4).map(|n| request(n).without_waiting()).collect();
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
    for request in requests {
        manager.submit_request(request).await.unwrap();
    }
    let report = manager.shutdown_all(CALL * 5 / 2).await;
    let mut cancelled: Vec<Uuid> = report.cancelled.iter().map(|(_, id)| *id).collect();
    cancelled.sort_unstable();
    assert_eq!(cancelled, ids[2..]);
    // Each accepted request has exactly one end.
    let statuses = ids.statuses(&manager);
    assert_eq!(
        statuses,
        [
            Status::Completed,
            Status::Completed,
            Status::Cancelled,
            Status::Cancelled
        ]
    );
    let metrics = manager.metrics();
    assert_eq!(metrics.accepted, metrics.completed + metrics.cancelled);
}

/// A panic in what says how large a request is left the queue busy for ever.
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_estimator_leaves_nothing_behind() {
    let manager = Manager::new();
    manager
        .register_queue_sized(
            ModelConfig::new(MODEL).tokens_per_minute(1_000),
            |request: QueueRequest<u64>| async move { Ok::<_, ProcessorError>(request.params) },
            |params| {
                assert_ne!(*params, 0, "nothing to estimate");
                llmq::CallSize::of_input(1)
            },
        )
        .unwrap();
    let panics = AssertUnwindSafe(manager.submit_request(request(0)));
    assert!(panics.catch_unwind().await.is_err());
    assert!(manager.submit_request(request(1)).await.is_ok());
    let start = Instant::now();
    let report = manager.shutdown_all(Duration::from_secs(3_600)).await;
    assert!(report.is_clean());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

trait Statuses {
    fn statuses(&self, manager: &Manager) -> Vec<Status>;
}

impl Statuses for Vec<Uuid> {
    fn statuses(&self, manager: &Manager) -> Vec<Status> {
        let status = |id: &Uuid| manager.get_status(MODEL, *id).unwrap().unwrap().status;
        self.iter().map(status).collect()
    }
}
