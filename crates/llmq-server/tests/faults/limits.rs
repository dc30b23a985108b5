//! 429s: waited out, not hammered.

use std::time::Duration;

use tokio::time::Instant;

use crate::answers::error;
use crate::world::{Act, BOTH, Mode, Upstream, World};

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
