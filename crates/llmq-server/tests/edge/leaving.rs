//! Callers that leave, or send on, while their call stands in line.

use llmq_server::Bounds;
use llmq_testkit::PATIENCE;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::world::{World, all, get, goes_on, is};

/// A gateway whose queue stands still.
async fn paused() -> World {
    let world = World::new("", Bounds::default()).await;
    is(&world.exchange(post("pause")).await, 200, "\"paused\"");
    world
}

fn post(what: &str) -> String {
    format!(
        "POST /api/queues/m/{what} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: 0\r\n\r\n"
    )
}

fn chat(headers: &str) -> String {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{headers}\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// Asks until as many calls wait as is said.
async fn until_waiting(world: &World, count: u64) {
    let part = format!("\"waiting\":{count},");
    let asked = async {
        while !world
            .exchange(get("/api/queues/m", ""))
            .await
            .contains(&part)
        {}
    };
    let found = timeout(PATIENCE, asked).await;
    assert!(found.is_ok(), "never {count} calls in line");
}

/// The gateway reads nothing while a call waits, and still its caller's end takes it out of line.
#[tokio::test]
async fn a_caller_that_leaves_takes_its_call_out_of_line() {
    let world = paused().await;
    let mut stays = world.connect().await;
    stays.write_all(chat("").as_bytes()).await.unwrap();
    until_waiting(&world, 1).await;
    let mut closes = world.connect().await;
    closes.write_all(chat("").as_bytes()).await.unwrap();
    let mut is_reset = world.connect().await;
    is_reset.write_all(chat("").as_bytes()).await.unwrap();
    until_waiting(&world, 3).await;
    drop(closes);
    until_waiting(&world, 2).await;
    is_reset.set_zero_linger().unwrap();
    drop(is_reset);
    until_waiting(&world, 1).await;
    drop(stays);
    until_waiting(&world, 0).await;
}

/// Once its body is here, one that asked before it sent it waits like any other.
#[tokio::test]
async fn a_call_that_asked_before_it_sent_its_body_waits_its_turn() {
    let world = paused().await;
    let mut stream = world.connect().await;
    let call = chat("expect: 100-continue\r\nconnection: close\r\nx-llmq-max-wait: 1s\r\n");
    let (head, body) = call.split_once("\r\n\r\n").unwrap();
    let head = format!("{head}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    goes_on(&mut stream).await;
    stream.write_all(body.as_bytes()).await.unwrap();
    until_waiting(&world, 1).await;
    is(&all(&mut stream).await, 503, "\"paused\"");
}

/// What comes behind a call that waits is neither an end nor lost.
#[tokio::test]
async fn what_is_sent_behind_a_call_in_line_is_answered_after_it() {
    let world = paused().await;
    let mut stream = world.connect().await;
    let first = chat("x-llmq-max-wait: 100ms\r\n");
    stream.write_all(first.as_bytes()).await.unwrap();
    until_waiting(&world, 1).await;
    let second = get("/health", "");
    stream.write_all(second.as_bytes()).await.unwrap();
    until_waiting(&world, 1).await;
    // Its upstream is not there: it fails when its time is up.
    is(&world.exchange(post("resume")).await, 200, "");
    let said = all(&mut stream).await;
    is(&said, 502, "");
    assert_eq!(said.matches("HTTP/1.1 ").count(), 2, "{said}");
    assert!(said.contains("\"status\""), "{said}");
}
