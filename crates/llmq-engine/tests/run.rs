//! Whole runs of a file against the stand-in provider, over real connections.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use llmq_core::{Clock, Host, LimitSpec};
use llmq_dispatch::Rules;
use llmq_engine::SystemClock;
use llmq_engine::bulk::{
    CallMaker, Control, Ended, InputKind, InputSource, OutputPaths, Progress, ReadOptions,
    RouteOptions, RunError, RunOptions, RunReport, Template, run, run_by, verify,
};
use llmq_limit::{AdaptiveConfig, LatencyPolicy, QuotaConfig};
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_provider::{Dialect, Operation, Provider, ProviderConfig, Secret, TokenCounter};
use llmq_testkit::{FakeClock, ScriptedServer};
use tokio::task::JoinSet;

/// A folder with an input, and a mock that serves it.
struct Scene {
    folder: tempfile::TempDir,
    mock: MockServer,
    rows: u64,
}

impl Scene {
    async fn new(rows: u64, mock: MockConfig) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut text = String::from("name,country\n");
        for row in 1..=rows {
            writeln!(text, "Place {row},C{}", row % 7).expect("text");
        }
        std::fs::write(folder.path().join("in.csv"), text).expect("an input");
        let mock = MockServer::start(mock).await.expect("a mock");
        Self { folder, mock, rows }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, limits: &[&str]) -> RunOptions {
        let source = InputSource::from_argument(self.path("in.csv"));
        let limits: Vec<LimitSpec> = limits
            .iter()
            .map(|text| text.parse().expect("a limit"))
            .collect();
        RunOptions {
            kind: InputKind::of(&source).expect("csv"),
            source,
            read: ReadOptions {
                template: Some(
                    Template::parse("Introduce {{name}}, {{country}}.").expect("a template"),
                ),
                ..ReadOptions::default()
            },
            paths: OutputPaths {
                output: self.path("out.jsonl"),
                errors: None,
            },
            calls: CallMaker {
                operation: Operation::ChatCompletions,
                model: Some("mock-1".into()),
                system: None,
                params: serde_json::Map::new(),
                counter: TokenCounter::Chars,
            },
            routes: vec![self.route("good", limits)],
            quota: QuotaConfig::default(),
            rules: Rules::default(),
            max_attempts: 5,
            retry_ambiguous: true,
            no_wait: false,
            strict: false,
            retry_failed: false,
            restart: false,
            resume_anyway: false,
            price: None,
            ask_before_betting: true,
            in_flight_max: 10_000,
        }
    }

    fn route(&self, key: &str, limits: Vec<LimitSpec>) -> RouteOptions {
        let mut config =
            ProviderConfig::new(Dialect::OpenAi, format!("http://{}/v1", self.mock.addr()))
                .with_key(Secret::new(key));
        config.host = Host::Mock;
        RouteOptions {
            name: "mock/mock-1".into(),
            provider: Provider::new(config, Arc::new(SystemClock::new())).expect("a provider"),
            model: None,
            weight: 1.0,
            limits,
            shared: Vec::new(),
            adaptive: Some(AdaptiveConfig::Latency(LatencyPolicy::default())),
            learn: true,
            headers: http::HeaderMap::new(),
            credential: None,
        }
    }

    async fn run(&self, options: RunOptions) -> Result<RunReport, RunError> {
        run(options, Control::new()).await
    }

    fn proof(&self, options: &RunOptions) -> llmq_engine::bulk::VerifyReport {
        verify(&options.source, options.kind, None, &options.paths).expect("readable files")
    }
}

fn quick(limits: &[&str]) -> MockConfig {
    MockConfig {
        limits: limits
            .iter()
            .map(|text| text.parse().expect("a limit"))
            .collect(),
        listen: ([127, 0, 0, 1], 0).into(),
        latency: Duration::from_millis(5),
        ..MockConfig::default()
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).expect("an output");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect()
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_key_stops_the_run_and_fails_no_row() {
    let mock = MockConfig {
        api_keys: vec![Secret::new("good")],
        ..quick(&[])
    };
    let scene = Scene::new(50, mock).await;
    let mut options = scene.options(&[]);
    options.routes = vec![scene.route("wrong", Vec::new())];
    let report = scene.run(options).await.expect("a run");
    assert!(
        matches!(report.ended, Ended::StoppedByAccount { .. }),
        "{:?}",
        report.ended
    );
    assert_eq!((report.summary.completed, report.summary.failed), (0, 0));
    assert!(lines(&scene.path("out.jsonl")).is_empty());
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
async fn a_row_above_the_whole_limit_fails_with_its_reason_and_the_run_goes_on() {
    let scene = Scene::new(3, quick(&[])).await;
    let long = "x".repeat(4_000);
    std::fs::write(
        scene.path("in.csv"),
        format!("name,country\nA,B\n{long},C\nD,E\n"),
    )
    .expect("an input");
    let options = scene.options(&["tokens=500/1s"]);
    let report = scene.run(options).await.expect("a run");
    assert_eq!(
        (
            report.ended,
            report.summary.completed,
            report.summary.failed
        ),
        (Ended::SomeFailed, 2, 1)
    );
    let failed: Vec<_> = lines(&scene.path("out.jsonl"))
        .into_iter()
        .filter(|line| !line["error"].is_null())
        .collect();
    assert_eq!(failed[0]["error"]["code"], "too-large");
    assert_eq!(failed[0]["llmq"]["line"], 2);
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

/// Waits until a run that is under way shows `is` so.
async fn until(control: &Control, is: impl Fn(&Progress) -> bool) {
    while !control.progress().is_some_and(|progress| is(&progress)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A run under way; dropped, it is too.
fn begin(options: RunOptions, control: &Control) -> JoinSet<Result<RunReport, RunError>> {
    let mut running = JoinSet::new();
    running.spawn(run(options, control.clone()));
    running
}

/// How a run ended that must end at once.
async fn ended(running: &mut JoinSet<Result<RunReport, RunError>>) -> RunReport {
    let report = tokio::time::timeout(AT_ONCE, running.join_next()).await;
    let report = report.expect("at once").expect("one run");
    report.expect("no panic").expect("a run")
}

/// So long may leaving at once take on a busy machine; calls that hang take a minute.
const AT_ONCE: Duration = Duration::from_secs(20);

fn hanging() -> MockConfig {
    MockConfig {
        latency: Duration::from_secs(60),
        ..quick(&[])
    }
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

/// One row's unknown model ended the whole run, at every restart again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_one_row_asks_for_in_vain_fails_that_row_alone() {
    let server = ScriptedServer::start().await;
    let url = format!("{}/v1", server.url());
    let mut serving = JoinSet::new();
    serving.spawn(server.serve_each(|mut guest| async move {
        loop {
            let (_, body) = guest.read_call().await;
            if body.windows(5).any(|bytes| bytes == b"\"bad\"") {
                let body = r#"{"error":{"message":"m","code":"model_not_found"}}"#;
                let length = body.len();
                let head = "HTTP/1.1 404 Not Found\r\ncontent-length";
                guest.say(&format!("{head}: {length}\r\n\r\n{body}")).await;
            } else {
                guest
                    .answer(r#"{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#)
                    .await;
            }
        }
    }));
    let scene = Scene::new(1, quick(&[])).await;
    let mut rows = String::new();
    for (row, model) in ["bad", "good", "bad", "good", "good"].iter().enumerate() {
        let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
        writeln!(rows, "{{\"custom_id\":\"{row}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{body}}}").expect("text");
    }
    std::fs::write(scene.path("in.jsonl"), rows).expect("an input");
    let mut options = scene.options(&["concurrency=1"]);
    options.source = InputSource::from_argument(scene.path("in.jsonl"));
    options.kind = InputKind::of(&options.source).expect("a batch");
    options.read = ReadOptions::default();
    options.calls.model = None;
    let config = ProviderConfig::new(Dialect::OpenAi, url);
    let provider = Provider::new(config, Arc::new(SystemClock::new()));
    options.routes[0].provider = provider.expect("a provider");
    let report = scene.run(options).await.expect("a run");
    assert_eq!(report.ended, Ended::SomeFailed);
    assert_eq!((report.summary.completed, report.summary.failed), (3, 2));
    drop(serving);
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

/// A firewall before the provider that answers one row with a page of its own: that ended the whole
/// run, and every run that followed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_firewall_refuses_fails_alone_where_others_are_answered() {
    let walled = Walled::start("Place 7,").await;
    let scene = Scene::new(20, quick(&[])).await;
    let options = walled.options(&scene);
    let report = scene.run(options.clone()).await.expect("a run");
    let counts = (report.summary.completed, report.summary.failed);
    assert_eq!((report.ended, counts), (Ended::SomeFailed, (19, 1)));
    let failed: Vec<_> = lines(&scene.path("out.jsonl"))
        .into_iter()
        .filter(|line| !line["error"].is_null())
        .collect();
    assert_eq!(failed[0]["llmq"]["line"], 7);
    assert_eq!(failed[0]["error"]["code"], "no-access");
    assert_eq!(walled.calls(), 20);
    let again = scene.run(options.clone()).await.expect("a run");
    assert_eq!((again.ended, walled.calls()), (Ended::SomeFailed, 20));
    // Another run may find it as the first of its calls: that others are answered is known.
    let retried = RunOptions {
        retry_failed: true,
        ..options
    };
    let retried = scene.run(retried).await.expect("a run");
    assert_eq!((retried.ended, walled.calls()), (Ended::SomeFailed, 21));
}

/// The same page for every call says that this is no provider: nothing is known to be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_answers_with_pages_stops_the_run_and_fails_no_row() {
    let walled = Walled::start("Place").await;
    let scene = Scene::new(20, quick(&[])).await;
    let report = scene.run(walled.options(&scene)).await.expect("a run");
    assert!(
        matches!(report.ended, Ended::StoppedByAccount { .. }),
        "{:?}",
        report.ended
    );
    assert_eq!((report.summary.completed, report.summary.failed), (0, 0));
}

/// A provider behind a firewall that takes no prompt with a certain text in it.
struct Walled {
    url: String,
    calls: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Walled {
    async fn start(text: &'static str) -> Self {
        let server = ScriptedServer::start().await;
        let url = format!("{}/v1", server.url());
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let mut serving = JoinSet::new();
        serving.spawn(server.serve_each(move |mut guest| {
            let calls = Arc::clone(&counted);
            async move {
                loop {
                    let (_, body) = guest.read_call().await;
                    calls.fetch_add(1, Ordering::Relaxed);
                    if body.windows(text.len()).any(|part| part == text.as_bytes()) {
                        let page = "<html>blocked</html>";
                        let head = "HTTP/1.1 403 Forbidden\r\ncontent-type: text/html";
                        let length = page.len();
                        guest
                            .say(&format!("{head}\r\ncontent-length: {length}\r\n\r\n{page}"))
                            .await;
                    } else {
                        guest
                            .answer(r#"{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#)
                            .await;
                    }
                }
            }
        }));
        Self {
            url,
            calls,
            _serving: serving,
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// One call after the other, of the scene's rows.
    fn options(&self, scene: &Scene) -> RunOptions {
        let mut options = scene.options(&["concurrency=1"]);
        let config = ProviderConfig::new(Dialect::OpenAi, self.url.clone());
        let provider = Provider::new(config, Arc::new(SystemClock::new()));
        options.routes[0].provider = provider.expect("a provider");
        options
    }
}
