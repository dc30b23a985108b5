//! A day's count that outlives its process.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt as _;
use llmq::{ModelConfig, ProcessorError, QueueError, QueueManager, QueueRequest, QuotaConfig};
use llmq_testkit::zone_far_from_midnight;
use tokio::time::timeout;

type Manager = QueueManager<u64, u64>;

/// Of 400 requests a day a queue uses 320: at 80 % what is not urgent pauses.
const OF_A_DAY: u64 = 320;
/// A hundredth of the day's limit: what a crash may cost.
const PORTION: u64 = 4;

fn model(name: &str, path: &Path) -> ModelConfig {
    let quota = QuotaConfig {
        daily_request_limit: Some(400),
        time_zone: zone_far_from_midnight().to_owned(),
        ..QuotaConfig::default()
    };
    ModelConfig::new(name)
        .concurrent(1)
        .daily_quota(quota)
        .quota_file(path)
}

fn register(manager: &Manager, config: ModelConfig) -> Result<(), QueueError> {
    let registered = manager.register_queue(config, |request: QueueRequest<u64>| async move {
        Ok::<_, ProcessorError>(request.params)
    });
    registered.map(drop)
}

fn manager(path: &Path) -> Manager {
    let manager = Manager::new();
    register(&manager, model("m", path)).unwrap();
    manager
}

/// How many of `wanted` requests the day has room for. (Its end is hours away.)
async fn served(manager: &Manager, wanted: u64) -> u64 {
    for n in 0..wanted {
        let submitted = manager.submit_request(QueueRequest::new("m", n));
        match timeout(Duration::from_secs(60), submitted).await {
            Ok(answer) => drop(answer.unwrap()),
            Err(_) => return n,
        }
    }
    wanted
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_no_way_past_the_day() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.json");
    let first = manager(&path);
    assert_eq!(served(&first, 100).await, 100);
    assert!(first.shutdown_all(Duration::from_secs(9)).await.is_clean());
    let again = manager(&path);
    assert_eq!(served(&again, OF_A_DAY).await, OF_A_DAY - 100);
}

#[tokio::test(start_paused = true)]
async fn a_crash_costs_at_most_a_portion_of_the_day_and_is_no_way_past_it() {
    let directory = tempfile::tempdir().unwrap();
    let file_of = |life: u64| directory.path().join(format!("{life}.json"));
    let mut used = 0;
    for life in 1..10 {
        let manager = manager(&file_of(life));
        used += served(&manager, 20).await;
        assert_eq!(used, life * 20);
        // What is on disk in the middle of its work is all that the next one has.
        std::fs::copy(file_of(life), file_of(life + 1)).unwrap();
    }
    let last = manager(&file_of(10));
    used += served(&last, OF_A_DAY).await;
    assert!(used <= OF_A_DAY, "{used}");
    assert!(used >= OF_A_DAY - 9 * PORTION, "{used}");
}

/// The end of the old registration was the end of the new one's file: nothing was written any
/// more, and the next process had the whole day again.
#[tokio::test(start_paused = true)]
async fn a_model_that_is_registered_again_while_it_leaves_goes_on_in_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let file_of = |life: u64| directory.path().join(format!("{life}.json"));
    let manager = Manager::new();
    let call = Duration::from_secs(1);
    manager
        .register_queue(
            model("m", &file_of(1)),
            move |request: QueueRequest<u64>| async move {
                tokio::time::sleep(call).await;
                Ok::<_, ProcessorError>(request.params)
            },
        )
        .unwrap();
    let mut running = Box::pin(manager.submit_request(QueueRequest::new("m", 0)));
    assert!(running.as_mut().now_or_never().is_none());
    let mut leaving = Box::pin(manager.remove_queue("m", call * 30));
    assert!(leaving.as_mut().now_or_never().is_none(), "a call runs");
    register(&manager, model("m", &file_of(1))).unwrap();
    let (answer, report) = tokio::join!(running, leaving);
    assert!(answer.is_ok() && report.unwrap().is_clean());
    let used = 1 + served(&manager, 3 * PORTION).await;
    assert_eq!(used, 1 + 3 * PORTION);
    std::fs::copy(file_of(1), file_of(2)).unwrap();
    let again = self::manager(&file_of(2));
    let left = served(&again, OF_A_DAY).await;
    assert!(left <= OF_A_DAY - used, "{left} after {used}");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_or_is_anothers_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.json");
    let manager = manager(&path);
    let refused = register(&manager, model("other", &path)).unwrap_err();
    assert!(refused.to_string().contains("another model"), "{refused}");
    let nowhere = directory.path().join("missing").join("m.json");
    let refused = register(&manager, model("other", &nowhere)).unwrap_err();
    assert!(refused.to_string().contains("m.json"), "{refused}");
    let unwatched = ModelConfig::new("other").quota_file(&path);
    let refused = register(&manager, unwatched).unwrap_err();
    assert!(refused.to_string().contains("daily_quota"), "{refused}");
    register(&manager, ModelConfig::new("other")).unwrap();
}

/// A directory, the name under which it is put away, and a link by which files in it are named.
#[cfg(unix)]
fn movable(within: &Path) -> [PathBuf; 3] {
    let [real, gone, link] = ["real", "gone", "link"].map(|name| within.join(name));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    [real, gone, link]
}

/// Until the count can be written, nothing more is started; then it goes on.
#[cfg(unix)]
#[tokio::test]
async fn what_cannot_be_written_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let [real, gone, link] = movable(directory.path());
    let manager = manager(&link.join("m.json"));
    std::fs::rename(&real, &gone).unwrap();
    let more = served(&manager, 2 * PORTION + 2);
    tokio::pin!(more);
    let early = timeout(Duration::from_millis(1500), more.as_mut()).await;
    assert!(early.is_err(), "it went on: {early:?}");
    std::fs::rename(&gone, &real).unwrap();
    assert_eq!(more.await, 2 * PORTION + 2);
}

/// A model whose file could not be written stayed shut when it was registered without one.
#[cfg(unix)]
#[tokio::test]
async fn a_model_that_is_registered_without_its_file_waits_for_it_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let [real, gone, link] = movable(directory.path());
    let manager = manager(&link.join("m.json"));
    std::fs::rename(&real, &gone).unwrap();
    let more = served(&manager, 2 * PORTION + 2);
    let stuck = timeout(Duration::from_millis(500), more).await;
    assert!(stuck.is_err(), "it went on: {stuck:?}");
    manager.remove_queue("m", Duration::ZERO).await.unwrap();
    let mut without = model("m", &link);
    without.quota_file = None;
    register(&manager, without).unwrap();
    let request = manager.submit_request(QueueRequest::new("m", 0));
    let answer = timeout(Duration::from_secs(10), request).await;
    assert!(answer.unwrap().is_ok());
}
