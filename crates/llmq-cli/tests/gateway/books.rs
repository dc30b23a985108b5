//! What was spent of limits outlives the process, however it ends.

use std::time::Duration;

use tokio::time::Instant;

use crate::common::World;
use crate::world::{Served, Strict, config};

const STORE: &str = "--config llmq.toml --store sqlite:kept.db";

#[test]
fn a_killed_gateway_costs_a_window_and_no_refusal() {
    let provider = Strict::with(&["requests=20/2s"]);
    let world = World::new();
    let limits = "custom = [\"requests=20/2s\"]";
    world.write("llmq.toml", config(provider.addr(), limits));
    for life in 1..=3 {
        let served = Served::start(&world, STORE);
        let start = Instant::now();
        assert_eq!(served.calls(20, ""), [200; 20], "life {life}");
        if life > 1 {
            // The window counts as spent at the last sign of life.
            assert!(
                start.elapsed() > Duration::from_secs(1),
                "{:?}",
                start.elapsed()
            );
        }
        served.running.kill();
    }
    assert_eq!(provider.counted(), (60, 0));
}

#[test]
fn after_a_clean_stop_exactly_what_is_left_can_be_used_at_once() {
    let provider = Strict::with(&["requests=20/30s"]);
    let world = World::new();
    let limits = "custom = [\"requests=20/30s\"]";
    world.write("llmq.toml", config(provider.addr(), limits));
    let served = Served::start(&world, STORE);
    assert_eq!(served.calls(5, ""), [200; 5]);
    served.running.signal("-INT");
    let (code, _, said) = served.running.end();
    assert_eq!(code, 0, "{said}");
    let served = Served::start(&world, STORE);
    let start = Instant::now();
    assert_eq!(served.calls(15, ""), [200; 15]);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    let none_left = served.calls(1, "x-llmq-max-wait: 0s\r\n");
    assert_eq!(none_left, [429]);
    assert_eq!(provider.counted(), (20, 0));
}

#[test]
fn no_number_of_kills_is_a_way_past_a_limit_of_a_day() {
    let provider = Strict::with(&["requests=200/1d"]);
    let world = World::new();
    world.write(
        "llmq.toml",
        config(provider.addr(), "custom = [\"requests=200/1d\"]"),
    );
    let mut answered = 0;
    for _ in 0..4 {
        let served = Served::start(&world, STORE);
        let statuses = served.calls(60, "x-llmq-max-wait: 2s\r\n");
        answered += statuses
            .iter()
            .map(|status| u64::from(*status == 200))
            .sum::<u64>();
        served.running.kill();
    }
    let (accepted, refused) = provider.counted();
    assert_eq!((accepted, refused), (answered, 0));
    // Each life may lose the portions that were drawn and not used, a hundredth each.
    assert!((180..=200).contains(&answered), "{answered}");
}

#[test]
fn a_limit_that_nobody_configured_is_known_to_the_next_process() {
    let provider = Strict::with(&["requests=30/1m"]);
    let world = World::new();
    let text = config(provider.addr(), "");
    world.write("llmq.toml", text);
    let served = Served::start(&world, STORE);
    // One after the other: each answer teaches.
    for _ in 0..6 {
        assert_eq!(served.calls(1, ""), [200]);
    }
    let learned = "\"limit\":\"requests=30/1m";
    served.wait_until("/api/queues", learned);
    served.running.signal("-TERM");
    assert_eq!(served.running.end().0, 0);
    let served = Served::start(&world, STORE);
    served.wait_until("/api/queues", learned);
    // All at once: what is left is known before the first answer.
    let statuses = served.calls(40, "x-llmq-max-wait: 1s\r\n");
    let answered = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!((answered, provider.counted().1), (24, 0), "{statuses:?}");
}
