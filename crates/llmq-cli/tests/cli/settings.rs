//! `llmq config`, `llmq completions`, and what every command has in common.

use serde_json::Value;

use crate::common::{MOCK, World, outcome, words};
use crate::provider::{Provider, Reply};

#[test]
fn the_default_configuration_is_right_and_can_be_checked() {
    let world = World::new();
    let default = world.run("config default");
    world.write("llmq.toml", &default.stdout);
    world
        .run("config check --config llmq.toml")
        .says(0, &["llmq.toml is right"]);
}

#[test]
fn a_file_is_not_right_that_the_gateway_would_not_start_with() {
    let world = World::new();
    world.write("llmq.toml", "[store]\nurl = \"redis://localhost\"\n");
    let parts = ["store.url: there is no store in Redis yet: use sqlite:PATH or memory:"];
    world.run("config check --config llmq.toml").says(2, &parts);
    world.run("serve --mock --config llmq.toml").says(2, &parts);
    let address = "[upstreams.a]\nprovider = \"openai\"\nbase_url = \"http://[::1/v1\"\n";
    world.write("llmq.toml", address);
    let parts = ["upstreams.a.base_url: the base URL is not a URL"];
    world.run("config check --config llmq.toml").says(2, &parts);
    world.run("serve --config llmq.toml").says(2, &parts);
    let key = "[upstreams.a]\nprovider = \"openai\"\napi_key = { env = \"LLMQ_NO_KEY\" }\n\
               [upstreams.b]\nprovider = \"mock\"\n";
    world.write("llmq.toml", key);
    world.run("config check --config llmq.toml").says(
        0,
        &[
            "llmq.toml is right",
            "upstreams.a.api_key: the environment variable LLMQ_NO_KEY is not set here",
            "upstreams.b.base_url: there is none, so it is served with --mock only",
        ],
    );
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let world = World::new();
    world.write(
        "llmq.toml",
        "[server]\nmax_wiat = \"5s\"\n[quota]\npause_threshold = 1.5\n[retry]\njitter = 2\n",
    );
    let parts = [
        "3 settings are wrong",
        "server.max_wiat: there is no such setting; did you mean `max_wait`?",
        "quota.pause_threshold: 1.5 is out of range, use 0.1 to 1",
        "retry.jitter: 2 is out of range, use 0 to 1",
    ];
    world.run("config check --config llmq.toml").says(2, &parts);
    world.run("config show --config llmq.toml").says(2, &parts);
    let run = "run in.csv -o out.jsonl --provider mock --config llmq.toml";
    world.run(run).says(2, &parts);
    world.write("llmq.toml", "a = \n");
    world
        .run("config check --config llmq.toml")
        .says(2, &["llmq.toml, line 1"]);
    world
        .run("config check --config none.toml")
        .says(2, &["none.toml"]);
}

#[test]
fn two_upstreams_of_one_name_are_refused_with_their_line() {
    let world = World::new();
    let twice = "[upstreams.a]\nprovider = \"openai\"\n[upstreams.a]\nprovider = \"anthropic\"\n";
    world.write("llmq.toml", twice);
    for command in ["config check", "serve"] {
        world
            .run(&format!("{command} --config llmq.toml"))
            .says(2, &["llmq.toml, line 3", "duplicate key"]);
    }
}

#[test]
fn show_tells_where_a_value_comes_from_and_hides_keys() {
    let world = World::new();
    world.write(
        "llmq.toml",
        "[retry]\nmax_attempts = 7\n[upstreams.a]\nprovider = \"openai\"\napi_key = \"hunter2\"\n",
    );
    let mut command = world.command(words("config show --config llmq.toml --format json"));
    let shown = outcome(command.env("LLMQ_RETRY_JITTER", "0.3"));
    shown.says(0, &[]);
    assert!(!shown.stdout.contains("hunter2"));
    let entries: Vec<Value> = serde_json::from_str(&shown.stdout).unwrap();
    let origin = |path: &str| {
        let entry = entries.iter().find(|entry| entry["path"] == path).unwrap();
        entry["origin"].as_str().unwrap().to_owned()
    };
    assert_eq!(origin("retry.max_attempts"), "file");
    assert_eq!(origin("retry.jitter"), "LLMQ_RETRY_JITTER");
    assert_eq!(origin("server.max_wait"), "default");
}

#[test]
fn the_environment_stands_for_flags_and_flags_beat_it() {
    let world = World::new().with_rows(1);
    let line = format!("run in.csv -o out.jsonl {MOCK} --template x");
    let mut command = world.command(words(&line));
    outcome(command.env("LLMQ_QUOTA_PAUSE_THRESHOLD", "7"))
        .says(2, &["LLMQ_QUOTA_PAUSE_THRESHOLD", "7 is out of range"]);
    let mut command = world.command(words(&format!("{line} --quota-threshold 0.5")));
    outcome(command.env("LLMQ_QUOTA_PAUSE_THRESHOLD", "7")).says(0, &[]);
}

/// The same order for a setting of a run as for one of its quota.
#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let attempts = |file: &str, variable: Option<&str>, flag: &str| {
        let world = World::new().with_rows(1);
        world.write("llmq.toml", file);
        let provider = Provider::start(|_| Reply::Raw("500 Oops", String::new(), "{}".into()));
        let line = format!(
            "run in.csv -o out.jsonl --model m --base-url http://{}/v1 --template x \
             --progress none --config llmq.toml {flag}",
            provider.addr
        );
        let mut command = world.command(words(&line));
        if let Some(value) = variable {
            command.env("LLMQ_RETRY_MAX_ATTEMPTS", value);
        }
        outcome(&mut command).says(1, &["1 failed"]);
        provider.prompts().len()
    };
    let quick = "[retry]\nserver = { base = \"1ms\", max = \"2ms\" }\n";
    let file = format!("{quick}max_attempts = 1\n");
    assert_eq!(attempts(&file, None, ""), 1);
    assert_eq!(attempts(&file, Some("2"), ""), 2);
    assert_eq!(attempts(&file, Some("2"), "--max-attempts 1"), 1);
}

#[test]
fn a_model_of_the_configuration_brings_its_upstream() {
    let world = World::new().with_rows(2);
    let upstream = "[upstreams.stand-in]\nprovider = \"mock\"\n[models.small]\nupstreams = [ { upstream = \"stand-in\", model = \"tiny\", limits = { rpm = 100 } } ]\nprice = { input = 1.0, output = 2.0 }\n";
    world.write("llmq.toml", upstream);
    let line = "run in.csv -o out.jsonl --progress none --template {{name}} --config llmq.toml --format json";
    world.run(line).says(2, &["say --model", "small"]);
    world
        .run(&format!("{line} --model large"))
        .says(2, &["no model \"large\", only small"]);
    let dry = world.run(&format!("{line} --model small --dry-run"));
    dry.says(0, &[]);
    let shown: Value = serde_json::from_str(&dry.stdout).unwrap();
    assert_eq!(shown["calls"][0]["body"]["model"], "tiny", "as it is sent");
    let outcome = world.run(&format!("{line} --model small"));
    outcome.says(0, &[]);
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(summary["cost_usd"].as_f64().unwrap() > 0.0);
    assert!(
        world
            .results("out.jsonl")
            .iter()
            .all(|row| row["response"]["body"]["model"] == "tiny")
    );
}

#[test]
fn completions_are_printed_for_each_shell() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let outcome = world.run(&format!("completions {shell}"));
        outcome.says(0, &[]);
        assert!(outcome.stdout.contains("retry-failed"), "{shell}");
    }
    world.run("completions tcsh").says(2, &["tcsh"]);
}

#[test]
fn words_go_to_stderr_and_unknown_flags_are_usage_mistakes() {
    let world = World::new();
    let version = world.run("--version");
    assert_eq!((version.code, version.stderr.as_str()), (0, ""));
    assert!(version.stdout.starts_with("llmq "));
    world
        .run("run in.csv -o out.jsonl --modle m")
        .says(2, &["--modle", "--model"]);
    world.run("").says(2, &["Usage"]);
    let plain = world.run("--color never run");
    assert!(!plain.stderr.contains('\u{1b}'), "{plain:?}");
    let colored = world.run("--color always run");
    assert!(colored.stderr.contains('\u{1b}'), "{colored:?}");
}
