//! What a recorder writes of calls: all of them, however they end, and never the key.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::WallTime;
use llmq_provider::{ProviderConfig, Recorder};
use llmq_testkit::{FakeClock, ScriptedServer};
use serde_json::Value;

use crate::server::{Called, chat, provider};

/// What stands in the directory, in the order in which the calls began.
fn recorded(directory: &Path) -> Vec<(String, Value)> {
    let files = std::fs::read_dir(directory).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != ".gitignore").collect();
    names.sort_unstable();
    let read = |name: String| {
        let text = std::fs::read_to_string(directory.join(&name)).unwrap();
        (name, serde_json::from_str(&text).unwrap())
    };
    names.into_iter().map(read).collect()
}

fn recording(server: &ScriptedServer, directory: &Path) -> ProviderConfig {
    let clock = Arc::new(FakeClock::with_tokio());
    let recorder = Recorder::open(directory, clock).unwrap();
    ProviderConfig {
        recorder: Some(Arc::new(recorder)),
        ..server.config()
    }
}

#[tokio::test]
async fn a_call_and_its_answer_are_written_down_without_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start().await;
    let provider = provider(recording(&server, directory.path()));
    let serve = async {
        let mut guest = server.accept().await;
        guest.read_call().await;
        guest
            .answer(r#"{"id": "a", "echo": "sk-very-private"}"#)
            .await;
    };
    let call = async {
        let answer = provider
            .call(chat(r#"{"model": "m", "messages": []}"#))
            .await;
        answer.unwrap().collect().await.unwrap()
    };
    tokio::join!(call, serve);
    // The last of its owners waits until all is written.
    drop(provider);
    let files = recorded(directory.path());
    let [(name, call)] = &files[..] else {
        panic!("{files:?}");
    };
    assert!(
        name.ends_with("_000000_chat_completions.llmq.json"),
        "{name}"
    );
    assert_eq!(call["provider"], "openai");
    assert_eq!(call["model"], "m");
    assert_eq!(call["request"]["messages"], serde_json::json!([]));
    assert_eq!(
        (&call["status"], &call["response"]["id"]),
        (&200.into(), &"a".into())
    );
    assert_eq!(call["response"]["echo"], "***");
    assert_eq!(call["error"], Value::Null);
    assert_eq!(call["versions"]["llmq"], env!("CARGO_PKG_VERSION"));
    assert!(!call.to_string().contains("sk-very-private"));
    let ignored = std::fs::read_to_string(directory.path().join(".gitignore")).unwrap();
    assert_eq!(ignored, "*\n");
}

#[tokio::test]
async fn a_call_that_fails_is_written_down_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start().await;
    let provider = provider(recording(&server, directory.path()));
    let serve = async {
        let mut cut = server.accept().await;
        cut.read_call().await;
        cut.say("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half")
            .await;
        drop(cut);
        let mut silent = server.accept().await;
        silent.read_call().await;
        silent.reset();
    };
    let calls = async {
        let cut = provider.call(chat("{}")).await.unwrap();
        assert!(cut.collect().await.is_err());
        assert!(provider.call(chat("{}")).await.is_err());
    };
    tokio::join!(calls, serve);
    drop(provider);
    let files = recorded(directory.path());
    assert_eq!(files.len(), 2);
    let (cut, reset) = (&files[0].1, &files[1].1);
    assert_eq!(cut["response"], serde_json::json!(["{\"half"]));
    assert!(
        cut["error"].as_str().unwrap().contains("broke off"),
        "{cut}"
    );
    assert_eq!(
        (&reset["status"], &reset["response"]),
        (&Value::Null, &Value::Null)
    );
    assert!(reset["error"].is_string(), "{reset}");
}

#[test]
fn recordings_of_more_than_a_week_ago_are_removed_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let clock = FakeClock::new();
    let day = |day| format!("2026-11-{day}T10-00-00.000000Z_000000_chat_completions.llmq.json");
    for name in [&day(10), &day(20), "2026-11-01 notes.json"] {
        std::fs::write(directory.path().join(name), "{}").unwrap();
    }
    let now: jiff::Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
    clock.set_wall(WallTime::from_micros(now.as_microsecond()));
    drop(Recorder::open(directory.path(), Arc::new(clock)).unwrap());
    let mut left: Vec<String> = recorded(directory.path())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    left.sort_unstable();
    assert_eq!(left, ["2026-11-01 notes.json".to_owned(), day(20)]);
}

/// Once they stayed as long as no hour was without a call.
#[tokio::test]
async fn old_recordings_are_removed_while_calls_come_too() {
    let directory = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start().await;
    let clock = Arc::new(FakeClock::new());
    let now: jiff::Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
    clock.set_wall(WallTime::from_micros(now.as_microsecond()));
    let recorder = Recorder::open(directory.path(), Arc::<FakeClock>::clone(&clock)).unwrap();
    let provider = provider(ProviderConfig {
        recorder: Some(Arc::new(recorder)),
        ..server.config()
    });
    let old = "2026-11-13T23-30-00.000000Z_000000_chat_completions.llmq.json";
    std::fs::write(directory.path().join(old), "{}").unwrap();
    clock.advance(Duration::from_secs(3_600));
    let serve = async {
        let mut guest = server.accept().await;
        guest.read_call().await;
        guest.answer(r#"{"id": "a"}"#).await;
    };
    let call = async {
        let answer = provider.call(chat("{}")).await;
        answer.unwrap().collect().await.unwrap()
    };
    tokio::join!(call, serve);
    drop(provider);
    let left = recorded(directory.path());
    assert!(left.iter().all(|(name, _)| name != old), "{left:?}");
    assert_eq!(left.len(), 1, "the call's own");
}
