//! Settings that change while the gateway runs.

use std::time::Duration;

use llmq_testkit::PATIENCE;
use tokio::time::Instant;

use crate::common::World;
use crate::running::Running;
use crate::world::{Served, Strict, config, get};

fn limited(count: u32) -> String {
    format!("custom = [\"requests={count}/1h\"]")
}

/// A gateway whose limit has room for two calls, and two more calls that wait.
fn waiting(world: &World, provider: &Strict) -> (Served, Vec<std::thread::JoinHandle<u16>>) {
    world.write("llmq.toml", config(provider.addr(), &limited(2)));
    let line = "--config llmq.toml --store sqlite:kept.db --log log.jsonl --log-format json";
    let served = Served::start(world, line);
    assert_eq!(served.calls(2, ""), [200, 200]);
    let later = served.later(2);
    served.wait_until("/api/queues", "\"waiting\":2");
    (served, later)
}

#[test]
fn a_changed_file_is_taken_over_by_itself_and_calls_in_line_go_on() {
    let (world, provider) = (World::new(), Strict::with(&[]));
    let (mut served, later) = waiting(&world, &provider);
    world.write("llmq.toml", config(provider.addr(), &limited(4)));
    served.running.wait_for("in force");
    let statuses: Vec<u16> = later.into_iter().map(|call| call.join().unwrap()).collect();
    assert_eq!(statuses, [200, 200]);
    // The two of before are still in the books, so there is no fifth.
    assert_eq!(served.calls(1, "x-llmq-max-wait: 0s\r\n"), [429]);
}

/// A gateway whose start waits for a reader of its log (`calls.log`), which is opened after the
/// store.
fn starting(world: &World, provider: &Strict) -> Running {
    world.write("llmq.toml", config(provider.addr(), ""));
    let log = world.path("calls.log");
    let made = std::process::Command::new("mkfifo").arg(&log).status();
    assert!(made.unwrap().success());
    let line = "--config llmq.toml --store sqlite:kept.db --call-log calls.log";
    let starting = Served::starting(world, line);
    let deadline = Instant::now() + PATIENCE;
    while !world.path("kept.db").exists() {
        assert!(Instant::now() < deadline, "it opens its store");
        std::thread::yield_now();
    }
    starting
}

/// It stayed out of force until the file was touched again: a service that is started before its
/// configuration is put in place ran on with the one of before.
#[test]
fn a_file_that_changes_while_the_server_starts_is_taken_over_too() {
    let (world, provider) = (World::new(), Strict::with(&[]));
    let starting = starting(&world, &provider);
    let other = config(provider.addr(), "").replace("[models.m]", "[models.other]");
    world.write("llmq.toml", other);
    let _reader = std::fs::File::open(world.path("calls.log")).unwrap();
    let mut served = Served::listening(starting);
    served.running.wait_for("in force");
    let (_, models) = get(served.addr, "/v1/models", "");
    assert!(models.contains("\"other\""), "{models}");
}

/// Until it listened, the signal ended it without a word.
#[test]
fn a_hang_up_while_the_server_starts_is_heard_when_it_has() {
    let (world, provider) = (World::new(), Strict::with(&[]));
    let starting = starting(&world, &provider);
    starting.signal("-HUP");
    // Not to be waited for where nobody is left to write.
    let mut options = std::fs::File::options();
    let reader = options.read(true).write(true).open(world.path("calls.log"));
    let _reader = reader.unwrap();
    let mut served = Served::listening(starting);
    served.running.wait_for("in force");
    assert_eq!(served.calls(1, ""), [200]);
}

/// Only the files of the settings in force were looked at: a certificate that was put in place
/// after the settings that name it was never taken over.
#[test]
fn a_certificate_that_comes_after_its_settings_is_looked_at() {
    let (world, provider) = (World::new(), Strict::with(&[]));
    let plain = config(provider.addr(), "");
    world.write("llmq.toml", &plain);
    let mut served = Served::start(&world, "--config llmq.toml --store memory:");
    let tls = "[server]\ntls = { cert = \"new.pem\", key = \"new.pem\" }\n";
    world.write("llmq.toml", plain + tls);
    let refused = "refused, and those of before stay";
    let said = served.running.wait_for(refused);
    assert!(said.contains("new.pem: No such file"), "{said}");
    world.write("new.pem", "not yet");
    let said = served.running.wait_for(refused);
    assert!(said.contains("there is no certificate"), "{said}");
}

#[test]
fn what_cannot_be_used_is_refused_whole_with_its_reason() {
    let (world, provider) = (World::new(), Strict::with(&[]));
    let (mut served, later) = waiting(&world, &provider);
    let wrong = config(provider.addr(), &limited(4));
    for (text, reason) in [
        (
            wrong.replace("[models.m]", "[models.m]\nfallback = [\"x\"]"),
            "models.m.fallback",
        ),
        (
            format!("{wrong}\n[server]\nmax_body = \"many\""),
            "server.max_body",
        ),
        (
            format!("{wrong}\n[server]\ntls = {{ cert = \"no.pem\", key = \"no.pem\" }}"),
            "no.pem",
        ),
        (format!("{wrong}\n[store]\nmax_jobs = 7"), "restart"),
        ("= nonsense".to_owned(), "llmq.toml"),
    ] {
        world.write("llmq.toml", text);
        served.running.signal("-HUP");
        let said = served.running.wait_for("settings_refused");
        assert!(said.contains(reason), "{reason}: {said}");
        // Who looks for the event in the log finds it by its name.
        let log = std::fs::read_to_string(world.path("log.jsonl")).unwrap();
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(last["fields"]["message"], "settings_refused");
        assert!(last["fields"]["why"].as_str().unwrap().contains(reason));
    }
    let (_, queues) = get(served.addr, "/api/queues", "");
    assert!(
        queues.contains("requests=2/1h") && queues.contains("\"waiting\":2"),
        "{queues}"
    );
    world.write("llmq.toml", wrong);
    served.running.signal("-HUP");
    served.running.wait_for("in force");
    let statuses: Vec<u16> = later.into_iter().map(|call| call.join().unwrap()).collect();
    assert_eq!(statuses, [200, 200]);
}

#[test]
fn models_come_and_go_while_calls_of_those_that_go_come_to_their_ends() {
    let (world, provider) = (World::new(), Strict::with(&[]));
    let (mut served, later) = waiting(&world, &provider);
    let other = config(provider.addr(), &limited(4)).replace("[models.m]", "[models.n]");
    world.write("llmq.toml", other);
    served.running.signal("-HUP");
    served.running.wait_for("in force");
    let start = Instant::now();
    assert_eq!(served.calls(1, ""), [404], "it is offered no more");
    let (_, models) = get(served.addr, "/v1/models", "");
    assert!(
        models.contains("\"n\"") && !models.contains("\"m\""),
        "{models}"
    );
    // Those that wait for it wait on, and are served when it comes back with room.
    served.wait_until("/api/queues", "\"waiting\":2");
    world.write("llmq.toml", config(provider.addr(), &limited(4)));
    served.running.signal("-HUP");
    served.running.wait_for("in force");
    let statuses: Vec<u16> = later.into_iter().map(|call| call.join().unwrap()).collect();
    assert_eq!(statuses, [200, 200]);
    assert!(start.elapsed() < Duration::from_secs(50));
}

/// The gateway's own log said nothing of its upstreams: a key that was refused closed an account
/// until a person acts, and no line told.
#[test]
fn what_becomes_of_upstreams_is_in_the_log() {
    let provider = Strict::with(&["requests=2/1h"]);
    let world = World::new();
    let quota = "[quota]\nlog_interval = 1\ndaily_request_limit = 100\n";
    let config = config(provider.addr(), "") + quota;
    world.write("llmq.toml", config);
    let arguments = "--config llmq.toml --store memory: --log own.log";
    let served = Served::start(&world, arguments);
    assert_eq!(served.calls(2, ""), [200; 2]);
    assert_eq!(served.calls(1, "x-llmq-max-wait: 0s\r\n"), [429]);
    served.running.signal("-INT");
    let (code, _, said) = served.running.end();
    assert_eq!(code, 0, "{said}");
    let log = std::fs::read_to_string(world.path("own.log")).unwrap();
    for event in ["quota_metrics", "rate_limited", "quota_paused"] {
        let line = log.lines().find(|line| line.contains(event));
        let line = line.unwrap_or_else(|| panic!("no {event} in {log}"));
        assert!(line.contains("one/m"), "{line}");
    }
}
