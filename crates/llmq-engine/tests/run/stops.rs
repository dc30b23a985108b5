//! Runs that are stopped, cut off or dropped, and go on.

use std::time::Duration;

use llmq_engine::bulk::{Control, Ended, RunError, run};

use crate::scene::{AT_ONCE, Scene, begin, ended, hanging, quick, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_cut_off_goes_on_and_sends_nothing_twice() {
    let scene = Scene::new(400, quick(&["requests=100/1s"])).await;
    let options = scene.options(&["requests=100/1s"]);
    let control = Control::new();
    let running = tokio::task::spawn_blocking({
        let (options, control) = (options.clone(), control.clone());
        move || tokio::runtime::Handle::current().block_on(run(options, control))
    });
    // Stopped somewhere in the middle: after the first answers, before the last.
    while control
        .progress()
        .is_none_or(|progress| progress.done < 120)
    {
        tokio::task::yield_now().await;
    }
    control.stop();
    let first = running.await.expect("no panic").expect("a run");
    assert_eq!(first.ended, Ended::Interrupted);
    assert!(first.summary.completed < 400);
    let second = scene.run(options.clone()).await.expect("a run");
    assert_eq!((second.ended, second.summary.completed), (Ended::Done, 400));
    assert_eq!(second.summary.resumed, first.summary.completed);
    assert!(scene.proof(&options).is_whole());
    assert_eq!(scene.mock.report().answers.repeated, 0);
    assert_eq!(first.summary.rate_limited + second.summary.rate_limited, 0);
}

/// Rows that had not been read yet were left out of the sum.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_stop_the_summary_counts_the_whole_input() {
    let scene = Scene::new(6_000, quick(&[])).await;
    let control = Control::new();
    let mut running = begin(scene.options(&["requests=150/60s"]), &control);
    until(&control, |progress| progress.done >= 120).await;
    control.stop();
    let summary = ended(&mut running).await.summary;
    assert_eq!(summary.rows, 6_000);
    assert_eq!(summary.to_do, Some(6_000 - summary.completed));
}

/// The second Ctrl-C waited for the calls in flight, up to their whole timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_gives_up_calls_in_flight() {
    let scene = Scene::new(30, hanging()).await;
    let control = Control::new();
    let mut running = begin(scene.options(&[]), &control);
    until(&control, |progress| progress.in_flight > 0).await;
    control.abort();
    assert_eq!(ended(&mut running).await.ended, Ended::Interrupted);
}

/// The lock was released while rows and writer went on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_dropped_lets_everything_go() {
    let scene = Scene::new(30, hanging()).await;
    let control = Control::new();
    let mut running = begin(scene.options(&[]), &control);
    until(&control, |progress| progress.in_flight > 0).await;
    running.shutdown().await;
    let again = async {
        loop {
            let control = Control::new();
            let mut running = begin(scene.options(&[]), &control);
            let begun = async {
                until(&control, |progress| progress.in_flight > 0).await;
                control.abort();
            };
            let (report, ()) = tokio::join!(running.join_next(), async {
                let _ = tokio::time::timeout(Duration::from_secs(2), begun).await;
            });
            match report.expect("one run").expect("no panic") {
                Ok(report) => return report,
                Err(RunError::Lock(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let report = tokio::time::timeout(AT_ONCE * 2, again).await;
    assert_eq!(report.expect("the lock is free").ended, Ended::Interrupted);
}

/// A run waited for the next row of a pipe that had none, after a stop and after a refused key.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_does_not_wait_for_a_quiet_pipe() {
    use std::io::Write as _;

    // So many rows are looked at before the first is sent.
    let scene = Scene::new(100, quick(&[])).await;
    let path = scene.path("in.csv");
    let rows = std::fs::read(&path).expect("the rows");
    std::fs::remove_file(&path).expect("the file");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo").success());
    let writer = tokio::task::spawn_blocking(move || {
        let mut pipe = std::fs::File::options().write(true).open(path)?;
        pipe.write_all(&rows)?;
        Ok::<_, std::io::Error>(pipe)
    });
    let control = Control::new();
    let mut running = begin(scene.options(&[]), &control);
    until(&control, |progress| progress.done == 100).await;
    control.stop();
    let report = ended(&mut running).await;
    assert_eq!(report.ended, Ended::Interrupted);
    let (rows, completed) = (report.summary.rows, report.summary.completed);
    assert_eq!((rows, completed), (100, 100));
    drop(writer.await.expect("no panic").expect("a pipe"));
}
