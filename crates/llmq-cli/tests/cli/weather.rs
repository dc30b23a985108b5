//! What a provider can do to a run, seen from outside.

use std::net::SocketAddr;

use llmq_provider::mock::{MockConfig, MockServer};
use llmq_testkit::SecureServer;

use crate::common::{Outcome, World, outcome, words};
use crate::provider::{Provider, Reply};

/// What a server over TLS answers.
const COMPLETION: &str = r#"{"id":"x","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"A fine place."},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10}}"#;

/// A stand-in in this process, on a runtime of its own.
fn stand_in(config: MockConfig) -> (tokio::runtime::Runtime, MockServer) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let config = MockConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..config
    };
    let server = runtime.block_on(MockServer::start(config)).unwrap();
    (runtime, server)
}

fn run_at(world: &World, addr: SocketAddr, key: &str, flags: &str) -> Outcome {
    let line = format!(
        "run in.csv -o out.jsonl --model m --base-url http://{addr}/v1 --progress none \
         --template {{{{name}}}} {flags}"
    );
    outcome(world.command(words(&line)).env("OPENAI_API_KEY", key))
}

#[test]
fn a_refused_key_stops_at_once_and_marks_nothing_failed() {
    let world = World::new().with_rows(20);
    let (_runtime, server) = stand_in(MockConfig::default());
    let refused = run_at(&world, server.addr(), "bad", "");
    refused.says(
        4,
        &[
            "stopped by the account",
            "This continues:",
            "llmq run in.csv",
        ],
    );
    assert!(world.results("out.jsonl").is_empty());
    run_at(&world, server.addr(), "good", "").says(0, &["20 completed"]);
}

#[test]
fn a_daily_budget_that_is_spent_stops_a_run_that_does_not_wait_and_it_can_go_on() {
    let world = World::new().with_rows(20);
    let (_runtime, server) = stand_in(MockConfig::default());
    // Ten minutes before midnight it would be waited for.
    let zone = llmq_testkit::zone_far_from_midnight();
    let line = format!(
        "run in.csv -o out.jsonl --model m --base-url http://{}/v1 --progress none \
         --template {{{{name}}}} --no-wait",
        server.addr()
    );
    let budget = format!("{line} --daily-limit 10 --quota-threshold 0.5 --concurrency 1");
    let mut command = world.command(words(&budget));
    let stopped = outcome(command.env("LLMQ_QUOTA_TIME_ZONE", zone));
    stopped.says(4, &["stopped by the account", "This continues:"]);
    assert_eq!(world.results("out.jsonl").len(), 5);
    world.run(&line).says(0, &["20 completed"]);
    assert_eq!(world.results("out.jsonl").len(), 20);
}

#[test]
fn answers_that_are_none_fail_their_rows_and_not_the_run() {
    const HTML: &str = "HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n<html>no</html>";
    const CUT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"id\":";
    for reply in [
        || Reply::Bytes(HTML),
        || Reply::Bytes(CUT),
        || Reply::Silence,
    ] {
        let world = World::new().with_rows(2);
        let provider = Provider::start(move |_| reply());
        let flags = "--max-attempts 1 --timeout 500ms";
        let outcome = run_at(&world, provider.addr, "k", flags);
        outcome.says(1, &["2 rows failed for good"]);
        let results = world.results("out.jsonl");
        assert_eq!(results.len(), 2, "{outcome:?}");
        assert!(
            results
                .iter()
                .all(|row| row["error"]["message"].is_string())
        );
    }
}

#[test]
fn failed_rows_are_sent_again_when_asked_for() {
    let world = World::new().with_rows(3);
    let broken = Provider::start(|_| Reply::Raw("400 Bad Request", String::new(), "{}".to_owned()));
    run_at(&world, broken.addr, "k", "").says(1, &["3 rows failed"]);
    let (_runtime, server) = stand_in(MockConfig::default());
    run_at(&world, server.addr(), "k", "").says(1, &["3 rows failed"]);
    assert_eq!(server.report().calls, 0, "failed rows are left alone");
    run_at(&world, server.addr(), "k", "--retry-failed").says(0, &["3 completed"]);
    assert_eq!(world.results("out.jsonl").len(), 3);
}

#[test]
fn the_key_is_never_written_anywhere() {
    let world = World::new().with_rows(2);
    let (_runtime, server) = stand_in(MockConfig::default());
    let outcome = run_at(&world, server.addr(), "sk-hunter2", "-vv --log run.log");
    outcome.says(0, &[]);
    for name in ["run.log", "out.jsonl", "out.jsonl.llmq"] {
        let text = std::fs::read_to_string(world.path(name)).unwrap();
        assert!(!text.contains("hunter2"), "{name}");
    }
    assert!(!outcome.stderr.contains("hunter2"));
}

/// OpenAI quotes the key it refuses, masked in its middle; servers like it quote it whole.
#[test]
fn what_a_provider_quotes_of_the_key_is_never_written_anywhere() {
    for quoted in ["sk-very-private-hunter2", "sk-very-********ter2"] {
        let world = World::new().with_rows(2);
        let provider = Provider::start(move |_| {
            let said = format!("Incorrect API key provided: {quoted}.");
            let body = format!(r#"{{"error":{{"message":"{said}","code":"invalid_api_key"}}}}"#);
            Reply::Raw("401 Unauthorized", String::new(), body)
        });
        let key = "sk-very-private-hunter2";
        let outcome = run_at(&world, provider.addr, key, "-vv --log run.log");
        outcome.says(4, &["Incorrect API key provided: ***."]);
        assert!(!outcome.stderr.contains("ter2"), "{outcome:?}");
        for name in ["run.log", "out.jsonl", "out.jsonl.llmq"] {
            let text = std::fs::read_to_string(world.path(name)).unwrap();
            assert!(!text.contains("ter2"), "{name}: {text}");
        }
    }
}

/// Over TLS. What becomes of a server that is not trusted is tried where the provider is called.
#[test]
fn a_private_authority_is_trusted_by_its_file() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(SecureServer::start("localhost", COMPLETION));
    let world = World::new().with_rows(3);
    world.write("authority.pem", server.authority());
    let line = format!(
        "run in.csv -o out.jsonl --model m --base-url {} --progress none \
         --template {{{{name}}}}",
        server.url("localhost")
    );
    let mut command = world.command(words(&line));
    command.env("SSL_CERT_FILE", world.path("authority.pem"));
    outcome(&mut command).says(0, &["3 completed, 0 failed"]);
}
