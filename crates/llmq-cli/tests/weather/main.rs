//! Bad weather from a user's side: what is said, how it ends, and that nothing is lost.
//!
//! A run that was stopped by any of it is continued by the same command in each test.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "the other tests of the command use all of it")]
#[path = "../cli/common.rs"]
mod common;
#[path = "../support/mod.rs"]
mod support;

mod account;
mod files;
mod learned;
mod limits;
mod provider;
mod server;
mod unreachable;

use std::net::SocketAddr;

use llmq_provider::mock::{MockConfig, MockServer};

use common::{Outcome, World};

/// A run of `in.csv` at `addr`; the rest of its flags follow.
fn line(addr: SocketAddr, flags: &str) -> String {
    format!(
        "run in.csv -o out.jsonl --model m --base-url http://{addr}/v1 --template {{{{name}}}} \
         {flags}"
    )
}

/// Runs `in.csv` at `addr` to the end.
fn run_at(world: &World, addr: SocketAddr, flags: &str) -> Outcome {
    world.run(&line(addr, &format!("--progress none {flags}")))
}

/// A stand-in in this process, on a runtime of its own.
fn stand_in(config: MockConfig) -> (tokio::runtime::Runtime, MockServer) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = MockConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..config
    };
    let server = runtime.block_on(MockServer::start(config)).unwrap();
    (runtime, server)
}

/// Every row of `rows` is in `out.jsonl` once and has an answer.
fn is_whole(world: &World, rows: usize) {
    let mut lines: Vec<u64> = Vec::new();
    for row in world.results("out.jsonl") {
        assert!(row["error"].is_null(), "{row}");
        lines.push(row["llmq"]["line"].as_u64().unwrap());
    }
    lines.sort_unstable();
    let expected: Vec<u64> = (1..=u64::try_from(rows).unwrap()).collect();
    assert_eq!(lines, expected);
}

/// The prompts whose answers are in the output; nothing there has failed.
fn kept(world: &World) -> Vec<String> {
    let results = world.results("out.jsonl");
    assert!(results.iter().all(|row| row["error"].is_null()));
    results
        .iter()
        .map(|row| format!("Place {}", row["llmq"]["line"]))
        .collect()
}
