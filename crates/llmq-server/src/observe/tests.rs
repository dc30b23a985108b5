//! The routes, asked as a client would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures_util::StreamExt;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use llmq_core::{Clock, FailureClass, Host, LimitSpec, Priority};
use llmq_dispatch::{
    Call, Dispatcher, Ended, LimitSetup, Notice, Outcome, QueueId, QueueSetup, Rules, Scope,
    TenantId, UpstreamId, UpstreamSetup,
};
use llmq_engine::{Hub, SystemClock, Tasks, Ticket};
use llmq_limit::charge_rule;
use llmq_store::{MemoryStore, Settings};
use serde_json::{Value, json};
use tower_service::Service;
use uuid::Uuid;

use super::waiting::WaitingGuard;
use super::{Observed, Parts, WaitingCall, router};

/// A gateway with one upstream, `openai/gpt`, of one request in ten seconds, and one queue.
struct World {
    observed: Arc<Observed>,
    router: Router,
    queue: QueueId,
    upstream: UpstreamId,
    tenant: TenantId,
    _tasks: Tasks,
}

fn parts(hub: Arc<Hub>, providers: BTreeMap<String, &'static str>) -> Parts {
    Parts {
        hub,
        providers,
        any_model: false,
    }
}

impl World {
    fn new() -> Self {
        let clock = SystemClock::new();
        let mut dispatcher = Dispatcher::new(Rules::default(), 1);
        let spec: LimitSpec = "requests=1/10s".parse().unwrap();
        let setup = LimitSetup {
            name: "requests=1/10s openai/gpt".to_owned(),
            spec,
            rule: charge_rule(Host::Unknown, spec.kind),
            scope: Scope::Upstream,
        };
        let limit = dispatcher.add_limit(setup, clock.now());
        let setup = UpstreamSetup {
            name: "openai/gpt".to_owned(),
            limits: vec![limit],
            ..UpstreamSetup::default()
        };
        let upstream = dispatcher.add_upstream(setup, clock.now());
        let queue = dispatcher.add_queue(QueueSetup::to("org/gpt", upstream));
        let tenant = dispatcher.add_tenant(1.0, Vec::new());
        let tasks = Tasks::new();
        let hub = llmq_engine::run(dispatcher, clock.clone(), &tasks);
        let providers = [("openai".to_owned(), "openai")].into();
        let store = Arc::new(MemoryStore::new(Settings::default()));
        let observed = Observed::new(parts(hub, providers), clock, store, &tasks);
        let observed = Arc::new(observed);
        Self {
            router: router(&observed),
            observed,
            queue,
            upstream,
            tenant,
            _tasks: tasks,
        }
    }

    /// A call under this number waits from now on.
    fn enter(&self, id: Uuid, ticket: &Ticket) -> WaitingGuard {
        let call = WaitingCall {
            tenant: "default".into(),
            ticket: ticket.id(),
            queue: self.queue,
            priority: Priority::NORMAL,
            since: self.observed.now().mono,
        };
        self.observed.waiting.enter(id, call)
    }

    async fn ask(&mut self, request: Request<Body>) -> Response {
        self.router.call(request).await.unwrap()
    }

    async fn send(&mut self, method: &str, path: &str) -> (StatusCode, Value) {
        let request = Request::builder().method(method).uri(path);
        let response = self.ask(request.body(Body::empty()).unwrap()).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8(body.to_vec()).unwrap()));
        (status, value)
    }

    async fn get(&mut self, path: &str) -> (StatusCode, Value) {
        self.send("GET", path).await
    }

    async fn text(&mut self, path: &str) -> String {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200);
        body.as_str().unwrap().to_owned()
    }

    fn call(&self) -> Call {
        Call::new(self.queue, self.tenant)
    }

    /// Takes the one place that the limit has.
    async fn use_the_limit(&self) {
        let ticket = self.observed.parts().hub.submit(self.call()).unwrap();
        let grant = ticket.granted().await.unwrap();
        grant.sent();
        grant.complete(Ended::default());
    }

    /// A call is sent, and refused.
    async fn refuse_one(&self, class: FailureClass, told: Option<Duration>) {
        let hub = Arc::clone(&self.observed.parts().hub);
        let grant = hub.submit(self.call()).unwrap().granted().await.unwrap();
        grant.sent();
        let outcome = Outcome::Failed {
            class,
            told,
            text: None,
        };
        let _ = grant.fail(Ended {
            outcome,
            ..Ended::default()
        });
    }

    async fn listen(&mut self, last: Option<&str>) -> Frames {
        let mut request = Request::builder().uri("/api/events");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = self.ask(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut frames = Frames(response.into_body());
        assert!(frames.next().await.unwrap().starts_with("retry: "));
        frames
    }
}

struct Frames(Body);

impl Frames {
    async fn next(&mut self) -> Option<String> {
        let frame = self.0.frame().await?.unwrap();
        Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    }
}

/// The value of `id:` in a frame.
fn id_of(frame: &str) -> String {
    let line = frame.lines().find_map(|line| line.strip_prefix("id: "));
    line.unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_is_not_ready_but_lives() {
    let mut world = World::new();
    assert_eq!(world.get("/health/ready").await.0, 200);
    world.observed.drain();
    let (status, body) = world.get("/health/ready").await;
    assert_eq!(
        (status.as_u16(), &body["status"]),
        (503, &json!("draining"))
    );
    assert_eq!(world.get("/health/live").await.0, 200);
    assert_eq!(world.get("/health").await.0, 200);
}

/// One 429 took a gateway with one upstream out of its load balancer, just when it should queue.
#[tokio::test(start_paused = true)]
async fn a_server_that_only_waits_is_ready_and_one_whose_day_is_over_is_not() {
    for (class, ready) in [
        (FailureClass::QuotaWindow, 200),
        (FailureClass::QuotaDay, 503),
    ] {
        let mut world = World::new();
        world.refuse_one(class, Some(Duration::from_secs(10))).await;
        assert_eq!(world.get("/health/ready").await.0, ready, "{class}");
        let (_, queue) = world.get("/api/queues/org%2Fgpt").await;
        assert_eq!(queue["upstreams"][0]["usable"], false, "at this moment");
    }
}

/// Without a configuration there is no upstream before the first call, and behind a readiness
/// probe that first call never came.
#[tokio::test(start_paused = true)]
async fn a_server_that_nobody_has_asked_yet_is_ready() {
    let mut world = World::new();
    let tasks = Tasks::new();
    let dispatcher = Dispatcher::new(Rules::default(), 1);
    let hub = llmq_engine::run(dispatcher, SystemClock::new(), &tasks);
    let providers = BTreeMap::new();
    world.observed.replace(parts(hub, providers));
    let (status, body) = world.get("/health/ready").await;
    assert_eq!((status.as_u16(), &body["status"]), (200, &json!("ok")));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_a_usable_upstream_is_not_ready() {
    let mut world = World::new();
    world.refuse_one(FailureClass::NoAccess, None).await;
    let (status, body) = world.get("/health/ready").await;
    assert_eq!(
        (status.as_u16(), &body["status"]),
        (503, &json!("unavailable"))
    );
    let (_, queue) = world.get("/api/queues/org%2Fgpt").await;
    assert_eq!(queue["upstreams"][0]["closed_by"], "no-access");
    assert_eq!(queue["upstreams"][0]["usable"], false);
    assert!(world.text("/").await.contains("openai/gpt: no-access"));
    assert!(
        world
            .text("/metrics")
            .await
            .contains("llmq_upstream_usable{upstream=\"openai/gpt\"} 0\n")
    );
}

/// An address that was changed while calls were on their way put every sample of its upstream on the
/// page twice, with other values.
#[tokio::test(start_paused = true)]
async fn an_upstream_and_the_one_in_its_place_are_one_in_the_figures() {
    let mut world = World::new();
    let hub = Arc::clone(&world.observed.parts().hub);
    let grant = hub.submit(world.call()).unwrap().granted().await.unwrap();
    grant.sent();
    let now = world.observed.now();
    hub.with(|dispatcher| {
        let setup = UpstreamSetup {
            name: "openai/gpt".to_owned(),
            ..UpstreamSetup::default()
        };
        let next = dispatcher.add_upstream(setup, now);
        dispatcher.change_queue(world.queue, QueueSetup::to("org/gpt", next));
        dispatcher.retire_upstream(world.upstream);
    });
    let page = world.text("/metrics").await;
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let samples: Vec<_> = samples.filter_map(|line| line.rsplit_once(' ')).collect();
    let named: BTreeSet<_> = samples.iter().map(|(name, _)| *name).collect();
    assert_eq!(samples.len(), named.len(), "{page}");
    let line = "llmq_upstream_in_flight{upstream=\"openai/gpt\"} 1\n";
    assert!(page.contains(line), "{page}");
    let (_, stats) = world.get("/api/stats").await;
    assert_eq!(stats["upstreams"], 1);
    grant.complete(Ended::default());
}

#[tokio::test(start_paused = true)]
async fn a_queue_tells_what_waits_and_for_what() {
    let mut world = World::new();
    world.use_the_limit().await;
    let hub = Arc::clone(&world.observed.parts().hub);
    let urgent = Call {
        priority: Priority::HIGH,
        bytes: 10,
        ..world.call()
    };
    let _first = hub.submit(urgent).unwrap();
    let _second = hub.submit(world.call()).unwrap();
    let (status, list) = world.get("/api/queues").await;
    assert_eq!(status, 200);
    assert_eq!(list["next_cursor"], Value::Null);
    let queue = &list["queues"][0];
    assert_eq!(queue["name"], "org/gpt");
    assert_eq!(queue["state"], "running");
    assert_eq!(
        (&queue["waiting"], &queue["running"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(
        queue["depths"],
        json!([{"priority": 50, "waiting": 1}, {"priority": 70, "waiting": 1}])
    );
    assert_eq!(queue["waiting_for"], "requests=1/10s openai/gpt");
    assert_eq!(queue["upstreams"][0]["provider"], "openai");
    assert_eq!(queue["upstreams"][0]["limits"][0]["in_use"], 1.0);
    let page = world.text("/metrics").await;
    for line in [
        "llmq_queue_depth{model=\"org/gpt\",priority=\"high\"} 1\n",
        "llmq_queue_depth{model=\"org/gpt\",priority=\"critical\"} 0\n",
        "llmq_limit_used_ratio{limit=\"requests/10s\",name=\"requests=1/10s openai/gpt\"} 1\n",
        "llmq_breaker_state{state=\"closed\",upstream=\"openai/gpt\"} 1\n",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(world.text("/").await.contains("<td>org/gpt<td>running"));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_tells_its_place_until_it_is_over() {
    let mut world = World::new();
    world.use_the_limit().await;
    let hub = Arc::clone(&world.observed.parts().hub);
    let _ahead = hub.submit(world.call()).unwrap();
    let ticket = hub.submit(world.call()).unwrap();
    let id = Uuid::from_u128(5);
    let guard = world.enter(id, &ticket);
    tokio::time::advance(Duration::from_secs(2)).await;
    let path = format!("/api/calls/{id}");
    let (status, call) = world.get(&path).await;
    assert_eq!(status, 200);
    assert_eq!(call["position"], 2);
    assert_eq!(call["status"], "queued");
    assert_eq!(call["model"], "org/gpt");
    assert_eq!(call["waited_ms"], 2_000);
    assert_eq!(call["waiting_for"], "requests=1/10s openai/gpt");
    assert!(call["estimated_start"].is_string());
    drop(guard);
    let (status, problem) = world.get(&path).await;
    assert_eq!(status, 404);
    assert_eq!(problem["code"], "call_not_found");
    assert_eq!(world.get("/api/calls/x").await.0, 400);
}

#[tokio::test(start_paused = true)]
async fn the_calls_that_have_waited_longest_are_listed_oldest_first() {
    let mut world = World::new();
    world.use_the_limit().await;
    let hub = Arc::clone(&world.observed.parts().hub);
    let (mut tickets, mut guards) = (Vec::new(), Vec::new());
    // Their numbers are not in the order of their ages.
    for id in [9, 3, 7, 5] {
        let ticket = hub.submit(world.call()).unwrap();
        guards.push(world.enter(Uuid::from_u128(id), &ticket));
        tickets.push(ticket);
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    for (query, expected) in [("", vec![9, 3, 7, 5]), ("?limit=2", vec![9, 3])] {
        let (status, list) = world.get(&format!("/api/calls{query}")).await;
        assert_eq!(
            (status.as_u16(), &list["total"]),
            (200, &json!(4)),
            "{list}"
        );
        let ids = list["calls"].as_array().unwrap().iter();
        let ids: Vec<&str> = ids.map(|call| call["id"].as_str().unwrap()).collect();
        let expected = expected
            .into_iter()
            .map(|id| Uuid::from_u128(id).to_string());
        assert_eq!(ids, expected.collect::<Vec<_>>());
        assert_eq!(list["calls"][1]["waiting_for"], "requests=1/10s openai/gpt");
    }
    for bad in ["limit=0", "limit=1001", "limit=x", "cursor=1"] {
        let (status, problem) = world.get(&format!("/api/calls?{bad}")).await;
        assert_eq!(
            (status.as_u16(), &problem["code"]),
            (400, &json!("invalid_request"))
        );
    }
    drop(guards);
    assert_eq!(world.get("/api/calls").await.1["calls"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_paused_and_goes_on() {
    let mut world = World::new();
    for _ in 0..2 {
        let (status, queue) = world.send("POST", "/api/queues/org%2Fgpt/pause").await;
        assert_eq!((status.as_u16(), &queue["state"]), (200, &json!("paused")));
    }
    let hub = Arc::clone(&world.observed.parts().hub);
    let waits = hub.submit(world.call()).unwrap();
    let (_, queue) = world.get("/api/queues/org%2Fgpt").await;
    assert_eq!(
        (&queue["waiting"], &queue["running"]),
        (&json!(1), &json!(0))
    );
    let (_, queue) = world.send("POST", "/api/queues/org%2Fgpt/resume").await;
    assert_eq!(
        (&queue["state"], &queue["running"]),
        (&json!("running"), &json!(1))
    );
    drop(waits.granted().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_draining_queue_refuses_until_it_is_resumed() {
    let mut world = World::new();
    let (_, queue) = world.send("POST", "/api/queues/org%2Fgpt/drain").await;
    assert_eq!(queue["state"], "draining");
    let hub = Arc::clone(&world.observed.parts().hub);
    assert!(hub.submit(world.call()).is_err());
    world.send("POST", "/api/queues/org%2Fgpt/resume").await;
    assert!(hub.submit(world.call()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_a_problem_with_a_code() {
    let mut world = World::new();
    for (method, path) in [
        ("GET", "/api/queues/none"),
        ("POST", "/api/queues/none/pause"),
    ] {
        let (status, problem) = world.send(method, path).await;
        assert_eq!(status, 404);
        assert_eq!(problem["code"], "queue_not_found");
        assert_eq!(problem["status"], 404);
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_comes_back_to_where_it_was() {
    let mut world = World::new();
    let mut frames = world.listen(None).await;
    world
        .observed
        .notice(&Notice::BreakerOpened(world.upstream));
    let first = frames.next().await.unwrap();
    assert!(first.contains("event: breaker.opened\n"), "{first}");
    drop(frames);
    world
        .observed
        .notice(&Notice::BreakerClosed(world.upstream));
    let mut frames = world.listen(Some(&id_of(&first))).await;
    let missed = frames.next().await.unwrap();
    assert!(missed.contains("event: breaker.closed\n"), "{missed}");
    assert!(!missed.contains("breaker.opened"), "{missed}");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_told_what_it_missed_is_told_that() {
    let mut world = World::new();
    for last in ["17-3", "nonsense", "1-18446744073709551615"] {
        let mut frames = world.listen(Some(last)).await;
        let reset = frames.next().await.unwrap();
        assert!(reset.contains("event: reset\n"), "{last}: {reset}");
        world
            .observed
            .notice(&Notice::BreakerClosed(world.upstream));
        let next = frames.next().await.unwrap();
        assert!(next.contains("event: breaker.closed\n"), "{last}: {next}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_filled_with_comments_and_ends_with_the_server() {
    let mut world = World::new();
    let mut frames = world.listen(None).await;
    let before = tokio::time::Instant::now();
    assert_eq!(frames.next().await.unwrap(), ":\n\n");
    assert_eq!(before.elapsed(), Duration::from_secs(15));
    world.observed.drain();
    assert_eq!(frames.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn listeners_are_bounded_and_their_places_come_free() {
    let mut world = World::new();
    let mut listeners = Vec::new();
    for _ in 0..super::observed::LISTENERS_MAX {
        listeners.push(world.listen(None).await);
    }
    let (status, problem) = world.get("/api/events").await;
    assert_eq!(status, 503);
    assert_eq!(problem["code"], "too_many_listeners");
    listeners.pop();
    world.listen(None).await;
}

#[tokio::test(start_paused = true)]
async fn the_dispatchers_news_are_counted_and_told() {
    let mut world = World::new();
    let limited = Notice::RateLimited {
        upstream: world.upstream,
        ours: true,
    };
    world.observed.notice(&limited);
    let (_, stats) = world.get("/api/stats").await;
    assert_eq!(stats["rate_limited"], 1);
    assert_eq!(stats["upstreams_usable"], 1);
    let page = world.text("/metrics").await;
    let line = "llmq_rate_limited_total{ours=\"true\",upstream=\"openai/gpt\"} 1\n";
    assert!(page.contains(line), "{page}");
}

/// What is listed can be asked for, and what is published is listed: the description is made
/// from the routes.
#[tokio::test(start_paused = true)]
async fn every_route_that_is_described_exists() {
    let mut world = World::new();
    let (status, document) = world.get("/openapi.json").await;
    assert_eq!(status, 200);
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        // Those are served by others, and asked for there.
        let elsewhere = ["/v1/", "/api/keys", "/api/requests", "/api/webhooks"];
        if elsewhere.iter().any(|other| path.starts_with(other)) {
            continue;
        }
        for method in item.as_object().unwrap().keys() {
            let path = path.replace("{name}", "org%2Fgpt");
            let path = path.replace("{id}", "00000000-0000-0000-0000-000000000000");
            let request = Request::builder()
                .method(method.to_uppercase().as_str())
                .uri(&path);
            let response = world.ask(request.body(Body::empty()).unwrap()).await;
            // A route that is not there answers without a body.
            let body = response.into_body().into_data_stream().next().await;
            assert!(
                body.is_some_and(|body| !body.unwrap().is_empty()),
                "{method} {path}"
            );
            asked += 1;
        }
    }
    assert_eq!(
        asked, 15,
        "a route came or went: look at docs/src/observability.md too"
    );
}
