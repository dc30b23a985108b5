//! 429s: waited out, not hammered.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::answers::error;
use crate::world::{Act, BOTH, Mode, PATIENCE, Upstream, World};

fn busy(headers: &str) -> Act {
    Act::Say(error(
        "429 Too Many Requests",
        headers,
        "rate_limit_exceeded",
        "Rate limit reached",
    ))
}

#[tokio::test]
async fn a_429_that_names_its_time_is_waited_out() {
    for mode in BOTH {
        let one = Upstream::start("one", |call| match call {
            0 => busy("retry-after: 1\r\n"),
            _ => Act::Answer,
        })
        .await;
        let world = World::new(&[&one], "", "").await;
        let seen = world.ask(mode).await;
        seen.is_from(&one);
        assert_eq!((one.calls(), seen.attempts()), (2, 2), "{mode:?}");
        assert!(one.gaps()[0] >= Duration::from_secs(1), "{:?}", one.gaps());
    }
}

#[tokio::test]
async fn a_call_meets_at_most_six_429s_and_they_are_spaced() {
    for mode in BOTH {
        let one = Upstream::start("one", |_| busy("")).await;
        let world = World::new(&[&one], "", "").await;
        let seen = world.ask(mode).await;
        seen.failed(429, "Rate limit reached");
        assert_eq!(one.calls(), 6, "{mode:?}");
        // The provider said no time; the gateway has one of its own.
        assert_eq!(seen.headers["retry-after"], "1", "{mode:?}");
        assert_eq!(seen.headers["x-should-retry"], "true", "{mode:?}");
        for gap in one.gaps() {
            assert!(gap >= Duration::from_millis(10), "{:?}", one.gaps());
        }
    }
}

/// Nor where the provider never says when: the gateway's own waits grow past what is left.
#[tokio::test]
async fn nobody_waits_past_the_time_that_was_asked_for_when_no_time_is_named() {
    let slow = "[retry]\nrate_limit = { base = \"1m\", max = \"5m\" }\n";
    for mode in BOTH {
        let one = Upstream::start("one", |_| busy("")).await;
        let text = format!(
            "{slow}[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
             [models.m]\nupstreams = [{{ upstream = \"one\" }}]\n",
            one.url
        );
        let world = World::set(&text).await;
        let begun = Instant::now();
        let seen = world.ask_with(mode, &[("x-llmq-max-wait", "300ms")]).await;
        seen.failed(429, "Rate limit reached");
        assert!(begun.elapsed() < Duration::from_secs(20), "{mode:?}");
        let wait: u64 = seen.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((50..=70).contains(&wait), "{mode:?}: {wait}");
        assert_eq!(one.calls(), 1, "{mode:?}");
    }
}

#[tokio::test]
async fn nobody_waits_past_the_time_that_was_asked_for() {
    for mode in BOTH {
        let one = Upstream::start("one", |_| busy("retry-after: 600\r\n")).await;
        let world = World::new(&[&one], "", "").await;
        let seen = world.ask_with(mode, &[("x-llmq-max-wait", "200ms")]).await;
        seen.failed(429, "Rate limit reached");
        let wait: u64 = seen.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((590..=602).contains(&wait), "{mode:?}: {wait}");
        // Anthropic's SDK slept through whatever it was told, hours and weeks included.
        assert_eq!(seen.headers["x-should-retry"], "false", "{mode:?}");
        assert_eq!(one.calls(), 1, "{mode:?}");
    }
}

#[tokio::test]
async fn an_sdk_is_told_to_come_back_by_itself_where_that_is_soon() {
    for (seconds, comes_back) in [(100, "true"), (130, "false")] {
        let headers = format!("retry-after: {seconds}\r\n");
        let one = Upstream::start("one", move |_| busy(&headers)).await;
        let world = World::new(&[&one], "", "").await;
        let seen = world
            .ask_with(Mode::Whole, &[("x-llmq-max-wait", "200ms")])
            .await;
        seen.failed(429, "Rate limit reached");
        assert_eq!(seen.headers["x-should-retry"], comes_back, "{seconds}");
        assert!(seen.headers.contains_key("retry-after"));
    }
}

/// An upstream that was closed by it counted as down: 503 instead of a limit's 429.
#[tokio::test]
async fn traffic_that_rose_too_fast_is_a_limit_and_no_outage() {
    let one = Upstream::start("one", |_| {
        let (status, wait) = ("429 Too Many Requests", "retry-after: 600\r\n");
        Act::Say(error(status, wait, "slow_down", "Slow down"))
    })
    .await;
    let world = World::new(&[&one], "", "").await;
    for told in ["Slow down", "rate_limited"] {
        let seen = world
            .ask_with(Mode::Whole, &[("x-llmq-max-wait", "200ms")])
            .await;
        seen.failed(429, told);
        let wait: u64 = seen.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((590..=602).contains(&wait), "{told}: {wait}");
    }
    assert_eq!(one.calls(), 1);
}

#[tokio::test]
async fn a_fallback_takes_over_when_the_wait_is_longer_than_what_is_left() {
    for mode in BOTH {
        let one = Upstream::start("one", |_| busy("retry-after: 600\r\n")).await;
        let two = Upstream::start("two", |_| Act::Answer).await;
        let world = World::with_fallback(&one, &two).await;
        world.ask(mode).await.is_from(&two);
        assert_eq!((one.calls(), two.calls()), (1, 1), "{mode:?}");
    }
}

/// Where no limit was stated, all that waited for the end of a 429 was sent at once, and most of
/// it refused again, whatever its priority.
#[tokio::test]
async fn after_a_429_of_an_unknown_limit_the_most_urgent_goes_alone_and_then_twice_as_many() {
    let told: Vec<Arc<Notify>> = (0..16).map(|_| Arc::default()).collect();
    let notes = told.clone();
    let one = Upstream::start("one", move |call| {
        let then = match call {
            0 => busy("retry-after: 2\r\n"),
            _ => Act::Answer,
        };
        Act::When(Arc::clone(&notes[call]), Box::new(then))
    })
    .await;
    let world = Arc::new(World::new(&[&one], "", "").await);
    let mut calls = JoinSet::new();
    let mut ask = |priority: &'static str| {
        let world = Arc::clone(&world);
        calls.spawn(async move {
            let messages = [json!({"role": "user", "content": priority})];
            let body = json!({"model": "m", "messages": messages}).to_string();
            let request = Request::post("/v1/chat/completions");
            let urgent = [("x-llmq-priority", priority)];
            world.send(request, &urgent, body).await.status
        });
    };
    let queue = async |what: &str| {
        let request = Request::post(format!("/api/queues/m/{what}"));
        assert_eq!(world.send(request, &[], String::new()).await.status, 200);
    };
    ask("low");
    until(async || one.calls() == 1).await;
    queue("pause").await;
    for priority in ["low", "normal", "high"] {
        (0..4).for_each(|_| ask(priority));
    }
    let waiting = async |count: usize| {
        let request = Request::get("/api/queues/m");
        let seen = world.send(request, &[], String::new()).await;
        let seen: Value = serde_json::from_str(&seen.body).unwrap();
        seen["waiting"] == count
    };
    until(async || waiting(12).await).await;
    told[0].notify_one();
    until(async || waiting(13).await).await;
    queue("resume").await;

    let mut first = None;
    for (from, to, those) in [
        (1, 2, ["high"].as_slice()),
        (2, 4, &["high", "high"]),
        (4, 8, &["high", "normal", "normal", "normal"]),
        (8, 14, &["low", "low", "low", "low", "low", "normal"]),
    ] {
        until(async || one.calls() >= to).await;
        let begun = *first.get_or_insert_with(Instant::now);
        // Where answers take longer than this, more are let through by the clock.
        if begun.elapsed() < Duration::from_millis(900) {
            assert_eq!(one.calls(), to);
        }
        let priority = |body: &str| {
            let found = ["low", "normal", "high"].into_iter();
            found.filter(|word| body.contains(word)).collect::<String>()
        };
        let mut seen: Vec<String> = (from..to).map(|n| priority(&one.heard(n).body)).collect();
        seen.sort_unstable();
        assert_eq!(seen, those, "from the call {from} on");
        (from..to).for_each(|call| told[call].notify_one());
    }
    while let Some(status) = calls.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
}

/// Asks until it is so.
async fn until(is_so: impl AsyncFn() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, asking).await.expect("it comes to be so");
}

async fn steer(world: &World, queue: &str, motion: &str) {
    let request = Request::post(format!("/api/queues/{queue}/{motion}"));
    let seen = world.send(request, &[], String::new()).await;
    assert_eq!(seen.status, 200, "{seen:?}");
}

/// It was told as a limit, with a time to come back, and SDKs came back for hours.
#[tokio::test]
async fn a_call_of_a_paused_queue_is_told_so_and_not_to_come_back_by_itself() {
    let one = Upstream::start("one", |_| Act::Answer).await;
    let world = World::new(&[&one], "", "").await;
    steer(&world, "m", "pause").await;
    let wait = ("x-llmq-max-wait", "20ms");
    for mode in BOTH {
        let key = (
            "idempotency-key",
            if mode == Mode::Whole { "w" } else { "s" },
        );
        for headers in [&[wait][..], &[wait, key]] {
            let seen = world.ask_with(mode, headers).await;
            seen.failed(503, r#""code":"paused""#);
            assert!(!seen.headers.contains_key("retry-after"), "{seen:?}");
            assert_eq!(seen.headers["x-should-retry"], "false");
        }
    }
    assert_eq!(one.calls(), 0);
    steer(&world, "m", "resume").await;
    world.ask(Mode::Whole).await.is_from(&one);
}

/// What a person has paused was sent to all the same, by the models whose fallback it is.
#[tokio::test]
async fn a_paused_queue_is_nobodys_fallback_until_it_goes_on() {
    for mode in BOTH {
        let broken = error("500 Internal Server Error", "", "server_error", "broken");
        let first = Upstream::start("first", move |_| Act::Say(broken.clone())).await;
        let second = Upstream::start("second", |_| Act::Answer).await;
        let world = World::with_fallback(&first, &second).await;
        steer(&world, "n", "pause").await;
        world.ask(mode).await.failed(500, "broken");
        assert_eq!(second.calls(), 0, "{mode:?}");
        steer(&world, "n", "resume").await;
        world.ask(mode).await.is_from(&second);
    }
}
