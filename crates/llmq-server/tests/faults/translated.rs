//! The same faults where the upstream speaks another dialect than the caller.

use std::sync::Arc;

use http::Request;
use serde_json::json;
use tokio::sync::Notify;

use crate::answers::{END, STREAM, chunk, done, stop, word};
use crate::messages::{begun, event};
use crate::world::{Act, Seen, Upstream, World};

const MESSAGES: &str = "/v1/messages";
const CHAT: &str = "/v1/chat/completions";

/// What a caller of `path` sees of an upstream of the other dialect whose stream is `begun`, and
/// then, once that is with the caller, does what is left of it. How its sendings ended is told too.
async fn ask(path: &str, begun: String, rest: Act) -> (Seen, String) {
    let provider = match path {
        MESSAGES => "openai",
        _ => "anthropic",
    };
    let go_on = Arc::new(Notify::new());
    let rest = Act::When(Arc::clone(&go_on), Box::new(rest));
    let act = Act::Then(begun, Box::new(rest));
    let one = Upstream::start("one", move |_| act.clone()).await;
    let world = World::with(&format!(
        "[upstreams.one]\nprovider = \"{provider}\"\nbase_url = \"{}\"\n\
         timeouts = {{ idle = \"200ms\" }}\n\
         [models.m]\nupstreams = [{{ upstream = \"one\", model = \"one\" }}]\n",
        one.url
    ))
    .await;
    let body = json!({"model": "m", "max_tokens": 9, "stream": true,
        "messages": [{"role": "user", "content": "hello"}]});
    let mut opened = world.open(Request::post(path), &[], body.to_string()).await;
    while !opened.seen.body.contains("begun") {
        assert!(opened.piece().await, "{:?}", opened.seen);
    }
    go_on.notify_one();
    let seen = opened.rest().await;
    assert_eq!(one.calls(), 1);
    let figures = world
        .send(Request::get("/metrics"), &[], String::new())
        .await;
    let attempts = figures
        .body
        .lines()
        .filter(|line| line.starts_with("llmq_attempts_total{") && !line.ends_with(" 0"));
    (seen, attempts.collect::<Vec<_>>().join("\n"))
}

/// It broke off, and the caller's SDK finds an error in its own dialect.
#[track_caller]
fn broke_off(path: &str, (seen, attempts): &(Seen, String)) {
    seen.broke_off();
    let error = match path {
        MESSAGES => "event: error\ndata: {\"type\":\"error\"",
        _ => "\n\ndata: {\"error\":{",
    };
    assert!(seen.body.contains(error), "{seen:?}");
    assert!(!seen.body.contains("message_stop"), "{seen:?}");
    assert!(!seen.body.contains("later"), "{seen:?}");
    assert!(!attempts.contains("outcome=\"ok\""), "{attempts}");
    assert!(!attempts.contains("outcome=\"cancelled\""), "{attempts}");
}

#[tokio::test]
async fn a_stream_that_breaks_is_never_ended_cleanly_in_another_dialect() {
    let openai = format!("{STREAM}{}", word("one", "begun"));
    let (malformed, later) = (chunk("data: {\"choices\":[\n\n"), word("one", "later"));
    let malformed = format!("{malformed}{later}{END}");
    for (path, begun) in [(MESSAGES, openai), (CHAT, begun())] {
        for rest in [
            Act::Say(String::new()),
            Act::Say(END.to_owned()),
            Act::Hang(String::new()),
            Act::Say(malformed.clone()),
        ] {
            let what = format!("{path} {rest:?}");
            let seen = ask(path, begun.clone(), rest).await;
            assert!(
                seen.0.body.contains("stream_broken") || path == MESSAGES,
                "{what}"
            );
            broke_off(path, &seen);
        }
    }
}

#[tokio::test]
async fn a_failure_that_a_stream_tells_of_is_told_in_the_callers_dialect() {
    let openai = format!("{STREAM}{}", word("one", "begun"));
    let error = json!({"error": {"message": "It broke", "type": "server_error"}});
    let error = chunk(&format!("data: {error}\n\n"));
    let seen = ask(MESSAGES, openai, Act::Say(format!("{error}{END}"))).await;
    broke_off(MESSAGES, &seen);
    assert!(seen.0.body.contains("It broke"), "{seen:?}");
    let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}});
    let error = event("error", &error);
    let seen = ask(CHAT, begun(), Act::Say(format!("{error}{END}"))).await;
    broke_off(CHAT, &seen);
    assert!(seen.0.body.contains("Busy"), "{seen:?}");
}

/// With its last event in the same piece it was logged as a call whose caller left, and a caller of
/// the same dialect was told nothing.
#[tokio::test]
async fn a_stream_that_ends_with_the_reason_error_has_failed() {
    let failed = stop("one").replace("\"stop\"", "\"error\"");
    let data = |piece: &str| {
        let (_, data) = piece.split_once("\r\n").unwrap();
        data.strip_suffix("\r\n").unwrap().to_owned()
    };
    let together = chunk(&format!("{}{}", data(&failed), data(&done())));
    let begun = format!("{STREAM}{}", word("one", "begun"));
    let seen = ask(MESSAGES, begun, Act::Say(format!("{together}{END}"))).await;
    broke_off(MESSAGES, &seen);
    assert!(!seen.1.is_empty(), "{seen:?}");
}
