//! Runs that come to their end.

use std::fmt::Write as _;
use std::time::Duration;

use llmq_engine::bulk::{Ended, RunError, Template};
use llmq_provider::mock::MockConfig;

use crate::scene::{Scene, lines, quick};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_gets_its_answer_once_inside_the_limit() {
    let scene = Scene::new(300, quick(&["requests=100/1s"])).await;
    let options = scene.options(&["requests=100/1s"]);
    let report = scene.run(options.clone()).await.expect("a run");
    assert_eq!(report.ended, Ended::Done);
    assert_eq!(
        (report.summary.completed, report.summary.rate_limited),
        (300, 0)
    );
    assert!(
        report.summary.efficiency.is_some_and(|e| e > 0.9),
        "{:?}",
        report.summary
    );
    assert!(scene.proof(&options).is_whole());
    assert_eq!(scene.mock.report().answers.repeated, 0);
    assert_eq!(lines(&scene.path("out.jsonl")).len() as u64, scene.rows);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_the_provider_are_tried_again() {
    let mock = MockConfig {
        fail: 0.1,
        drop: 0.05,
        ..quick(&[])
    };
    let scene = Scene::new(300, mock).await;
    let mut options = scene.options(&[]);
    options.max_attempts = 10;
    options.rules.backoffs.server.base = Duration::from_millis(10);
    options.rules.backoffs.server.max = Duration::from_millis(50);
    let report = scene.run(options.clone()).await.expect("a run");
    assert_eq!(report.ended, Ended::Done, "{:?}", report.summary);
    assert!(report.summary.attempts > 300);
    assert!(scene.proof(&options).is_whole());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_template_is_noticed_before_anything_is_sent() {
    let scene = Scene::new(5, quick(&[])).await;
    let options = scene.options(&[]);
    scene.run(options.clone()).await.expect("a run");
    let mut changed = options.clone();
    changed.read.template = Some(Template::parse("Describe {{name}}.").expect("a template"));
    let error = scene
        .run(changed.clone())
        .await
        .expect_err("another template");
    assert!(matches!(&error, RunError::Changed { .. }), "{error}");
    assert!(error.to_string().contains("template"), "{error}");
    changed.restart = true;
    let report = scene.run(changed).await.expect("a run");
    assert_eq!((report.ended, report.summary.resumed), (Ended::Done, 0));
    assert!(
        scene.path("out.jsonl.1").exists(),
        "the old results are kept"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_and_errors_in_one_file_are_refused_by_name() {
    let scene = Scene::new(2, quick(&[])).await;
    let mut options = scene.options(&[]);
    options.paths.errors = Some(scene.folder.path().join(".").join("out.jsonl"));
    let error = scene.run(options).await.expect_err("one file for both");
    assert!(error.to_string().contains("out.jsonl"), "{error}");
    assert!(!error.to_string().contains("being written by"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_of_the_last_rows_is_not_left_for_the_end() {
    let scene = Scene::new(400, quick(&[])).await;
    let mut text = std::fs::read_to_string(scene.path("in.csv")).expect("the input");
    writeln!(text, "{},C", "long ".repeat(500)).expect("text");
    std::fs::write(scene.path("in.csv"), text).expect("an input");
    let options = scene.options(&["concurrency=4"]);
    let report = scene.run(options).await.expect("a run");
    assert_eq!(report.summary.completed, 401);
    let order: Vec<u64> = lines(&scene.path("out.jsonl"))
        .iter()
        .map(|line| line["llmq"]["line"].as_u64().expect("a number"))
        .collect();
    let place = order
        .iter()
        .position(|line| *line == 401)
        .expect("the long row");
    assert!(place < 300, "it came {place}th of 401");
}
