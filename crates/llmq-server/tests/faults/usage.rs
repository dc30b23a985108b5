//! Streams that are counted although their callers did not ask for their usage.

use std::sync::Arc;

use http::Request;
use llmq_testkit::ScriptedServer;
use serde_json::json;
use tokio::sync::Notify;

use crate::answers::{END, STREAM, chunk, done, error, stream_with_usage, word};
use crate::callers::key;
use crate::world::{Act, BOTH, Mode, PATIENCE, Seen, Upstream, World};

const COUNTED: &str = r#"limits = { custom = ["tokens=1M/1h"] }"#;

/// The model `m` at one upstream, with these settings of the route and of the model.
async fn world(one: &Upstream, route: &str, model: &str) -> World {
    World::with(&format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
         [models.m]\nupstreams = [{{ upstream = \"one\", model = \"one\", {route} }}]\n{model}\n",
        one.url
    ))
    .await
}

async fn answering() -> Upstream {
    Upstream::start("one", |_| Act::Answer).await
}

async fn ask(world: &World, options: &str) -> Seen {
    let body = format!(r#"{{"model":"m","stream":true{options},"messages":[]}}"#);
    let request = Request::post("/v1/chat/completions");
    world.send(request, &[], body).await
}

fn shows_usage(seen: &Seen) -> bool {
    seen.body.contains("total_tokens")
}

#[tokio::test]
async fn a_stream_is_counted_where_a_limit_needs_it_and_its_caller_sees_none_of_it() {
    let one = answering().await;
    let world = world(&one, COUNTED, "").await;
    let seen = ask(&world, "").await;
    seen.is_from(&one);
    assert!(seen.body.ends_with("data: [DONE]\n\n"), "{seen:?}");
    assert!(!shows_usage(&seen), "{seen:?}");
    let sent = one.heard(0).body;
    assert!(sent.contains(r#""include_usage":true"#), "{sent}");
    let queues = Request::get("/api/queues");
    let queues = world.send(queues, &[], String::new()).await;
    let queues: serde_json::Value = serde_json::from_str(&queues.body).unwrap();
    let limit = &queues["queues"][0]["upstreams"][0]["limits"][0];
    let used = limit["in_use"].as_f64().unwrap() * 1e6;
    assert!((used - 10.0).abs() < 0.01, "{queues:#}");
}

#[tokio::test]
async fn a_callers_own_choice_stands() {
    let one = answering().await;
    let world = world(&one, COUNTED, "").await;
    for (number, choice) in [true, false].into_iter().enumerate() {
        let options = format!(r#","stream_options":{{"include_usage":{choice}}}"#);
        let seen = ask(&world, &options).await;
        assert_eq!(shows_usage(&seen), choice, "{seen:?}");
        let sent = one.heard(number).body;
        assert!(sent.contains(&options), "{sent}");
    }
}

#[tokio::test]
async fn a_stream_that_nobody_counts_goes_as_it_came() {
    let one = answering().await;
    for (route, model) in [("", ""), (COUNTED, "stream_usage = \"never\"")] {
        let world = world(&one, route, model).await;
        ask(&world, "").await.is_from(&one);
        let sent = one.heard(one.calls() - 1).body;
        assert!(!sent.contains("stream_options"), "{sent}");
    }
    let world = world(&one, "", "stream_usage = \"add\"").await;
    ask(&world, "").await.is_from(&one);
    let sent = one.heard(one.calls() - 1).body;
    assert!(sent.contains(r#""include_usage":true"#), "{sent}");
}

/// A limit of produced tokens held an answer's whole cap until its end, so that the next call
/// waited for what had left the window long ago.
#[tokio::test]
async fn what_a_stream_has_produced_leaves_the_window_before_the_stream_ends() {
    let go_on = Arc::new(Notify::new());
    let begun = [STREAM.to_owned(), word("one", "a word").repeat(70)].concat();
    let rest = Act::When(
        Arc::clone(&go_on),
        Box::new(Act::Say(format!("{}{END}", done()))),
    );
    let one = Upstream::start("one", move |call| match call {
        0 => Act::Then(begun.clone(), Box::new(rest.clone())),
        _ => Act::Answer,
    })
    .await;
    let limits = r#"limits = { custom = ["output_tokens=100/1s"] }"#;
    let world = world(&one, limits, "").await;
    let body = r#"{"model":"m","stream":true,"max_tokens":80,"messages":[]}"#;
    let post = || Request::post("/v1/chat/completions");
    let first = world.open(post(), &[], body.to_owned()).await;
    let second = tokio::time::timeout(PATIENCE, world.send(post(), &[], body.to_owned())).await;
    second.expect("there is room after a second").is_from(&one);
    go_on.notify_one();
    assert!(first.rest().await.clean);
}

#[tokio::test]
async fn a_budget_pays_for_what_a_stream_used() {
    let one = answering().await;
    let world = world(&one, "", "").await;
    let admin = json!({"name": "admin", "scopes": ["manage"]});
    let admin = key(&world, None, admin).await;
    let app = json!({"name": "app", "scopes": ["call"], "budget": {"tokens_per_day": 1_000_000}});
    let app = key(&world, Some(&admin), app).await;
    let seen = world
        .ask_with(Mode::Stream, &[("authorization", &app)])
        .await;
    seen.is_from(&one);
    assert!(!shows_usage(&seen), "{seen:?}");
    let keys = Request::get("/api/keys");
    let keys = world
        .send(keys, &[("authorization", &admin)], String::new())
        .await;
    let keys: serde_json::Value = serde_json::from_str(&keys.body).unwrap();
    let mut all = keys["keys"].as_array().unwrap().iter();
    let app = all.find(|key| key["name"] == "app").unwrap();
    assert_eq!(app["usage"]["day"]["input_tokens"], 7, "{app:#}");
    assert_eq!(app["usage"]["day"]["output_tokens"], 3, "{app:#}");
}

#[tokio::test]
async fn a_failed_attempt_is_not_booked_as_an_answer() {
    for mode in BOTH {
        let one = Upstream::start("one", |call| match call {
            0 => Act::Say(error(
                "500 Internal Server Error",
                "",
                "server_error",
                "It broke",
            )),
            1 => Act::Say(stream_with_usage("bad")[..400].to_owned()),
            _ => Act::Answer,
        })
        .await;
        let more = "stream_usage = \"add\"\nstream_recovery = \"buffer\"";
        let world = World::new(&[&one], "", more).await;
        world.ask(mode).await.is_from(&one);
        let figures = world
            .send(Request::get("/metrics"), &[], String::new())
            .await;
        let sum = |kind: &str| {
            let mut lines = figures.body.lines();
            let line = lines.find(|line| {
                line.starts_with("gen_ai_client_token_usage_sum")
                    && line.contains(&format!("gen_ai_token_type=\"{kind}\""))
            });
            let line = line.unwrap_or_else(|| panic!("{}", figures.body));
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!((sum("input") - 7.0).abs() < 0.01 && (sum("output") - 3.0).abs() < 0.01);
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_to_tell_is_asked_again_without_and_then_no_more() {
    for status in ["400 Bad Request", "422 Unprocessable Entity"] {
        let one = Upstream::start("one", move |call| match call {
            0 => Act::Say(error(
                status,
                "",
                "invalid_request_error",
                "Unrecognized request argument supplied: stream_options",
            )),
            _ => Act::Answer,
        })
        .await;
        let world = world(&one, COUNTED, "").await;
        for _ in 0..2 {
            ask(&world, "").await.is_from(&one);
        }
        assert_eq!(one.calls(), 3, "{status}");
        assert!(one.heard(0).body.contains("stream_options"));
        for number in [1, 2] {
            let sent = one.heard(number).body;
            assert!(!sent.contains("stream_options"), "{sent}");
        }
    }
}

#[tokio::test]
async fn a_caller_that_asked_itself_is_told_of_the_refusal() {
    let refusal = "stream_options is not supported";
    let one = Upstream::start("one", move |_| {
        Act::Say(error(
            "400 Bad Request",
            "",
            "invalid_request_error",
            refusal,
        ))
    })
    .await;
    let world = world(&one, COUNTED, "").await;
    let options = r#","stream_options":{"include_usage":true}"#;
    ask(&world, options).await.failed(400, refusal);
    assert_eq!(one.calls(), 1);
}

/// Each refusal that a stream began with was booked as a whole answer on the budget of its key,
/// where the call had an `Idempotency-Key`: a few overloads used a day up.
#[tokio::test]
async fn what_a_provider_refuses_in_a_stream_costs_no_budget() {
    for keyed in [&[][..], &[("idempotency-key", "k")]] {
        let refused = r#"{"error":{"message":"Overloaded","type":"overloaded_error"}}"#;
        let refused = format!("{STREAM}{}{END}", chunk(&format!("data: {refused}\n\n")));
        let one = Upstream::start("one", move |call| match call {
            0..3 => Act::Say(refused.clone()),
            _ => Act::Answer,
        })
        .await;
        let world = world(&one, "", "").await;
        let admin = json!({"name": "admin", "scopes": ["manage"]});
        let admin = key(&world, None, admin).await;
        // Room for two such calls.
        let budget = json!({"tokens_per_day": 10_000});
        let app = json!({"name": "app", "scopes": ["call"], "budget": budget});
        let app = key(&world, Some(&admin), app).await;
        let mut headers = vec![("authorization", app.as_str())];
        for more in [keyed, &[]] {
            headers.extend(more);
            let seen = world.ask_with(Mode::Stream, &headers).await;
            seen.is_from(&one);
            headers.truncate(1);
        }
        assert_eq!(one.calls(), 5, "{keyed:?}");
    }
}

/// Callers that left, and requests that were cancelled, while a connection was still being opened
/// paid for calls of which no byte had left: in an outage two of them used a day up.
#[tokio::test]
async fn a_call_that_is_broken_off_while_it_connects_costs_no_budget() {
    // It never says a word of TLS.
    let server = ScriptedServer::start().await;
    let url = server.url().replace("http:", "https:");
    let world = World::with(&format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{url}\"\n\
         [models.m]\nupstreams = [{{ upstream = \"one\" }}]\n"
    ))
    .await;
    let admin = json!({"name": "admin", "scopes": ["manage"]});
    let admin = key(&world, None, admin).await;
    // Room for two such calls.
    let budget = json!({"tokens_per_day": 1_000});
    let app = json!({"name": "app", "scopes": ["call"], "budget": budget});
    let app = key(&world, Some(&admin), app).await;
    let headers = [
        ("authorization", app.as_str()),
        ("content-type", "application/json"),
    ];
    let body = json!({"model": "m", "max_tokens": 400, "messages": []});
    for _ in 0..3 {
        let plain = Request::post("/v1/chat/completions");
        let mut guest = tokio::select! {
            seen = world.send(plain, &headers, body.to_string()) => panic!("{seen:?}"),
            guest = server.accept() => guest,
        };
        guest.closed().await;
        let accepted = json!({"endpoint": "/v1/chat/completions", "body": body});
        let requests = Request::post("/api/requests");
        let seen = world.send(requests, &headers, accepted.to_string()).await;
        assert_eq!(seen.status, 202, "{seen:?}");
        let accepted: serde_json::Value = serde_json::from_str(&seen.body).unwrap();
        let id = accepted["queue_id"].as_str().unwrap();
        let mut guest = server.accept().await;
        let one = Request::delete(format!("/api/requests/{id}"));
        let seen = world.send(one, &headers, String::new()).await;
        assert_eq!(seen.status, 200, "{seen:?}");
        guest.closed().await;
    }
}

/// What a fallback served was booked at the price of the model that was asked for: nothing, where
/// that had none.
#[tokio::test]
async fn a_budget_in_dollars_pays_the_price_of_the_model_that_served() {
    let one = Upstream::start("one", |_| {
        let status = "503 Service Unavailable";
        Act::Say(error(status, "", "server_error", "It broke"))
    })
    .await;
    let two = answering().await;
    let world = World::with(&format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
         [upstreams.two]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
         [models.m]\nupstreams = [{{ upstream = \"one\" }}]\nfallback = [\"n\"]\n\
         [models.n]\nupstreams = [{{ upstream = \"two\" }}]\n\
         price = {{ input = 100.0, output = 200.0 }}\n",
        one.url, two.url
    ))
    .await;
    let admin = json!({"name": "admin", "scopes": ["manage"]});
    let admin = key(&world, None, admin).await;
    let app = json!({"name": "app", "scopes": ["call"], "budget": {"usd_per_day": 100.0}});
    let app = key(&world, Some(&admin), app).await;
    for keyed in [&[][..], &[("idempotency-key", "k")]] {
        let mut headers = vec![("authorization", app.as_str())];
        headers.extend(keyed);
        let seen = world.ask_with(Mode::Whole, &headers).await;
        assert_eq!(seen.status, 200, "{seen:?}");
    }
    let keys = Request::get("/api/keys");
    let keys = world
        .send(keys, &[("authorization", &admin)], String::new())
        .await;
    let keys: serde_json::Value = serde_json::from_str(&keys.body).unwrap();
    let mut all = keys["keys"].as_array().unwrap().iter();
    let app = all.find(|key| key["name"] == "app").unwrap();
    let usd = app["usage"]["day"]["usd"].as_f64().unwrap();
    // Twice 7 tokens in and 3 out.
    assert!((usd - 2.0 * 0.0013).abs() < 1e-9, "{app:#}");
    let least = json!({"name": "poor", "scopes": ["call"], "budget": {"usd_per_day": 0.1}});
    let poor = key(&world, Some(&admin), least).await;
    let seen = world
        .ask_with(Mode::Whole, &[("authorization", &poor)])
        .await;
    // An answer of 4,096 tokens would cost more at the fallback.
    seen.failed(400, "too_large");
}
