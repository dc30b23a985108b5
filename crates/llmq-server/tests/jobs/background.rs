//! Responses that nobody waits for, and that are asked for later.

use std::time::Duration;

use http::Method;
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_testkit::PATIENCE;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{Got, World, chat};

fn asked() -> Value {
    json!({"model": "gpt", "input": "hello", "background": true, "instructions": "be short"})
}

async fn create(world: &World, body: &Value) -> String {
    let got = world.post("/v1/responses", body).await;
    assert_eq!(got.status, 200, "{got:?}");
    let response = got.json();
    assert_eq!(
        (
            &response["object"],
            &response["background"],
            &response["instructions"]
        ),
        (&json!("response"), &json!(true), &json!("be short"))
    );
    response["id"].as_str().unwrap().to_owned()
}

/// The response at its end, which the job behind it tells of.
async fn end(world: &World, id: &str) -> Value {
    world.end(id.strip_prefix("resp_").unwrap()).await;
    world.get(&format!("/v1/responses/{id}")).await.json()
}

async fn pause(world: &World) {
    let got = world.post("/api/queues/gpt/pause", &json!({})).await;
    assert_eq!(got.status, 200, "{got:?}");
}

fn events(got: &Got) -> Vec<Value> {
    let text = String::from_utf8(got.body.to_vec()).unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

#[tokio::test]
async fn a_response_is_accepted_at_once_and_is_the_providers_own_at_its_end() {
    let world = World::start().await;
    pause(&world).await;
    let id = create(&world, &asked()).await;
    let waiting = world.get(&format!("/v1/responses/{id}")).await.json();
    assert_eq!(
        (&waiting["status"], &waiting["output"]),
        (&json!("queued"), &json!([]))
    );
    assert_eq!(world.calls(), 0);
    world.post("/api/queues/gpt/resume", &json!({})).await;
    let done = end(&world, &id).await;
    assert_eq!(
        (&done["status"], &done["id"]),
        (&json!("completed"), &json!(id))
    );
    assert!(
        done["output"][0]["content"][0]["text"].is_string(),
        "{done}"
    );
    assert!(done["usage"]["output_tokens"].as_u64().unwrap() > 0);
    assert_eq!(world.calls(), 1);
}

#[tokio::test]
async fn a_finished_response_is_told_as_a_stream_from_any_event_on() {
    let world = World::start().await;
    let id = create(&world, &asked()).await;
    let done = end(&world, &id).await;
    let got = world.get(&format!("/v1/responses/{id}?stream=true")).await;
    assert_eq!(got.header("content-type"), "text/event-stream");
    let all = events(&got);
    assert_eq!(all[0]["type"], "response.created");
    let last = all.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]),
        (&json!("response.completed"), &done)
    );
    let rest = world
        .get(&format!("/v1/responses/{id}?stream=true&starting_after=3"))
        .await;
    assert_eq!(events(&rest), all[4..]);
}

#[tokio::test]
async fn a_response_whose_caller_wants_its_events_is_kept_all_the_same() {
    let world = World::start().await;
    let mut body = asked();
    body["stream"] = true.into();
    let all = events(&world.post("/v1/responses", &body).await);
    assert_eq!(all[0]["response"]["status"], "queued");
    let id = all[0]["response"]["id"].as_str().unwrap();
    assert_eq!(all.last().unwrap()["type"], "response.completed");
    assert_eq!(end(&world, id).await, all.last().unwrap()["response"]);
}

#[tokio::test]
async fn a_response_that_nobody_wants_any_more_is_cancelled_once() {
    let world = World::start().await;
    pause(&world).await;
    let id = create(&world, &asked()).await;
    let path = format!("/v1/responses/{id}/cancel");
    for _ in 0..2 {
        let got = world.post(&path, &json!({})).await;
        assert_eq!(
            (got.status.as_u16(), &got.json()["status"]),
            (200, &json!("cancelled"))
        );
    }
    world.post("/api/queues/gpt/resume", &json!({})).await;
    let kept = create(&world, &asked()).await;
    let done = end(&world, &kept).await;
    let got = world
        .post(&format!("/v1/responses/{kept}/cancel"), &json!({}))
        .await;
    assert_eq!(got.json(), done, "one that has ended stays as it is");
    assert_eq!(world.calls(), 1);
}

#[tokio::test]
async fn a_failed_response_carries_the_providers_words() {
    let world = World::start().await;
    let mut body = asked();
    body["n"] = 0.into();
    let id = create(&world, &body).await;
    let failed = end(&world, &id).await;
    assert_eq!(
        (&failed["status"], &failed["output"]),
        (&json!("failed"), &json!([]))
    );
    assert!(failed["error"]["message"].is_string(), "{failed}");
}

#[tokio::test]
async fn what_is_not_ours_or_cannot_be_is_told_so() {
    let world = World::start().await;
    let unknown = "resp_0192aaaabbbbccccddddeeeeffff0000";
    for path in [unknown, "resp_1", "nonsense"] {
        let got = world.get(&format!("/v1/responses/{path}")).await;
        assert_eq!(got.status, 404);
        assert!(got.json()["error"]["message"].is_string());
    }
    // A job that was handed in in another way is no response.
    let job = world.submit().await.replace('-', "");
    assert_eq!(
        world.get(&format!("/v1/responses/resp_{job}")).await.status,
        404
    );
    let mut body = asked();
    body["store"] = false.into();
    let got = world.post("/v1/responses", &body).await;
    assert_eq!(
        (got.status.as_u16(), &got.json()["error"]["param"]),
        (400, &json!("store"))
    );
    let id = create(&world, &asked()).await;
    let path = format!("/v1/responses/{id}");
    assert_eq!(world.ask(Method::DELETE, &path, &[], "").await.status, 405);
    let items = world.get(&format!("{path}/input_items")).await;
    let message = items.json()["error"]["message"].clone();
    assert_eq!(items.status, 404);
    assert!(message.as_str().unwrap().contains("not kept"), "{message}");
    let got = world
        .get(&format!("{path}?starting_after=x&stream=true"))
        .await;
    assert_eq!(got.status, 400);
}

/// Once it was ended in order, and its reader took what it had for all.
#[tokio::test]
async fn a_stream_that_the_servers_end_cuts_short_is_not_ended_in_order() {
    let world = World::start().await;
    pause(&world).await;
    let id = create(&world, &asked()).await;
    let mut stream = TcpStream::connect(world.addr).await.unwrap();
    let ask = format!("GET /v1/responses/{id}?stream=true HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("response.queued") {
        assert!(stream.read_buf(&mut text).await.unwrap() > 0);
    }
    world.gateway.stop_requests(PATIENCE).await;
    let rest = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut text)).await;
    // A reset is an end too.
    let _ = rest.expect("it ends");
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.ends_with("0\r\n\r\n"), "{text}");
}

/// Once a call with a key was let go at once, although its attempt went on and was answered.
#[tokio::test]
async fn a_call_that_is_on_its_way_has_time_to_end() {
    let config = MockConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        latency: Duration::from_millis(300),
        ..MockConfig::default()
    };
    let world = World::behind(MockServer::start(config).await.unwrap(), &[], "").await;
    let headers = [("idempotency-key", "k")];
    let path = "/v1/chat/completions";
    let call = world.ask(Method::POST, path, &headers, chat().to_string());
    let stop = async {
        let running = "/api/requests?status=processing";
        while world.get(running).await.json()["requests"] == json!([]) {}
        world.gateway.stop_requests(PATIENCE).await;
    };
    let (got, ()) = tokio::join!(call, stop);
    assert_eq!(got.status, 200, "{got:?}");
}
