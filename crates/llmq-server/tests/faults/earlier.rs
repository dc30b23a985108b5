//! Calls that name what an upstream made earlier go to that one, or fail by name.

use http::Request;
use serde_json::{Value, json};

use crate::answers::{END, STREAM, chunk, with_body};
use crate::files::uploaded;
use crate::world::{Act, PATIENCE, Seen, Upstream, World};

const RESPONSES: &str = "/v1/responses";

/// An upstream whose answers are called by its name.
pub(crate) async fn upstream(name: &'static str) -> Upstream {
    Upstream::start(name, move |_| Act::Say(made_by(name, false))).await
}

fn made_by(name: &str, stream: bool) -> String {
    let response = json!({
        "id": format!("resp_{name}"), "object": "response", "status": "completed",
        "model": name, "output": [], "usage": {"input_tokens": 1, "output_tokens": 1},
        "conversation": {"id": format!("conv_{name}")},
    });
    if !stream {
        return with_body("200 OK", "application/json", "", &response.to_string());
    }
    let event = |kind: &str| {
        let data = json!({"type": kind, "response": response});
        chunk(&format!("event: {kind}\ndata: {data}\n\n"))
    };
    let begun = event("response.created");
    format!("{STREAM}{begun}{}{END}", event("response.completed"))
}

/// The model `m` at these upstreams.
pub(crate) async fn world(upstreams: &[&Upstream]) -> World {
    let mut text = String::new();
    let mut routes = Vec::new();
    for Upstream { name, url, .. } in upstreams {
        text += &format!("[upstreams.{name}]\nprovider = \"openai\"\nbase_url = \"{url}\"\n");
        routes.push(format!(r#"{{ upstream = "{name}", model = "{name}" }}"#));
    }
    let routes = routes.join(", ");
    World::with(&format!("{text}[models.m]\nupstreams = [{routes}]\n")).await
}

pub(crate) async fn ask(world: &World, mut more: Value) -> Seen {
    more["model"] = "m".into();
    let request = Request::post(RESPONSES);
    world.send(request, &[], more.to_string()).await
}

#[tokio::test]
async fn a_response_is_continued_and_fetched_where_it_was_made() {
    let (one, two) = (upstream("one").await, upstream("two").await);
    let world = world(&[&one, &two]).await;
    // Prompts spread over both accounts.
    let mut prompt = 0;
    while one.calls() == 0 || two.calls() == 0 {
        prompt += 1;
        ask(&world, json!({"input": prompt.to_string()})).await;
    }
    for made in [&one, &two] {
        let before = [one.calls(), two.calls(), made.calls()];
        for turn in 0..6 {
            let name = format!("resp_{}", made.name);
            let more = json!({"input": turn.to_string(), "previous_response_id": name});
            assert_eq!(ask(&world, more).await.status, 200);
            let conversation = json!({"id": format!("conv_{}", made.name)});
            let more = json!({"input": turn.to_string(), "conversation": conversation});
            assert_eq!(ask(&world, more).await.status, 200);
        }
        assert_eq!(made.calls() - before[2], 12);
        assert_eq!(one.calls() + two.calls() - before[0] - before[1], 12);
        for (method, below) in [
            ("GET", "?include[]=x"),
            ("GET", "/input_items"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ] {
            let path = format!("{RESPONSES}/resp_{}{below}", made.name);
            let request = Request::builder().method(method).uri(&path);
            let seen = world.send(request, &[], String::new()).await;
            assert_eq!(seen.status, 200, "{path}: {seen:?}");
            let head = made.heard(made.calls() - 1).head;
            assert!(
                head.starts_with(&format!("{method} {path} HTTP/1.1\r\n")),
                "{head}"
            );
        }
    }
}

#[tokio::test]
async fn a_streamed_response_is_remembered_too() {
    let act = |name| move |_| Act::Say(made_by(name, true));
    let one = Upstream::start("one", act("one")).await;
    let two = Upstream::start("two", act("two")).await;
    let world = world(&[&one, &two]).await;
    let first = ask(&world, json!({"input": "x", "stream": true})).await;
    assert!(first.clean && first.status == 200, "{first:?}");
    let made = if one.calls() == 1 { &one } else { &two };
    for turn in 0..6 {
        let name = format!("resp_{}", made.name);
        let more = json!({"input": turn, "stream": true, "previous_response_id": name});
        assert_eq!(ask(&world, more).await.status, 200);
    }
    assert_eq!(made.calls(), 7);
}

#[tokio::test]
async fn what_nobody_here_is_known_to_have_made_fails_by_name() {
    let (one, two) = (upstream("one").await, upstream("two").await);
    let world = world(&[&one, &two]).await;
    let more = json!({"input": "x", "previous_response_id": "resp_of_yesterday"});
    let seen = ask(&world, more).await;
    seen.failed(400, "previous_response_not_found");
    assert!(
        seen.body.contains(r#""param":"previous_response_id""#),
        "{seen:?}"
    );
    for path in ["/resp_of_yesterday", "/a%2Fb", "/x/y/z", "/"] {
        let request = Request::get(format!("{RESPONSES}{path}"));
        let seen = world.send(request, &[], String::new()).await;
        assert_eq!(seen.status, 404, "{path}: {seen:?}");
    }
    let body = json!({"model": "m", "input": "x", "previous_response_id": "resp_of_yesterday"});
    let wanted = json!({"endpoint": RESPONSES, "body": body}).to_string();
    let seen = world
        .send(Request::post("/api/requests"), &[], wanted)
        .await;
    seen.failed(400, "previous_response_not_found");
    assert_eq!((one.calls(), two.calls()), (0, 0));
}

#[tokio::test]
async fn where_there_is_one_account_everything_is_its() {
    let one = upstream("one").await;
    let world = world(&[&one]).await;
    let more = json!({"input": "x", "previous_response_id": "resp_of_yesterday"});
    assert_eq!(ask(&world, more).await.status, 200);
    // Only OpenAI itself is asked for what nobody here is known to have made.
    let request = Request::get(format!("{RESPONSES}/resp_of_yesterday"));
    let seen = world.send(request, &[], String::new()).await;
    assert_eq!(seen.status, 404, "{seen:?}");
    assert_eq!(one.calls(), 1);
}

/// Once a call with a key went to either account, and the wrong one's 400 was kept for a day.
#[tokio::test]
async fn what_is_accepted_goes_to_the_account_that_has_what_it_names() {
    let (one, two) = (upstream("one").await, upstream("two").await);
    let world = world(&[&one, &two]).await;
    let mut prompt = 0;
    while one.calls() == 0 || two.calls() == 0 {
        prompt += 1;
        ask(&world, json!({"input": prompt.to_string()})).await;
    }
    for made in [&one, &two] {
        let before = [one.calls() + two.calls(), made.calls()];
        for turn in 0..6 {
            let name = format!("resp_{}", made.name);
            let body =
                json!({"model": "m", "input": turn.to_string(), "previous_response_id": name});
            let key = format!("{}{turn}", made.name);
            let request = Request::post(RESPONSES);
            let headers = [("idempotency-key", key.as_str())];
            let seen = world.send(request, &headers, body.to_string()).await;
            assert_eq!(seen.status, 200, "{seen:?}");
            let wanted = json!({"endpoint": RESPONSES, "body": body, "wait_for_completion": true});
            let request = Request::post("/api/requests");
            let seen = world.send(request, &[], wanted.to_string()).await;
            assert_eq!(seen.status, 200, "{seen:?}");
        }
        assert_eq!(made.calls() - before[1], 12);
        assert_eq!(one.calls() + two.calls() - before[0], 12);
    }
}

/// A response that was made in the background: our name of it.
async fn made_in_the_background(world: &World) -> String {
    let first = ask(world, json!({"input": "x", "background": true})).await;
    let first: Value = serde_json::from_str(&first.body).unwrap();
    let ours = first["id"].as_str().unwrap();
    let wait = format!(
        "/api/requests/{}?wait=20",
        ours.strip_prefix("resp_").unwrap()
    );
    let state = world.send(Request::get(wait), &[], String::new()).await;
    assert!(state.body.contains("\"completed\""), "{state:?}");
    ours.to_owned()
}

#[tokio::test]
async fn a_line_of_a_batch_goes_to_the_account_that_has_what_it_names() {
    let (one, two) = (upstream("one").await, upstream("two").await);
    let world = world(&[&one, &two]).await;
    let ours = made_in_the_background(&world).await;
    let made = if one.calls() == 1 { &one } else { &two };
    let theirs = format!("resp_{}", made.name);
    let line = |(turn, name): (usize, &str)| {
        let body = json!({"model": "m", "input": turn.to_string(), "previous_response_id": name});
        let line = json!({"custom_id": turn.to_string(), "method": "POST", "url": RESPONSES,
            "body": body});
        format!("{line}\n")
    };
    let names = [ours.as_str(), theirs.as_str()];
    let lines: String = names
        .into_iter()
        .cycle()
        .take(6)
        .enumerate()
        .map(line)
        .collect();
    let file = uploaded(&world, "batch", &lines).await;
    let batch = json!({"input_file_id": file, "endpoint": RESPONSES, "completion_window": "1h"});
    let request = Request::post("/v1/batches");
    let seen = world.send(request, &[], batch.to_string()).await;
    let batch: Value = serde_json::from_str(&seen.body).unwrap();
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let ended = async {
        loop {
            let seen = world.send(Request::get(&path), &[], String::new()).await;
            let batch: Value = serde_json::from_str(&seen.body).unwrap();
            if batch["completed_at"].is_i64() || batch["failed_at"].is_i64() {
                return batch;
            }
            tokio::task::yield_now().await;
        }
    };
    let batch = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(batch["request_counts"]["completed"], 6, "{batch}");
    assert_eq!(made.calls(), 7);
    for turn in 1..=6 {
        let heard: Value = serde_json::from_str(&made.heard(turn).body).unwrap();
        assert_eq!(heard["previous_response_id"], theirs);
    }
}

/// What the answer of an accepted call is called is known too.
#[tokio::test]
async fn a_response_in_the_background_is_continued_under_either_name() {
    let (one, two) = (upstream("one").await, upstream("two").await);
    let world = world(&[&one, &two]).await;
    let ours = made_in_the_background(&world).await;
    let made = if one.calls() == 1 { &one } else { &two };
    let theirs = format!("resp_{}", made.name);
    for (turn, name) in [ours.as_str(), theirs.as_str()]
        .into_iter()
        .cycle()
        .take(6)
        .enumerate()
    {
        let more = json!({"input": turn.to_string(), "previous_response_id": name});
        assert_eq!(ask(&world, more).await.status, 200);
        let heard: Value = serde_json::from_str(&made.heard(turn + 1).body).unwrap();
        assert_eq!(heard["previous_response_id"], theirs);
    }
    assert_eq!(one.calls() + two.calls(), 7);
}

#[tokio::test]
async fn headers_that_choose_an_account_pass_for_accepted_calls_too() {
    let one = upstream("one").await;
    let text = format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
         pass_headers = [\"openai-project\"]\n\
         [models.m]\nupstreams = [{{ upstream = \"one\" }}]\n",
        one.url
    );
    let world = World::with(&text).await;
    let body = json!({"model": "m", "input": "x"}).to_string();
    for headers in [
        vec![("openai-project", "p"), ("openai-organization", "o")],
        vec![
            ("openai-project", "p"),
            ("openai-organization", "o"),
            ("idempotency-key", "k"),
        ],
    ] {
        let seen = world
            .send(Request::post(RESPONSES), &headers, body.clone())
            .await;
        assert_eq!(seen.status, 200, "{seen:?}");
        let head = one.heard(one.calls() - 1).head.to_ascii_lowercase();
        assert!(head.contains("openai-project: p"), "{head}");
        assert!(!head.contains("openai-organization"), "{head}");
    }
}
