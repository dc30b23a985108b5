//! What becomes of requests: failures, retries, deduplication, results that are fetched later, hooks.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::error::Error as _;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llmq::{
    FailureClass, HookEvent, Hooks, ModelConfig, ProcessorError, ProcessorPanic, QueueError,
    QueueManager, QueueRequest, Status, Uuid,
};
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

/// A manager whose processor fails as `outcome` says of (parameter, attempt).
fn failing(
    config: ModelConfig,
    outcome: impl Fn(u64, u32) -> Result<u64, ProcessorError> + Send + Sync + 'static,
) -> Manager {
    let manager = Manager::new();
    let attempts = AtomicU32::new(0);
    manager
        .register_queue(config, move |request: QueueRequest<u64>| {
            let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
            std::future::ready(outcome(request.params, attempt))
        })
        .unwrap();
    manager
}

/// A refused key closed the model until it was registered anew.
#[tokio::test(start_paused = true)]
async fn a_model_that_waits_for_a_person_goes_on_when_it_is_resumed() {
    let manager = failing(ModelConfig::new(MODEL), |params, attempt| match attempt {
        1 => Err(ProcessorError::classified(
            FailureClass::NoAccess,
            None,
            "no such key",
        )),
        _ => Ok(params),
    });
    let queue = manager.queue(MODEL).unwrap();
    manager.submit_request(request(1)).await.unwrap_err();
    assert_eq!(queue.info().closed_for, Some(FailureClass::NoAccess));
    let mut waiting = tokio::task::JoinSet::new();
    let other = manager.clone();
    waiting.spawn(async move { other.submit_request(request(2)).await });
    sleep(Duration::from_secs(3_600)).await;
    assert!(waiting.try_join_next().is_none());
    queue.resume();
    let answer = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(answer.unwrap().result, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_its_request_and_nothing_else() {
    let manager = Manager::new();
    manager
        .register_queue(
            ModelConfig::new(MODEL).concurrent(2),
            |request: QueueRequest<u64>| {
                // One before there is a future, one inside it.
                assert_ne!(request.params, 3, "three at once");
                async move {
                    sleep(CALL).await;
                    assert_ne!(request.params, 5, "five late");
                    Ok::<_, ProcessorError>(request.params)
                }
            },
        )
        .unwrap();
    let answers = manager.submit_all((0..10).map(request)).await;
    for (params, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(response) => assert!(response.result.is_some() && params != 3 && params != 5),
            Err(error) => {
                let panic = error.cause::<ProcessorPanic>().unwrap().to_string();
                let words = if params == 3 {
                    "three at once"
                } else {
                    "five late"
                };
                assert!(panic.contains(words), "{panic}");
            }
        }
    }
    let metrics = manager.metrics();
    assert_eq!((metrics.completed, metrics.failed), (8, 2));
}

#[tokio::test(start_paused = true)]
async fn a_processor_whose_own_task_is_cancelled_fails_its_request_and_nothing_else() {
    let manager = Manager::new();
    manager
        .register_queue(
            ModelConfig::new(MODEL),
            |request: QueueRequest<u64>| async move {
                let mut tasks = tokio::task::JoinSet::new();
                tasks.spawn(async move {
                    sleep(CALL).await;
                    request.params
                });
                if request.params == 1 {
                    tasks.abort_all();
                }
                match tasks.join_next().await {
                    Some(joined) => Ok(joined?),
                    None => Err(ProcessorError::permanent("no task")),
                }
            },
        )
        .unwrap();
    let answers = manager.submit_all((0..3).map(request)).await;
    assert!(answers[0].is_ok() && answers[2].is_ok());
    let error = answers[1].as_ref().unwrap_err();
    assert!(
        error
            .cause::<tokio::task::JoinError>()
            .unwrap()
            .is_cancelled()
    );
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_passes_is_tried_again_and_one_that_stays_is_not() {
    let manager = failing(ModelConfig::new(MODEL), |params, attempt| {
        if params == 0 && attempt < 3 {
            return Err(ProcessorError::transient("busy"));
        }
        Ok(u64::from(attempt))
    });
    let response = manager.submit_request(request(0)).await.unwrap();
    assert_eq!((response.result, response.attempts), (Some(3), 3));

    let manager = failing(ModelConfig::new(MODEL), |_, _| {
        Err("x".parse::<u64>().unwrap_err().into())
    });
    let error = manager.submit_request(request(0)).await.unwrap_err();
    assert!(matches!(
        error,
        QueueError::ProcessingError { attempts: 1, .. }
    ));
    assert!(
        error
            .source()
            .unwrap()
            .to_string()
            .contains("invalid digit")
    );
}

#[tokio::test(start_paused = true)]
async fn attempts_end_at_the_models_maximum() {
    let config = ModelConfig::new(MODEL).max_attempts(3).without_breaker();
    let manager = failing(config, |_, _| Err(ProcessorError::transient("busy")));
    let error = manager.submit_request(request(0)).await.unwrap_err();
    assert!(
        matches!(error, QueueError::ProcessingError { attempts: 3, .. }),
        "{error}"
    );
    let metrics = manager.metrics();
    assert_eq!((metrics.attempts, metrics.retried), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_the_rate_stops_the_whole_queue_as_long_as_was_said() {
    let wait = Duration::from_secs(7);
    let manager = failing(ModelConfig::new(MODEL), move |params, attempt| {
        if attempt == 1 {
            return Err(ProcessorError::rate_limited(Some(wait)));
        }
        Ok(params)
    });
    let start = Instant::now();
    let answers = manager.submit_all((0..3).map(request)).await;
    assert!(answers.iter().all(Result::is_ok));
    // The other two came after the refusal and were held back with it.
    assert!(start.elapsed() >= wait, "{:?}", start.elapsed());
    assert_eq!(manager.metrics().rate_limited, 1);
    assert_eq!(manager.metrics().attempts, 4);
}

#[tokio::test(start_paused = true)]
async fn endless_refusals_become_an_error_with_the_providers_time() {
    let wait = Duration::from_secs(7);
    let manager = failing(ModelConfig::new(MODEL), move |_, _| {
        Err(ProcessorError::rate_limited(Some(wait)))
    });
    let error = manager.submit_request(request(0)).await.unwrap_err();
    let QueueError::RateLimitExceeded { retry_after, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(retry_after, Some(wait));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_waited_for_is_fetched_later() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(1));
    let requests: Vec<_> = (0..3).map(|n| request(n).without_waiting()).collect();
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
    for request in requests {
        let response = manager.submit_request(request).await.unwrap();
        assert_eq!((response.status, response.result), (Status::Queued, None));
    }
    sleep(CALL / 2).await;
    let status = |id| manager.get_status(MODEL, id).unwrap().unwrap().status;
    assert_eq!(status(ids[0]), Status::Processing);
    assert_eq!(status(ids[1]), Status::Queued);
    let response = manager.wait(MODEL, ids[2]).await.unwrap();
    assert_eq!(response.result, Some(2));
    for (params, id) in ids.into_iter().enumerate() {
        let response = manager.get_status(MODEL, id).unwrap().unwrap();
        assert_eq!(response.status, Status::Completed);
        assert_eq!(response.into_result().unwrap(), params as u64);
    }
    assert!(manager.get_status(MODEL, Uuid::nil()).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn only_so_many_finished_requests_are_remembered() {
    let manager = manager(ModelConfig::new(MODEL).history(5));
    let requests: Vec<_> = (0..8).map(request).collect();
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
    for request in requests {
        manager.submit_request(request).await.unwrap();
    }
    let known = |id: &Uuid| manager.get_status(MODEL, *id).unwrap().is_some();
    assert_eq!(ids.iter().map(known).filter(|known| *known).count(), 5);
    let last = manager.get_status(MODEL, ids[7]).unwrap().unwrap();
    assert_eq!((last.status, last.result), (Status::Completed, None));
}

/// The old end of an id that ran again took the new result with it.
#[tokio::test(start_paused = true)]
async fn a_request_that_runs_again_under_its_id_is_remembered_as_long_as_any() {
    let manager = manager(ModelConfig::new(MODEL).history(2));
    let first = request(1).without_waiting();
    let id = first.id;
    for request in [first, request(2), request(3).id(id).without_waiting()] {
        let id = manager.submit_request(request).await.unwrap().request_id;
        let _ = manager.wait(MODEL, id).await;
    }
    let result = || manager.get_status(MODEL, id).unwrap().unwrap().result;
    assert_eq!(result(), Some(3));
    manager.submit_request(request(4)).await.unwrap();
    assert_eq!(result(), Some(3));
    manager.submit_request(request(5)).await.unwrap();
    assert!(manager.get_status(MODEL, id).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_same_key_in_flight_runs_once_and_everybody_gets_its_result() {
    let runs = Arc::new(AtomicUsize::new(0));
    let manager = Manager::new();
    let counted = Arc::clone(&runs);
    manager
        .register_queue(
            ModelConfig::new(MODEL),
            move |request: QueueRequest<u64>| {
                counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    sleep(CALL).await;
                    Ok::<_, ProcessorError>(request.params)
                }
            },
        )
        .unwrap();
    let keyed = |n: u64| request(n).dedup_key("hello");
    // The first of them gives up: the others must not suffer.
    let first = manager.submit_request(keyed(1));
    let gone = tokio::time::timeout(CALL / 4, first).await;
    assert!(gone.is_err());
    let answers = manager.submit_all((2..6).map(keyed)).await;
    for answer in answers {
        assert_eq!(answer.unwrap().result, Some(1));
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(manager.metrics().deduplicated, 4);
    // Once it is over, the key is free.
    let again = manager.submit_request(keyed(9)).await.unwrap();
    assert_eq!(again.result, Some(9));
}

/// One that was joined to another waited as long as that one ran.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_joined_to_another_keeps_its_own_time() {
    let manager = manager(ModelConfig::new(MODEL));
    let keyed = |n: u64| request(n).dedup_key("hello");
    let first = manager.submit_request(keyed(1));
    let hasty = manager.submit_request(keyed(2).timeout(CALL / 2));
    let patient = manager.submit_request(keyed(3).timeout(CALL * 2));
    let start = Instant::now();
    let hasty = async { (hasty.await, start.elapsed()) };
    let (first, (hasty, left_after), patient) = tokio::join!(first, hasty, patient);
    assert!(matches!(
        hasty,
        Err(QueueError::QueueTimeout { attempts: 1, .. })
    ));
    assert_eq!(left_after, CALL / 2);
    for answer in [first, patient] {
        assert_eq!(answer.unwrap().result, Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_queue_is_forgotten_and_the_others_go_on() {
    let manager = manager(ModelConfig::new(MODEL));
    register(&manager, ModelConfig::new("other"));
    let report = manager.remove_queue(MODEL, CALL).await.unwrap();
    assert!(report.is_clean());
    assert!(matches!(
        manager.submit_request(request(0)).await,
        Err(QueueError::ModelNotRegistered { .. })
    ));
    let other = manager.submit_request(QueueRequest::new("other", 1)).await;
    assert!(other.is_ok());
    assert_eq!(manager.models(), [Arc::from("other")]);
}

#[tokio::test(start_paused = true)]
async fn registering_is_refused_twice_and_all_or_nothing() {
    let manager = manager(ModelConfig::new(MODEL));
    let again = |model: &str| {
        let configs = [ModelConfig::new("new"), ModelConfig::new(model)];
        manager.register_all_queues(configs, |request: QueueRequest<u64>| async move {
            Ok::<_, ProcessorError>(request.params)
        })
    };
    let error = again(MODEL).unwrap_err();
    assert!(matches!(error, QueueError::AlreadyRegistered { .. }));
    assert_eq!(manager.models(), [Arc::from(MODEL)]);
    let error = again(" ").unwrap_err();
    assert!(matches!(error, QueueError::InvalidConfiguration { .. }));
    assert_eq!(again("newer").unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_id_in_flight_is_not_taken_twice() {
    let manager = manager(ModelConfig::new(MODEL));
    let first = request(0);
    let second = first.clone();
    let (first, second) = tokio::join!(
        manager.submit_request(first),
        manager.submit_request(second)
    );
    assert!(first.is_ok());
    assert!(matches!(second, Err(QueueError::DuplicateRequest { .. })));
}

#[test]
fn without_a_runtime_registering_says_what_is_missing() {
    let manager = Manager::new();
    let error = manager
        .register_queue(ModelConfig::new(MODEL), |request| async move {
            Ok::<_, ProcessorError>(request.params)
        })
        .unwrap_err();
    assert!(error.to_string().contains("tokio runtime"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_global_manager_is_one_for_each_pair_of_types() {
    let manager = QueueManager::<u8, u16>::global();
    manager
        .register_queue(ModelConfig::new("global"), |request| async move {
            Ok::<_, ProcessorError>(u16::from(request.params))
        })
        .unwrap();
    assert_eq!(QueueManager::<u8, u16>::global().models().len(), 1);
    assert!(QueueManager::<u8, u32>::global().models().is_empty());
}

/// Notes every call as a word.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn note(&self, word: &str, event: &HookEvent<'_>) {
        let user = event.metadata.get("user").map_or("", |user| user.as_str());
        self.0
            .lock()
            .unwrap()
            .push(format!("{word}{} {user}", event.attempt));
        if word == "queued" && user == "panics" {
            panic!("a hook that panics");
        }
    }
}

impl Hooks for Diary {
    fn queued(&self, event: &HookEvent<'_>) {
        self.note("queued", event);
    }

    fn started(&self, event: &HookEvent<'_>) {
        self.note("started", event);
    }

    fn retried(&self, event: &HookEvent<'_>, _error: &ProcessorError) {
        self.note("retried", event);
    }

    fn completed(&self, event: &HookEvent<'_>) {
        self.note("completed", event);
    }

    fn failed(&self, event: &HookEvent<'_>, _error: &QueueError) {
        self.note("failed", event);
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_hear_of_every_step_in_order_and_of_exactly_one_end() {
    let diary = Diary::default();
    let manager: Manager = QueueManager::builder().hooks(diary.clone()).build();
    let attempts = AtomicU32::new(0);
    manager
        .register_queue(
            ModelConfig::new(MODEL),
            move |request: QueueRequest<u64>| {
                let attempt = attempts.fetch_add(1, Ordering::SeqCst);
                std::future::ready(match (request.params, attempt) {
                    (0, 0) => Err(ProcessorError::transient("busy")),
                    (0, _) => Ok(1),
                    _ => Err(ProcessorError::permanent("no")),
                })
            },
        )
        .unwrap();
    let _ = manager
        .submit_request(request(0).metadata("user", "a"))
        .await;
    let _ = manager
        .submit_request(request(1).metadata("user", "b"))
        .await;
    let panics = request(0).metadata("user", "panics");
    assert!(manager.submit_request(panics).await.is_ok());
    let noted = diary.0.lock().unwrap().join("; ");
    let expected = "queued0 a; started1 a; retried1 a; started2 a; completed2 a; \
        queued0 b; started1 b; failed1 b; \
        queued0 panics; started1 panics; completed1 panics";
    assert_eq!(noted, expected);
}

#[tokio::test(start_paused = true)]
async fn metrics_say_how_long_requests_waited_and_ran() {
    let manager = manager(ModelConfig::new(MODEL).concurrent(1));
    for answer in manager.submit_all((0..3).map(request)).await {
        answer.unwrap();
    }
    let metrics = manager.metrics();
    assert_eq!(metrics.mean_processing_time(), Some(CALL));
    // 0, 1 and 2 calls before them.
    assert_eq!(metrics.mean_queued_time(), Some(CALL));
    assert_eq!(metrics.success_rate(), Some(1.0));
    let info = manager.get_all_queues_info();
    assert_eq!(info[MODEL].metrics, metrics);
}
