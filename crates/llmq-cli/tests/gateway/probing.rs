//! `llmq probe` against a strict provider.

use crate::common::World;
use crate::world::{Served, Strict};

#[test]
fn what_probe_writes_can_be_served_from_at_once() {
    let provider = Strict::with(&["requests=60/1m", "tokens=5000/1m"]);
    let world = World::new();
    let url = format!("http://{}/v1", provider.addr());
    world
        .run(&format!("probe m n --base-url {url} -o llmq.toml"))
        .says(
            0,
            &["asking openai/m", "asking openai/n", "wrote llmq.toml"],
        );
    assert_eq!(provider.counted(), (2, 0));
    let text = std::fs::read_to_string(world.path("llmq.toml")).unwrap();
    for part in [
        format!("base_url = \"{url}\""),
        "[models.m]".to_owned(),
        "[models.n]".to_owned(),
        "rpm = 60".to_owned(),
        "tpm = 5000".to_owned(),
        "# openai/m answered in ".to_owned(),
    ] {
        assert!(text.contains(&part), "no {part:?} in {text}");
    }
    world.run("config check --config llmq.toml").says(0, &[]);
    let again = world.run(&format!("probe m --base-url {url} -o llmq.toml"));
    again.says(2, &["llmq.toml", "exists"]);
    let served = Served::start(&world, "--config llmq.toml --store memory:");
    assert_eq!(served.calls(3, ""), [200; 3]);
}

#[test]
fn models_that_do_not_answer_are_told_with_their_reason() {
    let world = World::new();
    let gone = "probe m --base-url http://127.0.0.1:9/v1";
    let told = world.run(gone);
    told.says(3, &["1 of 1 models gave no answer"]);
    assert!(
        told.stdout.contains("# openai/m gave no answer"),
        "{told:?}"
    );
    world.run("probe").says(2, &["no model is named"]);
    world.run("probe m").says(2, &["OPENAI_API_KEY"]);
}
