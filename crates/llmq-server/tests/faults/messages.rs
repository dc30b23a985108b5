//! The same faults in Anthropic's dialect.

use std::sync::Arc;

use http::Request;
use serde_json::json;
use tokio::sync::Notify;

use crate::answers::{END, STREAM, chunk, with_body};
use crate::world::{Act, Seen, Upstream, World};

/// The model `m` at `one`, with these further settings, and what they name.
async fn world(one: &Upstream, more: &str) -> World {
    World::with(&format!(
        "[upstreams.one]\nprovider = \"anthropic\"\nbase_url = \"{}\"\n\
         [models.m]\nupstreams = [{{ upstream = \"one\" }}]\n{more}",
        one.url
    ))
    .await
}

async fn ask(world: &World, stream: bool) -> Seen {
    let body = json!({"model": "m", "max_tokens": 9, "stream": stream,
        "messages": [{"role": "user", "content": "hello"}]});
    let request = Request::post("/v1/messages");
    let headers = [("anthropic-version", "2023-06-01")];
    world.send(request, &headers, body.to_string()).await
}

pub(crate) fn event(name: &str, data: &serde_json::Value) -> String {
    chunk(&format!("event: {name}\ndata: {data}\n\n"))
}

/// What a stream says before its first word.
fn opening() -> String {
    let start = json!({"type": "message_start", "message": {"id": "msg_1", "type": "message",
        "role": "assistant", "model": "m", "content": [],
        "usage": {"input_tokens": 7, "output_tokens": 1}}});
    format!("{STREAM}{}", event("message_start", &start))
}

/// A stream up to its first word.
pub(crate) fn begun() -> String {
    let block = json!({"type": "content_block_start", "index": 0,
        "content_block": {"type": "text", "text": ""}});
    let word = json!({"type": "content_block_delta", "index": 0,
        "delta": {"type": "text_delta", "text": "begun"}});
    let block = event("content_block_start", &block);
    format!(
        "{}{block}{}",
        opening(),
        event("content_block_delta", &word)
    )
}

/// Anthropic has no code for it, only a text.
#[tokio::test]
async fn a_prompt_that_is_too_long_goes_to_the_model_with_a_larger_context() {
    let error = json!({"type": "error", "error": {"type": "invalid_request_error",
        "message": "prompt is too long: 210000 tokens > 200000 maximum"}});
    let error = with_body(
        "400 Bad Request",
        "application/json",
        "",
        &error.to_string(),
    );
    let one = Upstream::start("one", move |_| Act::Say(error.clone())).await;
    let answer = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "n",
        "content": [{"type": "text", "text": "from two"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 7, "output_tokens": 3}});
    let answer = with_body("200 OK", "application/json", "", &answer.to_string());
    let two = Upstream::start("two", move |_| Act::Say(answer.clone())).await;
    let larger = format!(
        "context_fallback = [\"n\"]\n[models.n]\nupstreams = [{{ upstream = \"two\" }}]\n\
         [upstreams.two]\nprovider = \"anthropic\"\nbase_url = \"{}\"\n",
        two.url
    );
    let seen = ask(&world(&one, &larger).await, false).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    assert!(seen.body.contains("from two"), "{seen:?}");
    assert_eq!((one.calls(), two.calls()), (1, 1));
    // Without one it is told as it came.
    let seen = ask(&world(&one, "").await, false).await;
    seen.failed(400, "prompt is too long");
    assert_eq!(one.calls(), 2);
}

#[tokio::test]
async fn a_stream_that_breaks_is_told_by_an_error_event_and_no_clean_end() {
    let malformed = r#"event: content_block_delta
data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"bro"}

"#;
    for rest in [String::new(), END.to_owned(), chunk(malformed)] {
        let go_on = Arc::new(Notify::new());
        let rest = Act::When(Arc::clone(&go_on), Box::new(Act::Say(rest)));
        let act = Act::Then(begun(), Box::new(rest));
        let one = Upstream::start("one", move |_| act.clone()).await;
        let world = world(&one, "").await;
        let body = json!({"model": "m", "max_tokens": 9, "stream": true,
            "messages": [{"role": "user", "content": "hello"}]});
        let request = Request::post("/v1/messages");
        let opened = world.open(request, &[], body.to_string()).await;
        go_on.notify_one();
        let seen = opened.rest().await;
        assert_eq!((seen.status, seen.clean), (200, false), "{seen:?}");
        assert!(seen.body.contains("begun"), "{seen:?}");
        assert!(
            seen.body
                .contains("event: error\ndata: {\"type\":\"error\""),
            "{seen:?}"
        );
        assert!(!seen.body.contains("message_stop"), "{seen:?}");
        assert!(!seen.body.contains("bro\"}"), "{seen:?}");
        assert_eq!(one.calls(), 1);
    }
}

/// What comes before the first word is made up for.
#[tokio::test]
async fn a_stream_that_breaks_before_its_first_word_is_asked_for_again() {
    let cut = format!("{}{END}", opening());
    let stop = json!({"type": "message_stop"});
    let whole = format!("{}{}{END}", begun(), event("message_stop", &stop));
    let one = Upstream::start("one", move |call| match call {
        0 => Act::Say(cut.clone()),
        _ => Act::Say(whole.clone()),
    })
    .await;
    let world = world(&one, "").await;
    let seen = ask(&world, true).await;
    assert!(seen.clean && seen.body.contains("message_stop"), "{seen:?}");
    assert_eq!(seen.body.matches("message_start").count(), 2, "{seen:?}");
    assert_eq!(one.calls(), 2);
}

/// A fallback that takes no assistant's words to go on from: its 400 says nothing of why the
/// first one failed.
#[tokio::test]
async fn a_fallback_that_takes_no_prefill_hides_not_why_the_first_one_failed() {
    let said = |status: &str, kind: &str, message: &str| {
        let error = json!({"type": "error", "error": {"type": kind, "message": message}});
        Act::Say(with_body(
            status,
            "application/json",
            "",
            &error.to_string(),
        ))
    };
    let overloaded = said("529 Overloaded", "overloaded_error", "Overloaded");
    let refused = said(
        "400 Bad Request",
        "invalid_request_error",
        "Prefilling assistant messages is not supported for this model.",
    );
    let one = Upstream::start("one", move |_| overloaded.clone()).await;
    let two = Upstream::start("two", move |_| refused.clone()).await;
    let fallback = format!(
        "fallback = [\"n\"]\n[models.n]\nupstreams = [{{ upstream = \"two\" }}]\n\
         [upstreams.two]\nprovider = \"anthropic\"\nbase_url = \"{}\"\n",
        two.url
    );
    for stream in [false, true] {
        let world = world(&one, &fallback).await;
        let body = json!({"model": "m", "max_tokens": 9, "stream": stream, "messages": [
            {"role": "user", "content": "hello"}, {"role": "assistant", "content": "He"}]});
        let request = Request::post("/v1/messages");
        let seen = world.send(request, &[], body.to_string()).await;
        seen.failed(529, "overloaded_error");
        assert!(!seen.body.contains("Prefilling"), "{seen:?}");
    }
    assert!(one.calls() > 0 && two.calls() > 0);
}
