//! Answers that are recorded, and given again from the recording.

use std::path::Path;

use http::StatusCode;
use llmq_provider::mock::{MockConfig, MockServer};
use serde_json::json;

use crate::caller::{CHAT, chat, instant, message, start};

#[tokio::test]
async fn what_is_recorded_is_replayed_and_holds_no_key() {
    let directory = tempfile::tempdir().unwrap();
    let config = MockConfig {
        record: Some(directory.path().to_owned()),
        ..instant()
    };
    let (server, mut caller) = start(config).await;
    caller.key = "sk-very-private";
    let mut stream = chat("tell me of rivers");
    stream["stream"] = json!(true);
    let prompts = [
        chat("tell me of houses"),
        stream,
        chat("my key is sk-very-private, keep it"),
    ];
    let mut recorded = Vec::new();
    for prompt in &prompts {
        recorded.push(caller.post(CHAT, prompt.clone()).await);
    }
    server.shutdown().await;
    let files = recordings(directory.path());
    assert_eq!(files.len(), 3);
    for file in &files {
        assert!(
            !file.contains("sk-very-private") && !file.to_lowercase().contains("authorization"),
            "{file}"
        );
    }
    assert!(
        files.iter().any(|file| file.contains("tell me of houses")),
        "the files are readable"
    );

    let config = MockConfig {
        replay: Some(directory.path().to_owned()),
        seed: 99,
        ..instant()
    };
    let (server, mut caller) = start(config).await;
    caller.key = "another";
    for (prompt, recorded) in prompts.iter().zip(&recorded) {
        let replayed = caller.post(CHAT, prompt.clone()).await;
        assert_eq!(
            replayed.header("content-type"),
            recorded.header("content-type")
        );
        if recorded.header("content-type") == "application/json" {
            assert_eq!(replayed.json(), recorded.json());
        } else {
            assert_eq!(replayed.text, recorded.text);
        }
    }
    let answer = caller.post(CHAT, chat("something else")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let text = answer.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        text.contains("Nothing is recorded for this call") && text.contains("v1-chat-completions-"),
        "{text}"
    );
    server.shutdown().await;

    let config = MockConfig {
        replay: Some(directory.path().join("missing")),
        ..instant()
    };
    assert!(MockServer::start(config).await.is_err());
}

/// Counts of tokens were not recorded, and their replay found nothing.
#[tokio::test]
async fn a_count_of_tokens_is_recorded_too() {
    let path = "/v1/messages/count_tokens";
    let directory = tempfile::tempdir().unwrap();
    let config = MockConfig {
        record: Some(directory.path().to_owned()),
        ..instant()
    };
    let (server, caller) = start(config).await;
    let recorded = caller.post(path, message("12345")).await.json();
    server.shutdown().await;

    let config = MockConfig {
        replay: Some(directory.path().to_owned()),
        ..instant()
    };
    let (server, caller) = start(config).await;
    let replayed = caller.post(path, message("12345")).await;
    assert_eq!(replayed.status, StatusCode::OK);
    assert_eq!(replayed.json(), recorded);
    server.shutdown().await;
}

fn recordings(directory: &Path) -> Vec<String> {
    let read = std::fs::read_dir(directory).expect("a directory");
    read.map(|entry| {
        let path = entry.expect("an entry").path();
        std::fs::read_to_string(path).expect("a recording")
    })
    .collect()
}
