//! Files that calls name instead of sending them.

use http::Request;
use serde_json::{Value, json};

use crate::earlier::{ask, upstream, world};
use crate::world::{Upstream, World};

fn by_id(id: &str) -> Value {
    json!([{"role": "user", "content": [{"type": "input_file", "file_id": id}]}])
}

async fn kept(world: &World) -> String {
    uploaded(world, "user_data", "%PDF").await
}

/// Uploads a file here; answers its id.
pub(crate) async fn uploaded(world: &World, purpose: &str, content: &str) -> String {
    let form = format!(
        "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n\
         --b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n\
         {content}\r\n--b--\r\n"
    );
    let kind = [("content-type", "multipart/form-data; boundary=b")];
    let seen = world.send(Request::post("/v1/files"), &kind, form).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    let file: Value = serde_json::from_str(&seen.body).unwrap();
    file["id"].as_str().unwrap().to_owned()
}

/// Once the call went to a provider, which had never heard of the file.
#[tokio::test]
async fn a_file_that_is_kept_here_is_refused_with_what_helps() {
    let one = upstream("one").await;
    let world = world(&[&one]).await;
    let id = kept(&world).await;
    let chat = json!({"model": "m", "messages": [{"role": "user", "content":
        [{"type": "file", "file": {"file_id": id}}]}]});
    let response = json!({"model": "m", "input": by_id(&id)});
    let image = json!({"model": "m", "input": [{"role": "user", "content":
        [{"type": "input_image", "file_id": id}]}]});
    let background = json!({"model": "m", "input": by_id(&id), "background": true});
    for (path, body) in [
        ("/v1/chat/completions", &chat),
        ("/v1/responses", &response),
        ("/v1/responses", &image),
        ("/v1/responses", &background),
    ] {
        let seen = world.send(Request::post(path), &[], body.to_string()).await;
        seen.failed(400, r#""code":"file_not_found""#);
        assert!(seen.body.contains(r#""param":"file_id""#), "{seen:?}");
        assert!(
            seen.body.contains("file_data") && seen.body.contains(&id),
            "{seen:?}"
        );
    }
    let accepted = json!({"endpoint": "/v1/responses", "body": response}).to_string();
    let seen = world
        .send(Request::post("/api/requests"), &[], accepted)
        .await;
    seen.failed(400, "file_not_found");
    assert_eq!(one.calls(), 0);
}

/// Once it went to either account, and half of the calls met one that had never heard of it.
#[tokio::test]
async fn a_file_of_one_of_several_accounts_is_refused_by_name_and_of_one_account_goes_there() {
    let (one, two) = (upstream("one").await, upstream("two").await);
    let several = world(&[&one, &two]).await;
    let more = || json!({"input": by_id("file-of-an-account")});
    let seen = ask(&several, more()).await;
    seen.failed(400, r#""code":"file_not_found""#);
    assert!(seen.body.contains("file-of-an-account"), "{seen:?}");
    let single = world(&[&one]).await;
    assert_eq!(ask(&single, more()).await.status, 200);
    // What is sent along is nobody's.
    let sent = json!([{"role": "user", "content":
        [{"type": "input_file", "filename": "a", "file_data": "data:,x"}]}]);
    assert_eq!(ask(&several, json!({"input": sent})).await.status, 200);
    assert_eq!(one.calls() + two.calls(), 2);
}

/// The account is known by what else the call names.
#[tokio::test]
async fn a_file_goes_where_the_response_was_made_that_the_call_goes_on_from() {
    let (one, two) = (upstream("one").await, upstream("two").await);
    let world = world(&[&one, &two]).await;
    ask(&world, json!({"input": "x"})).await;
    let made = if one.calls() == 1 { &one } else { &two };
    for _ in 0..4 {
        let name = format!("resp_{}", made.name);
        let more = json!({"input": by_id("file-1"), "previous_response_id": name});
        assert_eq!(ask(&world, more).await.status, 200);
    }
    assert_eq!(made.calls(), 5);
}

/// A dialect that has no word for the file is passed over, so one account of the other is enough.
#[tokio::test]
async fn only_accounts_of_the_calls_own_dialect_can_have_the_file() {
    let one = upstream("one").await;
    let other = Upstream::start("other", |_| unreachable!("it cannot be told")).await;
    let text = format!(
        "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
         [upstreams.other]\nprovider = \"anthropic\"\nbase_url = \"{}\"\n\
         [models.m]\nupstreams = [{{ upstream = \"other\" }}, {{ upstream = \"one\" }}]\n",
        one.url, other.url
    );
    let world = World::with(&text).await;
    for _ in 0..4 {
        assert_eq!(
            ask(&world, json!({"input": by_id("file-1")})).await.status,
            200
        );
    }
    assert_eq!((one.calls(), other.calls()), (4, 0));
}
