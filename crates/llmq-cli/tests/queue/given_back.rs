//! `llmq run --batch`: what a server gives back, forgets, or does not answer.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::handed_in::{Files, all_of, batches, ends};
use crate::scripted::{Question, Reply, Scripted};
use crate::server::{PATIENCE, Place};

/// A batch as it stands.
fn batch(status: &str, completed: u64, files: &[(&str, &str)]) -> Reply {
    let mut batch = json!({"id": "batch-1", "status": status,
        "request_counts": {"completed": completed}});
    for (name, file) in files {
        batch[*name] = (*file).into();
    }
    Reply::Json(200, batch)
}

/// A batch of which one row was answered and others were not.
fn answered_in_part() -> Reply {
    let files = [
        ("output_file_id", "file-out"),
        ("error_file_id", "file-err"),
    ];
    batch("completed", 1, &files)
}

fn line(row: u64, status: u16, body: &Value) -> Value {
    json!({"custom_id": format!("{row} row-{row}"), "error": null,
        "response": {"status_code": status, "request_id": "r", "body": body}})
}

fn answered(row: u64) -> Value {
    line(
        row,
        200,
        &json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
    )
}

/// It finishes a batch of so many rows.
fn finishes(rows: u64) -> impl FnMut(&Question) -> Option<Reply> + Send {
    move |question| match question.what.as_str() {
        "GET /v1/files/file-out/content" => Some(Reply::Lines((1..=rows).map(answered).collect())),
        what if what.starts_with("GET /v1/batches/") => {
            Some(batch("completed", rows, &[("output_file_id", "file-out")]))
        }
        _ => None,
    }
}

/// A mistyped model made results of failure of all rows, hundred by hundred.
#[test]
fn a_model_that_a_run_may_not_use_stops_it_and_fails_no_row() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let mut files = Files::with_rows(2_500);
    files.model = "nobody-has-this";
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("nobody-has-this"), "{said}");
    assert!(files.results().is_empty());
    assert_eq!(batches(&server).len(), 1, "one shows it");
    assert!(all_of(&server, "files?").is_empty());
    files.model = "gpt";
    let mut command = files.command(server.addr);
    command.arg("--resume-anyway");
    let (code, said) = ends(command);
    assert_eq!(code, 0, "{said}");
    files.are_whole(2_500);
}

#[test]
fn rows_that_ask_for_a_model_that_is_not_there_fail_together() {
    let body = json!({"model": "nobody-has-this", "messages": [{"role": "user", "content": "hi"}]});
    let rows = (0..250).map(|row| {
        let line = json!({"custom_id": row.to_string(), "method": "POST",
            "url": "/v1/chat/completions", "body": body});
        format!("{line}\n")
    });
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let files = Files::with("in.jsonl", &rows.collect::<String>());
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 1, "{said}");
    let results = files.results();
    assert_eq!(results.len(), 250);
    for row in results {
        assert_eq!(row["error"]["code"], "model_not_found", "{row}");
    }
    assert_eq!(batches(&server).len(), 1, "they are not tried by hundreds");
}

/// The rows in flight when a key was revoked had failed for good.
#[test]
fn rows_that_the_account_refuses_have_no_result() {
    let refusal = json!({"error": {"message": "no such key", "code": "invalid_api_key"}});
    let server = Scripted::start(move |question| match question.what.as_str() {
        "GET /v1/files/file-out/content" => Some(Reply::Lines(vec![answered(1)])),
        "GET /v1/files/file-err/content" => Some(Reply::Lines(vec![
            line(2, 401, &refusal),
            line(3, 400, &json!({"error": "no such parameter"})),
        ])),
        what if what.starts_with("GET /v1/batches/") => Some(answered_in_part()),
        _ => None,
    });
    let files = Files::with_rows(3);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("no such key"), "{said}");
    let results = files.results();
    let rows: Vec<_> = results.iter().map(|row| &row["llmq"]["line"]).collect();
    assert_eq!(rows, [1, 3]);
    assert_eq!(results[1]["error"]["message"], "no such parameter");
    assert_eq!(server.count("DELETE /v1/files/file-1"), 1);

    server.then(finishes(2));
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 1, "row 3 failed for its own reason: {said}");
    assert_eq!(files.results().len(), 3);
}

/// They had failed for good, all of a file within a second.
#[test]
fn rows_for_which_a_keys_budget_has_no_room_are_for_the_next_run() {
    let spent = |row: u64| {
        json!({"custom_id": format!("{row} row-{row}"), "response": null,
            "error": {"code": "budget_exhausted", "message": "2000 tokens a day are spent"}})
    };
    let server = Scripted::start(move |question| match question.what.as_str() {
        "GET /v1/files/file-out/content" => Some(Reply::Lines(vec![answered(1)])),
        "GET /v1/files/file-err/content" => Some(Reply::Lines(vec![spent(2), spent(3)])),
        what if what.starts_with("GET /v1/batches/") => Some(answered_in_part()),
        _ => None,
    });
    let files = Files::with_rows(3);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("2000 tokens a day are spent"), "{said}");
    assert_eq!(files.results().len(), 1);

    server.then(finishes(3));
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    files.are_whole(3);
}

/// Each call of the command ended at once with what the server had said of the file.
#[test]
fn a_batch_whose_results_are_gone_can_be_given_up() {
    let server = Scripted::start(|question| match question.what.as_str() {
        "GET /v1/files/file-out/content" => {
            Some(Reply::Json(404, json!({"error": {"message": "no"}})))
        }
        what if what.starts_with("GET /v1/batches/") => {
            Some(batch("completed", 3, &[("output_file_id", "file-out")]))
        }
        _ => None,
    });
    let files = Files::with_rows(3);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("rows 1-3"), "{said}");

    let mut finish = finishes(3);
    server.then(move |question| match question.what.as_str() {
        "GET /v1/batches/batch-1" => Some(batch("completed", 3, &[("output_file_id", "gone")])),
        "GET /v1/files/gone/content" => Some(Reply::Json(404, json!({}))),
        _ => finish(question),
    });
    let mut command = files.command(server.addr);
    command.arg("--resume-anyway");
    let (code, said) = ends(command);
    assert_eq!(code, 0, "{said}");
    files.are_whole(3);
}

/// It was asked for again for ever.
#[test]
fn a_file_that_always_breaks_off_ends_a_run() {
    let mut finish = finishes(3);
    let server = Scripted::start(move |question| match question.what.as_str() {
        "GET /v1/files/file-out/content" => Some(Reply::Cut),
        _ => finish(question),
    });
    let files = Files::with_rows(3);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("cannot give its file file-out"), "{said}");
    server.then(finishes(3));
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    files.are_whole(3);
}

/// Each call of the command took one such batch, and stopped.
#[test]
fn all_that_has_ended_is_fetched_before_the_account_stops_a_run() {
    let server = Scripted::start(|question| match question.what.as_str() {
        what if what.starts_with("GET /v1/batches/") => Some(batch("in_progress", 0, &[])),
        _ => None,
    });
    let files = Files::with_rows(2_001);
    let mut command = files.command(server.addr);
    let mut client = command.stderr(Stdio::null()).spawn().unwrap();
    server.comes_to("GET /v1/batches/batch-1", 2);
    interrupt(&client);
    assert_eq!(client.wait().unwrap().code(), Some(130));

    let refusal = json!({"error": {"message": "no such key", "code": "invalid_api_key"}});
    server.then(move |question| match question.what.as_str() {
        "GET /v1/files/file-a/content" => Some(Reply::Lines(vec![line(1, 401, &refusal)])),
        "GET /v1/files/file-b/content" => Some(Reply::Lines(vec![line(1_001, 401, &refusal)])),
        "GET /v1/batches/batch-1" => Some(batch("completed", 0, &[("error_file_id", "file-a")])),
        "GET /v1/batches/batch-2" => Some(batch("completed", 0, &[("error_file_id", "file-b")])),
        "GET /v1/batches/batch-3" => Some(batch("in_progress", 0, &[])),
        _ => None,
    });
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("1 batch goes on"), "{said}");
    assert_eq!(
        server.count("POST /v1/batches"),
        3,
        "nothing more is handed in"
    );
}

/// Its rows were handed in again by the run whose batches had just been cancelled.
#[test]
fn a_batch_that_is_cancelled_before_it_was_read_gives_its_rows_back() {
    let server = Scripted::start(|question| match question.what.as_str() {
        what if what.starts_with("GET /v1/batches/") => Some(batch("cancelled", 0, &[])),
        _ => None,
    });
    let files = Files::with_rows(2_500);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 130, "{said}");
    assert!(said.contains("rows did not start"), "{said}");
    let handed_in = server.count("POST /v1/batches");
    assert!(handed_in <= 3, "{handed_in}: none a second time");
    assert!(files.results().is_empty());
}

#[test]
fn a_server_that_is_away_while_results_are_fetched_is_waited_for() {
    let (mut left, mut finish) = (2, finishes(3));
    let server = Scripted::start(move |question| {
        if question.what.ends_with("/content") && left > 0 {
            left -= 1;
            return Some(match left {
                1 => Reply::Json(503, json!({"error": {"message": "a proxy's"}})),
                _ => Reply::Cut,
            });
        }
        finish(question)
    });
    let files = Files::with_rows(3);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    files.are_whole(3);
    assert_eq!(server.count("GET /v1/files/file-out/content"), 3);
    for file in ["file-1", "file-out"] {
        assert_eq!(
            server.count(&format!("DELETE /v1/files/{file}")),
            1,
            "{file}"
        );
    }
}

#[test]
fn a_batch_whose_making_was_not_heard_of_is_asked_for_by_its_key() {
    let (mut left, mut finish) = (1, finishes(3));
    let server = Scripted::start(move |question| {
        if question.what == "POST /v1/batches" && left > 0 {
            left -= 1;
            return Some(Reply::Cut);
        }
        finish(question)
    });
    let files = Files::with_rows(3);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    let asked = server.asked();
    let made = asked
        .iter()
        .filter(|asked| asked.what == "POST /v1/batches");
    let keys: Vec<_> = made.map(|asked| asked.idempotency_key.as_deref()).collect();
    assert_eq!(keys, [Some("file-1"); 2]);
}

#[test]
fn a_batch_that_found_no_room_is_made_again_of_the_same_file() {
    for code in ["queue_full", "queue_draining"] {
        let errors = json!({"data": [{"code": code, "message": "no room"}]});
        let refused = json!({"id": "batch-1", "status": "failed", "errors": errors});
        let mut finish = finishes(3);
        let server = Scripted::start(move |question| match question.what.as_str() {
            "GET /v1/batches/batch-1" => Some(Reply::Json(200, refused.clone())),
            _ => finish(question),
        });
        let files = Files::with_rows(3);
        let mut command = files.command(server.addr);
        let mut client = command.stderr(Stdio::null()).spawn().unwrap();
        // It lets a while go by for the queue, in which it can be left.
        server.comes_to("GET /v1/batches/batch-1", 1);
        interrupt(&client);
        assert_eq!(client.wait().unwrap().code(), Some(130));
        let (code, said) = ends(files.command(server.addr));
        assert_eq!(code, 0, "{said}");
        files.are_whole(3);
        let count = |what| server.count(what);
        assert_eq!([count("POST /v1/files"), count("POST /v1/batches")], [1, 2]);
    }
}

/// More would keep their room at the server, and take long to cancel.
#[test]
fn so_many_batches_are_at_the_server_at_once() {
    const AT_ONCE: u64 = 64;
    const ROWS: u64 = AT_ONCE * 1_000 + 1;
    let mut made = 0;
    let server = Scripted::start(move |question| {
        let what = question.what.as_str();
        if what == "POST /v1/batches" {
            made += 1;
        } else if let Some(batch_number) = what.strip_prefix("GET /v1/batches/batch-") {
            let output = format!("out-{batch_number}");
            return Some(match made < AT_ONCE {
                true => batch("in_progress", 0, &[]),
                false => batch("completed", 1, &[("output_file_id", &output)]),
            });
        } else if let Some(output) = what.strip_prefix("GET /v1/files/out-") {
            let number: u64 = output.strip_suffix("/content")?.parse().ok()?;
            let rows = (number - 1) * 1_000 + 1..=(number * 1_000).min(ROWS);
            return Some(Reply::Lines(rows.map(answered).collect()));
        }
        None
    });
    let files = Files::with_rows(ROWS.try_into().unwrap());
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    files.are_whole(ROWS);
    let (mut there, mut most) = (0_u64, 0);
    for question in server.asked() {
        match question.what.as_str() {
            "POST /v1/files" => there += 1,
            what if what.starts_with("DELETE /v1/files/file-") => there -= 1,
            _ => {}
        }
        most = most.max(there);
    }
    assert_eq!(most, AT_ONCE);
}

/// It waited for an answer for two minutes.
#[test]
fn who_leaves_while_a_server_is_silent_leaves_at_once() {
    let server = Scripted::start(|question| match question.what.as_str() {
        "POST /v1/files" => Some(Reply::Silence),
        _ => None,
    });
    let files = Files::with_rows(3);
    let mut command = files.command(server.addr);
    let mut client = command.stderr(Stdio::null()).spawn().unwrap();
    server.comes_to("POST /v1/files", 1);
    let begun = Instant::now();
    interrupt(&client);
    assert_eq!(client.wait().unwrap().code(), Some(130));
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

fn interrupt(client: &std::process::Child) {
    let pid = client.id().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(sent.unwrap().success());
}

/// Results that were not fetched in time cost all of OUTPUT: nothing else went on.
#[test]
fn a_batch_that_is_known_no_more_holds_up_no_other_and_can_be_given_up() {
    let server = Scripted::start(|question| match question.what.as_str() {
        what if what.starts_with("GET /v1/batches/") => Some(batch("in_progress", 0, &[])),
        _ => None,
    });
    let files = Files::with_rows(1_003);
    let mut command = files.command(server.addr);
    let mut client = command.stderr(Stdio::null()).spawn().unwrap();
    // The first is asked after again when all are there.
    server.comes_to("GET /v1/batches/batch-1", 2);
    interrupt(&client);
    assert_eq!(client.wait().unwrap().code(), Some(130));

    let rest = |question: &Question| match question.what.as_str() {
        "GET /v1/batches/batch-1" => Some(Reply::Json(404, json!({"error": {"message": "no"}}))),
        "GET /v1/files/file-out/content" => {
            Some(Reply::Lines((1_001..=1_003).map(answered).collect()))
        }
        "GET /v1/batches/batch-2" => Some(batch("completed", 3, &[("output_file_id", "file-out")])),
        _ => None,
    };
    server.then(rest);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("rows 1-1000"), "{said}");
    assert!(said.contains("keep_results"), "{said}");
    assert_eq!(files.results().len(), 3, "the other was fetched");
    assert_eq!(server.count("POST /v1/batches"), 2);

    server.then(move |question| match question.what.as_str() {
        "GET /v1/files/file-out/content" => Some(Reply::Lines((1..=1_000).map(answered).collect())),
        "GET /v1/batches/batch-3" => Some(batch("completed", 1, &[("output_file_id", "file-out")])),
        _ => rest(question),
    });
    let mut command = files.command(server.addr);
    command.arg("--resume-anyway");
    let (code, said) = ends(command);
    assert_eq!(code, 0, "{said}");
    files.are_whole(1_003);
}

/// It had taken the failed rows out of OUTPUT by then.
#[test]
fn a_run_without_batches_refuses_before_it_changes_output() {
    let failing = |question: &Question| match question.what.as_str() {
        "GET /v1/files/file-err/content" => Some(Reply::Lines(vec![line(1, 400, &json!({}))])),
        what if what.starts_with("GET /v1/batches/") => {
            Some(batch("completed", 0, &[("error_file_id", "file-err")]))
        }
        _ => None,
    };
    let server = Scripted::start(failing);
    let files = Files::with_rows(1);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 1, "{said}");
    // As a run leaves it that hands failed rows in again.
    let path = files.path("out.jsonl.llmq");
    let side = std::fs::read_to_string(&path).unwrap();
    let mut side: Value = serde_json::from_str(&side).unwrap();
    side["handed_in"] = json!([{"file": "file-7", "batch": "batch-7", "model": "gpt",
        "endpoint": "/v1/chat/completions", "first": 1, "last": 1, "rows": 1}]);
    std::fs::write(&path, side.to_string()).unwrap();
    let mut command = files.live(server.addr);
    command.arg("--retry-failed");
    let (code, said) = ends(command);
    assert_eq!(code, 2, "{said}");
    assert_eq!(files.results().len(), 1, "it is as it was");

    let mut command = files.live(server.addr);
    command.arg("--restart");
    let (_, said) = ends(command);
    assert!(said.contains("go on at the server"), "{said}");
    assert!(said.contains("batch-7"), "{said}");
}
