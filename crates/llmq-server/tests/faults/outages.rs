//! Upstreams that fail, close or say nothing.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use llmq_provider::ANSWER_BYTES_MAX;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::answers::{END, STREAM, chunk, error, role, stream, whole, with_body, word};
use crate::world::{Act, BOTH, Mode, Upstream, World};

fn broken(status: &str) -> Act {
    Act::Say(error(status, "", "server_error", "It broke"))
}

#[tokio::test]
async fn a_500_is_tried_again() {
    for mode in BOTH {
        let one = Upstream::start("one", |call| match call {
            0 => broken("500 Internal Server Error"),
            _ => Act::Answer,
        })
        .await;
        let world = World::new(&[&one], "", "").await;
        let seen = world.ask(mode).await;
        seen.is_from(&one);
        assert_eq!(seen.attempts(), 2, "{mode:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_is_down_hands_over_to_the_next() {
    for mode in BOTH {
        second_serves(mode, "", "", broken("503 Service Unavailable")).await;
    }
}

#[tokio::test]
async fn an_upstream_that_stays_down_is_quoted_when_nobody_else_is_there() {
    for mode in BOTH {
        let one = Upstream::start("one", |_| broken("503 Service Unavailable")).await;
        let world = World::new(&[&one], "", "").await;
        let seen = world.ask_with(mode, &[("x-llmq-max-wait", "2s")]).await;
        seen.failed(503, "It broke");
        assert!(one.calls() <= 6, "{mode:?}: {}", one.calls());
    }
}

#[tokio::test]
async fn a_refusal_by_the_fallback_never_hides_the_first_failure() {
    for mode in BOTH {
        let one = Upstream::start("one", |_| broken("503 Service Unavailable")).await;
        let two = Upstream::start("two", |_| {
            let message = "Prefilling assistant messages is not supported for this model";
            Act::Say(error(
                "400 Bad Request",
                "",
                "invalid_request_error",
                message,
            ))
        })
        .await;
        let world = World::with_fallback(&one, &two).await;
        let seen = world.ask_with(mode, &[("x-llmq-max-wait", "2s")]).await;
        seen.failed(503, "It broke");
    }
}

#[tokio::test]
async fn a_fallback_serves_what_the_own_upstream_cannot() {
    for mode in BOTH {
        for status in ["503 Service Unavailable", "500 Internal Server Error"] {
            let one = Upstream::start("one", move |_| broken(status)).await;
            let two = Upstream::start("two", |_| Act::Answer).await;
            let world = World::with_fallback(&one, &two).await;
            world.ask(mode).await.is_from(&two);
        }
    }
}

#[tokio::test]
async fn a_reset_before_the_head_is_tried_again() {
    for mode in BOTH {
        let one = Upstream::start("one", |call| match call {
            0 => Act::Reset,
            _ => Act::Answer,
        })
        .await;
        let world = World::new(&[&one], "", "").await;
        world.ask(mode).await.is_from(&one);
        assert_eq!(one.calls(), 2, "{mode:?}");
    }
}

/// The first upstream of a model fails so, and the second answers; each is asked once.
async fn second_serves(mode: Mode, timeouts: &str, more: &str, fault: Act) {
    let bad = Upstream::start("bad", move |_| fault.clone()).await;
    let good = Upstream::start("good", |_| Act::Answer).await;
    let world = World::new(&[&bad, &good], timeouts, more).await;
    world.ask(mode).await.is_from(&good);
    assert_eq!((bad.calls(), good.calls()), (1, 1), "{mode:?}");
}

#[tokio::test]
async fn a_silent_upstream_is_left_after_the_first_byte_limit_and_not_asked_again() {
    for mode in BOTH {
        let silent = Act::Hang(String::new());
        second_serves(mode, r#"first_byte = "200ms""#, "", silent).await;
    }
}

#[tokio::test]
async fn a_silent_upstream_that_is_the_only_one_is_asked_once() {
    let silences = [
        (Mode::Whole, String::new()),
        (Mode::Stream, String::new()),
        (Mode::Stream, format!("{STREAM}{}", role("one"))),
    ];
    for (mode, said) in silences {
        let silent = Act::Hang(said.clone());
        let one = Upstream::start("one", move |_| silent.clone()).await;
        let timeouts = r#"first_byte = "100ms", first_token = "100ms""#;
        let world = World::new(&[&one], timeouts, "").await;
        world.ask(mode).await.failed(502, "within 100ms");
        assert_eq!(one.calls(), 1, "{mode:?} {said}");
    }
}

/// A call with a key was sent there as often as any that nobody waits for, each time perhaps billed,
/// and whoever repeated it meanwhile waited for all of them.
#[tokio::test]
async fn a_silent_upstream_is_asked_once_by_a_call_with_a_key_however_often_that_is_repeated() {
    for mode in BOTH {
        let one = Upstream::start("one", |_| Act::Hang(String::new())).await;
        let two = Upstream::start("two", |_| Act::Answer).await;
        let key = [("idempotency-key", "k")];
        let world = World::new(&[&one], r#"first_byte = "2s""#, "").await;
        let repeated = async {
            while one.calls() == 0 {
                tokio::task::yield_now().await;
            }
            world.ask_with(mode, &key).await
        };
        let (first, repeated) = tokio::join!(world.ask_with(mode, &key), repeated);
        first.failed(502, "within 2s");
        repeated.failed(502, "within 2s");
        assert_eq!(one.calls(), 1, "{mode:?}");
        // Where there is another, that is asked.
        let world = World::new(&[&one, &two], r#"first_byte = "200ms""#, "").await;
        world.ask_with(mode, &key).await.is_from(&two);
        assert_eq!((one.calls(), two.calls()), (2, 1), "{mode:?}");
    }
}

/// It took over that a caller waits for the answer, whom it does not have, and failed at the first
/// silence.
#[tokio::test]
async fn what_a_call_with_a_key_asked_is_asked_again_by_its_retry() {
    let one = Upstream::start("one", |call| match call {
        0 | 1 => Act::Hang(String::new()),
        _ => Act::Answer,
    })
    .await;
    let world = World::new(&[&one], r#"first_byte = "200ms""#, "").await;
    let key = [("idempotency-key", "k")];
    world
        .ask_with(Mode::Whole, &key)
        .await
        .failed(502, "within 200ms");
    let get = |path: &str| Request::get(path.to_owned());
    let list = world.send(get("/api/requests"), &[], String::new()).await;
    let list: Value = serde_json::from_str(&list.body).unwrap();
    let id = list["requests"][0]["queue_id"].as_str().unwrap();
    let retry = Request::post(format!("/api/requests/{id}/retry"));
    let retried = world.send(retry, &[], "{}".to_owned()).await;
    assert_eq!(retried.status, 202, "{retried:?}");
    let retried: Value = serde_json::from_str(&retried.body).unwrap();
    let path = format!(
        "/api/requests/{}?wait=20",
        retried["queue_id"].as_str().unwrap()
    );
    let ended = world.send(get(&path), &[], String::new()).await;
    let ended: Value = serde_json::from_str(&ended.body).unwrap();
    assert_eq!(ended["status"], "completed", "{ended}");
    assert_eq!(ended["attempts"], 2, "{ended}");
}

/// A stream that began and brought no token was sent to the next upstream all the same, and paid
/// twice.
#[tokio::test]
async fn with_ambiguous_fail_a_silent_upstream_is_the_last_that_is_asked() {
    let silences = [
        (Mode::Whole, String::new()),
        (Mode::Stream, String::new()),
        (Mode::Stream, format!("{STREAM}{}", role("bad"))),
    ];
    for (mode, said) in silences {
        for headers in [&[][..], &[("idempotency-key", "k")]] {
            let silent = Act::Hang(said.clone());
            let bad = Upstream::start("bad", move |_| silent.clone()).await;
            let good = Upstream::start("good", |_| Act::Answer).await;
            let mut text = "[retry]\nambiguous = \"fail\"\n".to_owned();
            for Upstream { name, url, .. } in [&bad, &good] {
                text += &format!(
                    "[upstreams.{name}]\nprovider = \"openai\"\nbase_url = \"{url}\"\n\
                     timeouts = {{ first_byte = \"200ms\", first_token = \"200ms\" }}\n"
                );
            }
            text += "[models.m]\nupstreams = [{ upstream = \"bad\", weight = 1e9 }, \
                     { upstream = \"good\", weight = 1e-9 }]\n";
            let world = World::set(&text).await;
            // Whoever asks again with the key is told the same.
            let times = if headers.is_empty() { 1 } else { 2 };
            for _ in 0..times {
                world
                    .ask_with(mode, headers)
                    .await
                    .failed(502, "within 200ms");
            }
            assert_eq!(
                (bad.calls(), good.calls()),
                (1, 0),
                "{mode:?} {headers:?} {said}"
            );
        }
    }
}

/// An SDK follows a redirect: the prompt went round the gateway, and in one of its headers the key.
#[tokio::test]
async fn a_redirect_is_told_and_not_handed_on() {
    for (status, headers) in [
        ("308 Permanent Redirect", &[][..]),
        ("301 Moved Permanently", &[("idempotency-key", "k")]),
    ] {
        let to = "https://api.example.com/v1/chat/completions?secret=1";
        let location = format!("location: {to}\r\n");
        let page = format!("<html>The document has moved <a href=\"{to}\">here</a></html>");
        let moved = Act::Say(with_body(status, "text/html", &location, &page));
        let one = Upstream::start("one", move |_| moved.clone()).await;
        let world = World::new(&[&one], "", "").await;
        let seen = world.ask_with(Mode::Whole, headers).await;
        assert_eq!(seen.status, 502, "{seen:?}");
        assert!(!seen.headers.contains_key("location"), "{seen:?}");
        assert!(!seen.body.contains("secret"), "{seen:?}");
        seen.failed(502, "leads to https://api.example.com/v1/chat/completions");
        assert_eq!(seen.headers["content-type"], "application/json");
    }
}

/// The caller was told that its call was wrong, or an accepted request that it was.
#[tokio::test]
async fn an_answer_that_is_too_large_is_no_fault_of_its_caller() {
    let padding = "x".repeat(ANSWER_BYTES_MAX);
    let body = format!("{{\"choices\":[],\"padding\":\"{padding}\"}}");
    let large = Act::Say(with_body("200 OK", "application/json", "", &body));
    let one = Upstream::start("one", move |_| large.clone()).await;
    let world = World::new(&[&one], "", "").await;
    world.ask(Mode::Whole).await.failed(502, "answer_too_large");
    let key = [("idempotency-key", "k")];
    let seen = world.ask_with(Mode::Whole, &key).await;
    seen.failed(502, "answer_too_large");
    assert_eq!(one.calls(), 2);
    let list = Request::get("/api/requests");
    let list = world.send(list, &[], String::new()).await;
    let list: Value = serde_json::from_str(&list.body).unwrap();
    let id = list["requests"][0]["queue_id"].as_str().unwrap();
    let result = Request::get(format!("/api/requests/{id}/result"));
    let result = world.send(result, &[], String::new()).await;
    result.failed(502, "\"code\":\"answer_too_large\"");
}

/// It was told as an event that is no JSON, and the call was sent again, five times at most.
#[tokio::test]
async fn a_stream_that_is_too_large_to_keep_is_asked_for_once() {
    let words = chunk(&format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
        "x".repeat(4 << 20)
    ));
    let large = STREAM.to_owned() + &words.repeat(17);
    let one = Upstream::start("one", move |_| Act::Hang(large.clone())).await;
    let world = World::new(&[&one], "", "stream_recovery = \"buffer\"").await;
    let key = [("idempotency-key", "k")];
    let seen = world.ask_with(Mode::Stream, &key).await;
    seen.failed(502, "answer_too_large");
    assert_eq!(one.calls(), 1);
}

/// The deadline of the wait ran on at the upstream. At the default settings, where the first
/// byte may take as long as the wait, the call was given up instead of handed over.
#[tokio::test]
async fn a_silent_upstream_is_left_though_its_time_is_as_long_as_the_wait() {
    for mode in BOTH {
        let bad = Upstream::start("bad", |_| Act::Hang(String::new())).await;
        let good = Upstream::start("good", |_| Act::Answer).await;
        let world = World::new(&[&bad, &good], r#"first_byte = "300ms""#, "").await;
        let seen = world.ask_with(mode, &[("x-llmq-max-wait", "300ms")]).await;
        seen.is_from(&good);
        assert_eq!((bad.calls(), good.calls()), (1, 1), "{mode:?}");
    }
}

#[tokio::test]
async fn an_upstream_without_a_first_token_in_time_is_left() {
    let late = Act::Hang(STREAM.to_owned());
    second_serves(Mode::Stream, r#"first_token = "200ms""#, "", late).await;
}

#[tokio::test]
async fn an_answer_cut_short_before_anything_was_passed_on_comes_whole_from_elsewhere() {
    let text = whole("bad");
    let cut = Act::Say(text[..text.len() - 20].to_owned());
    second_serves(Mode::Whole, "", "", cut).await;
    let text = stream("bad");
    let end = text.find("from bad").unwrap();
    let cut = Act::Say(text[..end].to_owned());
    second_serves(Mode::Stream, "", "", cut).await;
}

#[tokio::test]
async fn an_answer_whose_body_stalls_comes_from_elsewhere() {
    let text = whole("bad");
    let stalled = Act::Hang(text[..text.len() - 20].to_owned());
    second_serves(Mode::Whole, r#"idle = "200ms""#, "", stalled).await;
    let stalled = Act::Hang(format!("{STREAM}{}", word("bad", "from ")));
    let buffer = "stream_recovery = \"buffer\"";
    second_serves(Mode::Stream, r#"idle = "200ms""#, buffer, stalled).await;
}

/// The idle limit ran from the head on. A stream that thought for longer than that was given up
/// and sent again, and billed each time.
#[tokio::test]
async fn a_first_token_may_take_longer_than_silence_between_two() {
    for headers in [&[][..], &[("idempotency-key", "k")]] {
        let told = Arc::new(Notify::new());
        let rest = stream("one").replacen(STREAM, "", 1);
        let late = Act::When(Arc::clone(&told), Box::new(Act::Say(rest)));
        let begun = Act::Then(format!("{STREAM}{}", role("one")), Box::new(late));
        let one = Upstream::start("one", move |_| begun.clone()).await;
        let world = World::new(&[&one], r#"idle = "50ms""#, "").await;
        let mut asked = pin!(world.ask_with(Mode::Stream, headers));
        let longer = Duration::from_millis(300);
        assert!(timeout(longer, asked.as_mut()).await.is_err(), "it waits");
        told.notify_one();
        asked.await.is_from(&one);
        assert_eq!(one.calls(), 1, "{headers:?}");
    }
}

/// A role without a word ended the time for the first token, and so did a ping; a stream that
/// brought nothing else ran to the end of the whole call.
#[tokio::test]
async fn what_comes_before_the_first_token_is_none() {
    for headers in [&[][..], &[("idempotency-key", "k")]] {
        let ping = chunk(": ping\n\n");
        let act = Act::Drip(format!("{STREAM}{}", role("bad")), ping);
        let bad = Upstream::start("bad", move |_| act.clone()).await;
        let good = Upstream::start("good", |_| Act::Answer).await;
        let world = World::new(&[&bad, &good], r#"first_token = "200ms""#, "").await;
        let seen = world.ask_with(Mode::Stream, headers).await;
        seen.is_from(&good);
        assert_eq!((bad.calls(), good.calls()), (1, 1), "{headers:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_json_comes_from_elsewhere() {
    for text in ["{\"choices\":[{\"mess", "<html>busy</html>", ""] {
        let broken = Act::Say(with_body("200 OK", "application/json", "", text));
        second_serves(Mode::Whole, "", "", broken).await;
    }
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"bro\n\n";
    let broken = Act::Say(format!("{STREAM}{}{END}", chunk(event)));
    second_serves(Mode::Stream, "", "", broken).await;
}

#[tokio::test]
async fn a_stream_that_is_held_to_its_end_comes_whole_from_elsewhere() {
    let text = stream("bad");
    let end = text.find("[DONE]").unwrap();
    let end = text[..end].rfind("data: {").unwrap();
    let cut = Act::Say(text[..end].to_owned());
    // Its caller with a key heard the half of it, and that it was broken.
    for headers in [&[][..], &[("idempotency-key", "k")]] {
        let cut = cut.clone();
        let bad = Upstream::start("bad", move |_| cut.clone()).await;
        let good = Upstream::start("good", |_| Act::Answer).await;
        let world = World::new(&[&bad, &good], "", "stream_recovery = \"buffer\"").await;
        let seen = world.ask_with(Mode::Stream, headers).await;
        seen.is_from(&good);
        assert_eq!((bad.calls(), good.calls()), (1, 1), "{headers:?}");
        assert_eq!(seen.headers["content-type"], "text/event-stream");
    }
}
