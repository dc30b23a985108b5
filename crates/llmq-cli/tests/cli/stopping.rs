//! Ctrl-C: of a run, which can go on, and of the stand-in, which prints its books.
#![cfg(unix)]

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::common::{World, outcome};
use crate::running::Running;

const LINE: &str =
    "run in.csv -o out.jsonl --provider mock --template {{name}} --limit requests=10/1s";

#[test]
fn ctrl_c_lets_calls_end_prints_the_command_and_the_command_continues() {
    let world = World::new().with_rows(25);
    let mut running = Running::start(&world, &format!("{LINE} --progress json"));
    running.wait_for("\"done\"");
    running.signal("-INT");
    let (code, _, stderr) = running.end();
    assert_eq!(code, 130, "{stderr}");
    assert!(
        stderr.contains("calls in flight come to their end"),
        "{stderr}"
    );
    let command = stderr.lines().last().unwrap().trim();
    assert!(command.contains("run in.csv -o out.jsonl"), "{stderr}");
    let done = world.results("out.jsonl").len();
    assert!(done < 25, "{done}");

    let (_, arguments) = command.split_once(' ').unwrap();
    world.run(arguments).says(0, &["25 completed"]);
    assert_eq!(world.results("out.jsonl").len(), 25);
}

/// Calls that take minutes would hold the first stop up as long.
#[test]
fn ctrl_c_twice_leaves_at_once_whatever_is_in_flight() {
    let world = World::new().with_rows(25);
    let (_mock, url) = stand_in(&world, "--latency 5m");
    let line = format!(
        "run in.csv -o out.jsonl --model m --template {{{{name}}}} --base-url {url} --progress json"
    );
    let mut running = Running::start(&world, &line);
    running.wait_for("\"done\"");
    running.signal("-INT");
    running.wait_for("come to their end");
    let second = Instant::now();
    running.signal("-INT");
    let (code, _, stderr) = running.end();
    assert!(second.elapsed() < AT_ONCE, "{:?}", second.elapsed());
    assert_eq!(code, 130, "{stderr}");
    let command = stderr.lines().last().unwrap();
    assert!(command.contains("run in.csv -o out.jsonl"), "{stderr}");
    assert_eq!(world.results("out.jsonl").len(), 0);
}

/// Until the first rows of a pipe had come, neither signal ended it, however often it came.
#[test]
fn a_run_that_has_not_begun_can_be_left() {
    for signal in ["-INT", "-TERM"] {
        let world = World::new();
        let made = Command::new("mkfifo").arg(world.path("in.txt")).status();
        assert!(made.unwrap().success());
        let line = "run in.txt -o out.jsonl --provider mock --progress none";
        let running = Running::start(&world, line);
        // Open once the run opens it, which listens for signals by then.
        let pipe = File::options().write(true).open(world.path("in.txt"));
        let (_left, is_left) = std::sync::mpsc::channel::<()>();
        let pipe = std::thread::spawn(move || {
            let _ = is_left.recv_timeout(AT_ONCE);
            drop(pipe.unwrap());
        });
        running.signal(signal);
        let (code, _, stderr) = running.end();
        assert_eq!(code, 130, "{signal}: {stderr}");
        assert!(!pipe.is_finished(), "{signal}: at once");
        let command = "interrupted. This continues:";
        assert!(stderr.contains(command), "{signal}: {stderr}");
        assert!(!world.path("out.jsonl").exists(), "{signal}");
    }
}

/// On a busy machine; the calls take fifteen times as long.
const AT_ONCE: Duration = Duration::from_secs(20);

/// It ended with 1 and neither the summary nor the command that continues.
#[test]
fn a_summary_that_cannot_be_written_hides_nothing() {
    let world = World::new().with_rows(25);
    let line = format!("{LINE} --progress json --summary sum.json");
    let mut running = Running::start(&world, &line);
    running.wait_for("\"done\"");
    std::fs::remove_file(world.path("sum.json")).unwrap();
    std::fs::create_dir(world.path("sum.json")).unwrap();
    running.signal("-INT");
    let (code, _, stderr) = running.end();
    assert_eq!(code, 130, "{stderr}");
    for part in [
        "rows",
        "interrupted. This continues:",
        "--summary: cannot write sum.json",
    ] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    let early = world.run(&format!("{LINE} --summary sum.json"));
    early.says(2, &["--summary: cannot write sum.json"]);
}

/// Each call takes a connection, and a shell lets a program have 1,024 files or fewer: calls
/// beyond that failed, and took attempts with them.
#[test]
fn a_run_makes_no_more_calls_at_once_than_it_may_have_files_open() {
    let world = World::new().with_rows(500);
    let (_mock, url) = stand_in(&world, "--latency 500ms");
    let run = "run in.csv -o out.jsonl --model m --progress none --template {{name}}";
    let script = format!(
        "ulimit -n 256; exec {} {run} --base-url {url} --concurrency 1000 --summary sum.json",
        env!("CARGO_BIN_EXE_llmq"),
    );
    let mut shell = assert_cmd::Command::new("sh");
    shell.current_dir(world.path("")).args(["-c", &script]);
    outcome(&mut shell).says(0, &["of 1,000 calls at once 128 are made", "500 completed"]);
    let summary = std::fs::read(world.path("sum.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!(summary["attempts"], 500, "none failed");
}

/// A stand-in beside the test, and its address.
fn stand_in(world: &World, flags: &str) -> (Running, String) {
    let mut mock = Running::start(
        world,
        &format!("mock --listen 127.0.0.1:0 --format json {flags}"),
    );
    let line = mock.wait_for("listening");
    let url = line.split_whitespace().nth(2).unwrap();
    let url = url.trim_end_matches(',').to_owned();
    (mock, url)
}

#[test]
fn the_stand_in_prints_its_books_when_it_ends() {
    let world = World::new().with_rows(3);
    let (mock, url) = stand_in(&world, "--limit requests=100/1s");
    let run = format!(
        "run in.csv -o out.jsonl --model m --progress none --template {{{{name}}}} --base-url {url}"
    );
    world.run(&run).says(0, &["3 completed"]);
    mock.signal("-INT");
    let (code, stdout, _) = mock.end();
    let books: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &books["accepted"]), (0, &3.into()));
    assert_eq!(books["limits"][0]["limit"], "requests=100/1s");
}

#[test]
fn the_stand_in_says_what_it_cannot_do() {
    let world = World::new().with_rows(1);
    for (flags, part) in [
        ("--limit requests=5", "kind=count/period"),
        ("--fail 2", "use 0 to 1"),
        ("--outage 20s-10s", "10s-20s"),
        ("--foreign 10", "requests=10/s"),
        ("--replay none", "none"),
        ("--record in.csv/x", "--record: cannot make in.csv/x"),
    ] {
        let outcome = world.run(&format!("mock --listen 127.0.0.1:0 {flags}"));
        assert!(matches!(outcome.code, 1 | 2), "{flags}: {outcome:?}");
        assert!(outcome.stderr.contains(part), "{flags}: {outcome:?}");
    }
}
