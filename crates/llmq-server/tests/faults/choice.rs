//! Several upstreams of a model: which of them is asked.

use http::Request;
use serde_json::json;

use crate::world::{Act, Seen, Upstream, World};

const CHAT: &str = "/v1/chat/completions";

/// The model `m` at these upstreams, of equal weight and with these limits each. `providers` are
/// their kinds.
async fn world(upstreams: &[(&Upstream, &str)], limits: &str) -> World {
    let mut text = String::new();
    let mut routes = Vec::new();
    for (Upstream { name, url, .. }, provider) in upstreams {
        text += &format!(
            "[upstreams.{name}]\nprovider = \"{provider}\"\nbase_url = \"{url}\"\n\
             api_key = \"key-of-{name}\"\n"
        );
        routes.push(format!(
            r#"{{ upstream = "{name}", model = "{name}", limits = {{ {limits} }} }}"#
        ));
    }
    text += &format!("[models.m]\nupstreams = [{}]\n", routes.join(", "));
    World::with(&text).await
}

async fn two() -> [Upstream; 2] {
    [
        Upstream::start("one", |_| Act::Answer).await,
        Upstream::start("two", |_| Act::Answer).await,
    ]
}

async fn say(world: &World, prompt: &str) -> Seen {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": prompt}]});
    world.send(Request::post(CHAT), &[], body.to_string()).await
}

#[tokio::test]
async fn calls_whose_prompts_begin_alike_go_to_one_account() {
    let [one, two] = two().await;
    let world = world(
        &[(&one, "openai"), (&two, "openai")],
        r#"custom = ["requests=100/1h"]"#,
    )
    .await;
    let mut homes = [0, 0];
    for prompt in 0..12 {
        let before = [one.calls(), two.calls()];
        let begin = format!("{prompt} ").repeat(1_100);
        for turn in 0..3 {
            let seen = say(&world, &format!("{begin} and then {turn}")).await;
            assert_eq!(seen.status, 200, "{seen:?}");
        }
        let moved = [one.calls() - before[0], two.calls() - before[1]];
        assert!(moved == [3, 0] || moved == [0, 3], "{moved:?}");
        homes[usize::from(moved[0] == 0)] += 1;
    }
    assert!(
        homes.iter().all(|count| *count > 0),
        "prompts spread: {homes:?}"
    );
}

#[tokio::test]
async fn a_hot_prompt_uses_the_limits_of_both_accounts_and_no_call_waits() {
    let [one, two] = two().await;
    let world = world(
        &[(&one, "openai"), (&two, "openai")],
        r#"custom = ["requests=20/1h"]"#,
    )
    .await;
    for _ in 0..40 {
        let seen = say(&world, "the same").await;
        assert_eq!(seen.status, 200, "{seen:?}");
        assert!(!seen.headers.contains_key("x-llmq-wait"), "{seen:?}");
    }
    assert_eq!((one.calls(), two.calls()), (20, 20));
}

#[tokio::test]
async fn each_account_gets_its_own_key() {
    let [one, two] = two().await;
    let world = world(&[(&one, "openai"), (&two, "openai")], "rpm = 1").await;
    for _ in 0..2 {
        say(&world, "x").await;
    }
    for upstream in [&one, &two] {
        let key = format!("authorization: Bearer key-of-{}\r\n", upstream.name);
        assert!(
            upstream.heard(0).head.contains(&key),
            "{:?}",
            upstream.heard(0)
        );
    }
}

#[tokio::test]
async fn a_call_that_one_upstream_cannot_be_told_goes_to_the_other() {
    let [one, two] = two().await;
    let world = world(&[(&one, "anthropic"), (&two, "openai")], "").await;
    // Anthropic gives one answer a call.
    for prompt in 0..8 {
        let body = json!({
            "model": "m", "n": 2, "messages": [{"role": "user", "content": prompt.to_string()}],
        });
        let seen = world.send(Request::post(CHAT), &[], body.to_string()).await;
        seen.is_from(&two);
        assert_eq!(seen.attempts(), 1, "{seen:?}");
    }
    assert_eq!((one.calls(), two.calls()), (0, 8));
}

#[tokio::test]
async fn a_call_that_no_upstream_can_be_told_is_refused_by_name() {
    let [one, two] = two().await;
    let world = world(&[(&one, "anthropic"), (&two, "anthropic")], "").await;
    let body = json!({"model": "m", "n": 2, "messages": [{"role": "user", "content": "x"}]});
    let seen = world.send(Request::post(CHAT), &[], body.to_string()).await;
    seen.failed(400, "\"param\":\"n\"");
    assert_eq!((one.calls(), two.calls()), (0, 0));
}
