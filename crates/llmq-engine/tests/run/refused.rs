//! Rows and runs that a provider, or what stands before it, refuses.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use llmq_core::Backoff;
use llmq_engine::SystemClock;
use llmq_engine::bulk::{Ended, InputKind, InputSource, ReadOptions, RouteOptions, RunOptions};
use llmq_provider::mock::MockConfig;
use llmq_provider::{Dialect, Provider, ProviderConfig, Secret};
use llmq_testkit::ScriptedServer;
use tokio::task::JoinSet;

use crate::scene::{Scene, lines, quick};

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

/// One row's unknown model ended the whole run, at every restart again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_one_row_asks_for_in_vain_fails_that_row_alone() {
    let unknown = r#"{"error":{"message":"m","code":"model_not_found"}}"#;
    let choosy = Choosy::start("\"bad\"", ("404 Not Found", "application/json", unknown)).await;
    let scene = Scene::new(1, quick(&[])).await;
    let mut rows = String::new();
    for (row, model) in ["bad", "good", "bad", "good", "good"].iter().enumerate() {
        let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
        writeln!(rows, "{{\"custom_id\":\"{row}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{body}}}").expect("text");
    }
    std::fs::write(scene.path("in.jsonl"), rows).expect("an input");
    let mut options = choosy.options(&scene);
    options.source = InputSource::from_argument(scene.path("in.jsonl"));
    options.kind = InputKind::of(&options.source).expect("a batch");
    options.read = ReadOptions::default();
    options.calls.model = None;
    let report = scene.run(options).await.expect("a run");
    assert_eq!(report.ended, Ended::SomeFailed);
    assert_eq!((report.summary.completed, report.summary.failed), (3, 2));
}

/// A firewall before the provider that answers one row with a page of its own: that ended the whole
/// run, and every run that followed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_firewall_refuses_fails_alone_where_others_are_answered() {
    let choosy = Choosy::start("Place 7,", PAGE).await;
    let scene = Scene::new(20, quick(&[])).await;
    let options = choosy.options(&scene);
    let report = scene.run(options.clone()).await.expect("a run");
    let counts = (report.summary.completed, report.summary.failed);
    assert_eq!((report.ended, counts), (Ended::SomeFailed, (19, 1)));
    let failed: Vec<_> = lines(&scene.path("out.jsonl"))
        .into_iter()
        .filter(|line| !line["error"].is_null())
        .collect();
    assert_eq!(failed[0]["llmq"]["line"], 7);
    assert_eq!(failed[0]["error"]["code"], "no-access");
    assert_eq!(choosy.calls(), 20);
    let again = scene.run(options.clone()).await.expect("a run");
    assert_eq!((again.ended, choosy.calls()), (Ended::SomeFailed, 20));
    // Another run may find it as the first of its calls: that others are answered is known.
    let retried = RunOptions {
        retry_failed: true,
        ..options
    };
    let retried = scene.run(retried).await.expect("a run");
    assert_eq!((retried.ended, choosy.calls()), (Ended::SomeFailed, 21));
}

/// The same page for every call says that this is no provider: nothing is known to be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_answers_with_pages_stops_the_run_and_fails_no_row() {
    let choosy = Choosy::start("Place", PAGE).await;
    let scene = Scene::new(20, quick(&[])).await;
    let report = scene.run(choosy.options(&scene)).await.expect("a run");
    assert!(
        matches!(report.ended, Ended::StoppedByAccount { .. }),
        "{:?}",
        report.ended
    );
    assert_eq!((report.summary.completed, report.summary.failed), (0, 0));
}

/// A row that had met twenty refusals was dropped, and the run ended as if every row were done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_without_money_waits_however_often_it_is_refused() {
    let no_money = r#"{"error":{"message":"m","code":"insufficient_quota"}}"#;
    let refusal = ("429 Too Many Requests", "application/json", no_money);
    let broke = Choosy::by(move |_, call| (1..=100).contains(&call).then_some(refusal)).await;
    let scene = Scene::new(3, quick(&[])).await;
    let mut options = broke.options(&scene);
    let backoff = Duration::from_millis(1);
    options.rules.backoffs.quota = Backoff {
        base: backoff,
        max: backoff,
    };
    let report = scene.run(options).await.expect("a run");
    assert_eq!((report.ended, report.summary.completed), (Ended::Done, 3));
    assert_eq!(broke.calls(), 103);
}

/// It was dropped in the same way, where one account had failed it once and the other one's key was
/// revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_revoked_key_refuses_goes_back_to_the_other_account_or_is_told() {
    let revoked = r#"{"error":{"message":"m","code":"invalid_api_key"}}"#;
    let revoked = ("401 Unauthorized", "application/json", revoked);
    let oops = ("500 Internal Server Error", "text/plain", "oops");
    for max_attempts in [5, 1] {
        let refusing = Choosy::by(move |_, _| Some(revoked)).await;
        let has_failed = AtomicBool::new(false);
        let failing = Choosy::by(move |body, _| {
            let fails = body.contains("Place 3,") && !has_failed.swap(true, Ordering::Relaxed);
            fails.then_some(oops)
        })
        .await;
        let scene = Scene::new(5, quick(&[])).await;
        let route = |weight, at: &Choosy| RouteOptions {
            weight,
            provider: at.provider(),
            ..scene.route("good", Vec::new())
        };
        let options = RunOptions {
            routes: vec![route(1.0, &refusing), route(1e9, &failing)],
            max_attempts,
            ..scene.options(&[])
        };
        let report = scene.run(options.clone()).await.expect("a run");
        assert_eq!(refusing.calls(), 1, "the row that had failed");
        if max_attempts > 1 {
            assert_eq!((report.ended, report.summary.completed), (Ended::Done, 5));
            continue;
        }
        let reason = report.ended.reason().expect("the account");
        assert!(reason.starts_with("1 row was refused (mock"), "{reason}");
        let counts = (report.summary.completed, report.summary.failed);
        assert_eq!(counts, (4, 0));
        let again = scene.run(options).await.expect("a run");
        assert_eq!((again.ended, again.summary.completed), (Ended::Done, 5));
    }
}

/// A firewall's word.
const PAGE: Refusal = ("403 Forbidden", "text/html", "<html>blocked</html>");

/// Status, kind and body.
type Refusal = (&'static str, &'static str, &'static str);

/// A provider that refuses some calls.
struct Choosy {
    url: String,
    calls: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Choosy {
    /// Every call with a certain text in it is refused.
    async fn start(text: &'static str, refusal: Refusal) -> Self {
        Self::by(move |body, _| body.contains(text).then_some(refusal)).await
    }

    /// What is refused is chosen by its body and by how many calls came before it.
    async fn by(refuses: impl Fn(&str, usize) -> Option<Refusal> + Send + Sync + 'static) -> Self {
        const ANSWER: &str = r#"{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
        let server = ScriptedServer::start().await;
        let url = format!("{}/v1", server.url());
        let calls = Arc::new(AtomicUsize::new(0));
        let (counted, refuses) = (Arc::clone(&calls), Arc::new(refuses));
        let mut serving = JoinSet::new();
        serving.spawn(server.serve_each(move |mut guest| {
            let (calls, refuses) = (Arc::clone(&counted), Arc::clone(&refuses));
            async move {
                loop {
                    let (_, body) = guest.read_call().await;
                    let call = calls.fetch_add(1, Ordering::Relaxed);
                    let Some((status, kind, said)) = refuses(&String::from_utf8_lossy(&body), call)
                    else {
                        guest.answer(ANSWER).await;
                        continue;
                    };
                    let length = said.len();
                    guest
                        .say(&format!(
                            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n\
                             content-length: {length}\r\n\r\n{said}"
                        ))
                        .await;
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

    fn provider(&self) -> Provider {
        let config = ProviderConfig::new(Dialect::OpenAi, self.url.clone());
        Provider::new(config, Arc::new(SystemClock::new())).expect("a provider")
    }

    /// One call after the other, of the scene's rows.
    fn options(&self, scene: &Scene) -> RunOptions {
        let mut options = scene.options(&["concurrency=1"]);
        options.routes[0].provider = self.provider();
        options
    }
}
