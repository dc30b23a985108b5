//! Limits that only the provider knows: the next process keeps what the last one learned.

use std::net::SocketAddr;
use std::time::Duration;

use llmq_provider::mock::{MockConfig, MockServer};
use serde_json::Value;

use crate::common::{World, outcome, words};
use crate::support::Running;
use crate::{is_whole, line, stand_in};

/// So few that the calls of a run that knows of no limit are more at once.
const LIMIT: &str = "requests=8/1s:bucket";
const ROWS: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    Killed,
}

fn known_to_the_provider_alone(limit: &str) -> MockConfig {
    MockConfig {
        limits: vec![limit.parse().unwrap()],
        ..MockConfig::default()
    }
}

/// Runs without a word of limits until some rows are done and the limit is learned, and ends
/// the run then.
fn first_life(world: &World, addr: SocketAddr, end: End) {
    let mut running = Running::start(world, &line(addr, "--progress json"));
    while running.wait_for("\"done\":").contains("\"done\":0,") || learned(world).is_empty() {}
    match end {
        End::Killed => running.kill(),
        End::Stopped => {
            running.signal("-INT");
            assert_eq!(running.end().0, 130);
        }
    }
    assert!(world.results("out.jsonl").len() < ROWS, "it was too late");
}

/// What the side file says was learned.
fn learned(world: &World) -> Vec<String> {
    let text = std::fs::read(world.path("out.jsonl.llmq")).unwrap();
    let side: Value = serde_json::from_slice(&text).unwrap();
    let Some(learned) = side["windows"]["learned"].as_object() else {
        return Vec::new();
    };
    let limits = learned.values().filter_map(Value::as_array).flatten();
    limits
        .map(|limit| limit.as_str().unwrap().to_owned())
        .collect()
}

/// The same command again, to the end; its summary.
fn second_life(world: &World, addr: SocketAddr, flags: &str) -> Value {
    let line = line(addr, &format!("--progress none --summary s.json {flags}"));
    let mut command = world.command(words(&line));
    let outcome = outcome(command.timeout(Duration::from_secs(60)));
    outcome.says(0, &[&format!("{ROWS} completed, 0 failed")]);
    is_whole(world, ROWS);
    serde_json::from_slice(&std::fs::read(world.path("s.json")).unwrap()).unwrap()
}

#[test]
fn a_learned_limit_is_kept_from_the_next_first_call_on() {
    for end in [End::Killed, End::Stopped] {
        let world = World::new().with_rows(ROWS);
        let (_runtime, server) = stand_in(known_to_the_provider_alone(LIMIT));
        first_life(&world, server.addr(), end);
        let summary = second_life(&world, server.addr(), "");
        assert_eq!(summary["rate_limited"], 0, "{end:?}: {summary}");
        assert_eq!(learned(&world), ["requests=8/1s"]);
    }
}

/// The summary knew only limits that were stated, and told of a run that used its account to the
/// full that it had used next to nothing.
#[test]
fn a_limit_that_is_learned_on_the_way_binds_in_the_summary() {
    let world = World::new().with_rows(ROWS);
    let (_runtime, server) = stand_in(known_to_the_provider_alone(LIMIT));
    let summary = second_life(&world, server.addr(), "");
    assert_eq!(summary["binding"], "requests/1s openai/m", "{summary}");
}

#[test]
fn a_limit_that_is_given_counts_instead_of_the_learned_one() {
    let world = World::new().with_rows(ROWS);
    let (_runtime, server) = stand_in(known_to_the_provider_alone(LIMIT));
    first_life(&world, server.addr(), End::Stopped);
    let summary = second_life(&world, server.addr(), "--limit requests=7/1s");
    assert_eq!(summary["rate_limited"], 0, "{summary}");
    assert_eq!(summary["binding"], "requests/1s openai/m", "{summary}");
    assert_eq!(learned(&world), Vec::<String>::new());
}

#[test]
fn a_learned_limit_that_the_provider_contradicts_is_learned_anew() {
    let world = World::new().with_rows(ROWS);
    let (runtime, server) = stand_in(known_to_the_provider_alone(LIMIT));
    let addr = server.addr();
    first_life(&world, addr, End::Stopped);
    runtime.block_on(server.shutdown());
    let larger = MockConfig {
        listen: addr,
        ..known_to_the_provider_alone("requests=40/1s:bucket")
    };
    let _larger = runtime.block_on(MockServer::start(larger)).unwrap();
    let summary = second_life(&world, addr, "");
    assert_eq!(summary["rate_limited"], 0, "{summary}");
    assert_eq!(learned(&world), ["requests=40/1s"]);
}
