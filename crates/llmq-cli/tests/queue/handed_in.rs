//! `llmq run --batch`: rows that a server finishes while nobody waits.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::server::{PATIENCE, Place, Server};

/// A file of rows, and where its results go.
pub(crate) struct Files {
    dir: TempDir,
    input: &'static str,
    pub(crate) output: &'static str,
    /// That rows of a CSV ask for.
    pub(crate) model: &'static str,
}

impl Files {
    /// Places of a CSV.
    pub(crate) fn with_rows(rows: usize) -> Self {
        let names = (1..=rows).map(|row| format!("Place {row}\n"));
        let text = format!("name\n{}", names.collect::<String>());
        Self::with("in.csv", &text)
    }

    pub(crate) fn with(input: &'static str, text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(input), text).unwrap();
        Self {
            dir,
            input,
            output: "out.jsonl",
            model: "gpt",
        }
    }

    pub(crate) fn command(&self, server: SocketAddr) -> Command {
        let mut command = self.live(server);
        command.arg("--batch");
        command
    }

    /// The same without `--batch`.
    pub(crate) fn live(&self, server: SocketAddr) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmq"));
        command
            .args(["run", self.input, "-o", self.output, "--server"])
            .arg(format!("http://{server}"))
            .current_dir(self.dir.path())
            .env_remove("LLMQ_API_KEY");
        if self.input.ends_with(".csv") {
            command.args(["--model", self.model, "--template", "Introduce {{name}}."]);
        }
        command
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// It runs, and nobody hears what it says.
    fn begin(&self, server: &Server) -> Child {
        let mut command = self.command(server.addr);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        quiet.spawn().unwrap()
    }

    /// The results, by row.
    pub(crate) fn results(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path(self.output)).unwrap();
        let mut all: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        all.sort_by_key(|row| row["llmq"]["line"].as_u64());
        all
    }

    /// Each row has one answer, under its own name.
    pub(crate) fn are_whole(&self, rows: u64) {
        let results = self.results();
        let found = results.iter().map(|row| {
            assert_eq!(row["response"]["status_code"], 200, "{row}");
            assert_eq!(row["error"], Value::Null);
            let line = row["llmq"]["line"].as_u64().unwrap();
            assert_eq!(row["custom_id"], format!("row-{line}"));
            line
        });
        assert_eq!(found.collect::<Vec<_>>(), (1..=rows).collect::<Vec<_>>());
    }
}

pub(crate) fn ends(mut command: Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    (status.code().unwrap_or(-1), said)
}

/// All batches of a server.
pub(crate) fn batches(server: &Server) -> Vec<Value> {
    all_of(server, "batches?")
}

/// All that a server lists under `/v1/`.
pub(crate) fn all_of(server: &Server, list: &str) -> Vec<Value> {
    let (status, list) = server.get(&format!("/v1/{list}limit=100"));
    assert_eq!((status, &list["has_more"]), (200, &json!(false)), "{list}");
    list["data"].as_array().unwrap().clone()
}

/// The same, as soon as it is so with them.
fn when(server: &Server, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let all = batches(server);
        if is_so(&all) {
            return all;
        }
        assert!(begun.elapsed() < PATIENCE, "{all:?}");
        std::thread::yield_now();
    }
}

fn are(batches: &[Value], status: &str) -> bool {
    batches.iter().all(|batch| batch["status"] == status)
}

/// How many calls were handed in, over all batches.
fn handed_in(batches: &[Value]) -> u64 {
    let totals = batches
        .iter()
        .map(|batch| &batch["request_counts"]["total"]);
    totals.map(|total| total.as_u64().unwrap()).sum()
}

#[test]
fn rows_are_finished_while_nobody_waits_and_fetched_later() {
    const ROWS: u64 = 2_500;
    const AT_ONCE: u64 = 16;
    let place = Place::new(
        Duration::from_millis(10),
        &format!("concurrency = {AT_ONCE}"),
    );
    let server = place.serve();
    let files = Files::with_rows(2_500);
    let mut client = files.begin(&server);
    when(&server, |batches| batches.len() == 3);
    client.kill().unwrap();
    client.wait().unwrap();
    server.kill();
    assert!(place.calls() < ROWS, "it was met on its way");

    let server = place.serve();
    let all = when(&server, |batches| are(batches, "completed"));
    assert_eq!(handed_in(&all), ROWS);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("2,500 completed, 0 failed"), "{said}");
    files.are_whole(ROWS);
    assert_eq!(batches(&server).len(), 3, "nothing is handed in twice");
    let calls = place.calls();
    assert!(calls <= ROWS + AT_ONCE, "{calls}: those in flight at most");
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    assert_eq!(batches(&server).len(), 3, "all is done");
}

#[test]
fn a_client_that_is_killed_anywhere_hands_nothing_in_twice() {
    const ROWS: u64 = 5_000;
    let place = Place::new(Duration::ZERO, "concurrency = 64");
    let server = place.serve();
    let files = Files::with_rows(5_000);
    // As soon as the server has the next file of rows, or the next batch.
    for list in ["files?purpose=batch&", "batches?"]
        .into_iter()
        .cycle()
        .take(12)
    {
        let known = || all_of(&server, list).len();
        let before = known();
        let mut client = files.begin(&server);
        let begun = Instant::now();
        while known() == before && client.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "{list}");
        }
        client.kill().unwrap();
        client.wait().unwrap();
    }
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    files.are_whole(ROWS);
    assert_eq!(handed_in(&batches(&server)), ROWS);
    assert_eq!(place.calls(), ROWS);
}

#[test]
fn a_row_with_a_fault_fails_alone() {
    let line = |id: &str, body: &str| {
        format!(
            "{{\"custom_id\":\"{id}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\
             \"body\":{body}}}\n"
        )
    };
    let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
    let body = |model: &str| format!("{{\"model\":\"{model}\",{messages}}}");
    let twice = format!("{{\"model\":\"gpt\",\"max_tokens\":1,\"max_tokens\":2,{messages}}}");
    let long = "x".repeat(500);
    let text = [
        line("good", &body("gpt")),
        line("elsewhere", &body("nobody-has-this")),
        line("twice", &twice),
        line(&long, &body("gpt")),
        line("also good", &body("gpt")),
    ];
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let files = Files::with("in.jsonl", &text.concat());
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 1, "{said}");
    let told: Vec<_> = files
        .results()
        .iter()
        .map(|row| row["error"]["code"].as_str().unwrap_or("").to_owned())
        .collect();
    let expected = [
        "",
        "model_not_found",
        "invalid_request",
        "invalid_field",
        "",
    ];
    assert_eq!(told, expected, "{said}");
    assert_eq!(files.results()[4]["custom_id"], "also good");
    assert_eq!(place.calls(), 2);
}

#[test]
fn batches_are_as_small_as_the_server_wants_them() {
    let place = Place::new(Duration::from_millis(1), "");
    place.append("[server]\nmax_batch_lines = 300\n");
    let server = place.serve();
    let files = Files::with_rows(700);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    files.are_whole(700);
    let all = batches(&server);
    let (done, refused): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|batch| batch["status"] == "completed");
    assert_eq!((done.len(), handed_in(&done)), (4, 700));
    assert!(are(&refused, "failed") && !refused.is_empty());
    assert_eq!(place.calls(), 700);
}

/// A batch may have 50,000 texts in all, and the rows above that failed for good.
#[test]
fn rows_of_many_texts_are_shared_between_batches() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let texts = vec!["a"; 2_000];
    let rows = (1..=30).map(|row| {
        let line = json!({"custom_id": format!("row-{row}"), "method": "POST",
                          "url": "/v1/embeddings", "body": {"model": "gpt", "input": texts}});
        format!("{line}\n")
    });
    let files = Files::with("in.jsonl", &rows.collect::<String>());
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    files.are_whole(30);
    assert_eq!(place.calls(), 30);
}

#[test]
fn who_leaves_is_told_that_the_work_goes_on_and_who_cancels_has_it_back() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    server.post("/api/queues/gpt/pause", &json!({}));
    let files = Files::with_rows(3);
    let mut command = files.command(server.addr);
    let client = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let client = client.spawn().unwrap();
    let all = when(&server, |batches| {
        batches.len() == 1 && are(batches, "in_progress")
    });
    // The side file names it by now, or will before it leaves.
    let pid = client.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(sent.success());
    let left = client.wait_with_output().unwrap();
    let said = String::from_utf8(left.stderr).unwrap();
    assert_eq!(left.status.code(), Some(130), "{said}");
    assert!(said.contains("1 batch goes on at the server"), "{said}");
    assert!(said.contains("--batch"), "how to go on: {said}");

    let (code, said) = ends(files.live(server.addr));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("go on with --batch"), "{said}");

    let id = all[0]["id"].as_str().unwrap();
    server.post(&format!("/v1/batches/{id}/cancel"), &json!({}));
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 130, "{said}");
    assert!(said.contains("3 rows did not start"), "{said}");
    assert!(files.results().is_empty(), "they have not failed");
    server.post("/api/queues/gpt/resume", &json!({}));
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    files.are_whole(3);
    let ids: BTreeSet<String> = batches(&server)
        .iter()
        .map(|batch| batch["status"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, ["cancelled", "completed"].map(str::to_owned).into());
}

/// While more was to be handed in than a server takes at once, most of a long run, it had no rows.
#[test]
fn who_leaves_in_the_middle_is_told_how_many_rows_there_are() {
    const AT_SERVER: usize = 64;
    let place = Place::new(Duration::from_secs(60), "");
    let mut rows = String::new();
    // A part of each model: few of them are filled side by side.
    for row in 1..=AT_SERVER + 30 {
        place.append(&format!(
            "[models.m{row}]\nupstreams = [ {{ upstream = \"one\" }} ]\n"
        ));
        let body = json!({"model": format!("m{row}"), "messages": []});
        let line = json!({"custom_id": format!("row-{row}"), "method": "POST",
                          "url": "/v1/chat/completions", "body": body});
        rows.push_str(&format!("{line}\n"));
    }
    let server = place.serve();
    let files = Files::with("in.jsonl", &rows);
    let mut command = files.command(server.addr);
    let client = command
        .args(["--summary", "sum.json"])
        .stdout(Stdio::null());
    let mut client = client.stderr(Stdio::null()).spawn().unwrap();
    when(&server, |batches| batches.len() == AT_SERVER);
    let pid = client.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(sent.success());
    assert_eq!(client.wait().unwrap().code(), Some(130));
    let summary = fs::read(files.path("sum.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    let rows = AT_SERVER + 30;
    assert_eq!(
        (&summary["rows"], &summary["to_do"]),
        (&rows.into(), &rows.into())
    );
}

/// All files together may have so much room, and those of earlier parts kept it.
#[test]
fn files_give_back_their_room_as_soon_as_results_are_fetched() {
    const ROWS: u64 = 8_000;
    let place = Place::new(Duration::ZERO, "concurrency = 64");
    place.append("[store]\nmax_bytes = \"3MB\"\n");
    let server = place.serve();
    let files = Files::with_rows(8_000);
    let (code, said) = ends(files.command(server.addr));
    assert_eq!(code, 0, "{said}");
    files.are_whole(ROWS);
    assert!(all_of(&server, "files?").is_empty());
    assert_eq!(place.calls(), ROWS);
}

/// In both APIs that calls are made in.
#[test]
fn a_table_of_results_holds_tokens_as_without_batches() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    let tokens = |provider, with_batches| {
        let mut files = Files::with_rows(3);
        files.output = "out.csv";
        let mut command = files.live(server.addr);
        command.args(["--provider", provider]).args(with_batches);
        let (code, said) = ends(command);
        assert_eq!(code, 0, "{said}");
        let text = fs::read_to_string(files.path("out.csv")).unwrap();
        let mut rows: Vec<(String, String)> = text
            .lines()
            .skip(1)
            .map(|row| {
                let mut columns = row.rsplit(',');
                let (line, error, tokens) = (columns.next(), columns.next(), columns.next());
                assert_eq!(error, Some(""), "{row}");
                (line.unwrap().to_owned(), tokens.unwrap().to_owned())
            })
            .collect();
        rows.sort();
        rows
    };
    for provider in ["openai", "anthropic"] {
        let by_batches = tokens(provider, Some("--batch"));
        assert_eq!(by_batches.len(), 3);
        assert_eq!(by_batches, tokens(provider, None), "{provider}");
    }
    let endpoints: BTreeSet<String> = batches(&server)
        .iter()
        .map(|batch| batch["endpoint"].as_str().unwrap().to_owned())
        .collect();
    let both = ["/v1/chat/completions", "/v1/messages"].map(str::to_owned);
    assert_eq!(endpoints, both.into());
}
