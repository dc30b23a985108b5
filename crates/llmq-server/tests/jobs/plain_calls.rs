//! Calls by a provider's API that become jobs.

use http::Method;
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_testkit::ScriptedServer;
use serde_json::{Value, json};

use crate::world::{Got, World, chat};

const PATH: &str = "/v1/chat/completions";

async fn call(world: &World, headers: &[(&str, &str)], body: &Value) -> Got {
    world
        .ask(Method::POST, PATH, headers, body.to_string())
        .await
}

#[tokio::test]
async fn a_call_that_prefers_it_is_answered_at_once_and_finished_later() {
    let world = World::start().await;
    let headers = [("prefer", "respond-async"), ("x-llmq-metadata-order", "7")];
    let got = call(&world, &headers, &chat()).await;
    assert_eq!(got.status, 202);
    assert_eq!(got.header("preference-applied"), "respond-async");
    let state = got.json();
    assert_eq!(state["metadata"]["order"], "7");
    assert_eq!(state["priority"], 50, "accepted jobs are normal");
    let id = state["queue_id"].as_str().unwrap();
    assert_eq!(got.header("location"), format!("/api/requests/{id}"));
    assert_eq!(got.header("x-llmq-request-id"), id);
    // Nothing is described that is not there.
    let described = world.get("/openapi.json").await.json();
    let described = &described["paths"][PATH]["post"]["responses"]["202"]["headers"];
    for name in described.as_object().unwrap().keys() {
        assert_ne!(got.header(&name.to_lowercase()), "", "{name}");
    }
    assert_eq!(world.end(id).await["status"], "completed");
}

#[tokio::test]
async fn with_a_wait_it_becomes_a_job_only_when_that_is_over() {
    let world = World::with(&["requests=1/1h"], "").await;
    let headers = [("prefer", "respond-async, wait=1")];
    let got = call(&world, &headers, &chat()).await;
    assert_eq!(got.status, 200);
    let begun = tokio::time::Instant::now();
    let got = call(&world, &headers, &chat()).await;
    assert_eq!(got.status, 202);
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
}

/// The key was passed over: whoever asked again had the call sent and billed again.
#[tokio::test]
async fn a_key_holds_for_a_call_that_becomes_a_job_only_when_its_wait_is_over() {
    let world = World::with(&["requests=1/1h"], "").await;
    let with_key = |key| {
        let prefer = ("prefer", "respond-async, wait=1");
        [prefer, ("idempotency-key", key)]
    };
    let first = call(&world, &with_key("k"), &chat()).await;
    assert_eq!(first.status, 200, "{first:?}");
    let again = call(&world, &with_key("k"), &chat()).await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(world.calls(), 1);
    let mut other = chat();
    other["temperature"] = json!(1);
    assert_eq!(call(&world, &with_key("k"), &other).await.status, 409);
    // Without room it goes on as a request, and the key finds it.
    let late = call(&world, &with_key("late"), &chat()).await;
    assert_eq!(late.status, 202, "{late:?}");
    assert_eq!(late.header("preference-applied"), "respond-async");
    let again = call(&world, &with_key("late"), &chat()).await;
    assert_eq!(again.status, 202, "{again:?}");
    assert_eq!(again.json()["queue_id"], late.json()["queue_id"]);
    assert_eq!(again.json()["status"], "queued");
}

#[tokio::test]
async fn the_same_key_gets_the_same_bytes_streams_included_and_is_sent_once() {
    let world = World::start().await;
    for stream in [false, true] {
        let key = format!("key-{stream}");
        let headers = [("idempotency-key", key.as_str())];
        let mut body = chat();
        body["stream"] = json!(stream);
        let before = world.calls();
        let (first, second) =
            tokio::join!(call(&world, &headers, &body), call(&world, &headers, &body));
        let third = call(&world, &headers, &body).await;
        assert_eq!(first.status, 200, "{:?}", first.body);
        let kind = if stream {
            "text/event-stream"
        } else {
            "application/json"
        };
        assert!(
            first.header("content-type").starts_with(kind),
            "{:?}",
            first.headers
        );
        if stream {
            assert!(first.body.ends_with(b"data: [DONE]\n\n"));
        }
        assert_eq!((&second.body, &third.body), (&first.body, &first.body));
        assert_eq!(world.calls() - before, 1);
        let id = first.header("x-llmq-request-id").to_owned();
        assert_eq!(third.header("x-llmq-request-id"), id);
        assert_eq!(
            world.end(&id).await["priority"],
            70,
            "somebody waits for it"
        );
        body["temperature"] = json!(1);
        let other = call(&world, &headers, &body).await;
        assert_eq!(other.status, 409);
        assert_eq!(other.json()["error"]["code"], "conflict");
    }
}

#[tokio::test]
async fn a_failure_that_another_try_may_cure_is_not_kept() {
    let config = MockConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        fail: 1.0,
        ..MockConfig::default()
    };
    let world = World::behind(MockServer::start(config).await.unwrap(), &[], "").await;
    let headers = [("idempotency-key", "k"), ("x-llmq-max-wait", "500ms")];
    // One that is no stream becomes a request that is kept.
    let mut stream = chat();
    stream["stream"] = json!(true);
    let first = call(&world, &headers, &stream).await;
    assert!(first.status.is_server_error(), "{:?}", first.body);
    let second = call(&world, &headers, &stream).await;
    assert!(second.status.is_server_error(), "{:?}", second.body);
    let list = world.get("/api/requests").await.json();
    assert_eq!(
        list["requests"].as_array().unwrap().len(),
        2,
        "each is a try of its own"
    );
}

#[tokio::test]
async fn a_keyed_call_without_room_ends_as_any_other() {
    let world = World::with(&["requests=1/1h"], "").await;
    assert_eq!(call(&world, &[], &chat()).await.status, 200);
    let headers = [("idempotency-key", "k"), ("x-llmq-max-wait", "100ms")];
    let got = call(&world, &headers, &chat()).await;
    assert_eq!(got.status, 429, "{:?}", got.body);
    assert_eq!(got.json()["error"]["code"], "rate_limited");
    let wait: u64 = got.header("retry-after").parse().unwrap();
    assert!((3_500..=3_600).contains(&wait), "{wait}");
    assert_eq!(got.header("x-should-retry"), "false");
}

/// Once the first calls of an outage failed, until the breaker had opened.
#[tokio::test]
async fn a_call_that_nobody_can_serve_is_kept_where_that_is_set() {
    let world = World::behind(MockServer::start(broken()).await.unwrap(), &[], "").await;
    let headers = [("x-llmq-max-wait", "1s")];
    for _ in 0..3 {
        let got = call(&world, &headers, &chat()).await;
        assert_eq!(got.status, 202, "{got:?}");
    }
    let list = world.get("/api/requests?status=queued").await.json();
    assert!(!list["requests"].as_array().unwrap().is_empty());
    let mut stream = chat();
    stream["stream"] = json!(true);
    let refused = call(&world, &headers, &stream).await;
    assert!(
        refused.status.is_server_error(),
        "no SDK reads a 202 as a stream: {refused:?}"
    );
}

fn broken() -> MockConfig {
    MockConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        outages: vec!["0s-1h".parse().unwrap()],
        ..MockConfig::default()
    }
}

/// Once it had the usual priority and time, and no notes, whatever its caller said.
#[tokio::test]
async fn a_call_that_is_kept_has_the_priority_time_and_notes_that_its_caller_asked_for() {
    let world = World::behind(MockServer::start(broken()).await.unwrap(), &[], "").await;
    let headers = [
        ("x-llmq-max-wait", "500ms"),
        ("x-llmq-priority", "low"),
        ("x-llmq-ttl", "20m"),
        ("x-llmq-metadata-user", "4711"),
    ];
    let got = call(&world, &headers, &chat()).await;
    assert_eq!(got.status, 202, "{got:?}");
    let state = got.json();
    assert_eq!(state["priority"], 30, "{state}");
    assert_eq!(state["metadata"]["user"], "4711", "{state}");
    let at = |name: &str| state[name].as_str().unwrap().parse::<jiff::Timestamp>();
    let ttl = at("expires_at").unwrap() - at("created_at").unwrap();
    // The end is told no earlier than it is, and the beginning no later: a millisecond apart.
    let seconds = ttl.total(jiff::Unit::Second).unwrap();
    assert!((1_140.0..=1_200.001).contains(&seconds), "{seconds}");
    let wrong = [("x-llmq-ttl", "soon")];
    assert_eq!(call(&world, &wrong, &chat()).await.status, 400);
}

#[tokio::test]
async fn a_call_with_a_key_is_kept_too_and_the_same_key_finds_it() {
    let config = MockConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        fail: 1.0,
        ..MockConfig::default()
    };
    let world = World::behind(MockServer::start(config).await.unwrap(), &[], "").await;
    let headers = [("idempotency-key", "k"), ("x-llmq-max-wait", "1s")];
    let kept = call(&world, &headers, &chat()).await;
    assert_eq!(kept.status, 202, "{kept:?}");
    let again = call(&world, &headers, &chat()).await;
    assert_eq!(
        again.json()["queue_id"],
        kept.json()["queue_id"],
        "{again:?}"
    );
}

/// Once it was refused as if a limit had no room: nothing was kept of what its attempts had met.
#[tokio::test]
async fn a_call_with_a_key_that_met_an_overload_is_kept_as_one_without_is() {
    let provider = ScriptedServer::start().await;
    let world = World::before(provider.addr(), "").await;
    let overloaded = provider.serve_each(async |mut guest| {
        guest.read_call().await;
        let body = r#"{"error":{"message":"too many others","code":"overloaded"}}"#;
        let head = "HTTP/1.1 503 Service Unavailable\r\nconnection: close";
        let length = body.len();
        guest
            .say(&format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}"))
            .await;
    });
    let headers = [("x-llmq-max-wait", "300ms"), ("idempotency-key", "k")];
    let calls = async {
        for headers in [&headers[..1], &headers] {
            let got = call(&world, headers, &chat()).await;
            assert_eq!(got.status, 202, "{headers:?}: {got:?}");
        }
    };
    tokio::select! {
        () = overloaded => {}
        () = calls => {}
    }
}

/// Once it waited as long as the call that was there before.
#[tokio::test]
async fn a_call_with_a_key_waits_no_longer_than_its_caller_said() {
    let world = World::with(&["requests=1/1h"], "").await;
    assert_eq!(call(&world, &[], &chat()).await.status, 200);
    let later = [("idempotency-key", "k"), ("prefer", "respond-async")];
    let accepted = call(&world, &later, &chat()).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let headers = [("idempotency-key", "k"), ("x-llmq-max-wait", "100ms")];
    let got = call(&world, &headers, &chat()).await;
    assert_eq!(got.status, 429, "{got:?}");
    let id = accepted.json()["queue_id"].as_str().unwrap().to_owned();
    let message = got.json()["error"]["message"].to_string();
    assert!(message.contains(&id), "{message}");
}

/// A gateway that knows nothing of its upstream's limit before it is told, which is used up.
async fn behind_an_untold_limit() -> World {
    let config = MockConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        limits: vec!["requests=1/1h".parse().unwrap()],
        latency: std::time::Duration::from_millis(1),
        ..MockConfig::default()
    };
    let world = World::behind(MockServer::start(config).await.unwrap(), &[], "").await;
    assert_eq!(call(&world, &[], &chat()).await.status, 200);
    world
}

/// Once it got the 429 of an attempt that was made in the meantime.
#[tokio::test]
async fn a_call_that_would_rather_be_a_job_becomes_one_although_it_was_refused() {
    let world = behind_an_untold_limit().await;
    let headers = [("prefer", "respond-async, wait=1")];
    let got = call(&world, &headers, &chat()).await;
    assert_eq!(got.status, 202, "{got:?}");
}

/// Once it waited until the limit opened again, since the time of jobs stands still meanwhile.
#[tokio::test]
async fn a_call_with_a_key_that_was_refused_for_a_limit_is_told_so_in_its_time() {
    let world = behind_an_untold_limit().await;
    let headers = [("idempotency-key", "k"), ("x-llmq-max-wait", "1s")];
    let got = call(&world, &headers, &chat()).await;
    assert_eq!(got.status, 429, "{got:?}");
    assert_eq!(got.json()["error"]["code"], "rate_limited");
}

/// The preference is passed over for a stream, and the key is not.
#[tokio::test]
async fn a_keyed_stream_that_would_rather_be_a_job_is_sent_once() {
    let world = World::start().await;
    let mut body = chat();
    body["stream"] = json!(true);
    for prefer in ["respond-async", "respond-async, wait=5"] {
        let headers = [("idempotency-key", prefer), ("prefer", prefer)];
        let before = world.calls();
        let first = call(&world, &headers, &body).await;
        let second = call(&world, &headers, &body).await;
        assert_eq!(
            (first.status, &second.body),
            (http::StatusCode::OK, &first.body)
        );
        assert_eq!(world.calls() - before, 1);
    }
}

/// Once the answer to who handed in too much did not say when to come again.
#[tokio::test]
async fn a_full_queue_says_when_to_come_again_in_every_dialect() {
    let world = World::with(&[], "[store]\nmax_jobs = 2\n").await;
    world.post("/api/queues/gpt/pause", &json!({})).await;
    let background = json!({"model": "gpt", "input": "x", "background": true});
    let keyed = [("idempotency-key", "k"), ("x-llmq-max-wait", "1ms")];
    for _ in 0..3 {
        let _full = world.post("/v1/responses", &background).await;
    }
    let later = [("prefer", "respond-async")];
    for got in [
        world.post("/v1/responses", &background).await,
        call(&world, &later, &chat()).await,
        call(&world, &keyed, &chat()).await,
        call(&world, &[("x-llmq-max-wait", "1s")], &chat()).await,
        world.post("/api/requests", &crate::world::request()).await,
    ] {
        assert_eq!(got.status, 503, "{got:?}");
        assert!(!got.header("retry-after").is_empty(), "{got:?}");
    }
}

/// A caller whose answer was lost on its way was refused when it came back for it.
#[tokio::test]
async fn a_call_that_was_answered_is_answered_again_when_nothing_new_is_taken() {
    let world = World::with(&[], "[store]\nmax_jobs = 2\n").await;
    let keyed = [("idempotency-key", "k")];
    let first = call(&world, &keyed, &chat()).await;
    assert_eq!(first.status, 200, "{first:?}");
    world.post("/api/queues/gpt/pause", &json!({})).await;
    for _ in 0..2 {
        world.post("/api/requests", &crate::world::request()).await;
    }
    let refused = world.post("/api/requests", &crate::world::request()).await;
    assert_eq!(refused.problem(), (503, "queue_full".to_owned()));
    let again = call(&world, &keyed, &chat()).await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    world.post("/api/queues/gpt/drain", &json!({})).await;
    let refused = world.post("/api/requests", &crate::world::request()).await;
    assert_eq!(refused.problem(), (503, "draining".to_owned()));
    let again = call(&world, &keyed, &chat()).await;
    assert_eq!((again.status, again.body), (first.status, first.body));
    assert_eq!(world.calls(), 1);
}

/// Once who used a key for a plain call and then for one in the background got the first one's
/// answer under a name that nobody knew.
#[tokio::test]
async fn a_plain_call_and_one_in_the_background_are_not_the_same_request() {
    let world = World::start().await;
    let headers = [("idempotency-key", "k")];
    let mut body = json!({"model": "gpt", "input": "x"});
    let ask = |body: &Value| world.ask(Method::POST, "/v1/responses", &headers, body.to_string());
    assert_eq!(ask(&body).await.status, 200);
    body["background"] = json!(true);
    let got = ask(&body).await;
    assert_eq!(got.status, 409, "{got:?}");
}

/// Once calls that became jobs were in the figures and not in the log.
#[tokio::test]
async fn what_becomes_a_job_has_its_line_in_the_log_too() {
    let world = World::start().await;
    assert_eq!(call(&world, &[], &chat()).await.status, 200);
    let keyed = call(&world, &[("idempotency-key", "k")], &chat()).await;
    let accepted = world.submit().await;
    world.end(&accepted).await;
    let lines = world.log.come_to(3).await;
    for (line, id) in [
        (&lines[1], keyed.header("x-llmq-request-id")),
        (&lines[2], &accepted),
    ] {
        let text = line.to_string();
        assert!(text.contains(id), "{id}: {text}");
        assert!(text.contains("200"), "{text}");
    }
}

/// Once they were in no log and no figure: nobody saw who came again and again with a key that was
/// revoked, or for a model that there is not, by a wrong method or from another site.
#[tokio::test]
async fn what_is_refused_before_it_stands_in_line_is_counted_and_logged_once() {
    let world = World::start().await;
    let keyed = ("idempotency-key", "k");
    assert_eq!(call(&world, &[keyed], &chat()).await.status, 200);
    let tenant = ("x-llmq-tenant", "them");
    let (mut unknown, mut other) = (chat(), chat());
    unknown["model"] = json!("x".repeat(5_000));
    other["temperature"] = json!(1);
    let later = ("prefer", "respond-async");
    let shown = "x".repeat(100);
    let table = [
        (vec![tenant, ("x-llmq-priority", "urgent")], chat(), 400, ""),
        (vec![tenant], json!([]), 400, ""),
        (vec![tenant], unknown, 404, shown.as_str()),
        (vec![keyed], other.clone(), 409, "gpt"),
        (vec![keyed, later], other, 409, "gpt"),
    ];
    let mut refused = Vec::new();
    for (headers, body, status, model) in table {
        let got = call(&world, &headers, &body).await;
        assert_eq!(got.status, status, "{got:?}");
        let whose = if headers.contains(&tenant) {
            "them"
        } else {
            "default"
        };
        let id = got.header("x-llmq-request-id").to_owned();
        refused.push((id, status, model, whose));
    }
    let abroad = format!("http://stranger.example{PATH}");
    let unread = [
        (Method::GET, PATH, vec![], 405),
        (
            Method::POST,
            PATH,
            vec![("sec-fetch-site", "cross-site")],
            403,
        ),
        (Method::POST, abroad.as_str(), vec![], 421),
    ];
    for (method, path, headers, status) in unread {
        let got = world.ask(method, path, &headers, chat().to_string()).await;
        assert_eq!(got.status, status, "{got:?}");
        let id = got.header("x-llmq-request-id").to_owned();
        refused.push((id, status, "", ""));
    }
    let figures = world.get("/metrics").await;
    let figures = String::from_utf8(figures.body.to_vec()).unwrap();
    for (model, status, count) in [
        ("other", 400, 2),
        ("other", 403, 1),
        ("other", 404, 1),
        ("other", 405, 1),
        ("other", 421, 1),
        ("gpt", 409, 2),
    ] {
        let labels = format!("model=\"{model}\",operation=\"chat\",status=\"{status}\"");
        let line = format!("llmq_calls_total{{{labels},stream=\"false\",upstream=\"\"}} {count}\n");
        assert!(figures.contains(&line), "{line}{figures}");
    }
    // From here on it asks for keys.
    let all = json!({"name": "admin", "scopes": ["manage"]});
    assert_eq!(world.post("/api/keys", &all).await.status, 201);
    let got = call(&world, &[], &chat()).await;
    assert_eq!(got.status, 401, "{got:?}");
    let id = got.header("x-llmq-request-id").to_owned();
    refused.push((id, 401, "", ""));
    let lines = world.log.come_to(refused.len() + 1).await;
    assert_eq!(lines.len(), refused.len() + 1);
    for (id, status, model, whose) in refused {
        let mut line = lines.iter().filter(|line| line["id"] == id.as_str());
        let (line, another) = (line.next().unwrap(), line.next());
        assert_eq!(another, None, "{lines:?}");
        let told = (&line["status"], &line["model"], &line["tenant"]);
        assert_eq!(told, (&json!(status), &json!(model), &json!(whose)));
    }
}
