//! Files of calls, and the batches made of them.

use http::Method;
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_store_sqlite::{Options, Place};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::world::{Got, World, chat};

const BOUNDARY: &str = "X-BOUNDARY";

/// A form with the fields in this order; `file` is the one with a name.
fn form(fields: &[(&str, &str)]) -> String {
    let mut form = String::new();
    for (name, value) in fields {
        let filename = match *name {
            "file" => "; filename=\"calls.jsonl\"\r\nContent-Type: application/jsonl",
            _ => "",
        };
        form.push_str(&format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n\
             {value}\r\n"
        ));
    }
    format!("{form}--{BOUNDARY}--\r\n")
}

pub(crate) async fn upload(world: &World, fields: &[(&str, &str)]) -> Got {
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let headers = [("content-type", kind.as_str())];
    world
        .ask(Method::POST, "/v1/files", &headers, form(fields))
        .await
}

pub(crate) async fn uploaded(world: &World, content: &str) -> String {
    let got = upload(world, &[("purpose", "batch"), ("file", content)]).await;
    assert_eq!(got.status, 200, "{got:?}");
    got.json()["id"].as_str().unwrap().to_owned()
}

pub(crate) fn line(id: &str) -> Value {
    json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": chat()})
}

pub(crate) fn lines(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

pub(crate) async fn create(world: &World, file: &str) -> Got {
    create_for(world, file, "/v1/chat/completions", "24h").await
}

/// A batch of a file for this endpoint, whose calls must start in this time.
async fn create_for(world: &World, file: &str, endpoint: &str, window: &str) -> Got {
    let body = json!({"input_file_id": file, "endpoint": endpoint,
        "completion_window": window, "metadata": {"what": "a test"}});
    world.post("/v1/batches", &body).await
}

/// The same of lines for chat completions; its id.
pub(crate) async fn created_for(world: &World, content: &str, window: &str) -> String {
    let file = uploaded(world, content).await;
    let got = create_for(world, &file, "/v1/chat/completions", window).await;
    assert_eq!(got.status, 200, "{got:?}");
    got.json()["id"].as_str().unwrap().to_owned()
}

pub(crate) async fn created(world: &World, content: &str) -> String {
    let file = uploaded(world, content).await;
    let got = create(world, &file).await;
    assert_eq!(got.status, 200, "{got:?}");
    let batch = got.json();
    assert_eq!(
        (&batch["object"], &batch["status"], &batch["input_file_id"]),
        (&json!("batch"), &json!("validating"), &json!(file))
    );
    batch["id"].as_str().unwrap().to_owned()
}

/// The batch, as soon as it is in one of these states.
pub(crate) async fn comes_to(world: &World, id: &str, states: &[&str]) -> Value {
    let polled = async {
        loop {
            let batch = world.get(&format!("/v1/batches/{id}")).await.json();
            if states.contains(&batch["status"].as_str().unwrap()) {
                return batch;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(llmq_testkit::PATIENCE, polled).await;
    in_time.unwrap_or_else(|_| panic!("batch {id} did not come to {states:?}"))
}

/// The lines of an output, by their names.
async fn output(world: &World, batch: &Value, file: &str) -> Vec<Value> {
    let Some(id) = batch[file].as_str() else {
        return Vec::new();
    };
    let got = world.get(&format!("/v1/files/{id}/content")).await;
    assert_eq!(got.status, 200);
    let text = String::from_utf8(got.body.to_vec()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn codes(batch: &Value) -> Vec<(String, Option<u64>)> {
    let errors = batch["errors"]["data"].as_array().unwrap();
    let code = |error: &Value| error["code"].as_str().unwrap().to_owned();
    errors
        .iter()
        .map(|error| (code(error), error["line"].as_u64()))
        .collect()
}

#[tokio::test]
async fn a_file_comes_in_goes_out_and_is_removed() {
    let world = World::start().await;
    // The SDK for Node sends the file first.
    let fields = [
        ("file", "{}\n"),
        ("purpose", "user_data"),
        ("expires_after[anchor]", "created_at"),
        ("expires_after[seconds]", "3600"),
    ];
    let file = upload(&world, &fields).await.json();
    assert_eq!(
        (
            &file["bytes"],
            &file["filename"],
            &file["purpose"],
            &file["status"]
        ),
        (
            &json!(3),
            &json!("calls.jsonl"),
            &json!("user_data"),
            &json!("processed")
        )
    );
    let created = file["created_at"].as_i64().unwrap();
    assert_eq!(file["expires_at"], created + 3_600);
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(world.get(&path).await.json(), file);
    assert_eq!(world.get(&format!("{path}/content")).await.body, "{}\n");
    let deleted = world.ask(Method::DELETE, &path, &[], "").await;
    assert_eq!(
        deleted.json(),
        json!({"id": file["id"], "object": "file", "deleted": true})
    );
    assert_eq!(world.get(&path).await.status, 404);
}

#[tokio::test]
async fn files_are_listed_page_by_page_in_either_order() {
    let world = World::start().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(uploaded(&world, &n.to_string()).await);
    }
    upload(&world, &[("purpose", "vision"), ("file", "x")]).await;
    for (order, mut expected) in [
        ("asc", ids.clone()),
        ("desc", ids.into_iter().rev().collect()),
    ] {
        let mut after = String::new();
        while !expected.is_empty() {
            let path = format!("/v1/files?purpose=batch&limit=2&order={order}{after}");
            let page = world.get(&path).await.json();
            let data = page["data"].as_array().unwrap();
            let got: Vec<&str> = data
                .iter()
                .map(|file| file["id"].as_str().unwrap())
                .collect();
            let rest = expected.split_off(got.len());
            assert_eq!(got, expected);
            assert_eq!(page["has_more"], !rest.is_empty());
            after = format!("&after={}", page["last_id"].as_str().unwrap());
            expected = rest;
        }
    }
}

#[tokio::test]
async fn a_form_that_cannot_be_a_file_leaves_nothing() {
    let world = World::with(&[], "[server]\nmax_file = \"1KB\"").await;
    let large = "x".repeat(1_500);
    for (fields, status, param) in [
        (vec![("file", "x")], 400, "purpose"),
        (vec![("purpose", "batch")], 400, "file"),
        (vec![("purpose", "nonsense"), ("file", "x")], 400, "purpose"),
        (
            vec![("purpose", "batch"), ("file", large.as_str())],
            413,
            "file",
        ),
        (
            vec![
                ("file", "x"),
                ("purpose", "batch"),
                ("expires_after[seconds]", "60"),
            ],
            400,
            "expires_after",
        ),
    ] {
        let got = upload(&world, &fields).await;
        assert_eq!(got.status, status, "{fields:?}");
        assert_eq!(got.json()["error"]["param"], param);
    }
    let got = world.post("/v1/files", &json!({})).await;
    assert_eq!(got.status, 400);
    assert_eq!(world.get("/v1/files").await.json()["data"], json!([]));
    assert_eq!(world.get("/v1/files?limit=0").await.status, 400);
    assert_eq!(world.get("/v1/files?after=nonsense").await.status, 400);
}

#[tokio::test]
async fn a_batch_has_no_more_lines_than_is_set() {
    let world = World::with(&[], "[server]\nmax_batch_lines = 3").await;
    let of = |count: usize| {
        let all: Vec<Value> = (0..count).map(|n| line(&format!("row-{n}"))).collect();
        // Blank lines are none.
        lines(&all).replacen('\n', "\n\n\n", 1)
    };
    let id = created(&world, &of(4)).await;
    let batch = comes_to(&world, &id, &["failed", "completed"]).await;
    let error = &batch["errors"]["data"][0];
    assert_eq!(
        (&batch["status"], &error["code"]),
        (&json!("failed"), &json!("too_many_requests")),
        "{batch}"
    );
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("at most 3 lines")
    );
    assert_eq!(world.calls(), 0, "nothing of it is sent");
    let id = created(&world, &of(3)).await;
    comes_to(&world, &id, &["completed"]).await;
}

#[tokio::test]
async fn a_batch_is_read_finished_and_its_answers_are_fetched() {
    let world = World::start().await;
    let content = lines(
        &(0..50)
            .map(|n| line(&format!("row-{n}")))
            .collect::<Vec<_>>(),
    );
    let id = created(&world, &content).await;
    let batch = comes_to(&world, &id, &["completed"]).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 50, "completed": 50, "failed": 0})
    );
    assert_eq!(
        (&batch["model"], &batch["metadata"], &batch["errors"]),
        (&json!("gpt"), &json!({"what": "a test"}), &Value::Null)
    );
    for at in [
        "created_at",
        "in_progress_at",
        "finalizing_at",
        "completed_at",
        "expires_at",
    ] {
        assert!(batch[at].is_i64(), "{at}: {batch}");
    }
    assert!(batch["usage"]["total_tokens"].as_u64().unwrap() > 0);
    assert_eq!(batch["error_file_id"], Value::Null);
    let answers = output(&world, &batch, "output_file_id").await;
    let names: Vec<&str> = answers
        .iter()
        .map(|line| line["custom_id"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        (0..50).map(|n| format!("row-{n}")).collect::<Vec<_>>()
    );
    for line in &answers {
        assert_eq!(line["response"]["status_code"], 200);
        assert_eq!(line["response"]["body"]["object"], "chat.completion");
        assert_eq!(line["error"], Value::Null);
    }
    assert_eq!(world.calls(), 50);
    // Batches stand behind live traffic.
    let members = world.get("/api/requests?limit=1").await.json();
    assert_eq!(members["requests"][0]["priority"], 30);
    let listed = world.get("/v1/batches").await.json();
    assert_eq!(
        (&listed["data"], &listed["has_more"]),
        (&json!([batch]), &json!(false))
    );
}

/// Once a batch whose caller had left as it was made was never read, until the next start.
#[tokio::test]
async fn a_batch_whose_caller_leaves_at_once_is_finished_all_the_same() {
    let world = World::start().await;
    let file = uploaded(&world, &lines(&[line("a")])).await;
    let body = json!({"input_file_id": file, "endpoint": "/v1/chat/completions",
        "completion_window": "24h"})
    .to_string();
    let request = format!(
        "POST /v1/batches HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    for _ in 0..50 {
        let mut stream = TcpStream::connect(world.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    // It is the last that the server hears of, so those before it are made or never will be.
    let last = create(&world, &file).await.json();
    comes_to(&world, last["id"].as_str().unwrap(), &["completed"]).await;
    let listed = world.get("/v1/batches?limit=100").await.json();
    for batch in listed["data"].as_array().unwrap() {
        comes_to(&world, batch["id"].as_str().unwrap(), &["completed"]).await;
    }
}

#[tokio::test]
async fn what_failed_is_in_a_file_of_its_own() {
    let world = World::start().await;
    let mut bad = line("bad");
    bad["body"]["n"] = 0.into();
    let id = created(&world, &lines(&[line("good"), bad])).await;
    let batch = comes_to(&world, &id, &["completed"]).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 2, "completed": 1, "failed": 1})
    );
    assert_eq!(
        output(&world, &batch, "output_file_id").await[0]["custom_id"],
        "good"
    );
    let failed = output(&world, &batch, "error_file_id").await;
    assert_eq!(failed[0]["custom_id"], "bad");
    assert_eq!(failed[0]["response"]["status_code"], 400);
    assert!(failed[0]["response"]["body"]["error"]["message"].is_string());
}

#[tokio::test]
async fn an_input_with_faults_fails_whole_with_each_fault_by_its_line() {
    let world = World::start().await;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut line = line("x");
        change(&mut line);
        line.to_string()
    };
    let content = [
        line("one").to_string(),
        "{\"custom_id\": ".to_owned(),
        String::new(),
        line("one").to_string(),
        with(&|line| line["method"] = "GET".into()),
        with(&|line| {
            line["custom_id"] = "url".into();
            line["url"] = "/v1/embeddings".into();
        }),
        with(&|line| {
            line["custom_id"] = "model".into();
            line["body"]["model"] = "other".into();
        }),
        with(&|line| {
            line["custom_id"] = "stream".into();
            line["body"]["stream"] = true.into();
        }),
        with(&|line| line["custom_id"] = Value::Null),
        with(&|line| {
            line["custom_id"] = "body".into();
            line["body"] = json!([]);
        }),
        "[1]".to_owned(),
    ];
    let id = created(&world, &content.join("\n")).await;
    let batch = comes_to(&world, &id, &["failed"]).await;
    let expected = [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 4),
        ("invalid_method", 5),
        ("mismatched_url", 6),
        ("mismatched_model", 7),
        ("invalid_request", 8),
        ("missing_required_parameter", 9),
        ("invalid_request", 10),
        ("invalid_request", 11),
    ];
    let expected: Vec<_> = expected
        .map(|(code, line)| (code.to_owned(), Some(line)))
        .into();
    assert_eq!(codes(&batch), expected, "{batch}");
    assert!(batch["failed_at"].is_i64());
    assert_eq!(
        world.get("/api/requests").await.json()["requests"],
        json!([])
    );
    assert_eq!(world.calls(), 0, "nothing of it was begun");
    let empty = created(&world, "\n\n").await;
    let empty = comes_to(&world, &empty, &["failed"]).await;
    assert_eq!(codes(&empty), [("empty_file".to_owned(), None)]);
}

/// The provider would have said at once that it had begun, which passed for the answer.
#[tokio::test]
async fn a_line_that_asks_for_the_background_is_a_fault() {
    let world = World::start().await;
    let with = |background: Value| {
        let body = json!({"model": "gpt", "input": "hello", "background": background});
        json!({"custom_id": background.to_string(), "method": "POST", "url": "/v1/responses",
            "body": body})
    };
    let content = lines(&[with(json!(false)), with(json!(true))]);
    let file = uploaded(&world, &content).await;
    let body = json!({"input_file_id": file, "endpoint": "/v1/responses",
        "completion_window": "24h"});
    let id = world.post("/v1/batches", &body).await.json()["id"].clone();
    let batch = comes_to(&world, id.as_str().unwrap(), &["failed"]).await;
    assert_eq!(codes(&batch), [("invalid_request".to_owned(), Some(2))]);
    assert_eq!(batch["errors"]["data"][0]["param"], "body.background");
    assert_eq!(world.calls(), 0, "nothing of it was begun");
}

#[tokio::test]
async fn whatever_is_no_file_of_calls_is_told_so() {
    let world = World::start().await;
    let faulty = async |content: &str| {
        let id = created(&world, content).await;
        codes(&comes_to(&world, &id, &["failed", "completed"]).await)
    };
    let empty = [("empty_file".to_owned(), None)];
    for content in ["", "\u{feff}", "\u{feff}\r\n \n"] {
        assert_eq!(faulty(content).await, empty, "{content:?}");
    }
    for (content, code, lines) in [
        ("a,b\nc,d", "invalid_json_line", &[1, 2][..]),
        ("\u{1}\u{0}", "invalid_json_line", &[1]),
        ("[]\n\n1\n\"\"\nnull", "invalid_request", &[1, 3, 4, 5]),
        ("{}", "missing_required_parameter", &[1]),
    ] {
        let faults = lines.iter().map(|line| (code.to_owned(), Some(*line)));
        assert_eq!(
            faulty(content).await,
            faults.collect::<Vec<_>>(),
            "{content:?}"
        );
    }
    // A call that is spread over lines is none on any of them.
    let pretty = serde_json::to_string_pretty(&line("a")).unwrap();
    let found = faulty(&pretty).await.into_iter().map(|(_, line)| line);
    let all = (1..=pretty.lines().count() as u64).map(Some);
    assert_eq!(found.collect::<Vec<_>>(), all.collect::<Vec<_>>());
    assert_eq!(world.calls(), 0);
}

/// Some editors begin a file with a mark, end lines as Windows does, and the last one not at all.
#[tokio::test]
async fn a_file_of_another_editor_is_read_all_the_same() {
    let world = World::start().await;
    let content = format!("\u{feff}{}\r\n\r\n{}", line("a"), line("b"));
    let id = created(&world, &content).await;
    let batch = comes_to(&world, &id, &["failed", "completed"]).await;
    assert_eq!(batch["request_counts"]["completed"], 2, "{batch}");
}

#[tokio::test]
async fn a_batch_for_embeddings_has_at_most_fifty_thousand_inputs_in_all_its_lines() {
    let world = World::start().await;
    let line = |id: &str, input: Value| {
        let body = json!({"model": "gpt", "input": input});
        json!({"custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body})
    };
    let texts = |count| line(&format!("{count} texts"), json!(vec!["a"; count]));
    // The tokens of one text.
    let tokens = line("tokens", json!(vec![7; 1_000]));
    for (input, status) in [
        (
            vec![texts(25_000), texts(24_999), tokens.clone()],
            "completed",
        ),
        (
            vec![
                texts(25_000),
                texts(24_999),
                tokens,
                line("one", json!("a")),
            ],
            "failed",
        ),
    ] {
        let file = uploaded(&world, &lines(&input)).await;
        let got = create_for(&world, &file, "/v1/embeddings", "24h").await;
        let id = got.json()["id"].as_str().unwrap().to_owned();
        let batch = comes_to(&world, &id, &["failed", "completed"]).await;
        assert_eq!(batch["status"], status, "{batch}");
        if status == "failed" {
            assert_eq!(codes(&batch), [("too_many_inputs".to_owned(), Some(4))]);
        }
    }
    assert_eq!(world.calls(), 3, "nothing of the second one is sent");
}

#[tokio::test]
async fn a_line_that_names_what_no_account_can_have_is_told_so() {
    let world = World::start().await;
    let kept = upload(&world, &[("purpose", "user_data"), ("file", "x")]).await;
    let kept = kept.json()["id"].clone();
    let line = |id: &str, name: &Value| {
        let part = json!({"type": "file", "file": {"file_id": name}});
        let mut line = line(id);
        line["body"]["messages"][0]["content"] = json!([part]);
        line
    };
    // One account serves the model: what it may keep is its to know.
    let id = created(
        &world,
        &lines(&[line("theirs", &json!("file-of-the-account"))]),
    )
    .await;
    comes_to(&world, &id, &["completed"]).await;
    let id = created(&world, &lines(&[line("ours", &kept)])).await;
    let batch = comes_to(&world, &id, &["failed", "completed"]).await;
    assert_eq!(codes(&batch), [("file_not_found".to_owned(), Some(1))]);
    assert_eq!(batch["errors"]["data"][0]["param"], "body.file_id");
}

/// Once only requests were refused; a file and a batch were taken in until the very end.
#[tokio::test]
async fn a_server_that_ends_takes_no_file_and_no_batch() {
    let world = World::start().await;
    let file = uploaded(&world, &lines(&[line("a")])).await;
    world.gateway.stop_requests(llmq_testkit::PATIENCE).await;
    let refused = [
        upload(&world, &[("purpose", "batch"), ("file", "{}")]).await,
        create(&world, &file).await,
    ];
    for got in refused {
        assert_eq!(got.status, 503, "{got:?}");
        assert_eq!(got.json()["error"]["code"], "store_unavailable");
        assert!(!got.header("retry-after").is_empty());
    }
    assert_eq!(world.get("/v1/batches").await.json()["data"], json!([]));
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_is_done() {
    let world = World::with(&["requests=3/1d"], "").await;
    let content = lines(&(0..10).map(|n| line(&n.to_string())).collect::<Vec<_>>());
    let id = created(&world, &content).await;
    let polled = async {
        loop {
            let batch = world.get(&format!("/v1/batches/{id}")).await.json();
            if batch["request_counts"]["completed"] == 3 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(llmq_testkit::PATIENCE, polled)
        .await
        .unwrap();
    let got = world
        .post(&format!("/v1/batches/{id}/cancel"), &json!({}))
        .await;
    assert_eq!(
        (got.status.as_u16(), &got.json()["status"]),
        (200, &json!("cancelling"))
    );
    let batch = comes_to(&world, &id, &["cancelled"]).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 10, "completed": 3, "failed": 7})
    );
    assert_eq!(output(&world, &batch, "output_file_id").await.len(), 3);
    let rest = output(&world, &batch, "error_file_id").await;
    assert_eq!(rest.len(), 7);
    for line in rest {
        assert_eq!(
            (&line["response"], &line["error"]["code"]),
            (&Value::Null, &json!("batch_cancelled"))
        );
    }
    let again = world
        .post(&format!("/v1/batches/{id}/cancel"), &json!({}))
        .await;
    assert_eq!(
        (again.status.as_u16(), &again.json()["status"]),
        (200, &json!("cancelled"))
    );
}

#[tokio::test]
async fn a_batch_whose_time_is_over_keeps_what_is_done_and_says_what_is_not() {
    let world = World::with(&["requests=2/1d"], "").await;
    let content = lines(&(0..5).map(|n| line(&n.to_string())).collect::<Vec<_>>());
    let id = created_for(&world, &content, "2s").await;
    let batch = comes_to(&world, &id, &["expired"]).await;
    assert!(batch["expired_at"].is_i64());
    let rest = output(&world, &batch, "error_file_id").await;
    let done = output(&world, &batch, "output_file_id").await;
    assert_eq!((done.len(), rest.len()), (2, 3));
    assert!(
        rest.iter()
            .all(|line| line["error"]["code"] == "batch_expired")
    );
    let got = world
        .post(&format!("/v1/batches/{id}/cancel"), &json!({}))
        .await;
    assert_eq!(got.status, 400);
}

#[tokio::test]
async fn a_line_that_is_damaged_in_the_store_keeps_its_batch_open_no_longer_than_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("llmq.db");
    let options = Options {
        ballast_bytes: 0,
        ..Options::default()
    };
    let config = MockConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..MockConfig::default()
    };
    let mock = MockServer::start(config).await.unwrap();
    let place = Place::File(path.clone());
    let world = World::over(&place, options, mock, &["requests=2/1d"], "").await;
    let content = lines(&(0..5).map(|n| line(&n.to_string())).collect::<Vec<_>>());
    let id = created_for(&world, &content, "2s").await;
    comes_to(&world, &id, &["in_progress"]).await;
    let database = rusqlite::Connection::open(&path).unwrap();
    let damaged = database.execute("UPDATE jobs SET bytes = bytes + 1 WHERE line = 5", []);
    assert_eq!(damaged.unwrap(), 1);
    let batch = comes_to(&world, &id, &["expired"]).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 5, "completed": 2, "failed": 3})
    );
    let done = output(&world, &batch, "output_file_id").await;
    let rest = output(&world, &batch, "error_file_id").await;
    assert_eq!((done.len(), rest.len()), (2, 3));
    let lost = rest.iter().find(|line| line["custom_id"] == "4").unwrap();
    assert_eq!(lost["error"]["code"], "stored_request_damaged");
}

#[tokio::test]
async fn what_cannot_be_a_batch_is_told_so() {
    let world = World::start().await;
    let file = uploaded(&world, &lines(&[line("one")])).await;
    let other = upload(&world, &[("purpose", "vision"), ("file", "x")])
        .await
        .json();
    let good = json!({"input_file_id": file, "endpoint": "/v1/chat/completions",
        "completion_window": "24h"});
    let many: serde_json::Map<String, Value> =
        (0..17).map(|n| (n.to_string(), json!("x"))).collect();
    for (field, value) in [
        (
            "input_file_id",
            json!("file-0192aaaabbbbccccddddeeeeffff0000"),
        ),
        ("input_file_id", other["id"].clone()),
        ("endpoint", json!("/v1/models")),
        ("endpoint", json!("/v1/nonsense")),
        ("completion_window", json!("soon")),
        ("completion_window", json!("0s")),
        ("metadata", Value::Object(many)),
        ("metadata", json!({"a": 1})),
        ("metadata", json!({"a": "x".repeat(513)})),
        (
            "output_expires_after",
            json!({"anchor": "created_at", "seconds": 1}),
        ),
    ] {
        let mut body = good.clone();
        body[field] = value;
        let got = world.post("/v1/batches", &body).await;
        assert_eq!(got.status, 400, "{body}");
        let param = if field == "output_expires_after" {
            "expires_after"
        } else {
            field
        };
        assert_eq!(got.json()["error"]["param"], param, "{body}");
    }
    for path in [
        "/v1/batches/batch_1",
        "/v1/batches/batch_0192aaaabbbbccccddddeeeeffff0000",
    ] {
        assert_eq!(world.get(path).await.status, 404);
    }
    assert_eq!(world.get("/v1/batches?limit=101").await.status, 400);
    assert_eq!(world.get("/v1/batches?after=x").await.status, 400);
}

/// Once anybody with a key could fill the disk, and nobody's requests were taken in any more.
#[tokio::test]
async fn files_together_have_a_bound() {
    let world = World::with(&[], "[store]\nmax_bytes = \"10KB\"\n").await;
    let content = "x".repeat(4_000);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let got = upload(&world, &[("purpose", "user_data"), ("file", &content)]).await;
        assert_eq!(got.status, 200, "{got:?}");
        ids.push(got.json()["id"].as_str().unwrap().to_owned());
    }
    for _ in 0..2 {
        let got = upload(&world, &[("purpose", "user_data"), ("file", &content)]).await;
        assert_eq!(got.status, 503, "{got:?}");
        assert_eq!(got.json()["error"]["code"], "queue_full");
    }
    let path = format!("/v1/files/{}", ids[0]);
    world.ask(Method::DELETE, &path, &[], "").await;
    let got = upload(&world, &[("purpose", "user_data"), ("file", &content)]).await;
    assert_eq!(got.status, 200, "{got:?}");
}
