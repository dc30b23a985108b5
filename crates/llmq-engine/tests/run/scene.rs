//! What a run is given, and how it is followed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Host, LimitSpec};
use llmq_dispatch::Rules;
use llmq_engine::SystemClock;
use llmq_engine::bulk::{
    CallMaker, Control, InputKind, InputSource, OutputPaths, Progress, ReadOptions, RouteOptions,
    RunError, RunOptions, RunReport, Template, run, verify,
};
use llmq_limit::{AdaptiveConfig, LatencyPolicy, QuotaConfig};
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_provider::{Dialect, Operation, Provider, ProviderConfig, Secret, TokenCounter};
use tokio::task::JoinSet;

/// A folder with an input, and a mock that serves it.
pub(crate) struct Scene {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) mock: MockServer,
    pub(crate) rows: u64,
}

impl Scene {
    pub(crate) async fn new(rows: u64, mock: MockConfig) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut text = String::from("name,country\n");
        for row in 1..=rows {
            writeln!(text, "Place {row},C{}", row % 7).expect("text");
        }
        std::fs::write(folder.path().join("in.csv"), text).expect("an input");
        let mock = MockServer::start(mock).await.expect("a mock");
        Self { folder, mock, rows }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn options(&self, limits: &[&str]) -> RunOptions {
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

    pub(crate) fn route(&self, key: &str, limits: Vec<LimitSpec>) -> RouteOptions {
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

    pub(crate) async fn run(&self, options: RunOptions) -> Result<RunReport, RunError> {
        run(options, Control::new()).await
    }

    pub(crate) fn proof(&self, options: &RunOptions) -> llmq_engine::bulk::VerifyReport {
        verify(&options.source, options.kind, None, &options.paths).expect("readable files")
    }
}

pub(crate) fn quick(limits: &[&str]) -> MockConfig {
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

pub(crate) fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).expect("an output");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect()
}

/// Waits until a run that is under way shows `is` so.
pub(crate) async fn until(control: &Control, is: impl Fn(&Progress) -> bool) {
    while !control.progress().is_some_and(|progress| is(&progress)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A run under way; dropped, it is too.
pub(crate) fn begin(
    options: RunOptions,
    control: &Control,
) -> JoinSet<Result<RunReport, RunError>> {
    let mut running = JoinSet::new();
    running.spawn(run(options, control.clone()));
    running
}

/// How a run ended that must end at once.
pub(crate) async fn ended(running: &mut JoinSet<Result<RunReport, RunError>>) -> RunReport {
    let report = tokio::time::timeout(AT_ONCE, running.join_next()).await;
    let report = report.expect("at once").expect("one run");
    report.expect("no panic").expect("a run")
}

/// So long may leaving at once take on a busy machine; calls that hang take a minute.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(20);

pub(crate) fn hanging() -> MockConfig {
    MockConfig {
        latency: Duration::from_secs(60),
        ..quick(&[])
    }
}
