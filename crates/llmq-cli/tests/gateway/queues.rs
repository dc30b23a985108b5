//! `llmq queues` against a server.

use crate::common::{Outcome, World, outcome, words};
use crate::world::{Served, Strict, config};

#[test]
fn queues_are_listed_shown_and_steered() {
    let provider = Strict::with(&[]);
    let world = World::new();
    let text = config(provider.addr(), "rpm = 50").replace("[models.m]", "[models.\"org/m\"]");
    world.write("llmq.toml", text);
    let served = Served::start(&world, "--config llmq.toml --store memory:");
    let queues = |line: &str| -> Outcome {
        let mut command = world.command(words(&format!("queues {line}")));
        outcome(command.env("LLMQ_BASE_URL", format!("http://{}", served.addr)))
    };
    let list = queues("list");
    assert!(
        list.stdout.contains("org/m  running  0        0"),
        "{list:?}"
    );
    // As SDKs are given it.
    let same = queues(&format!("list --base-url http://{}/v1", served.addr));
    assert_eq!(same.stdout, list.stdout, "{same:?}");
    let show = queues("show org/m");
    for part in ["one/org/m", "usable", "requests=50/1m", "0 %"] {
        assert!(show.stdout.contains(part), "{part}: {show:?}");
    }
    queues("pause org/m").says(0, &["org/m is paused: 0 wait, 0 in flight"]);
    assert!(
        queues("list --format jsonl")
            .stdout
            .contains("\"state\":\"paused\"")
    );
    queues("drain org/m").says(0, &["org/m is paused"]);
    queues("resume org/m").says(0, &["org/m is running"]);
    queues("drain org/m").says(0, &["org/m is draining"]);
    queues("resume org/m -q").says(0, &[]);
    queues("show nothing").says(1, &["`nothing`"]);
}
