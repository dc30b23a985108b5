//! Rows of every kind on their way through, by the stand-in inside.

use serde_json::Value;

use crate::common::{MOCK, World};

const NAME: &str = "--template 'Introduce {{name}}.'";

#[test]
fn every_row_is_answered_once_and_the_proof_says_so() {
    let world = World::new().with_rows(40);
    let line = format!("run in.csv -o out.jsonl {MOCK} {NAME} --limit requests=100/1s");
    let outcome = world.run(&format!("{line} --summary sum.json --format json"));
    outcome.says(0, &[]);
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let fields = [
        "rows",
        "completed",
        "failed",
        "attempts",
        "rate_limited",
        "rate_limited_ours",
        "input_tokens",
        "output_tokens",
        "cost_usd",
        "elapsed_s",
        "bound_s",
        "efficiency",
        "paused_s",
        "resumed",
    ];
    for field in fields {
        assert!(summary.get(field).is_some(), "{field}");
    }
    assert_eq!(
        (&summary["completed"], &summary["rate_limited"]),
        (&40.into(), &0.into())
    );
    let written: Value =
        serde_json::from_slice(&std::fs::read(world.path("sum.json")).unwrap()).unwrap();
    assert_eq!(written, summary);

    let proof = world.run("run in.csv -o out.jsonl --verify");
    proof.says(0, &[]);
    assert!(proof.stdout.contains("every row is there exactly once"));
    world.run(&line).says(0, &["40 completed", "calls sent"]);
    assert_eq!(
        world.results("out.jsonl").len(),
        40,
        "nothing is sent twice"
    );
}

#[test]
fn a_proof_of_half_a_file_names_what_is_missing() {
    let world = World::new().with_rows(4);
    world
        .run(&format!(
            "run in.csv -o out.jsonl {MOCK} {NAME} --limit-rows 2"
        ))
        .says(0, &[]);
    let proof = world.run("run in.csv -o out.jsonl --verify --format jsonl");
    assert_eq!(proof.code, 1);
    let report: Value = serde_json::from_str(&proof.stdout).unwrap();
    assert_eq!(report["missing_ranges"], serde_json::json!([[3, 4]]));
    world
        .run("run in.csv -o none.jsonl --verify")
        .says(2, &["none.jsonl"]);
}

#[test]
fn bad_rows_become_error_rows_and_the_others_go_on() {
    let world = World::new();
    let mut input = b"\xEF\xBB\xBF{\"id\":\"a\",\"name\":\"A\"}\r\n".to_vec();
    input.extend_from_slice(b"{\"id\":\"a\",\"name\":\"B\"}\r\n");
    input.extend_from_slice(b"not json\r\n");
    input.extend_from_slice(b"{\"id\":\"c\"}\r\n");
    input.extend_from_slice(b"{\"id\":\"d\",\"name\":\"\xFF\"}\r\n");
    let long = format!("{{\"id\":\"e\",\"name\":\"{}\"}}", "x".repeat(5 << 20));
    input.extend_from_slice(long.as_bytes());
    world.write("in.jsonl", input);
    let line = format!("run in.jsonl -o out.jsonl --errors err.jsonl --id id {MOCK} {NAME}");
    world.run(&line).says(
        1,
        &[
            "4 rows failed for good",
            "err.jsonl says why",
            "--retry-failed",
        ],
    );
    let mut done: Vec<_> = world
        .results("out.jsonl")
        .iter()
        .map(|row| row["llmq"]["line"].clone())
        .collect();
    done.sort_by_key(Value::as_u64);
    assert_eq!(done, [1, 6]);
    let mut errors: Vec<_> = world
        .results("err.jsonl")
        .iter()
        .map(|row| {
            (
                row["llmq"]["line"].as_u64().unwrap(),
                row["error"]["code"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    errors.sort();
    let expected = [
        (2, "duplicate_id"),
        (3, "invalid_json"),
        (4, "missing_column"),
        (5, "invalid_utf8"),
    ];
    assert_eq!(errors, expected.map(|(line, code)| (line, code.to_owned())));
}

#[test]
fn a_row_above_the_whole_token_limit_fails_at_once_and_the_run_goes_on() {
    let world = World::new();
    world.write(
        "in.txt",
        format!("short\n{}\nshort too\n", "long ".repeat(4_000)),
    );
    let flags = "--limit tokens=2000/1s --param max_tokens=10";
    world
        .run(&format!("run in.txt -o out.jsonl {MOCK} {flags}"))
        .says(1, &["1 row failed"]);
    let results = world.results("out.jsonl");
    assert_eq!(results.len(), 3);
    let failed = results.iter().find(|row| !row["error"].is_null()).unwrap();
    assert_eq!(failed["llmq"]["line"], 2);
    assert_eq!(failed["error"]["code"], "too-large");
}

#[test]
fn the_batch_form_names_its_own_model_and_standard_input_is_read() {
    let world = World::new();
    let row = |id: &str| {
        format!(
            "{{\"custom_id\":\"{id}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\
             \"body\":{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}}}\n"
        )
    };
    let line = format!("run - -o out.jsonl --input-format batch {MOCK}");
    let mut command = world.command(crate::common::words(&line));
    command.write_stdin(row("x") + &row("y"));
    crate::common::outcome(&mut command).says(0, &[]);
    let results = world.results("out.jsonl");
    assert_eq!(results.len(), 2);
    assert!(
        results
            .iter()
            .all(|row| row["response"]["body"]["model"] == "m")
    );
}

#[test]
fn compressed_rows_a_template_from_a_file_and_exact_counts_go_through() {
    // "name\nA\nB\n", packed by gzip and as one raw block of zstd.
    const GZ: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xcb\x4b\xcc\x4d\xe5\x72\xe4\x72\xe2\x02\x00\xc7\x3b\xa4\x9a\x09\x00\x00\x00";
    const ZST: &[u8] = b"\x28\xb5\x2f\xfd\x20\x09\x49\x00\x00name\nA\nB\n";
    let world = World::new();
    // As an editor writes it: what stands at its ends is no part of the prompt.
    world.write("prompt.txt", "\u{feff}Introduce {{name}}.\r\n");
    for (file, packed) in [("in.csv.gz", GZ), ("in.csv.zst", ZST)] {
        world.write(file, packed);
        let flags = "--template-file prompt.txt --count-tokens exact --model gpt-4o-mini";
        let dry = world.run(&format!("run {file} --dry-run --format json {flags}"));
        dry.says(0, &[]);
        let shown: Value = serde_json::from_str(&dry.stdout).unwrap();
        let message = &shown["calls"][1]["body"]["messages"][0];
        assert_eq!(message["content"], "Introduce B.", "{file}");
        let run = format!("run {file} -o {file}.jsonl {flags} {MOCK}");
        world.run(&run).says(0, &["2 completed, 0 failed"]);
        assert_eq!(world.results(&format!("{file}.jsonl")).len(), 2);
    }
}

#[test]
fn plain_progress_is_for_logs_and_says_where_the_run_stands() {
    let world = World::new().with_rows(10);
    let line = format!("run in.csv -o out.jsonl --provider mock --progress plain {NAME}");
    // A line every ten seconds.
    let outcome = world.run(&format!("{line} --limit requests=2/3s"));
    outcome.says(0, &["of 10", "10 completed, 0 failed"]);
    assert!(!outcome.stderr.contains('\u{1b}'), "{}", outcome.stderr);
}

#[test]
fn a_dry_run_shows_three_calls_and_needs_neither_key_nor_output() {
    let world = World::new().with_rows(5);
    let flags = "--model m --system 'Be brief.' --param max_tokens=9";
    let outcome = world.run(&format!(
        "run in.csv --dry-run --format json {NAME} {flags}"
    ));
    outcome.says(0, &[]);
    let shown: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(shown["rows"], 5);
    assert_eq!(shown["calls"].as_array().unwrap().len(), 3);
    let body = &shown["calls"][0]["body"];
    assert_eq!(body["messages"][1]["content"], "Introduce Place 1.");
    assert_eq!(
        (&body["model"], &body["max_tokens"]),
        (&"m".into(), &9.into())
    );
    let people = world.run(&format!("run in.csv --dry-run {NAME} {flags}"));
    people.says(0, &["5 rows", "nothing was sent"]);
}

/// What a run refuses was good in a dry run, which made its calls by code of its own.
#[test]
fn a_dry_run_and_a_plan_call_those_rows_bad_that_a_run_does() {
    let world = World::new();
    let row = |id: &str, url: &str, more: &str| {
        let messages = r#"[{"role":"user","content":"Hello"}]"#;
        format!(
            r#"{{"custom_id":"{id}","method":"POST","url":"{url}","body":{{"model":"m","messages":{messages}{more}}}}}"#
        )
    };
    let rows = [
        row("good", "/v1/chat/completions", ""),
        row("stream", "/v1/chat/completions", r#","stream":true"#),
        row("other", "/v1/messages", r#","max_tokens":5"#),
    ];
    world.write("in.jsonl", rows.join("\n"));
    let shown = |line: &str| -> Value {
        let outcome = world.run(&format!("{line} --format json"));
        outcome.says(0, &[]);
        serde_json::from_str(&outcome.stdout).unwrap()
    };
    let dry = shown("run in.jsonl --dry-run");
    assert_eq!((&dry["rows"], &dry["bad_rows"]), (&3.into(), &2.into()));
    assert_eq!(dry["calls"].as_array().unwrap().len(), 1);
    let plan = shown("plan in.jsonl");
    assert_eq!((&plan["rows"], &plan["bad_rows"]), (&1.into(), &2.into()));
    world
        .run(&format!("run in.jsonl -o out.jsonl {MOCK}"))
        .says(1, &["1 completed, 2 failed"]);
}

#[test]
fn progress_is_lines_of_json_when_asked_for_and_words_stay_off_stdout() {
    let world = World::new().with_rows(12);
    let line = format!("run in.csv -o out.jsonl --provider mock --progress json {NAME}");
    let outcome = world.run(&format!("{line} --limit requests=6/1s"));
    outcome.says(0, &["\"rows_per_s\""]);
    assert_eq!(outcome.stdout, "");
    let objects = outcome.stderr.lines().filter(|line| line.starts_with('{'));
    for object in objects {
        let seen: Value = serde_json::from_str(object).unwrap();
        assert!(seen["done"].as_u64().unwrap() <= 12);
    }
    let quiet = world.run(&format!("run in.csv -o out.jsonl {MOCK} {NAME} -q"));
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
}

#[test]
fn csv_output_and_a_log_are_written_when_asked_for() {
    let world = World::new().with_rows(2);
    let flags = "--log run.log --log-format json -v";
    world
        .run(&format!("run in.csv -o out.csv {MOCK} {NAME} {flags}"))
        .says(0, &[]);
    let csv = std::fs::read_to_string(world.path("out.csv")).unwrap();
    assert_eq!(csv.lines().count(), 3, "{csv}");
    let log = std::fs::read_to_string(world.path("run.log")).unwrap();
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}
