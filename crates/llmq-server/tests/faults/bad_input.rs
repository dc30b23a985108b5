//! Requests that are none, and upstreams that cannot be reached: a clear error in the caller's
//! dialect each time, and the gateway serves the next call.

use http::Request;
use serde_json::Value;

use crate::answers::error;
use crate::world::{Act, BOTH, Mode, Seen, Upstream, World};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

/// A gateway that takes small bodies only, before an upstream that answers.
async fn small() -> (Upstream, World) {
    let one = Upstream::start("one", |_| Act::Answer).await;
    let world = World::new(&[&one], "", "[server]\nmax_body = \"1KB\"").await;
    (one, world)
}

/// The error in `seen`, whose body has the shape of the dialect that `path` belongs to.
#[track_caller]
fn told(path: &str, seen: &Seen) -> Value {
    let body: Value = serde_json::from_str(&seen.body).unwrap_or_else(|_| panic!("{seen:?}"));
    if path == MESSAGES {
        assert_eq!(body["type"], "error", "{seen:?}");
    } else {
        assert!(body["error"]["code"].is_string(), "{seen:?}");
    }
    assert!(body["error"]["type"].is_string(), "{seen:?}");
    body["error"].clone()
}

#[tokio::test]
async fn what_is_no_call_is_refused_in_the_callers_dialect() {
    let (one, world) = small().await;
    let long = format!(r#"{{"model":"m","messages":"{}"}}"#, "x".repeat(2_000));
    let table = [
        ("", 400, "ends too early"),
        ("hello", 400, "line 1, column 1"),
        ("{\"model\":\"m\"", 400, "ends too early"),
        ("[1]", 400, "not a JSON object"),
        ("{}", 400, "names no model"),
        (r#"{"model":null}"#, 400, "names no model"),
        (r#"{"model":["m"]}"#, 400, "names no model"),
        (r#"{"model":"m","model":"m"}"#, 400, "more than once"),
        (r#"{"model":"x","messages":[]}"#, 404, "known models: m"),
        (&long, 413, "server.max_body"),
    ];
    for path in [CHAT, MESSAGES] {
        for (body, status, words) in table {
            let seen = world.send(Request::post(path), &[], body.to_owned()).await;
            assert_eq!(seen.status, status, "{path} {body}: {seen:?}");
            let message = told(path, &seen)["message"].to_string();
            assert!(message.contains(words), "{path} {body}: {seen:?}");
            assert_eq!(seen.headers["x-should-retry"], "false", "{path} {body}");
        }
        let seen = world.send(Request::delete(path), &[], String::new()).await;
        assert_eq!(
            (seen.status, &seen.headers["allow"]),
            (405, &"POST".parse().unwrap())
        );
        told(path, &seen);
    }
    assert_eq!(one.calls(), 0, "none was sent");
    world.ask(Mode::Whole).await.is_from(&one);
}

/// Once a name of 60 KB was kept for ever, and one that is no text was passed over.
#[tokio::test]
async fn a_tenant_that_is_no_name_is_refused() {
    let (one, world) = small().await;
    let long = "x".repeat(101);
    for name in ["", long.as_str()] {
        let seen = world
            .ask_with(Mode::Whole, &[("x-llmq-tenant", name)])
            .await;
        seen.failed(400, "X-LLMQ-Tenant");
    }
    assert_eq!(one.calls(), 0);
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    let no_text = [
        head.as_bytes(),
        b"x-llmq-tenant: \xff\r\ncontent-length: 0\r\n\r\n",
    ]
    .concat();
    let reply = world.raw_bytes(&no_text).await;
    assert!(
        reply.starts_with("HTTP/1.1 400 ") && reply.contains("X-LLMQ-Tenant"),
        "{reply}"
    );
    let body = r#"{"model":"m","messages":[]}"#;
    let length = body.len();
    let name = "x-llmq-tenant: B\u{fc}ro\r\n";
    let named = format!("{head}{name}content-length: {length}\r\n\r\n{body}");
    let reply = world.raw(&named).await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
}

/// A length that is not stated beforehand is found out while it comes: once a body whose first
/// piece was too long was answered only when more of it came.
#[tokio::test]
async fn a_body_of_unstated_length_is_bounded_too() {
    let (one, world) = small().await;
    let piece = format!("{:x}\r\n{}\r\n", 1_500, "x".repeat(1_500));
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let reply = world.raw(&format!("{head}{piece}")).await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    assert!(reply.contains("server.max_body"), "{reply}");
    world.ask(Mode::Whole).await.is_from(&one);
}

/// Once the connection was closed without a word: with hyper's `pipeline_flush` what is said of a
/// request that cannot be read is never sent, since some of it is still there to be read.
#[tokio::test]
async fn headers_of_100_kb_are_refused_and_harm_nobody() {
    let (one, world) = small().await;
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n",
        "x".repeat(100 << 10)
    );
    let reply = world.raw(&head).await;
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    world.ask(Mode::Whole).await.is_from(&one);
}

#[tokio::test]
async fn what_is_no_http_is_refused_and_harms_nobody() {
    let (one, world) = small().await;
    for bytes in [
        "hello\r\n\r\n",
        "\u{16}\u{3}\u{1}\0\0\r\n\r\n",
        "POST / HTTP/9.9\r\n\r\n",
    ] {
        let reply = world.raw(bytes).await;
        assert!(reply.starts_with("HTTP/1.1 400 "), "{bytes:?}: {reply}");
    }
    world.ask(Mode::Whole).await.is_from(&one);
}

/// What the gateway does not read is the upstream's to refuse, and is passed on as it came.
#[tokio::test]
async fn a_member_that_the_upstream_lacks_is_refused_in_its_own_words() {
    let words = "Unrecognized request argument supplied: stream_options";
    let one = Upstream::start("one", |_| {
        let kind = "invalid_request_error";
        Act::Say(error("400 Bad Request", "", kind, words))
    })
    .await;
    let world = World::new(&[&one], "", "").await;
    let body =
        r#"{"model":"m","messages":5,"stream":true,"stream_options":{"include_usage":true}}"#;
    let seen = world.send(Request::post(CHAT), &[], body.to_owned()).await;
    seen.failed(400, words);
    assert_eq!(one.calls(), 1, "it is not sent again");
}

/// What has to be translated is read, and refused by its place.
#[tokio::test]
async fn wrong_types_are_named_where_a_call_is_translated() {
    let one = Upstream::start("one", |_| Act::Answer).await;
    let world = World::new(&[&one], "", "").await;
    for (members, place) in [
        (r#""messages":5"#, "messages"),
        (
            r#""messages":[{"role":"user","content":[{"type":7}]}]"#,
            "messages[0].content[0]",
        ),
        (
            r#""messages":[{"role":"user","content":"x"}],"tools":{}"#,
            "tools",
        ),
        (
            r#""messages":[{"role":"user","content":"x"}],"stream_options":{}"#,
            "stream_options",
        ),
    ] {
        let body = format!(r#"{{"model":"m","max_tokens":9,{members}}}"#);
        let seen = world.send(Request::post(MESSAGES), &[], body).await;
        assert_eq!(seen.status, 400, "{members}: {seen:?}");
        let message = told(MESSAGES, &seen)["message"].to_string();
        assert!(
            message.contains(&format!("`{place}")),
            "{members}: {seen:?}"
        );
    }
    assert_eq!(one.calls(), 0);
}

#[tokio::test]
async fn an_upstream_whose_name_nobody_knows_is_a_bad_gateway_or_passed_over() {
    let lost = "[upstreams.lost]\nprovider = \"openai\"\nbase_url = \"http://llmq.invalid/v1\"\n";
    for mode in BOTH {
        let alone = format!("{lost}[models.m]\nupstreams = [{{ upstream = \"lost\" }}]\n");
        let world = World::with(&alone).await;
        let seen = world.ask_with(mode, &[("x-llmq-max-wait", "1s")]).await;
        seen.failed(502, "llmq.invalid");

        let good = Upstream::start("good", |_| Act::Answer).await;
        let both = format!(
            "{lost}[upstreams.good]\nprovider = \"openai\"\nbase_url = \"{}\"\n[models.m]\n\
             upstreams = [{{ upstream = \"lost\", weight = 1e9 }}, \
             {{ upstream = \"good\", model = \"good\", weight = 1e-9 }}]\n",
            good.url
        );
        World::with(&both).await.ask(mode).await.is_from(&good);
    }
}
