//! A provider that is down, and answers that are none.

use llmq_provider::mock::{MockConfig, OutageStyle};
use serde_json::{Value, json};

use crate::common::World;
use crate::support::{Provider, Reply};
use crate::{is_whole, run_at, stand_in};

/// Short waits between attempts: what is tried here is not how long they are.
pub(crate) const QUICK: &str = "[retry]\nserver = { base = \"10ms\", max = \"20ms\" }\nrate_limit = { base = \"100ms\", max = \"200ms\" }\n";

/// Longer outages differ only in how often one probe finds that it goes on: virtual time plays
/// them in the simulations.
#[test]
fn a_provider_that_is_down_for_a_while_costs_no_row() {
    let outages = [
        (OutageStyle::Refused, "0s-4s"),
        (OutageStyle::Unavailable, "0s-2500ms"),
    ];
    for (outage_style, outage) in outages {
        let world = World::new().with_rows(100);
        let (_runtime, server) = stand_in(MockConfig {
            outages: vec![outage.parse().unwrap()],
            outage_style,
            ..MockConfig::default()
        });
        // Fewer attempts than there are probes: those that find it down are not the rows' own.
        let outcome = run_at(&world, server.addr(), "--max-attempts 2 --concurrency 8");
        outcome.says(0, &["100 completed, 0 failed"]);
        is_whole(&world, 100);
    }
}

/// The log held pauses and no failure of a call or a row.
#[test]
fn every_failure_is_in_the_log_and_no_prompt_is() {
    let world = World::new().with_rows(3);
    world.write("llmq.toml", QUICK);
    let provider = Provider::start(|call| match (call.prompt, call.earlier) {
        ("Place 1", 0) => Reply::Raw("500 Oops", String::new(), "{}".to_owned()),
        ("Place 2", _) => {
            let error = json!({"error": {"message": "Place 2 is unknown", "code": "bad_place"}});
            Reply::Raw("400 Bad Request", String::new(), error.to_string())
        }
        _ => Reply::ok(),
    });
    let flags = "--concurrency 1 --config llmq.toml --log run.log --log-format json";
    run_at(&world, provider.addr, flags).says(1, &["2 completed, 1 failed"]);
    let log = std::fs::read_to_string(world.path("run.log")).unwrap();
    assert!(!log.contains("Place"), "{log}");
    let events: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["fields"].clone())
        .collect();
    let of = |message: &str, line: u64| {
        let is = |event: &&Value| event["message"] == message && event["line"] == line;
        events.iter().find(is).unwrap_or_else(|| panic!("{log}"))
    };
    let transient = of("attempt_failed", 1);
    assert_eq!(
        [
            &transient["class"],
            &transient["status"],
            &transient["attempt"]
        ],
        [&json!("transient"), &json!(500), &json!(1)]
    );
    assert_eq!(of("attempt_failed", 2)["class"], "row-fault");
    assert_eq!(of("row_failed", 2)["code"], "bad_place");
}

#[test]
fn answers_that_are_none_are_asked_for_again() {
    let world = World::new().with_rows(12);
    world.write("llmq.toml", QUICK);
    let provider = Provider::start(|call| {
        if call.earlier > 0 {
            return Reply::ok();
        }
        match call.prompt {
            "Place 2" => {
                Reply::Bytes("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n<html>no</html>")
            }
            "Place 4" => Reply::Bytes("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"id\":"),
            "Place 6" => Reply::Bytes("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            "Place 8" => Reply::Bytes("no HTTP at all\r\n\r\n"),
            "Place 10" => Reply::Bytes(""),
            "Place 12" => Reply::Silence,
            _ => Reply::ok(),
        }
    });
    // One at a time, so that good answers lie between and no breaker opens.
    let flags = "--concurrency 1 --timeout 4s --config llmq.toml --summary s.json";
    run_at(&world, provider.addr, flags).says(0, &["12 completed, 0 failed"]);
    is_whole(&world, 12);
    let counts = provider.counts();
    for row in 1..=12 {
        let expected = if row % 2 == 0 { 2 } else { 1 };
        assert_eq!(counts[&format!("Place {row}")], expected, "row {row}");
    }
    // Of these nothing was heard after they were sent, so they may have been billed. (So may a
    // row that met a connection whose end the good row before it could not see.)
    let results = world.results("out.jsonl");
    let unanswered = |row: &Value| {
        row["llmq"]
            .get("ambiguous_attempts")
            .and_then(Value::as_u64)
    };
    for row in &results {
        if [8, 10, 12].map(Value::from).contains(&row["llmq"]["line"]) {
            assert_eq!(unanswered(row), Some(1), "{row}");
        }
        assert_ne!(unanswered(row), Some(0), "{row}");
    }
    let summary: Value =
        serde_json::from_slice(&std::fs::read(world.path("s.json")).unwrap()).unwrap();
    let all: u64 = results.iter().filter_map(unanswered).sum();
    assert_eq!(summary["ambiguous_attempts"], all);
}
