//! Streams that go wrong after a part of them is with the caller.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::answers::{END, STREAM, chunk, done, role, stop, stream_with_usage, word};
use crate::world::{Act, Mode, Seen, Upstream, World};

async fn ask_one(timeouts: &str, act: Act) -> (World, Upstream, crate::world::Seen) {
    let one = Upstream::start("one", move |call| match call {
        0 => act.clone(),
        _ => Act::Answer,
    })
    .await;
    let world = World::new(&[&one], timeouts, "").await;
    let seen = world.ask(Mode::Stream).await;
    (world, one, seen)
}

#[tokio::test]
async fn a_stream_cut_in_the_middle_is_never_ended_cleanly() {
    let begun = format!("{STREAM}{}", word("one", "begun"));
    let (_world, one, seen) = ask_one("", Act::Say(begun)).await;
    seen.broke_off();
    assert!(seen.body.contains("begun"), "{seen:?}");
    assert_eq!(one.calls(), 1);
}

#[tokio::test]
async fn a_body_that_ends_in_order_before_its_stream_does_is_no_clean_end() {
    let begun = format!("{STREAM}{}{END}", word("one", "begun"));
    let (_world, _one, seen) = ask_one("", Act::Say(begun)).await;
    seen.broke_off();
}

#[tokio::test]
async fn a_stream_that_stalls_is_given_up_after_the_idle_limit() {
    let begun = format!("{STREAM}{}", word("one", "begun"));
    let (_world, _one, seen) = ask_one(r#"idle = "200ms""#, Act::Hang(begun)).await;
    seen.broke_off();
}

#[tokio::test]
async fn a_malformed_event_is_not_passed_on_and_harms_nobody_else() {
    for event in [
        "{\"choices\":[{\"delta\":{\"content\":\"bro",
        // With braces at both ends it looked whole.
        "{\"choices\":[{\"delta\":{\"content\":\"bro\"}]}",
    ] {
        malformed(&chunk(&format!("data: {event}\n\n"))).await;
    }
}

/// TCP cuts anywhere. Once the half event was passed on, and what was said of the break stood on its
/// line, where no SDK could read it.
#[tokio::test]
async fn a_stream_cut_inside_an_event_ends_with_an_event_of_its_own() {
    let begun = format!("{STREAM}{}", word("one", "begun"));
    let half = chunk(r#"data: {"choices":[{"delta"#);
    for headers in [&[][..], &[("idempotency-key", "k")]] {
        let together = Act::Say(format!("{begun}{half}"));
        let (world, _one) = one_that(together).await;
        whole_events(&world.ask_with(Mode::Stream, headers).await);

        let go_on = Arc::new(Notify::new());
        let later = Act::When(Arc::clone(&go_on), Box::new(Act::Say(half.clone())));
        let (world, _one) = one_that(Act::Then(begun.clone(), Box::new(later))).await;
        let opened = world.begin_stream_with(headers).await;
        go_on.notify_one();
        whole_events(&opened.rest().await);
    }
}

#[tokio::test]
async fn of_a_malformed_event_in_many_pieces_no_part_is_passed_on() {
    let begun = format!("{STREAM}{}", word("one", "begun"));
    // No more than 64 KiB are passed on at a time.
    let long = "bro ".repeat(256 << 10);
    let bad = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{long}\"}}]}}\n\n");
    let bad = format!("{}{END}", chunk(&bad));
    for headers in [&[][..], &[("idempotency-key", "k")]] {
        let go_on = Arc::new(Notify::new());
        let later = Act::When(Arc::clone(&go_on), Box::new(Act::Say(bad.clone())));
        let (world, _one) = one_that(Act::Then(begun.clone(), Box::new(later))).await;
        let opened = world.begin_stream_with(headers).await;
        go_on.notify_one();
        whole_events(&opened.rest().await);
    }
}

/// An SDK stops at `[DONE]` and does not see how the body ends: a failure with it in the same piece
/// looked like a clean end, and none of `finish_reason` alone was told as an error.
#[tokio::test]
async fn what_stands_behind_a_failure_is_not_passed_on() {
    let reason = r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}"#;
    let error = r#"{"error":{"message":"It broke","code":502}}"#;
    for (failure, told) in [(reason, "stream_broken"), (error, "It broke")] {
        let together = chunk(&format!("data: {failure}\n\ndata: [DONE]\n\n"));
        let go_on = Arc::new(Notify::new());
        let later = Act::Say(format!("{together}{END}"));
        let later = Act::When(Arc::clone(&go_on), Box::new(later));
        let begun = format!("{STREAM}{}", word("one", "begun"));
        let (world, _one) = one_that(Act::Then(begun, Box::new(later))).await;
        let opened = world.begin_stream().await;
        go_on.notify_one();
        let seen = opened.rest().await;
        seen.broke_off();
        assert!(seen.body.contains(failure), "{seen:?}");
        assert!(seen.body.contains(told), "{seen:?}");
        assert_eq!(seen.body.matches("\"error\":{").count(), 1, "{seen:?}");
    }
}

/// A gateway over one upstream that does this to its first call.
async fn one_that(act: Act) -> (World, Upstream) {
    let one = Upstream::start("one", move |call| match call {
        0 => act.clone(),
        _ => Act::Answer,
    })
    .await;
    (World::new(&[&one], "", "").await, one)
}

/// It broke off, and an SDK that reads it finds a word and an error, each an event that is whole.
#[track_caller]
fn whole_events(seen: &Seen) {
    seen.broke_off();
    let events: Vec<serde_json::Value> = seen
        .body
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").expect(event))
        .map(|data| serde_json::from_str(data).expect(data))
        .collect();
    assert_eq!(events.len(), 2, "{seen:?}");
    assert_eq!(events[0]["choices"][0]["delta"]["content"], "begun");
    assert_eq!(events[1]["error"]["code"], "stream_broken");
}

async fn malformed(bad: &str) {
    let go_on = Arc::new(Notify::new());
    let begun = format!("{STREAM}{}", word("one", "begun"));
    let bad = Act::Say(format!("{bad}{}{END}", word("one", "later")));
    // What comes with the first event is made up for; this comes when that is with the caller.
    let bad = Act::When(Arc::clone(&go_on), Box::new(bad));
    let act = Act::Then(begun, Box::new(bad));
    let one = Upstream::start("one", move |call| match call {
        0 => act.clone(),
        _ => Act::Answer,
    })
    .await;
    let world = World::new(&[&one], "", "").await;
    let opened = world.begin_stream().await;
    go_on.notify_one();
    let seen = opened.rest().await;
    seen.broke_off();
    assert!(seen.body.contains("begun"), "{seen:?}");
    assert!(!seen.body.contains("later"), "{seen:?}");
    world.ask(Mode::Stream).await.is_from(&one);
}

#[tokio::test]
async fn a_complete_stream_needs_no_done() {
    let all = stream_with_usage("one").replace(&done(), "");
    assert!(all.contains("total_tokens") && !all.contains("[DONE]"));
    let begun = Instant::now();
    let (world, one, seen) = ask_one("", Act::Say(all)).await;
    seen.is_from(&one);
    assert_eq!(one.calls(), 1);
    // Nothing is waited for that will not come, and what it used is counted.
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(output_tokens(&world).await, "3");
}

/// The connection says nothing more once the last event is there: once that was a broken stream
/// after a silence of 30 s, and a call with a key was sent again.
#[tokio::test]
async fn a_stream_is_whole_with_its_last_event_whatever_its_connection_does() {
    let all = format!(
        "{STREAM}{}{}{}",
        word("one", "from one"),
        stop("one"),
        done()
    );
    for act in [Act::Hang(all.clone()), Act::Say(all)] {
        let (world, one, seen) = ask_one("", act.clone()).await;
        seen.is_from(&one);
        assert!(seen.body.ends_with("data: [DONE]\n\n"), "{seen:?}");
        let two = Upstream::start("one", move |_| act.clone()).await;
        let keyed = World::new(&[&two], "", "").await;
        let key = [("idempotency-key", "k")];
        keyed.ask_with(Mode::Stream, &key).await.is_from(&two);
        assert_eq!((one.calls(), two.calls()), (1, 1));
        drop(world);
    }
}

/// With two answers asked for, one that was finished made a whole of a stream that broke off
/// behind it: kept as such for a day for every call with the same key.
#[tokio::test]
async fn several_answers_are_whole_when_the_last_of_them_is() {
    let half = format!("{STREAM}{}{}{END}", word("one", "half"), stop("one"));
    let one = Upstream::start("one", move |call| match call {
        0 => Act::Say(half.clone()),
        _ => Act::Answer,
    })
    .await;
    let world = World::new(&[&one], "", "").await;
    let body = serde_json::json!({
        "model": "m", "stream": true, "n": 2,
        "messages": [{"role": "user", "content": "hello"}],
    });
    let ask = async || {
        let request = http::Request::post("/v1/chat/completions");
        let headers = [("idempotency-key", "k")];
        world.send(request, &headers, body.to_string()).await
    };
    let broken = ask().await;
    assert!(
        !broken.clean && broken.body.contains("stream_broken"),
        "{broken:?}"
    );
    ask().await.is_from(&one);
    assert_eq!(one.calls(), 2);
}

/// LocalAI and others write an empty reason into every chunk, and some gateways `stop`: any part of
/// such a stream was ended as a whole answer, and kept as such for every call with the same key.
#[tokio::test]
async fn a_reason_to_end_in_every_chunk_makes_no_whole_of_a_stream_that_broke_off() {
    for reason in ["\"\"", "\"stop\""] {
        for headers in [&[][..], &[("idempotency-key", "k")]] {
            let word = |text: &str| {
                chunk(&format!(
                    "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\
                     \"finish_reason\":{reason}}}]}}\n\n"
                ))
            };
            let half = format!("{STREAM}{}{}", word("half"), word(" an answer"));
            for act in [Act::Say(half.clone()), Act::Hang(half)] {
                let one = Upstream::start("one", move |_| act.clone()).await;
                let world = World::new(&[&one], r#"idle = "200ms""#, "").await;
                let seen = world.ask_with(Mode::Stream, headers).await;
                assert!(seen.body.contains("stream_broken"), "{reason} {seen:?}");
                assert!(!seen.clean, "{reason} {seen:?}");
            }
        }
    }
}

/// The first chunk of such a stream looked like a whole answer: two seconds of silence behind it, or
/// a reset, and its first word was all that its caller got, as a success.
#[tokio::test]
async fn a_reason_to_end_in_the_first_chunk_makes_no_whole_answer_of_it() {
    let spoken = format!("{STREAM}{}", stop_beside("begun"));
    let named = format!("{STREAM}{}{}", role("one"), stop_beside("begun"));
    // Nothing tells the end of this body from that of its server.
    let (_, event) = spoken[STREAM.len()..].split_once("\r\n").unwrap();
    let unframed = STREAM.replace("transfer-encoding: chunked\r\n", "") + event;
    for begun in [spoken, named, unframed] {
        for headers in [&[][..], &[("idempotency-key", "k")]] {
            for act in [Act::Say(begun.clone()), Act::Hang(begun.clone())] {
                let one = Upstream::start("one", move |_| act.clone()).await;
                let world = World::new(&[&one], r#"idle = "200ms""#, "").await;
                let seen = world.ask_with(Mode::Stream, headers).await;
                seen.broke_off();
                assert!(seen.body.contains("stream_broken"), "{seen:?}");
            }
        }
    }
}

/// A word with a reason to end beside it, as some gateways write it into every chunk.
fn stop_beside(text: &str) -> String {
    chunk(&format!(
        "data: {{\"model\":\"one\",\"choices\":[{{\"index\":0,\
         \"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":\"stop\"}}]}}\n\n"
    ))
}

/// A pause of two seconds cut such a stream off, whole as it was, at every try.
#[tokio::test]
async fn a_stream_with_a_reason_in_every_chunk_may_be_as_silent_as_any_other() {
    let first = stop_beside("from one");
    let second = format!("{first}{}", stop_beside(" and"));
    let third = format!("{}{first}", role("one"));
    let mut pauses = Vec::new();
    for begun in [first, second, third] {
        for headers in [&[][..], &[("idempotency-key", "k")]] {
            pauses.push(goes_on_after_a_pause(begun.clone(), headers));
        }
    }
    join_all(pauses).await;
}

/// A stream that says nothing for longer than a last event is waited for, and then the rest.
async fn goes_on_after_a_pause(begun: String, headers: &[(&str, &str)]) {
    let go_on = Arc::new(Notify::new());
    let rest = format!("{}{}{END}", stop_beside(" so on"), done());
    let later = Act::When(Arc::clone(&go_on), Box::new(Act::Say(rest)));
    let act = Act::Then(format!("{STREAM}{begun}"), Box::new(later));
    let (world, one) = one_that(act).await;
    let mut opened = world.begin_stream_with(headers).await;
    let said_more = async { while opened.piece().await {} };
    let silence = Duration::from_millis(2_500);
    assert!(timeout(silence, said_more).await.is_err(), "it waits");
    go_on.notify_one();
    let seen = opened.rest().await;
    seen.is_from(&one);
    assert!(seen.body.ends_with("data: [DONE]\n\n"), "{seen:?}");
}

/// With several prompts, the shortest answer made a whole of a stream that broke off behind it.
#[tokio::test]
async fn the_answers_to_several_prompts_are_whole_when_the_last_of_them_is() {
    let piece = |index: u32, text: &str, reason: &str| {
        chunk(&format!(
            "data: {{\"choices\":[{{\"index\":{index},\"text\":\"{text}\",\
             \"finish_reason\":{reason}}}]}}\n\n"
        ))
    };
    let half = format!(
        "{STREAM}{}{}{}",
        piece(0, "half", "null"),
        piece(1, "short", "null"),
        piece(1, "", "\"stop\"")
    );
    let whole = format!("{half}{}", piece(0, " and whole", "\"length\""));
    for (said, is_whole) in [(half, false), (whole, true)] {
        let one = Upstream::start("one", move |_| Act::Say(said.clone())).await;
        let world = World::new(&[&one], "", "").await;
        let body = r#"{"model":"m","stream":true,"prompt":["a","b"]}"#.to_owned();
        let request = http::Request::post("/v1/completions");
        let seen = world.send(request, &[], body).await;
        assert_eq!(seen.clean, is_whole, "{seen:?}");
        assert_eq!(seen.body.contains("stream_broken"), !is_whole, "{seen:?}");
    }
}

/// In a whole answer it was a failure, and in a stream an answer.
#[tokio::test]
async fn a_stream_that_ends_with_the_reason_error_is_asked_for_again() {
    let failed = stop("one").replace("\"stop\"", "\"error\"");
    let failed = format!("{STREAM}{}{failed}{}{END}", word("one", "half"), done());
    let (_world, one, seen) = ask_one("", Act::Say(failed)).await;
    seen.is_from(&one);
    assert_eq!(one.calls(), 2);
}

/// OpenAI tells so of limits and filters in streams of the Responses API, OpenRouter and Groq in
/// others. Its words were lost, and each of them was a 502 that must not be repeated, or a call that
/// was wrong.
#[tokio::test]
async fn a_failure_told_first_in_a_stream_is_told_as_any_other() {
    const CHAT: &str = "/v1/chat/completions";
    const RESPONSES: &str = "/v1/responses";
    let table = [
        (
            CHAT,
            r#"{"error":{"message":"Slow down","type":"requests","code":"rate_limit_exceeded"}}"#,
            429,
            "rate_limit_exceeded",
        ),
        (
            RESPONSES,
            r#"{"type":"response.failed","response":{"error":{"message":"TPM","code":"rate_limit_exceeded"}}}"#,
            429,
            "rate_limit_exceeded",
        ),
        (
            RESPONSES,
            r#"{"type":"error","message":"Too long","code":"context_length_exceeded","param":"input"}"#,
            400,
            "context_length_exceeded",
        ),
        (
            CHAT,
            r#"{"error":{"message":"Filtered","type":"invalid_request_error","code":"content_filter"}}"#,
            400,
            "content_filter",
        ),
        (
            CHAT,
            r#"{"error":{"message":"Broke","type":"server_error","code":"server_error"}}"#,
            502,
            "server_error",
        ),
    ];
    for (path, event, status, code) in table {
        for headers in [&[][..], &[("idempotency-key", "k")]] {
            let said = Act::Say(format!(
                "{STREAM}{}{END}",
                chunk(&format!("data: {event}\n\n"))
            ));
            let one = Upstream::start("one", move |_| said.clone()).await;
            let world = World::new(&[&one], "", "").await;
            let body = r#"{"model":"m","stream":true,"input":"a","messages":[]}"#;
            let wait = [("x-llmq-max-wait", "2s")];
            let headers = [headers, &wait].concat();
            let seen = world
                .send(http::Request::post(path), &headers, body.to_owned())
                .await;
            let context = format!("{event} {headers:?} {seen:?}");
            assert_eq!(seen.status, status, "{context}");
            let told: serde_json::Value = serde_json::from_str(&seen.body).expect(&context);
            assert_eq!(told["error"]["code"], code, "{context}");
            assert_eq!(seen.headers["content-type"], "application/json");
            if status == 429 && headers.len() == 1 {
                assert!(seen.headers.contains_key("retry-after"), "{context}");
                assert_eq!(seen.headers["x-should-retry"], "true", "{context}");
            }
        }
    }
}

/// A server that says why the answer ended, and then neither its last event nor anything else:
/// once that was a broken stream, with all of the answer there.
#[tokio::test]
async fn a_complete_stream_is_whole_though_its_connection_says_nothing_more() {
    let all = format!("{STREAM}{}{}", word("one", "from one"), stop("one"));
    for act in [Act::Hang(all.clone()), Act::Say(all)] {
        for headers in [&[][..], &[("idempotency-key", "k")]] {
            let said = act.clone();
            let one = Upstream::start("one", move |_| said.clone()).await;
            let world = World::new(&[&one], r#"idle = "200ms""#, "").await;
            let seen = world.ask_with(Mode::Stream, headers).await;
            seen.is_from(&one);
            assert_eq!(one.calls(), 1, "{headers:?}");
        }
    }
}

/// The same at the length of silence that is usual: it was waited out, 30 s for nothing.
#[tokio::test]
async fn a_complete_stream_without_its_last_event_is_not_waited_for() {
    let all = stream_with_usage("one").replace(&done(), "");
    let all = all.strip_suffix(END).unwrap().to_owned();
    for headers in [&[][..], &[("idempotency-key", "k")]] {
        let said = Act::Hang(all.clone());
        let one = Upstream::start("one", move |_| said.clone()).await;
        let world = World::new(&[&one], "", "").await;
        let begun = Instant::now();
        world.ask_with(Mode::Stream, headers).await.is_from(&one);
        assert!(begun.elapsed() < Duration::from_secs(15), "{headers:?}");
        assert_eq!(output_tokens(&world).await, "3", "{headers:?}");
    }
}

/// What was counted of answers.
async fn output_tokens(world: &World) -> String {
    let figures = http::Request::get("/metrics");
    let figures = world.send(figures, &[], String::new()).await.body;
    let output = figures.lines().find(|line| {
        line.starts_with("gen_ai_client_token_usage_sum{") && line.contains("\"output\"")
    });
    let output = output.unwrap_or_else(|| panic!("{figures}"));
    output.rsplit(' ').next().unwrap().to_owned()
}
