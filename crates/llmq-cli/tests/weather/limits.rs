//! How long a provider says to wait, and what a clock that is set back does to limits.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use llmq_provider::mock::MockConfig;
use serde_json::Value;

use crate::common::{World, outcome, words};
use crate::provider::QUICK;
use crate::support::{Provider, Reply, Running};
use crate::{is_whole, kept, line, run_at, stand_in};

/// An instant as HTTP writes it (RFC 9110 §5.6.7).
fn http_date(from_now: SignedDuration) -> String {
    let at = Timestamp::now() + from_now;
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

/// `Retry-After` as row `row` gets it, further headers behind it, and how many milliseconds
/// nothing may be sent then. What cannot be read is as if nothing was said.
fn form(row: usize) -> Option<(String, u64)> {
    const UNKNOWN: u64 = 100;
    let ahead = format!("date: {}", http_date(seconds(3_600)));
    let (text, quiet_ms) = match row {
        1 => ("1".to_owned(), 1_000),
        2 => ("0".to_owned(), 0),
        3 => ("-5".to_owned(), 0),
        4 => ("0.3".to_owned(), 300),
        // Whole seconds are written, so that a part of the two is over.
        5 => (http_date(seconds(2)), 900),
        6 => (http_date(seconds(-3_600)), 0),
        // Of a provider whose clock is an hour ahead.
        7 => (format!("{}\r\n{ahead}", http_date(seconds(3_601))), 900),
        8 => ("soon".to_owned(), UNKNOWN),
        9 => (String::new(), UNKNOWN),
        10 => ("1e9".to_owned(), UNKNOWN),
        11 => ("NaN".to_owned(), UNKNOWN),
        12 => ("1, 2".to_owned(), UNKNOWN),
        13 => ("\u{b2}".to_owned(), UNKNOWN),
        14 => ("Thu, 99 Foo 2026 99:99:99 GMT".to_owned(), UNKNOWN),
        15 => ("x".repeat(4_000), UNKNOWN),
        16 => ("9".repeat(20), UNKNOWN),
        _ => return None,
    };
    Some((text, quiet_ms))
}

#[test]
fn every_form_of_retry_after_is_waited_for_or_passed_over() {
    let world = World::new().with_rows(17);
    world.write("llmq.toml", QUICK);
    let provider = Provider::start(|call| {
        let row: usize = call.prompt.strip_prefix("Place ").unwrap().parse().unwrap();
        match form(row).filter(|_| call.earlier == 0) {
            Some((form, _)) => Reply::refused(&form),
            None => Reply::ok(),
        }
    });
    let flags = "--progress none --config llmq.toml --concurrency 1";
    let mut command = world.command(words(&line(provider.addr, flags)));
    let outcome = outcome(command.timeout(Duration::from_secs(60)));
    outcome.says(0, &["17 completed, 0 failed"]);
    is_whole(&world, 17);
    for row in 1..=16 {
        let (form, quiet_ms) = form(row).unwrap();
        let quiet = provider.quiet_after(&format!("Place {row}"));
        assert!(
            quiet >= Duration::from_millis(quiet_ms),
            "{form}: {quiet:?}"
        );
    }
}

/// The other dialect: its path, its limits, its headers, its form of a batch.
#[test]
fn a_file_for_anthropic_is_sent_in_its_own_dialect_within_limits_of_input_and_output() {
    let limits = ["input_tokens=2k/1s:bucket", "output_tokens=2k/1s:bucket"];
    let (_runtime, server) = stand_in(MockConfig {
        limits: limits.map(|limit| limit.parse().unwrap()).to_vec(),
        charge: llmq_strict::Charge::Usage,
        ..MockConfig::default()
    });
    let provider = format!("--provider anthropic --base-url http://{}", server.addr());
    let world = World::new().with_rows(200);
    let kept = limits.map(|limit| format!("--limit {limit}")).join(" ");
    let flags = format!("{provider} --progress none --param max_tokens=30 {kept}");
    let prompts = format!("run in.csv -o out.jsonl --model m --template {{{{name}}}} {flags}");
    world.run(&prompts).says(0, &["200 completed, 0 failed"]);
    is_whole(&world, 200);
    let body = &world.results("out.jsonl")[0]["response"]["body"];
    assert_eq!(body["type"], "message", "{body}");

    let row = |url: &str| {
        format!(
            r#"{{"custom_id":"{url}","method":"POST","url":"{url}","body":{{"model":"m","max_tokens":9,"messages":[{{"role":"user","content":"hi"}}]}}}}"#
        )
    };
    let rows = [row("/v1/messages"), row("/v1/chat/completions")];
    world.write("batch.jsonl", rows.join("\n"));
    let batch = format!("run batch.jsonl -o batch.out.jsonl {provider} --progress none");
    world.run(&batch).says(1, &["1 completed, 1 failed"]);
}

#[test]
fn a_wait_beyond_reason_is_told_and_a_run_that_does_not_wait_ends() {
    for absurd in [
        "999999999",
        "99999999999999999",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ] {
        let world = World::new().with_rows(5);
        let closed = Provider::start(move |_| Reply::refused(absurd));
        let stopped = run_at(&world, closed.addr, "--no-wait");
        let closed_until = "stopped by the account: openai/m is closed until 2";
        stopped.says(4, &[closed_until, "This continues:"]);

        let mut waiting = Running::start(&world, &line(closed.addr, "--progress json"));
        waiting.wait_for("\"paused\":{");
        waiting.signal("-INT");
        let (code, _, said) = waiting.end();
        assert_eq!(code, 130, "{said}");

        assert_eq!(kept(&world).len(), 0, "nothing has failed");
        let open = Provider::start(|_| Reply::ok());
        run_at(&world, open.addr, "").says(0, &["5 completed"]);
    }
}

/// It said five minutes, asked once more, and only then named an end, an hour away, that nobody
/// had configured.
#[test]
fn a_day_that_is_used_up_without_a_known_end_pauses_as_long_as_is_configured() {
    let world = World::new().with_rows(5);
    let closed = Provider::start(|_| Reply::day_used_up());
    let stopped = run_at(&world, closed.addr, "--no-wait --pause-duration 2");
    stopped.says(
        4,
        &[
            "stopped by the account: openai/m is closed until",
            "(quota-day)",
        ],
    );
    let (_, until) = stopped.stderr.split_once("closed until ").unwrap();
    let until: Timestamp = until.split(' ').next().unwrap().parse().unwrap();
    let left = until.duration_since(Timestamp::now()).as_secs();
    assert!((6_900..=7_200).contains(&left), "{left} s");
    assert_eq!(closed.prompts().len(), closed.counts().len(), "asked once");
    let open = Provider::start(|_| Reply::ok());
    run_at(&world, open.addr, "").says(0, &["5 completed"]);
}

#[test]
fn a_clock_that_is_set_back_an_hour_costs_one_window_and_no_refusal() {
    for killed in [true, false] {
        let world = World::new().with_rows(30);
        let (_runtime, server) = stand_in(MockConfig {
            limits: vec!["requests=20/3s".parse().unwrap()],
            ..MockConfig::default()
        });
        let flags = "--limit requests=20/3s --limit requests=1000/1d";
        let started = line(server.addr(), &format!("{flags} --progress json"));
        let mut running = Running::start(&world, &started);
        while running.wait_for("\"done\":").contains("\"done\":0,") {}
        if killed {
            running.kill();
        } else {
            running.signal("-INT");
            assert_eq!(running.end().0, 130);
        }
        an_hour_ahead(&world);
        let line = line(server.addr(), &format!("{flags} --progress none"));
        let mut command = world.command(words(&line));
        let outcome = outcome(command.timeout(Duration::from_secs(60)));
        outcome.says(0, &["30 completed, 0 failed"]);
        is_whole(&world, 30);
        assert_eq!(server.report().refused, 0);
    }
}

/// Makes the side file what a clock an hour ahead would have written.
fn an_hour_ahead(world: &World) {
    let path = world.path("out.jsonl.llmq");
    let mut side: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let alive_at = side["alive_at"].as_i64().unwrap();
    side["alive_at"] = (alive_at + 3_600_000_000).into();
    std::fs::write(path, side.to_string()).unwrap();
}
