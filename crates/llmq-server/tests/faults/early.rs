//! Streams whose callers bear no silence: headers before there is an answer.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::answers::{error, with_body};
use crate::world::{Act, Mode, Opened, Upstream, World};

const CHAT: &str = "/v1/chat/completions";
const SOON: [(&str, &str); 1] = [("x-llmq-early-headers", "50ms")];

/// An upstream that acts once it is told to.
async fn held_back(then: Act) -> (Upstream, Arc<Notify>) {
    let told = Arc::new(Notify::new());
    let go_on = Arc::clone(&told);
    let act = move |_| Act::When(Arc::clone(&told), Box::new(then.clone()));
    (Upstream::start("one", act).await, go_on)
}

async fn open(world: &World, path: &str, headers: &[(&str, &str)]) -> Opened {
    let body = r#"{"model":"m","stream":true,"max_tokens":9,"messages":[]}"#;
    world
        .open(Request::post(path), headers, body.to_owned())
        .await
}

/// A refusal that the caller hears of when it has its 200.
fn refusal() -> Act {
    let message = "No such thing";
    Act::Say(error(
        "400 Bad Request",
        "",
        "invalid_request_error",
        message,
    ))
}

#[tokio::test]
async fn a_stream_that_waits_begins_with_comments_and_goes_on_as_itself() {
    let (one, go_on) = held_back(Act::Answer).await;
    let world = World::new(&[&one], "", "").await;
    let asked = Instant::now();
    let mut opened = open(&world, CHAT, &[("x-llmq-early-headers", "300ms")]).await;
    assert!(
        asked.elapsed() >= Duration::from_millis(300),
        "nothing before its time"
    );
    assert_eq!(opened.seen.status, 200);
    assert_eq!(opened.seen.headers["content-type"], "text/event-stream");
    assert!(opened.seen.headers.contains_key("x-llmq-request-id"));
    // Once a second from there on.
    assert!(opened.piece().await && opened.piece().await);
    assert_eq!(opened.seen.body, ": wait\n: wait\n");
    go_on.notify_one();
    let seen = opened.rest().await;
    seen.is_from(&one);
    assert!(seen.body.ends_with("data: [DONE]\n\n"), "{seen:?}");
}

/// It was passed over in silence where the call had a key.
#[tokio::test]
async fn a_stream_with_a_key_begins_with_comments_too() {
    let key = ("idempotency-key", "k");
    let soon = [SOON[0], key];
    let (one, go_on) = held_back(Act::Answer).await;
    let world = World::new(&[&one], "", "").await;
    let mut opened = open(&world, CHAT, &soon).await;
    assert!(opened.piece().await);
    assert_eq!(opened.seen.body, ": wait\n");
    // One that asks again hears it when it is whole.
    let mut again = open(&world, CHAT, &soon).await;
    assert!(again.piece().await);
    go_on.notify_one();
    for opened in [opened, again] {
        let seen = opened.rest().await;
        seen.is_from(&one);
        assert!(seen.body.ends_with("data: [DONE]\n\n"), "{seen:?}");
    }
    assert_eq!(one.calls(), 1);

    let (one, go_on) = held_back(refusal()).await;
    let world = World::new(&[&one], "", "").await;
    let mut opened = open(&world, CHAT, &soon).await;
    assert!(opened.piece().await);
    go_on.notify_one();
    let seen = opened.rest().await;
    seen.broke_off();
    let event = "\ndata: {\"error\":{\"message\":\"No such thing\"";
    assert!(seen.body.contains(event), "{seen:?}");
}

#[tokio::test]
async fn a_failure_after_early_headers_is_an_event_and_no_clean_end() {
    for (path, event) in [
        (CHAT, "\ndata: {\"error\":{\"message\":\"No such thing\""),
        ("/v1/messages", "\nevent: error\ndata: {\"type\":\"error\""),
    ] {
        let (one, go_on) = held_back(refusal()).await;
        let world = World::new(&[&one], "", "").await;
        let mut opened = open(&world, path, &SOON).await;
        assert!(opened.piece().await);
        go_on.notify_one();
        let seen = opened.rest().await;
        seen.broke_off();
        assert!(seen.body.contains(event), "{seen:?}");
        assert!(seen.body.contains("No such thing"), "{seen:?}");
    }
}

/// SDKs take an event for a failure only where it names an `error`; they took these for pieces of
/// the answer, and the reason was lost.
#[tokio::test]
async fn a_failure_of_another_shape_is_an_event_that_an_sdk_knows() {
    for body in [
        r#"{"object":"error","message":"No such thing","type":"invalid_request_error"}"#,
        r#"{"detail":"No such thing"}"#,
        r#"[{"error":{"code":400,"message":"No such thing","status":"INVALID_ARGUMENT"}}]"#,
    ] {
        let said = Act::Say(with_body("400 Bad Request", "application/json", "", body));
        let (one, go_on) = held_back(said).await;
        let world = World::new(&[&one], "", "").await;
        let mut opened = open(&world, CHAT, &SOON).await;
        assert!(opened.piece().await);
        go_on.notify_one();
        let seen = opened.rest().await;
        let event = "\ndata: {\"error\":{\"message\":\"No such thing\"";
        assert!(seen.body.contains(event), "{body} {seen:?}");
        assert!(!seen.clean, "{body} {seen:?}");
    }
}

#[tokio::test]
async fn a_wait_that_ends_in_vain_is_told_as_an_event_too() {
    let one = Upstream::start("one", |_| Act::Answer).await;
    let limits = r#"limits = { custom = ["requests=1/1h"] }"#;
    let text = format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n[models.m]\n\
         upstreams = [{{ upstream = \"one\", model = \"one\", {limits} }}]\nearly_headers = \"50ms\"\n",
        one.url
    );
    let world = World::with(&text).await;
    open(&world, CHAT, &[]).await.rest().await.is_from(&one);
    let opened = open(&world, CHAT, &[("x-llmq-max-wait", "400ms")]).await;
    let waits_for = opened.seen.headers["x-llmq-wait"].to_str().unwrap();
    assert!(waits_for.starts_with("requests/1h one/one"), "{waits_for}");
    let seen = opened.rest().await;
    seen.broke_off();
    assert!(seen.body.starts_with(": wait\n"), "{seen:?}");
    assert!(seen.body.contains("rate_limited"), "{seen:?}");
    assert_eq!(one.calls(), 1);
}

#[tokio::test]
async fn what_is_answered_in_time_and_what_is_no_stream_has_none_of_it() {
    let one = Upstream::start("one", |call| match call {
        0 => Act::Answer,
        _ => refusal(),
    })
    .await;
    let world = World::new(&[&one], "", "").await;
    let patient = [("x-llmq-early-headers", "15s")];
    let seen = world.ask_with(Mode::Stream, &patient).await;
    seen.is_from(&one);
    assert!(!seen.body.contains("wait"), "{seen:?}");
    for mode in [Mode::Stream, Mode::Whole] {
        world
            .ask_with(mode, &patient)
            .await
            .failed(400, "No such thing");
    }
    let (late, go_on) = held_back(Act::Answer).await;
    let world = World::new(&[&late], "", "").await;
    let asked = world.ask_with(Mode::Whole, &[("x-llmq-early-headers", "1ms")]);
    let told = async {
        while late.calls() == 0 {
            tokio::task::yield_now().await;
        }
        go_on.notify_one();
    };
    let (seen, ()) = tokio::join!(asked, told);
    seen.is_from(&late);
    assert_eq!(seen.headers["content-type"], "application/json");
}

#[tokio::test]
async fn a_caller_that_leaves_after_early_headers_leaves_the_line() {
    let (one, _go_on) = held_back(Act::Answer).await;
    let text = format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n[models.m]\n\
         upstreams = [{{ upstream = \"one\", limits = {{ concurrency = 1 }} }}]\n",
        one.url
    );
    let world = World::with(&text).await;
    let first = open(&world, CHAT, &SOON).await;
    let second = open(&world, CHAT, &SOON).await;
    let waiting = |count: u64| {
        let world = &world;
        async move {
            loop {
                let queues = world
                    .send(Request::get("/api/queues"), &[], String::new())
                    .await;
                let queues: serde_json::Value = serde_json::from_str(&queues.body).unwrap();
                if queues["queues"][0]["waiting"] == count {
                    return;
                }
            }
        }
    };
    waiting(1).await;
    drop(second);
    waiting(0).await;
    drop(first);
}
