//! One try of a webhook, over real connections.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use llmq_client::webhooks::WebhookSecret;
use llmq_core::{Clock as _, WallTime};
use llmq_engine::config::Network;
use llmq_engine::webhooks::{
    DeliveryClient, DeliveryError, EndpointAnswer, Endpoints, Outbox, Outgoing, Reach,
};
use llmq_engine::{SystemClock, Tasks};
use llmq_store::{Callback, Jobs as _, MemoryStore, NewJob, Settings};
use llmq_testkit::{FaultyStore, PATIENCE, ScriptedServer};
use tokio::sync::Notify;
use tokio::task::JoinSet;

fn loopback() -> Reach {
    Reach::new(vec![Network {
        address: "127.0.0.0".parse().unwrap(),
        prefix: 8,
    }])
}

async fn deliver(reach: Reach, url: &str) -> Result<EndpointAnswer, DeliveryError> {
    let outgoing = Outgoing {
        url,
        id: "evt_1",
        body: Bytes::from_static(b"{}"),
        secrets: &[WebhookSecret::generate().unwrap()],
    };
    let now = WallTime::from_micros(1_700_000_000_000_000);
    DeliveryClient::new(reach)
        .unwrap()
        .deliver(outgoing, now)
        .await
}

/// A server that says the same to everybody; what came is handed back.
async fn says(text: String) -> (String, JoinSet<()>) {
    let server = ScriptedServer::start().await;
    let url = server.url();
    let mut serving = JoinSet::new();
    serving.spawn(server.serve_each(move |mut guest| {
        let text = text.clone();
        async move {
            guest.read_call().await;
            guest.say(&text).await;
            guest.closed().await;
        }
    }));
    (url, serving)
}

#[tokio::test]
async fn a_private_address_is_refused_by_number_and_by_name_and_nobody_is_called() {
    let server = ScriptedServer::start().await;
    let port = server.addr().port();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let refused = deliver(Reach::default(), &format!("http://{host}:{port}/")).await;
        let error = refused.unwrap_err();
        assert!(matches!(error, DeliveryError::Closed(_)), "{host}: {error}");
    }
    tokio::select! {
        biased;
        _ = server.accept() => panic!("somebody connected"),
        () = tokio::task::yield_now() => {}
    }
}

#[tokio::test]
async fn an_answer_is_told_with_its_status_its_wish_and_the_beginning_of_its_words() {
    let long = "x".repeat(600);
    let text =
        format!("HTTP/1.1 503 Busy\r\nretry-after: 120\r\ncontent-length: 600\r\n\r\n{long}");
    let (url, _serving) = says(text).await;
    let answer = deliver(loopback(), &url).await.unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.retry_after, Some(Duration::from_secs(120)));
    assert_eq!(answer.excerpt.len(), 500);
    let text = "HTTP/1.1 429 Slow\r\nretry-after: Tue, 14 Nov 2023 22:14:20 GMT\r\n\
                content-length: 0\r\n\r\n";
    let (url, _serving) = says(text.to_owned()).await;
    let answer = deliver(loopback(), &url).await.unwrap();
    assert_eq!(answer.retry_after, Some(Duration::from_secs(60)));
}

#[tokio::test]
async fn an_answer_without_end_is_read_to_64_kib() {
    let text = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{}",
        "x".repeat(70_000)
    );
    let (url, _serving) = says(text).await;
    // The rest never comes, and is not waited for.
    let answer = deliver(loopback(), &url).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_says_nothing_is_left_after_15_seconds() {
    let (url, _serving) = says(String::new()).await;
    let begun = tokio::time::Instant::now();
    let error = deliver(loopback(), &url).await.unwrap_err();
    assert_eq!(error, DeliveryError::TimedOut);
    assert_eq!(begun.elapsed().as_secs(), 15);
}

/// What was handed out with it was held for a minute.
#[tokio::test]
async fn a_webhook_that_cannot_be_addressed_now_holds_up_no_other() {
    let server = ScriptedServer::start().await;
    let url = server.url();
    let came = Arc::new(Notify::new());
    let heard = Arc::clone(&came);
    let mut serving = JoinSet::new();
    serving.spawn(server.serve_each(move |mut guest| {
        let heard = Arc::clone(&heard);
        async move {
            guest.read_call().await;
            heard.notify_one();
            guest
                .say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await;
            guest.closed().await;
        }
    }));
    let store = FaultyStore::new(Arc::new(MemoryStore::new(Settings::default())));
    let clock = SystemClock::new();
    for key in [uuid::Uuid::now_v7(), uuid::Uuid::now_v7()] {
        let mut job = NewJob::new("m", "t", "{}");
        job.details.callback = Some(Callback {
            url: url.clone(),
            signed_by: Some(key.to_string()),
        });
        let id = job.id;
        store.enqueue(vec![job], clock.now()).await.unwrap();
        store.cancel(id, clock.now()).await.unwrap();
    }
    // The secret that signs the first one is made, and cannot be recorded.
    store.fails("put_endpoint", 1);
    let endpoints = Endpoints::new(store.clone(), clock.clone());
    let client = DeliveryClient::new(loopback()).unwrap();
    let outbox = Arc::new(Outbox::new(store.clone(), endpoints, client, clock));
    let tasks = Tasks::new();
    tasks.spawn(outbox.keep_sending(tasks.clone()));
    let heard = tokio::time::timeout(PATIENCE, came.notified()).await;
    heard.expect("the second one comes");
    assert_eq!(store.fails_left("put_endpoint"), 0);
    tasks.cancel();
}
