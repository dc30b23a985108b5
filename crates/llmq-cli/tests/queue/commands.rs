//! `llmq requests` and `llmq webhooks` at a running server.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::handed_in::ends;
use crate::scripted::{Reply, Scripted};
use crate::server::{Place, Server};

pub(crate) fn llmq(server: &Server, words: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_llmq"))
        .args(words)
        .env("LLMQ_BASE_URL", format!("http://{}", server.addr))
        .env_remove("LLMQ_API_KEY")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// Hands in a request that waits for an hour.
fn submit_for_later(server: &Server) -> (i32, String, String) {
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let what = ["--model", "gpt", "--prompt", "hi", "--format", "json"];
    let when = ["--not-before", &later.to_string()];
    llmq(
        server,
        &[&["requests", "submit"], &what[..], &when].concat(),
    )
}

#[test]
fn a_request_is_handed_in_watched_and_fetched_from_a_shell() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let submit = [
        "requests", "submit", "--model", "gpt", "--prompt", "hi", "--wait",
    ];
    let (code, state, said) = llmq(&server, &[&submit[..], &["--format", "json"]].concat());
    assert_eq!(code, 0, "{said}");
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["status"], "completed");
    let id = state["queue_id"].as_str().unwrap();
    let (code, answer, _) = llmq(&server, &["requests", "result", id]);
    assert_eq!(code, 0);
    assert!(answer.contains("chat.completion"), "{answer}");
    let (_, list, _) = llmq(&server, &["requests", "list", "--status", "completed"]);
    assert!(list.contains(id) && list.starts_with("REQUEST"), "{list}");
    let (code, _, said) = llmq(&server, &["requests", "cancel", id]);
    assert_eq!(code, 1);
    assert!(said.contains("completed already"), "{said}");
    let unknown = "0198c0de-7a11-7000-8000-000000000000";
    assert_eq!(llmq(&server, &["requests", "get", unknown]).0, 1);
}

#[test]
fn why_a_request_waits_is_told_by_its_id() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let (code, state, said) = submit_for_later(&server);
    assert_eq!(code, 0, "{said}");
    let state: Value = serde_json::from_str(&state).unwrap();
    let (code, why, said) = llmq(&server, &["why", state["queue_id"].as_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert!(why.contains("status         queued"), "{why}");
    let unknown = "0198c0de-7a11-7000-8000-000000000000";
    let (code, _, said) = llmq(&server, &["why", unknown]);
    assert_eq!(code, 1);
    assert!(said.contains("nor was a request"), "{said}");
}

#[test]
fn options_say_what_the_lines_of_a_file_leave_out() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("calls.jsonl");
    let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
    let lines = format!(
        "{{\"body\":{{{messages}}}}}\n{{{messages}}}\n\
         {{\"body\":{{\"model\":\"gpt\",{messages}}},\"priority\":\"high\",\"metadata\":{{\"a\":\"own\"}}}}\n"
    );
    std::fs::write(&file, lines).unwrap();
    let submit = [
        "requests",
        "submit",
        file.to_str().unwrap(),
        "--model",
        "gpt",
    ];
    let options = [
        "--priority",
        "low",
        "--metadata",
        "a=b",
        "--format",
        "jsonl",
    ];
    let (code, states, said) = llmq(&server, &[&submit[..], &options].concat());
    assert_eq!(code, 0, "{said}");
    let states: Vec<Value> = states
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told = |state: &Value| (state["priority"].as_u64(), state["metadata"]["a"].clone());
    let told: Vec<_> = states.iter().map(told).collect();
    let (usual, own) = ((Some(30), "b".into()), (Some(70), "own".into()));
    assert_eq!(told, [usual.clone(), usual, own]);
    assert!(states.iter().all(|state| state["model"] == "gpt"));
    let list = ["requests", "list", "--priority", "low", "--format", "jsonl"];
    let (_, list, _) = llmq(&server, &list);
    assert_eq!(list.lines().count(), 2, "{list}");
}

/// A thousand lines were handed in at once whatever they weighed, and refused although each was
/// right; nor was it told which lines were accepted by then.
#[test]
fn a_file_is_handed_in_in_parts_that_a_server_takes() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("calls.jsonl");
    let line = |bytes: usize| {
        let content = "x".repeat(bytes);
        format!(r#"{{"model":"gpt","messages":[{{"role":"user","content":"{content}"}}]}}"#)
    };
    let submit = ["requests", "submit", file.to_str().unwrap()];
    std::fs::write(&file, vec![line(6_000_000); 6].join("\n")).unwrap();
    let (code, states, said) = llmq(&server, &submit);
    assert_eq!(code, 0, "{said}");
    assert!(!states.is_empty());
    std::fs::write(&file, [line(6_000_000), line(33_000_000)].join("\n")).unwrap();
    let (code, _, said) = llmq(&server, &submit);
    assert_ne!(code, 0);
    assert!(said.contains("lines 1 to 1 are accepted"), "{said}");
    std::fs::write(&file, format!("{}\nno\n", line(10))).unwrap();
    let (code, _, said) = llmq(&server, &submit);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("line 2: "), "{said}");
    assert!(said.contains("lines 1 to 1 are accepted"), "{said}");
}

/// Lines whose answer was lost on its way were to be handed in again, and paid for twice.
#[test]
fn lines_that_may_be_accepted_are_not_told_to_be_handed_in_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("calls.jsonl");
    let line = r#"{"model":"gpt","messages":[]}"#;
    std::fs::write(&file, vec![line; 1_500].join("\n")).unwrap();
    let submit = |addr: std::net::SocketAddr| {
        let words = ["requests", "submit", file.to_str().unwrap()];
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmq"));
        command.args(words);
        command.env("LLMQ_BASE_URL", format!("http://{addr}"));
        command.env_remove("LLMQ_API_KEY");
        ends(command)
    };
    let lost = || vec![Reply::Cut, Reply::Json(504, Value::Null)];
    for taken in 0..2 {
        for reply in lost() {
            let mut replies = vec![reply];
            let all = || Reply::Json(202, serde_json::json!({"requests": []}));
            replies.extend((0..taken).map(|_| all()));
            let server = Scripted::start(move |asked| match asked.what.as_str() {
                "POST /api/requests" => replies.pop(),
                _ => None,
            });
            let (code, said) = submit(server.addr);
            assert_ne!(code, 0);
            let may_be = ["lines 1 to 1000 may be", "lines 1001 to 1500 may be"][taken];
            assert!(said.contains(may_be), "{said}");
            let are = said.contains("lines 1 to 1000 are accepted");
            assert_eq!(are, taken == 1, "{said}");
            assert!(!said.contains("go on behind"), "{said}");
        }
    }
    // Nothing is where nobody listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = nobody.local_addr().unwrap();
    drop(nobody);
    let (code, said) = submit(addr);
    assert_eq!(code, 3, "{said}");
    assert!(!said.contains("may be"), "{said}");
}

#[test]
fn a_webhook_is_made_tested_and_listed_from_a_shell() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    // Nobody listens there.
    let add = [
        "webhooks",
        "add",
        "http://127.0.0.1:1/",
        "--event",
        "request.*",
    ];
    let (code, made, _) = llmq(&server, &[&add[..], &["--format", "json"]].concat());
    assert_eq!(code, 0);
    let made: Value = serde_json::from_str(&made).unwrap();
    assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));
    let id = made["id"].as_str().unwrap();
    let (code, outcome, _) = llmq(&server, &["webhooks", "test", id]);
    assert_eq!(code, 1);
    assert!(outcome.contains("refused"), "{outcome}");
    let (_, list, _) = llmq(&server, &["webhooks", "list"]);
    assert!(list.contains(id) && list.contains("request.*"), "{list}");
    assert_eq!(llmq(&server, &["webhooks", "delete", id]).0, 0);
    assert_eq!(llmq(&server, &["webhooks", "get", id]).0, 1);
}

#[test]
fn the_file_is_checked_backed_up_and_compacted_from_a_shell() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let id = server.submit();
    server.end(&id);
    let store = format!("sqlite:{}", place.file().display());
    let of = |words: &[&str]| llmq(&server, &[words, &["--store", &store]].concat());
    // Beside the server: looking and copying. Changing is the owner's.
    let (code, found, said) = of(&["store", "check", "--history", "--format", "json"]);
    assert_eq!(code, 0, "{said}");
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!((&found["sound"], &found["jobs"]), (&true.into(), &1.into()));
    let copy = place.file().with_extension("copy");
    let (code, _, said) = of(&["store", "backup", copy.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let (code, _, said) = of(&["store", "compact"]);
    assert_ne!(code, 0, "{said}");
    server.kill();

    let other = Place::new(Duration::from_millis(1), "");
    std::fs::rename(&copy, other.file()).unwrap();
    let server = other.serve();
    let (_, state) = server.get(&format!("/api/requests/{id}"));
    assert_eq!(
        state["status"], "completed",
        "the copy is a store of its own"
    );
    let (code, _, said) = llmq(&server, &["store", "compact", "--store", &store]);
    assert_eq!(code, 0, "{said}");
    let missing = llmq(&server, &["store", "check", "--store", "sqlite:nowhere.db"]);
    assert_eq!(missing.0, 2, "{}", missing.2);
}

/// Once a damaged request was left out in silence: it never ran, and nobody was told.
#[test]
fn a_server_says_what_is_wrong_with_its_file() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    for _ in 0..2 {
        let (code, _, said) = submit_for_later(&server);
        assert_eq!(code, 0, "{said}");
    }
    server.stop();
    let mut bytes = std::fs::read(place.file()).unwrap();
    let found = bytes
        .windows(20)
        .position(|text| text == b"/v1/chat/completions");
    bytes[found.unwrap() + 1] = b'w';
    std::fs::write(place.file(), bytes).unwrap();
    let server = place.serve();
    assert!(
        server.said.contains(" of jobs) is damaged"),
        "{}",
        server.said
    );
}
