//! Several accounts of a model, of which one is closed, slow or overloaded.

use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use crate::answers::{STREAM, error, whole, word};
use crate::world::{Act, BOTH, Mode, Upstream, World};

fn fails(status: &'static str, headers: &'static str, code: &'static str) -> Act {
    Act::Say(error(status, headers, code, "It does not work"))
}

#[tokio::test]
async fn an_account_that_is_cooling_down_gets_nothing_and_the_other_all() {
    for mode in BOTH {
        let one = Upstream::start("one", |call| match call {
            0 => fails(
                "429 Too Many Requests",
                "retry-after: 1\r\n",
                "rate_limit_exceeded",
            ),
            _ => Act::Answer,
        })
        .await;
        let two = Upstream::start("two", |_| Act::Answer).await;
        let world = World::new(&[&one, &two], "", "").await;
        // The first is asked first, and as soon as it may be again.
        while one.calls() < 2 {
            let seen = world.ask(mode).await;
            assert_eq!(seen.status, 200, "{mode:?}: {seen:?}");
        }
        assert!(one.gaps()[0] >= Duration::from_secs(1), "{:?}", one.gaps());
        assert!(two.calls() > 1, "{mode:?}");
    }
}

#[tokio::test]
async fn an_account_whose_key_is_refused_is_closed_alone() {
    for mode in BOTH {
        let one =
            Upstream::start("one", |_| fails("401 Unauthorized", "", "invalid_api_key")).await;
        let two = Upstream::start("two", |_| Act::Answer).await;
        let text = [&one, &two].map(|Upstream { name, url, .. }| {
            format!(
                "[upstreams.{name}]\nprovider = \"openai\"\nbase_url = \"{url}\"\n\
                 api_key = \"key-of-{name}\"\n"
            )
        });
        let world = World::with(&format!(
            "{}[models.m]\nupstreams = [{{ upstream = \"one\", model = \"one\", weight = 1e9 }}, \
             {{ upstream = \"two\", model = \"two\", weight = 1e-9 }}]\n",
            text.concat()
        ))
        .await;
        for _ in 0..5 {
            world.ask(mode).await.is_from(&two);
        }
        assert_eq!((one.calls(), two.calls()), (1, 5), "{mode:?}");
    }
}

#[tokio::test]
async fn an_account_without_credit_is_closed_alone() {
    for mode in BOTH {
        let one = Upstream::start("one", |_| {
            fails("429 Too Many Requests", "", "insufficient_quota")
        })
        .await;
        let two = Upstream::start("two", |_| Act::Answer).await;
        let world = World::new(&[&one, &two], "", "").await;
        for _ in 0..5 {
            world.ask(mode).await.is_from(&two);
        }
        assert_eq!((one.calls(), two.calls()), (1, 5), "{mode:?}");
    }
}

/// Down for a while under steady calls: the fallback serves all of them, the primary sees one
/// probe at a time, and has the calls again soon after it is back.
#[tokio::test]
async fn an_outage_under_steady_calls_costs_probes_alone() {
    const DOWN: Duration = Duration::from_millis(2_500);
    for mode in BOTH {
        let from = Instant::now();
        let one = Upstream::start("one", move |_| {
            if from.elapsed() < DOWN {
                fails("503 Service Unavailable", "", "server_error")
            } else {
                Act::Answer
            }
        })
        .await;
        let two = Upstream::start("two", |_| Act::Answer).await;
        let world = World::with_fallback(&one, &two).await;
        let mut beat = tokio::time::interval(Duration::from_millis(20));
        let mut before = 0;
        loop {
            beat.tick().await;
            let (a, b) = tokio::join!(world.ask(mode), world.ask(mode));
            for seen in [&a, &b] {
                assert_eq!(seen.status, 200, "{mode:?}: {seen:?}");
            }
            if a.body.contains("from one") && b.body.contains("from one") {
                break;
            }
            before = one.calls();
            assert!(
                from.elapsed() < DOWN + Duration::from_secs(30),
                "it is back in time"
            );
        }
        // Some calls open the breaker; then it is a probe a second and less.
        assert!(before <= 20, "{mode:?}: {before} calls while it was down");
        let probes = one
            .gaps()
            .into_iter()
            .filter(|gap| *gap > Duration::from_millis(900));
        assert!(probes.count() >= 2, "{mode:?}: {:?}", one.gaps());
        assert!(two.calls() > before, "{mode:?}");
    }
}

#[tokio::test]
async fn an_overloaded_upstream_gets_fewer_calls_at_once() {
    for mode in BOTH {
        let one = Upstream::start("one", |call| match call {
            0..3 => fails("503 Service Unavailable", "", "server_is_overloaded"),
            _ => Act::Answer,
        })
        .await;
        let world = World::new(&[&one], "", "").await;
        world.ask(mode).await.is_from(&one);
        let queues = Request::get("/api/queues");
        let queues = world.send(queues, &[], String::new()).await;
        let queues: serde_json::Value = serde_json::from_str(&queues.body).unwrap();
        let limit = &queues["queues"][0]["upstreams"][0]["limits"][0]["limit"];
        let places = limit.as_str().unwrap().strip_prefix("concurrency=");
        let places: u32 = places.unwrap().parse().unwrap();
        assert!(places < 16, "{mode:?}: {places} of 16 places are left");
    }
}

#[tokio::test]
async fn each_upstream_has_its_own_patience() {
    for mode in BOTH {
        let slow = || Act::Hang(String::new());
        let one = Upstream::start("one", move |_| slow()).await;
        let two = Upstream::start("two", |_| Act::Answer).await;
        let world = World::with(&format!(
            "[upstreams.one]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
             timeouts = {{ first_byte = \"150ms\" }}\n\
             [upstreams.two]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
             [models.m]\nupstreams = [{{ upstream = \"one\", model = \"one\", weight = 1e9 }}, \
             {{ upstream = \"two\", model = \"two\", weight = 1e-9 }}]\n",
            one.url, two.url
        ))
        .await;
        let asked = Instant::now();
        world.ask(mode).await.is_from(&two);
        assert!(asked.elapsed() >= Duration::from_millis(150), "{mode:?}");
        assert_eq!((one.calls(), two.calls()), (1, 1), "{mode:?}");
    }
}

#[tokio::test]
async fn the_whole_of_a_call_has_a_time_of_its_own() {
    let text = whole("one");
    let begun = text[..text.len() - 20].to_owned();
    let drip = Act::Drip(begun, " ".to_owned());
    let one = Upstream::start("one", move |call| match call {
        0 => drip.clone(),
        _ => Act::Answer,
    })
    .await;
    let world = World::new(&[&one], r#"total = "400ms""#, "").await;
    world.ask(Mode::Whole).await.is_from(&one);
    assert_eq!(one.calls(), 2);

    let begun = format!("{STREAM}{}", word("one", "begun"));
    let drip = Act::Drip(begun, word("one", "more"));
    let one = Upstream::start("one", move |_| drip.clone()).await;
    let world = World::new(&[&one], r#"total = "400ms""#, "").await;
    let seen = world.ask(Mode::Stream).await;
    seen.broke_off();
    assert!(seen.body.contains("more"), "{seen:?}");
}
