//! Ctrl-C: of a run, which can go on, and of the stand-in, which prints its books.
#![cfg(unix)]

use serde_json::Value;

use crate::common::World;
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

#[test]
fn ctrl_c_twice_leaves_at_once_and_can_still_go_on() {
    let world = World::new().with_rows(25);
    let mut running = Running::start(&world, &format!("{LINE} --progress json"));
    running.wait_for("\"done\"");
    running.signal("-INT");
    running.signal("-INT");
    let (code, _, stderr) = running.end();
    assert_eq!(code, 130, "{stderr}");
    world
        .run(&format!("{LINE} --progress none"))
        .says(0, &["25 completed"]);
}

#[test]
fn the_stand_in_prints_its_books_when_it_ends() {
    let world = World::new().with_rows(3);
    let mut mock = Running::start(
        &world,
        "mock --listen 127.0.0.1:0 --limit requests=100/1s --format json",
    );
    let line = mock.wait_for("listening");
    let url = line
        .split_whitespace()
        .nth(2)
        .unwrap()
        .trim_end_matches(',')
        .to_owned();
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
    let world = World::new();
    for (flags, part) in [
        ("--limit requests=5", "kind=count/period"),
        ("--fail 2", "use 0 to 1"),
        ("--outage 20s-10s", "10s-20s"),
        ("--foreign 10", "requests=10/s"),
        ("--replay none", "none"),
    ] {
        let outcome = world.run(&format!("mock --listen 127.0.0.1:0 {flags}"));
        assert!(matches!(outcome.code, 1 | 2), "{flags}: {outcome:?}");
        assert!(outcome.stderr.contains(part), "{flags}: {outcome:?}");
    }
}
