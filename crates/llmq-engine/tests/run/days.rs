//! Limits and quotas of a day, and what the wall clock does to them.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::Clock;
use llmq_engine::SystemClock;
use llmq_engine::bulk::{Control, Ended, RunOptions, run_by};
use llmq_provider::mock::MockConfig;
use llmq_testkit::FakeClock;
use tokio::task::JoinSet;

use crate::scene::{Scene, ended, quick, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daily_limit_pauses_at_its_threshold_and_survives_a_restart() {
    let scene = Scene::new(50, quick(&[])).await;
    let mut options = scene.options(&[]);
    options.quota.daily_request_limit = Some(20);
    options.quota.time_zone = llmq_testkit::zone_far_from_midnight().to_owned();
    options.no_wait = true;
    for _ in 0..2 {
        let report = scene.run(options.clone()).await.expect("a run");
        assert!(
            matches!(report.ended, Ended::StoppedByAccount { .. }),
            "{:?}",
            report.ended
        );
        assert_eq!(report.summary.completed, 16, "80 % of 20");
    }
    assert_eq!(scene.mock.report().answers.repeated, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_patience_a_spent_balance_stops_the_run_and_the_next_one_goes_on() {
    let scene = Scene::new(
        40,
        MockConfig {
            quota: Some(25),
            ..quick(&[])
        },
    )
    .await;
    let mut options = scene.options(&[]);
    options.no_wait = true;
    let report = scene.run(options.clone()).await.expect("a run");
    assert!(
        matches!(report.ended, Ended::StoppedByAccount { .. }),
        "{:?}",
        report.ended
    );
    assert_eq!((report.summary.completed, report.summary.failed), (25, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_patience_a_spent_day_stops_the_run_and_the_day_counts_in_the_next() {
    let scene = Scene::new(20, quick(&[])).await;
    let mut options = scene.options(&["requests=5/1d"]);
    options.no_wait = true;
    for _ in 0..2 {
        let report = scene.run(options.clone()).await.expect("a run");
        let Ended::StoppedByAccount { reason } = &report.ended else {
            panic!("{:?}", report.ended)
        };
        assert!(reason.contains("rpd mock/mock-1 is used up"), "{reason}");
        assert_eq!(report.summary.completed, 5);
    }
}

/// The wall is set back an hour and forth a day: no window moves, a day's included, and nothing
/// waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_that_is_set_in_the_middle_breaks_no_limit_and_holds_nothing_up() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let limits = ["requests=60/1s", "requests=290/1d"];
    let scene = Scene::new(300, quick(&limits)).await;
    let wall = Arc::new(FakeClock::with_tokio());
    let clock = SystemClock::with_wall_of(Arc::clone(&wall) as Arc<dyn Clock>);
    let options = RunOptions {
        no_wait: true,
        ..scene.options(&limits)
    };
    let control = Control::new();
    let mut running = JoinSet::new();
    running.spawn(run_by(options, control.clone(), clock));
    for (done, sets_back) in [(70, true), (130, false), (190, true)] {
        until(&control, |progress| progress.done >= done).await;
        let now = wall.now().wall;
        wall.set_wall(match sets_back {
            true => now.before(HOUR),
            false => now + HOUR * 24,
        });
    }
    let report = ended(&mut running).await;
    // A day's limit of the provider's slides: another date does not open it.
    let Ended::StoppedByAccount { reason } = &report.ended else {
        panic!("{:?}", report.ended)
    };
    assert!(reason.contains("rpd"), "{reason}");
    assert_eq!(
        (report.summary.completed, report.summary.rate_limited),
        (290, 0)
    );
    assert_eq!(scene.mock.report().refused, 0);
}
