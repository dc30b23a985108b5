//! What cannot be a batch, and what its lines are told.

use serde_json::{Value, json};

use crate::batches::{comes_to, create_for, created, line, lines};
use crate::files::{upload, uploaded};
use crate::world::World;

/// The faults of a batch, by code and line.
fn codes(batch: &Value) -> Vec<(String, Option<u64>)> {
    let errors = batch["errors"]["data"].as_array().unwrap();
    let code = |error: &Value| error["code"].as_str().unwrap().to_owned();
    errors
        .iter()
        .map(|error| (code(error), error["line"].as_u64()))
        .collect()
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
