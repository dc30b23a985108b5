//! Which models there are, where nobody configured any.

use std::collections::BTreeSet;

use http::Request;
use serde_json::{Value, json};

use crate::answers::{error, with_body};
use crate::world::{Act, Mode, Upstream, World};

fn listing(names: &[&str]) -> Act {
    let data: Vec<Value> = names.iter().map(|name| json!({"id": name})).collect();
    let body = json!({"object": "list", "data": data}).to_string();
    Act::Say(with_body("200 OK", "application/json", "", &body))
}

async fn world(openai: &Upstream, claude: &Upstream) -> World {
    World::with(&format!(
        "[upstreams.openai]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
         [upstreams.claude]\nprovider = \"anthropic\"\nbase_url = \"{}\"\n",
        openai.url, claude.url
    ))
    .await
}

async fn listed(world: &World) -> BTreeSet<String> {
    let seen = world
        .send(Request::get("/v1/models"), &[], String::new())
        .await;
    assert_eq!(seen.status, 200, "{seen:?}");
    let body: Value = serde_json::from_str(&seen.body).unwrap();
    let models = body["data"].as_array().unwrap().iter();
    models
        .map(|model| model["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Clients that look first saw none: only names that somebody had called already were listed.
#[tokio::test]
async fn without_models_of_its_own_the_gateway_lists_those_of_its_accounts() {
    let openai = Upstream::start("openai", |_| listing(&["gpt-a", "gpt-b", "claude-copy"])).await;
    let claude = Upstream::start("claude", |_| listing(&["claude-c"])).await;
    let world = world(&openai, &claude).await;
    let names = ["claude-c", "gpt-a", "gpt-b"].map(str::to_owned);
    assert_eq!(
        listed(&world).await,
        BTreeSet::from(names),
        "each where it leads to"
    );
    for (name, status) in [("gpt-b", 200), ("none", 404)] {
        let request = Request::get(format!("/v1/models/{name}"));
        let seen = world.send(request, &[], String::new()).await;
        assert_eq!(seen.status, status, "{seen:?}");
    }
    assert_eq!((openai.calls(), claude.calls()), (1, 1), "asked once");
}

#[tokio::test]
async fn an_account_that_lists_nothing_hides_no_other_and_serves_all_the_same() {
    let openai = Upstream::start("openai", |call| match call {
        0 => Act::Say(error(
            "403 Forbidden",
            "",
            "forbidden",
            "No list for this key",
        )),
        _ => Act::Answer,
    })
    .await;
    let claude = Upstream::start("claude", |_| listing(&["claude-c"])).await;
    let world = world(&openai, &claude).await;
    assert_eq!(
        listed(&world).await,
        BTreeSet::from(["claude-c".to_owned()])
    );
    world.ask(Mode::Whole).await.is_from(&openai);
    let names = ["claude-c", "m"].map(str::to_owned);
    assert_eq!(listed(&world).await, BTreeSet::from(names));
}

/// The official SDKs write the slash of a name as `%2F`: what was listed was then not there.
#[tokio::test]
async fn a_model_whose_name_has_a_slash_is_found_however_that_is_written() {
    let one = Upstream::start("one", |_| Act::Answer).await;
    let world = World::with(&format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
         [models.\"meta-llama/Llama-3\"]\nupstreams = [{{ upstream = \"one\" }}]\n",
        one.url
    ))
    .await;
    for (name, status) in [
        ("meta-llama/Llama-3", 200),
        ("meta-llama%2FLlama-3", 200),
        ("meta-llama%2fLlama%2D3", 200),
        ("meta-llama%252FLlama-3", 404),
        ("meta-llama%FFLlama-3", 404),
    ] {
        let request = Request::get(format!("/v1/models/{name}"));
        let seen = world.send(request, &[], String::new()).await;
        assert_eq!(seen.status, status, "{name} {seen:?}");
        if status == 200 {
            let body: Value = serde_json::from_str(&seen.body).unwrap();
            assert_eq!(body["id"], "meta-llama/Llama-3", "{name}");
        }
    }
}

/// A thousand names that no provider knew took all places for ever, and every new model was 404.
#[tokio::test]
async fn names_that_no_provider_knows_keep_no_place_from_those_that_one_does() {
    let openai = Upstream::start("openai", |call| match call {
        0 | 1_101.. => Act::Answer,
        _ => Act::Say(error(
            "404 Not Found",
            "",
            "model_not_found",
            "The model does not exist",
        )),
    })
    .await;
    let world = World::with(&format!(
        "[upstreams.openai]\nprovider = \"openai\"\nbase_url = \"{}\"\n",
        openai.url
    ))
    .await;
    let ask = async |model: &str| {
        let messages = [json!({"role": "user", "content": "hello"})];
        let body = json!({"model": model, "messages": messages}).to_string();
        let request = Request::post("/v1/chat/completions");
        world.send(request, &[], body).await
    };
    assert_eq!(ask("right").await.status, 200);
    for number in 0..1_100 {
        ask(&format!("wrong-{number}"))
            .await
            .failed(404, "does not exist");
    }
    // Nor is any of them a label for ever.
    let figures = world
        .send(Request::get("/metrics"), &[], String::new())
        .await;
    for label in ["model=\"", "upstream=\""] {
        let values = figures.body.lines().filter_map(|line| {
            let (_, rest) = line.split_once(label)?;
            rest.split('"').next()
        });
        let values: BTreeSet<&str> = values.collect();
        assert!(values.len() <= 1_001, "{label} {}", values.len());
        assert!(values.iter().any(|value| value.ends_with("right")));
    }
    for model in ["new", "right"] {
        assert_eq!(ask(model).await.status, 200, "{model}");
        let calls = openai.calls();
        assert!(openai.heard(calls - 1).body.contains(model), "{model}");
    }
}
