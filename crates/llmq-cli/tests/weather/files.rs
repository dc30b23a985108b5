//! Input of every make, and an output that cannot grow.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::World;
use crate::support::{Provider, Reply, Running};
use crate::{is_whole, kept, line, run_at};

#[test]
fn marks_line_ends_and_long_lines_reach_the_provider_as_they_were_meant() {
    let long = "x".repeat(5 << 20);
    let files = [
        (
            "in.csv",
            format!("\u{feff}name,n\r\nA,1\r\n\"B\r\nb\",2\r\n{long},3\r\n"),
            "B\r\nb",
        ),
        (
            "in.tsv",
            format!("\u{feff}name\tn\r\nA\t1\r\nB\t2\r\n{long}\t3\r\n"),
            "B",
        ),
        (
            "in.jsonl",
            format!(
                "\u{feff}{{\"name\":\"A\"}}\r\n{{\"name\":\"B\"}}\r\n{{\"name\":\"{long}\"}}\r\n"
            ),
            "B",
        ),
        ("in.txt", format!("\u{feff}A\r\nB\r\n{long}\r\n"), "B"),
    ];
    for (name, content, second) in files {
        let world = World::new();
        world.write(name, content);
        let provider = Provider::start(|_| Reply::ok());
        let template = if name == "in.txt" {
            ""
        } else {
            "--template {{name}}"
        };
        let line = format!(
            "run {name} -o out.jsonl --model m --base-url http://{}/v1 --progress none {template}",
            provider.addr
        );
        world.run(&line).says(0, &["3 completed, 0 failed"]);
        let mut prompts = provider.prompts();
        prompts.sort();
        assert!(prompts == ["A", second, &long], "{name}");
    }
}

#[test]
fn a_row_of_broken_utf8_is_named_and_the_others_go_on() {
    for name in ["in.csv", "in.tsv", "in.txt"] {
        let world = World::new();
        world.write(name, b"name\nA\nB\xff\nC\n");
        let provider = Provider::start(|_| Reply::ok());
        let template = if name == "in.txt" {
            ""
        } else {
            "--template {{name}}"
        };
        let line = format!(
            "run {name} -o out.jsonl --model m --base-url http://{}/v1 --progress none {template}",
            provider.addr
        );
        world
            .run(&format!("{line} --strict"))
            .says(2, &[name, "line 3", "UTF-8"]);
        assert_eq!(provider.prompts().len(), 0);
        world.run(&line).says(1, &["1 row failed"]);
        let failed: Vec<Value> = world
            .results("out.jsonl")
            .into_iter()
            .filter(|row| !row["error"].is_null())
            .collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0]["error"]["code"], "invalid_utf8");
        let message = failed[0]["error"]["message"].as_str().unwrap();
        assert!(message.contains("line 3"), "{message}");
    }
}

#[test]
fn an_output_under_a_file_is_refused_by_name() {
    let world = World::new().with_rows(1);
    let line = "run in.csv -o in.csv/out.jsonl --provider mock --template x --progress none";
    world
        .run(line)
        .says(2, &["cannot write in.csv/out.jsonl", "no directory in.csv"]);
}

#[test]
fn a_second_process_is_told_the_first_ones_number_and_disturbs_nothing() {
    let world = World::new().with_rows(50);
    let provider = Provider::start(|_| Reply::ok());
    let flags = "--limit requests=10/1s --progress json";
    let mut first = Running::start(&world, &line(provider.addr, flags));
    first.wait_for("\"done\"");
    let holder = format!("process {}", first.pid());
    let second = run_at(&world, provider.addr, "--limit requests=10/1s");
    second.says(2, &["out.jsonl is being written by", &holder]);
    let (code, _, said) = first.end();
    assert_eq!(code, 0, "{said}");
    is_whole(&world, 50);
    assert_eq!(provider.prompts().len(), 50);
}

/// What keeps an output from growing.
#[derive(Debug, Clone, Copy)]
enum Wall {
    /// The largest file that a process may write.
    FileSize,
    /// A disk of 8 MB; only where the system lets everybody mount one for themselves.
    Disk,
}

impl Wall {
    /// A shell's words that carry out `"$@"` before this wall, with `out.jsonl` in `disk`
    /// copied back afterwards.
    fn script(self) -> &'static str {
        match self {
            // Blocks of 512 bytes or of 1024, as shells differ. Without the trap the signal
            // would end the process before it sees the error.
            Self::FileSize => "trap '' XFSZ; ulimit -f 12288; \"$@\"",
            Self::Disk => {
                "mount -t tmpfs -o size=8m none disk || exit 99; \"$@\"; code=$?; \
                 cp disk/out.jsonl disk/out.jsonl.llmq . ; exit $code"
            }
        }
    }

    fn command(self, world: &World, line: &str) -> Command {
        let mut command = match self {
            Self::FileSize => Command::new("sh"),
            Self::Disk => {
                let mut command = Command::new("unshare");
                command.args(["-rm", "sh"]);
                command
            }
        };
        command.args(["-c", self.script(), "sh", env!("CARGO_BIN_EXE_llmq")]);
        command
            .args(crate::common::words(line))
            .current_dir(world.path(""));
        command
    }

    fn exists(self) -> bool {
        let can_mount = || {
            let world = World::new();
            std::fs::create_dir(world.path("disk")).unwrap();
            let mut command = Command::new("unshare");
            command.args([
                "-rm", "mount", "-t", "tmpfs", "-o", "size=8m", "none", "disk",
            ]);
            command.current_dir(world.path(""));
            command.output().is_ok_and(|output| output.status.success())
        };
        match self {
            Self::FileSize => true,
            Self::Disk => can_mount(),
        }
    }
}

#[test]
fn an_output_that_can_grow_no_more_stops_the_run_and_loses_nothing() {
    const ROWS: usize = 300;
    let full = [
        (Wall::FileSize, "out.jsonl", "cannot write out.jsonl"),
        (
            Wall::Disk,
            "disk/out.jsonl",
            "the disk of disk/out.jsonl is full: all finished rows are written",
        ),
    ];
    for (wall, output, message) in full.into_iter().filter(|(wall, ..)| wall.exists()) {
        let world = World::new().with_rows(ROWS);
        std::fs::create_dir(world.path("disk")).unwrap();
        let provider = Provider::start(|_| Reply::Text("long ".repeat(13_000)));
        let line = line(provider.addr, "--progress none --concurrency 8");
        let walled = line.replace("-o out.jsonl", &format!("-o {output}"));
        let stopped = wall.command(&world, &walled).output().unwrap();
        let said = String::from_utf8(stopped.stderr).unwrap();
        assert_eq!(stopped.status.code(), Some(2), "{wall:?}: {said}");
        assert!(said.contains(message), "{wall:?}: {said}");
        ends_with_a_whole_line(&world.path("out.jsonl"));

        let before = kept(&world);
        assert!(!before.is_empty() && before.len() < ROWS, "{wall:?}");
        world.run(&line).says(0, &["300 completed, 0 failed"]);
        is_whole(&world, ROWS);
        let counts = provider.counts();
        assert!(before.iter().all(|prompt| counts[prompt] == 1), "{wall:?}");
        if let Wall::Disk = wall {
            // The run went on into the room that was set aside for the calls in flight, and their
            // answers found none.
            assert!(counts.values().all(|count| *count == 1), "{counts:?}");
        }
    }
}

fn ends_with_a_whole_line(path: &Path) {
    assert!(std::fs::read(path).unwrap().ends_with(b"\n"));
}
