//! `llmq plan`: the file in virtual time.

use serde_json::Value;

use crate::common::World;

fn plan(world: &World, flags: &str) -> Value {
    let line = format!("plan in.csv --template {{{{name}}}} --format json --model m {flags}");
    let outcome = world.run(&line);
    outcome.says(0, &[]);
    serde_json::from_str(&outcome.stdout).unwrap()
}

#[test]
fn a_plan_needs_no_key_and_says_which_limit_binds() {
    let world = World::new().with_rows(100);
    let limits = "--limit requests=10/1m --rpd 1M --latency 1s --output-tokens 50 --price 1/2";
    let plan = plan(&world, limits);
    assert_eq!(plan["rows"], 100);
    assert_eq!(plan["output_tokens"], 5_000);
    let elapsed = plan["elapsed_s"].as_f64().unwrap();
    assert!((541.0..545.0).contains(&elapsed), "{elapsed}");
    assert_eq!(plan["binding"][0]["limit"], "requests=10/1m");
    assert!(plan["binding"][0]["if_doubled_s"].as_f64().unwrap() < 250.0);
    let cost = plan["cost_usd"].as_f64().unwrap();
    assert!((plan["batch_api"]["cost_usd"].as_f64().unwrap() - cost / 2.0).abs() < 1e-9);
}

#[test]
fn the_cap_of_a_call_bounds_its_expected_answer() {
    let world = World::new().with_rows(10);
    let plan = plan(&world, "--param max_tokens=20 --output-tokens 500");
    assert_eq!(plan["output_tokens"], 200);
}

#[test]
fn finishing_in_time_says_what_it_takes() {
    let world = World::new().with_rows(100);
    let plan = plan(&world, "--limit requests=10/1m --latency 1s --finish-in 2m");
    assert!(plan["finish_in"]["elapsed_s"].as_f64().unwrap() <= 120.0);
    assert_ne!(plan["finish_in"]["limits"][0], "requests=10/1m");
    assert_eq!(plan["finish_in"]["pace"]["requests_per_minute"], 51);
    assert_eq!(plan["finish_in"]["pace"]["calls_at_once"], 1);
    let never = world.run("plan in.csv --template x --model m --latency 1m --finish-in 1s");
    assert_eq!(never.code, 1, "{never:?}");
    assert!(
        never.stdout.contains("no limit is high enough"),
        "{never:?}"
    );
}

#[test]
fn a_file_of_bad_rows_is_planned_like_any_other() {
    let world = World::new();
    world.write("in.jsonl", "not json\n");
    let line = "plan in.jsonl --template {{x}} --model m --finish-in 1s";
    let outcome = world.run(line);
    outcome.says(0, &[]);
    assert!(outcome.stdout.contains("1 bad"), "{outcome:?}");
}

#[test]
fn who_has_no_limits_yet_learns_which_to_ask_for() {
    let world = World::new().with_rows(1_000);
    let outcome = world.run(
        "plan in.csv --template {{name}} --model m --latency 5s --output-tokens 100 --finish-in 1h",
    );
    outcome.says(0, &[]);
    for part in [
        "to finish in 1 h   17 requests and ",
        " tokens a minute, 2 calls at once",
        "limits for that    these are enough",
    ] {
        assert!(outcome.stdout.contains(part), "{part}: {}", outcome.stdout);
    }
}

#[test]
fn a_budget_of_ones_own_counts_and_mistakes_are_those_of_a_run() {
    let world = World::new().with_rows(100);
    let budget = plan(&world, "--daily-limit 50 --latency 1s");
    let days = budget["elapsed_s"].as_f64().unwrap() / 86_400.0;
    assert!((1.9..3.1).contains(&days), "{days}");
    world
        .run("plan in.csv --model m")
        .says(2, &["say --template"]);
    world
        .run("plan none.csv --model m --template x")
        .says(2, &["none.csv"]);
    world
        .run("plan in.csv --template x")
        .says(2, &["say --model"]);
}

#[test]
fn people_get_a_table() {
    let world = World::new().with_rows(30);
    let outcome = world.run("plan in.csv --template x --model m --rpm 10 --latency 1s");
    outcome.says(0, &[]);
    for part in [
        "rows",
        "binds",
        "their batch API",
        "say --price",
        "taken for granted",
    ] {
        assert!(outcome.stdout.contains(part), "{part}: {}", outcome.stdout);
    }
}
