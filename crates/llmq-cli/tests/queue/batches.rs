//! A batch whose server is killed while it reads the input, and while it writes the output.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{PATIENCE, Place, Server, fetch};

const LINES: usize = 1_500;
/// Batches at most, until kills have met both.
const TRIES: usize = 10;

#[test]
fn a_batch_outlives_kills_while_it_is_read_and_while_its_output_is_written() {
    let place = Place::new(Duration::ZERO, "concurrency = 64");
    let mut met = BTreeMap::<String, usize>::new();
    let is_met = |met: &BTreeMap<String, usize>, status: &str| met.contains_key(status);
    for _ in 0..TRIES {
        if is_met(&met, "validating") && is_met(&met, "finalizing") {
            break;
        }
        one_batch(&place, &mut met);
    }
    assert!(is_met(&met, "validating"), "{met:?}");
    assert!(is_met(&met, "finalizing"), "{met:?}");
}

/// A batch of which each step is met by a kill if that is quick enough. `met` counts in which
/// states it was found by the next server.
fn one_batch(place: &Place, met: &mut BTreeMap<String, usize>) {
    let server = place.serve();
    let id = hand_in(&server);
    server.kill();
    let mut server = place.serve();
    *met.entry(status(&server, &id)).or_default() += 1;
    let begun = tokio::time::Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "{}", status(&server, &id));
        match status(&server, &id).as_str() {
            "finalizing" => {
                server.kill();
                server = place.serve();
                *met.entry(status(&server, &id)).or_default() += 1;
                break;
            }
            "completed" => break,
            _ => std::thread::yield_now(),
        }
    }
    while status(&server, &id) != "completed" {
        assert!(begun.elapsed() < PATIENCE, "{}", status(&server, &id));
        std::thread::yield_now();
    }
    let (_, batch) = server.get(&format!("/v1/batches/{id}"));
    let counts = json!({"total": LINES, "completed": LINES, "failed": 0});
    assert_eq!(batch["request_counts"], counts);
    let file = batch["output_file_id"].as_str().unwrap();
    let path = format!("/v1/files/{file}/content");
    let (code, output) = fetch(server.addr, "GET", &path, "", "").unwrap();
    assert_eq!(code, 200);
    let mut lines: Vec<usize> = output.lines().map(number_of).collect();
    lines.sort_unstable();
    assert_eq!(lines, (0..LINES).collect::<Vec<_>>());
    assert_eq!(server.stop(), 0);
    let checked = llmq_store_sqlite::check(&place.file(), true).unwrap();
    assert!(checked.is_sound(), "{checked:?}");
}

fn status(server: &Server, id: &str) -> String {
    let (_, batch) = server.get(&format!("/v1/batches/{id}"));
    batch["status"].as_str().unwrap().to_owned()
}

/// Hands a file and its batch in; answers the batch's id.
fn hand_in(server: &Server) -> String {
    const BOUNDARY: &str = "b0undary";
    let lines = (0..LINES).map(|number| {
        let body = json!({"model": "gpt", "messages": [{"role": "user", "content": "hello"}]});
        let line = json!({"custom_id": number.to_string(), "method": "POST",
            "url": "/v1/chat/completions", "body": body});
        format!("{line}\n")
    });
    let form = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
         --{BOUNDARY}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\
         content-type: application/jsonl\r\n\r\n{}\r\n--{BOUNDARY}--\r\n",
        lines.collect::<String>()
    );
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let (code, file) = fetch(server.addr, "POST", "/v1/files", &kind, &form).unwrap();
    assert_eq!(code, 200, "{file}");
    let file: Value = serde_json::from_str(&file).unwrap();
    let batch = json!({"input_file_id": file["id"], "endpoint": "/v1/chat/completions",
        "completion_window": "24h"});
    let (code, batch) = server.post("/v1/batches", &batch);
    assert_eq!(code, 200, "{batch}");
    batch["id"].as_str().unwrap().to_owned()
}

/// The input line that a line of the output answers.
fn number_of(line: &str) -> usize {
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["response"]["status_code"], 200, "{line}");
    line["custom_id"].as_str().unwrap().parse().unwrap()
}
