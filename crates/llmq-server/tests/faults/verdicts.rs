//! Answers that another attempt would not change.

use http::Request;
use serde_json::Value;

use crate::answers::error;
use crate::world::{Act, BOTH, Mode, Upstream, World};

const TOO_LONG: &str = "This model's maximum context length is 8192 tokens";

fn too_long() -> Act {
    Act::Say(error(
        "400 Bad Request",
        "",
        "context_length_exceeded",
        TOO_LONG,
    ))
}

#[tokio::test]
async fn a_context_that_is_too_long_is_not_sent_again() {
    for mode in BOTH {
        let one = Upstream::start("one", |_| too_long()).await;
        let world = World::new(&[&one], "", "").await;
        world.ask(mode).await.failed(400, TOO_LONG);
        assert_eq!(one.calls(), 1, "{mode:?}");
    }
}

/// Whoever made the call: once a keyed call and an accepted one failed for good.
#[tokio::test]
async fn a_larger_context_takes_over_what_is_too_long() {
    for mode in BOTH {
        for headers in [&[][..], &[("idempotency-key", "k")]] {
            let one = Upstream::start("one", |_| too_long()).await;
            let two = Upstream::start("two", |_| Act::Answer).await;
            let world = World::with_other(&one, &two, "context_fallback").await;
            let seen = world.ask_with(mode, headers).await;
            seen.is_from(&two);
            assert_eq!(seen.attempts(), 2, "{mode:?} {headers:?}");
            assert_eq!((one.calls(), two.calls()), (1, 1), "{mode:?} {headers:?}");
        }
    }
}

/// Where the provider knows the models by their public names, it was sent the small model's once
/// more.
#[tokio::test]
async fn a_larger_context_is_called_by_its_own_name() {
    for mode in BOTH {
        for headers in [&[][..], &[("idempotency-key", "k")]] {
            let one = Upstream::start("one", |call| match call {
                0 => too_long(),
                _ => Act::Answer,
            })
            .await;
            let world = World::with(&format!(
                "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
                 [models.m]\nupstreams = [{{ upstream = \"one\" }}]\ncontext_fallback = [\"n\"]\n\
                 [models.n]\nupstreams = [{{ upstream = \"one\" }}]\n",
                one.url
            ))
            .await;
            let seen = world.ask_with(mode, headers).await;
            assert_eq!(seen.status, 200, "{seen:?}");
            for (number, model) in ["m", "n"].into_iter().enumerate() {
                let body: Value = serde_json::from_str(&one.heard(number).body).unwrap();
                assert_eq!(body["model"], model, "{mode:?} {headers:?} {number}");
            }
        }
    }
}

#[tokio::test]
async fn a_larger_context_takes_over_what_was_accepted_and_is_too_long() {
    let one = Upstream::start("one", |_| too_long()).await;
    let two = Upstream::start("two", |_| Act::Answer).await;
    let world = World::with_other(&one, &two, "context_fallback").await;
    let prefer = [("prefer", "respond-async")];
    let seen = world.ask_with(Mode::Whole, &prefer).await;
    assert_eq!(seen.status, 202, "{seen:?}");
    let at = seen.headers["location"].to_str().unwrap().to_owned();
    let ended = Request::get(format!("{at}?wait=20"));
    let ended = world.send(ended, &[], String::new()).await;
    let ended: Value = serde_json::from_str(&ended.body).unwrap();
    assert_eq!(ended["status"], "completed", "{ended}");
    let result = Request::get(format!("{at}/result"));
    world.send(result, &[], String::new()).await.is_from(&two);
    assert_eq!((one.calls(), two.calls()), (1, 1));
}

#[tokio::test]
async fn a_content_filter_has_the_last_word() {
    for mode in BOTH {
        let one = Upstream::start("one", |_| {
            let message = "The response was filtered due to the prompt";
            Act::Say(error("400 Bad Request", "", "content_filter", message))
        })
        .await;
        let two = Upstream::start("two", |_| Act::Answer).await;
        let world = World::with_fallback(&one, &two).await;
        world.ask(mode).await.failed(400, "content_filter");
        assert_eq!((one.calls(), two.calls()), (1, 0), "{mode:?}");
    }
}
