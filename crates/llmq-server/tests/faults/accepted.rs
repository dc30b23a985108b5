//! A call with a key is said to its upstream as the same call without one.

use std::sync::Arc;

use http::Request;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::answers::{END, STREAM, done, stop, with_body, word};
use crate::world::{Act, Mode, Upstream, World};

const KEYED: &[&[(&str, &str)]] = &[&[], &[("idempotency-key", "k")]];

/// Once it was told as if nothing were known of the server and the model.
#[tokio::test]
async fn a_translated_call_says_its_cap_in_the_words_that_its_server_knows() {
    let one = Upstream::start("one", |_| Act::Answer).await;
    let world = World::new(&[&one], "", "").await;
    let body = json!({"model": "m", "max_tokens": 5,
        "messages": [{"role": "user", "content": "hello"}]});
    for headers in KEYED {
        let request = Request::post("/v1/messages");
        let seen = world.send(request, headers, body.to_string()).await;
        assert_eq!(seen.status, 200, "{seen:?}");
        let heard: Value = serde_json::from_str(&one.heard(one.calls() - 1).body).unwrap();
        assert_eq!(heard["max_tokens"], 5, "{heard}");
        assert!(heard.get("max_completion_tokens").is_none(), "{heard}");
    }
}

/// Once it was refused, although the fallback serves it.
#[tokio::test]
async fn what_only_a_fallback_can_be_told_goes_there() {
    let answer = json!({"object": "list", "data": [], "model": "n",
        "usage": {"prompt_tokens": 1, "total_tokens": 1}});
    let answer = with_body("200 OK", "application/json", "", &answer.to_string());
    let claude = Upstream::start("claude", |_| Act::Reset).await;
    let other = Upstream::start("other", move |_| Act::Say(answer.clone())).await;
    let text = format!(
        "[upstreams.claude]\nprovider = \"anthropic\"\nbase_url = \"{}\"\n\
         [upstreams.other]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
         [models.m]\nupstreams = [{{ upstream = \"claude\" }}]\nfallback = [\"n\"]\n\
         [models.n]\nupstreams = [{{ upstream = \"other\" }}]\n",
        claude.url, other.url
    );
    let world = World::with(&text).await;
    let body = json!({"model": "m", "input": "x"}).to_string();
    for (calls, headers) in KEYED.iter().enumerate() {
        let request = Request::post("/v1/embeddings");
        let seen = world.send(request, headers, body.clone()).await;
        assert_eq!(seen.status, 200, "{headers:?}: {seen:?}");
        assert_eq!((claude.calls(), other.calls()), (0, calls + 1));
    }
}

/// A server that refuses to tell a stream's usage is asked once, and the call is answered.
#[tokio::test]
async fn a_stream_is_said_again_without_what_its_server_does_not_know() {
    let one = Upstream::start("one", |call| match call {
        0 => Act::Say(crate::answers::error(
            "400 Bad Request",
            "",
            "invalid_request_error",
            "unknown member stream_options",
        )),
        _ => Act::Answer,
    })
    .await;
    let world = World::new(&[&one], "", "stream_usage = \"add\"").await;
    let headers = [("idempotency-key", "k")];
    world.ask_with(Mode::Stream, &headers).await.is_from(&one);
    assert_eq!(one.calls(), 2);
    assert!(!one.heard(1).body.contains("stream_options"));
}

/// An upstream that says the first word of a stream, and `rest` when it is told to; from its second
/// call on a whole stream.
async fn in_two_parts(go_on: &Arc<Notify>, rest: String) -> Upstream {
    let begun = format!("{STREAM}{}", word("one", "from one"));
    let rest = Act::When(Arc::clone(go_on), Box::new(Act::Say(rest)));
    let act = Act::Then(begun, Box::new(rest));
    Upstream::start("one", move |call| match call {
        0 => act.clone(),
        _ => Act::Answer,
    })
    .await
}

/// Once its first caller got it in one piece, when all of it was kept.
#[tokio::test]
async fn a_keyed_stream_comes_as_it_is_said_and_again_with_the_same_bytes() {
    let go_on = Arc::new(Notify::new());
    let rest = format!("{}{}{END}", stop("one"), done());
    let one = in_two_parts(&go_on, rest).await;
    let world = World::new(&[&one], "", "").await;
    let headers = [("idempotency-key", "k")];
    let mut opened = world.begin_stream_with(&headers).await;
    assert!(opened.piece().await);
    assert!(opened.seen.body.contains("from one"), "{:?}", opened.seen);
    assert_eq!(opened.seen.attempts(), 1);
    // Somebody else who asks meanwhile waits for the whole of it.
    let (other, first) = tokio::join!(world.ask_with(Mode::Stream, &headers), async {
        go_on.notify_one();
        opened.rest().await
    });
    first.is_from(&one);
    assert_eq!(other.body, first.body);
    let again = world.ask_with(Mode::Stream, &headers).await;
    assert_eq!(again.body, first.body);
    assert_eq!(one.calls(), 1);
}

#[tokio::test]
async fn a_keyed_stream_that_breaks_off_is_told_so_and_made_again_for_who_asks_again() {
    let go_on = Arc::new(Notify::new());
    // No end of the stream, and none of the body.
    let one = in_two_parts(&go_on, word("one", " and on")).await;
    let world = World::new(&[&one], "", "").await;
    let headers = [("idempotency-key", "k")];
    let opened = world.begin_stream_with(&headers).await;
    go_on.notify_one();
    let seen = opened.rest().await;
    seen.broke_off();
    assert!(seen.body.contains("stream_broken"), "{seen:?}");
    let again = world.ask_with(Mode::Stream, &headers).await;
    again.is_from(&one);
    assert_eq!(one.calls(), 2);
}

#[tokio::test]
async fn a_caller_that_leaves_its_keyed_stream_finds_all_of_it_later() {
    let go_on = Arc::new(Notify::new());
    let rest = format!("{}{}{END}", stop("one"), done());
    let one = in_two_parts(&go_on, rest).await;
    let world = World::new(&[&one], "", "").await;
    let headers = [("idempotency-key", "k")];
    let mut opened = world.begin_stream_with(&headers).await;
    assert!(opened.piece().await);
    drop(opened);
    go_on.notify_one();
    world.ask_with(Mode::Stream, &headers).await.is_from(&one);
    assert_eq!(one.calls(), 1);
}
