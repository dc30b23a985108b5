//! What is refused before anything is sent: exit code 2, a message that names file, line, column
//! or flag, and no output file left behind.

use llmq_core::WallTime;
use llmq_engine::bulk::{Holder, OutputLock};

use crate::common::{MOCK, World, exists, outcome, words};

/// A file `name` with `content` is refused with `parts`, whatever else is right.
fn refuses(name: &str, content: impl AsRef<[u8]>, flags: &str, parts: &[&str]) {
    let world = World::new();
    world.write(name, content);
    let outcome = world.run(&format!("run {name} -o out.jsonl {MOCK} {flags}"));
    outcome.says(2, parts);
    assert!(outcome.stderr.starts_with("error: "), "{outcome:#?}");
    assert!(!exists(&world.path("out.jsonl")), "{name} {flags}");
}

const NAME: &str = "--template 'Introduce {{name}}.'";

#[test]
fn an_input_without_rows_is_refused() {
    refuses("in.csv", "", NAME, &["in.csv", "empty"]);
    refuses(
        "in.csv",
        "name\n",
        NAME,
        &["in.csv is empty: it has no rows after its header"],
    );
    refuses("in.jsonl", "", NAME, &["in.jsonl is empty"]);
    refuses("in.txt", "\u{feff}\r\n", "", &["in.txt is empty"]);
}

#[test]
fn a_column_that_is_not_there_is_named_with_those_that_are() {
    let wrong = "--template 'Introduce {{nome}}.'";
    refuses(
        "in.csv",
        "name,country\na,b\n",
        wrong,
        &["\"nome\"", "in.csv has no such column", "name", "country"],
    );
    refuses(
        "in.jsonl",
        "{\"name\":\"a\"}\n",
        wrong,
        &["\"nome\"", "name"],
    );
    let id = format!("{NAME} --id isbn");
    refuses("in.csv", "name\na\n", &id, &["--id names \"isbn\""]);
}

#[test]
fn a_template_that_cannot_be_read_is_refused_with_its_place() {
    refuses(
        "in.csv",
        "name\na\n",
        "--template 'Say {{name'",
        &["--template: the template opens {{ at character 5"],
    );
    refuses(
        "in.csv",
        "name\na\n",
        "--template 'Say {{}}'",
        &["no name between the braces"],
    );
    refuses(
        "in.csv",
        "name\na\n",
        "--template-file none.txt",
        &["--template-file: cannot read none.txt"],
    );
}

#[test]
fn rows_that_need_a_template_say_so_with_an_example() {
    refuses(
        "in.csv",
        "name\na\n",
        "",
        &["need a template: say --template", "{{name}}"],
    );
    refuses(
        "in.jsonl",
        "{\"name\":\"a\"}\n",
        "",
        &["need a template: say --template", "{{name}}"],
    );
}

/// They were passed over in silence: every row was sent without its cap.
#[test]
fn what_rows_in_batch_form_would_not_be_sent_with_is_refused_by_name() {
    let row = r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}"#;
    for (flags, flag) in [
        ("--param max_tokens=9", "--param"),
        ("--system x", "--system"),
    ] {
        let part = format!("{flag} cannot be used with in.jsonl: its rows bring their own bodies");
        refuses("in.jsonl", row, flags, &[&part]);
        refuses("in.jsonl", row, &format!("{flags} --dry-run"), &[&part]);
        let world = World::new();
        world.write("in.jsonl", row);
        let plan = world.run(&format!("plan in.jsonl --provider mock {flags}"));
        plan.says(2, &[&part]);
    }
}

#[test]
fn another_kind_of_file_is_recognised() {
    refuses("in.csv", b"\xFF\xFEn\0a\0", NAME, &["UTF-16", "UTF-8"]);
    refuses("in.csv", b"\x1F\x8B\x08\0", NAME, &["gzip data", ".gz"]);
    refuses("in.csv", b"PK\x03\x04", NAME, &["export it as CSV"]);
    refuses("in.data", "name\na\n", NAME, &["in.data", "--input-format"]);
    refuses(
        "in.csv",
        "name\na\n",
        "--input-format xml --template x",
        &["--input-format: \"xml\" is no input format"],
    );
}

#[test]
fn strict_refuses_the_file_and_names_the_line() {
    let strict = format!("{NAME} --strict");
    refuses(
        "in.csv",
        "name\na\nb,c\n",
        &strict,
        &["--strict refuses it", "line 3"],
    );
    refuses(
        "in.jsonl",
        "{\"name\":\"a\"}\nnot json\n",
        &strict,
        &["--strict", "line 2"],
    );
}

/// It was read twice: what the first reader had in hand was sent, the last row of it cut in the
/// middle, and all that the second one had read was gone.
#[test]
fn strict_refuses_what_can_be_read_only_once() {
    let world = World::new();
    let line = format!("run - --input-format txt -o out.jsonl {MOCK}");
    let rows = "a prompt of some words\n".repeat(5_000);
    let run = |flags: &str| {
        let mut command = world.command(words(&format!("{line} {flags}")));
        outcome(command.write_stdin(rows.clone()))
    };
    let parts = [
        "--strict cannot be used with standard input",
        "must be a file",
    ];
    run("--strict").says(2, &parts);
    assert!(!exists(&world.path("out.jsonl")));
    run("").says(0, &["5,000 completed"]);
}

#[test]
fn an_input_that_is_not_there_leaves_no_output() {
    let world = World::new();
    let outcome = world.run(&format!("run none.csv -o out.jsonl {MOCK} {NAME}"));
    outcome.says(2, &["cannot open none.csv"]);
    assert!(!exists(&world.path("out.jsonl")));
}

#[test]
fn an_output_that_cannot_be_written_is_refused() {
    let world = World::new().with_rows(1);
    world.write("foreign.jsonl", "my own notes\n");
    std::fs::create_dir(world.path("folder.jsonl")).unwrap();
    let check = |output: &str, parts: &[&str]| {
        world
            .run(&format!("run in.csv {MOCK} {NAME} -o {output}"))
            .says(2, parts);
    };
    check(
        "none/out.jsonl",
        &["none/out.jsonl", "there is no directory none"],
    );
    check("out.jsonl.gz", &["cannot be packed"]);
    check(
        "foreign.jsonl",
        &["foreign.jsonl holds something that llmq did not write"],
    );
    check("folder.jsonl", &["folder.jsonl"]);
    check(
        "out.jsonl --errors out.jsonl",
        &["out.jsonl is named for both OUTPUT and --errors"],
    );
    let notes = std::fs::read_to_string(world.path("foreign.jsonl")).unwrap();
    assert_eq!(notes, "my own notes\n");
}

/// At the end of a paid run its summary took the place of all results.
#[test]
fn one_file_for_two_purposes_is_refused() {
    let world = World::new().with_rows(1);
    std::fs::create_dir(world.path("folder")).unwrap();
    world.write("prompt.txt", "Introduce {{name}}.");
    let input = std::fs::read(world.path("in.csv")).unwrap();
    for (flags, parts) in [
        ("--summary ./out.jsonl", "OUTPUT and --summary"),
        ("--summary folder/../out.jsonl", "OUTPUT and --summary"),
        ("--log out.jsonl", "OUTPUT and --log"),
        ("--summary in.csv", "INPUT and --summary"),
        (
            "--errors e.jsonl --summary e.jsonl",
            "--errors and --summary",
        ),
        ("--summary s.json --log s.json", "--summary and --log"),
        (
            "--log out.jsonl.llmq",
            "--log and what llmq keeps beside OUTPUT",
        ),
        ("--summary prompt.txt", "--template-file and --summary"),
    ] {
        let line = format!("run in.csv {MOCK} --template-file prompt.txt -o out.jsonl {flags}");
        let parts = format!("is named for both {parts}; choose two files");
        world.run(&line).says(2, &[&parts]);
        let files = std::fs::read_dir(world.path("")).unwrap().count();
        assert_eq!(files, 3, "{flags}");
    }
    assert_eq!(std::fs::read(world.path("in.csv")).unwrap(), input);
    if cfg!(unix) {
        let devices = "--summary /dev/null --log /dev/null";
        let line = format!("run in.csv {MOCK} {NAME} -o out.jsonl {devices}");
        world.run(&line).says(0, &[]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_nobody_may_write_to_is_refused() {
    let world = World::new().with_rows(1);
    let outcome = world.run(&format!("run in.csv {MOCK} {NAME} -o /sys/out.jsonl"));
    outcome.says(2, &["cannot write /sys/out.jsonl"]);
}

#[test]
fn a_second_process_is_told_who_has_the_output() {
    let world = World::new().with_rows(1);
    let holder = Holder::this_process(WallTime::from_micros(0));
    let _lock = OutputLock::acquire(&world.path("out.jsonl"), &holder).unwrap();
    let outcome = world.run(&format!("run in.csv {MOCK} {NAME} -o out.jsonl"));
    let pid = format!("process {}", std::process::id());
    outcome.says(2, &["is being written by", &pid]);
}

/// It had a lock, a side file and a past of its own.
#[cfg(unix)]
#[test]
fn a_symbolic_link_stands_for_the_output_that_it_leads_to() {
    let world = World::new().with_rows(3);
    let run = |flags: &str| world.run(&format!("run in.csv {MOCK} {NAME} {flags}"));
    std::os::unix::fs::symlink("out.jsonl", world.path("link.jsonl")).unwrap();
    run("-o link.jsonl --errors out.jsonl").says(2, &["is named for both OUTPUT and --errors"]);
    run("-o link.jsonl --log out.jsonl.lock").says(
        2,
        &["named for both --log and what llmq keeps beside OUTPUT"],
    );
    run("-o link.jsonl").says(0, &[]);
    assert!(exists(&world.path("out.jsonl.llmq")) && !exists(&world.path("link.jsonl.llmq")));
    world.write("in.csv", "name,country\nOther,Land\n");
    run("-o link.jsonl").says(2, &["belongs to another run"]);
    run("-o link.jsonl --restart").says(0, &[]);
    assert!(world.path("link.jsonl").is_symlink());
    assert_eq!(world.results("out.jsonl").len(), 1);
    assert_eq!(world.results("out.jsonl.1").len(), 3);
}

#[test]
fn a_changed_input_or_prompt_stops_until_it_is_wanted() {
    let world = World::new().with_rows(3);
    let run = |flags: &str| world.run(&format!("run in.csv {MOCK} -o out.jsonl {flags}"));
    run(NAME).says(0, &[]);
    world.write("in.csv", "name,country\nOther,Land\n");
    run(NAME).says(
        2,
        &["belongs to another run", "--resume-anyway", "--restart"],
    );
    run("--template 'Sing of {{name}}.'").says(2, &["template"]);
    run(&format!("{NAME} --resume-anyway")).says(0, &[]);
    assert_eq!(world.results("out.jsonl").len(), 3);
    world.write("in.csv", "name,country\nThird,Land\n");
    run(&format!("{NAME} --restart")).says(0, &[]);
    assert_eq!(world.results("out.jsonl").len(), 1);
}

#[test]
fn flags_that_cannot_be_meant_are_refused_by_name() {
    let world = World::new().with_rows(1);
    for (flags, parts) in [
        ("--rpm many", &["--rpm", "`many` is not a count"][..]),
        (
            "--limit images=1/1s",
            &["--limit", "`images` cannot be limited"],
        ),
        ("--limit requests=5", &["--limit", "kind=count/period"]),
        ("--limit requests=1/1y", &["`1y` is not a period"]),
        (
            "--limit requests=1/1s:leaky",
            &["`leaky` is not an algorithm"],
        ),
        (
            "--param temperature=hot",
            &["--param", "--param 'temperature=\"hot\"'"],
        ),
        (
            "--param model=\"x\"",
            &["--param: the parameter `model` cannot be set"],
        ),
        (
            "--timeout 10",
            &["--timeout", "`10` is not a length of time"],
        ),
        ("--price 1", &["--price", "input/output"]),
        (
            "--quota-threshold 1.5",
            &["--quota-threshold", "1.5 is out of range, use 0.1 to 1"],
        ),
        (
            "--quota-threshold 0.05",
            &["--quota-threshold", "out of range"],
        ),
        (
            "--pause-duration 100",
            &["--pause-duration", "100 is out of range, use 1 to 72"],
        ),
        ("--pause-duration 0", &["--pause-duration", "out of range"]),
        ("--daily-limit 0", &["--daily-limit", "0 allows nothing"]),
        (
            "--quota-log-interval 0",
            &["--quota-log-interval", "out of range"],
        ),
        ("--max-attempts 0", &["--max-attempts", "out of range"]),
        (
            "--quota-monitoring maybe",
            &["--quota-monitoring", "neither true nor false"],
        ),
        ("--limit-rows 0", &["--limit-rows"]),
        ("--base-url api.openai.com", &["base URL"]),
    ] {
        let line = format!("run in.csv -o out.jsonl {MOCK} {NAME} {flags}");
        world.run(&line).says(2, parts);
    }
    assert!(!exists(&world.path("out.jsonl")));
}

#[test]
fn a_real_provider_needs_a_model_and_a_key() {
    let world = World::new().with_rows(1);
    let run = |flags: &str| world.run(&format!("run in.csv -o out.jsonl {NAME} {flags}"));
    run("").says(2, &["no model is named: say --model"]);
    run("--model m").says(2, &["OPENAI_API_KEY is not set", "--api-key-env"]);
    run("--model m --provider anthropic").says(2, &["ANTHROPIC_API_KEY is not set"]);
    run("--model m --api-key-env MY_KEY").says(2, &["MY_KEY is not set"]);
    run("--model m --provider nobody").says(2, &["--provider"]);
    assert!(!exists(&world.path("out.jsonl")));
}
