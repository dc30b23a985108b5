//! Requests from acceptance to their result.

use http::Method;
use serde_json::json;

use crate::world::{World, chat, request};

#[tokio::test]
async fn a_request_is_accepted_finished_and_fetched() {
    let world = World::start().await;
    let got = world.post("/api/requests", &request()).await;
    assert_eq!(got.status, 202);
    let state = got.json();
    let id = state["queue_id"].as_str().unwrap();
    assert_eq!(got.header("location"), format!("/api/requests/{id}"));
    assert_eq!(
        (state["model"].as_str(), state["priority"].as_u64()),
        (Some("gpt"), Some(50))
    );
    assert_eq!(state["tenant"], "default");
    let state = world.end(id).await;
    assert_eq!(
        (state["status"].as_str(), state["attempts"].as_u64()),
        (Some("completed"), Some(1))
    );
    assert!(state["usage"]["output_tokens"].as_u64().unwrap() > 0);
    assert!(state["usage"]["cost_usd"].as_f64().unwrap() > 0.0);
    let result = world.get(state["result_url"].as_str().unwrap()).await;
    assert_eq!(result.status, 200);
    assert_eq!(result.header("content-type"), "application/json");
    assert_eq!(result.json()["object"], "chat.completion");
    assert_eq!(world.calls(), 1);
}

/// An answer that could only not be read was told as removed, so that nobody would ask again.
#[tokio::test]
async fn a_result_that_cannot_be_read_is_not_told_as_removed() {
    let (world, file) = World::in_file(&[]).await;
    let id = world.submit().await;
    world.end(&id).await;
    // Of a time whose results are long removed; and damaged, since its checksum is of another id.
    let old = "0192f0c1-6a5e-7cc3-98c4-dc0c0c07398f";
    let as_bytes = old.replace('-', "");
    let made_old = format!("UPDATE jobs SET id = x'{as_bytes}'");
    assert_eq!(file.database.execute(&made_old, []).unwrap(), 1);
    let got = world.get(&format!("/api/requests/{old}/result")).await;
    assert_eq!(got.problem(), (503, "store_unavailable".to_owned()));
    assert_eq!(got.header("retry-after"), "5");
}

#[tokio::test]
async fn many_are_accepted_in_order_and_all_finished() {
    let world = World::start().await;
    let many: Vec<_> = (0..50)
        .map(|n| {
            let mut one = request();
            one["metadata"] = json!({"n": n.to_string()});
            one
        })
        .collect();
    let got = world
        .post("/api/requests", &json!({ "requests": many }))
        .await;
    assert_eq!(got.status, 202);
    let answer = got.json();
    let accepted = answer["requests"].as_array().unwrap();
    assert_eq!(accepted.len(), 50);
    for (n, state) in accepted.iter().enumerate() {
        assert_eq!(state["metadata"]["n"], n.to_string());
        let state = world.end(state["queue_id"].as_str().unwrap()).await;
        assert_eq!(state["status"], "completed");
    }
    assert_eq!(world.calls(), 50);
    let counts = json!({"queued": 0, "processing": 0, "completed": 50, "failed": 0, "expired": 0,
        "cancelled": 0});
    assert_eq!(world.get("/api/stats").await.json()["requests"], counts);
}

#[tokio::test]
async fn one_can_be_waited_for_as_it_is_handed_in() {
    let world = World::start().await;
    let mut wanted = request();
    wanted["wait_for_completion"] = json!(true);
    let got = world.post("/api/requests", &wanted).await;
    assert_eq!(
        (got.status.as_u16(), got.json()["status"].as_str()),
        (200, Some("completed"))
    );
}

#[tokio::test]
async fn a_waiting_request_tells_its_place_and_what_it_waits_for() {
    let world = World::with(&["requests=1/1h"], "").await;
    let first = world.submit().await;
    world.end(&first).await;
    let (second, third) = (world.submit().await, world.submit().await);
    let look = async |id: &str| {
        loop {
            let state = world.get(&format!("/api/requests/{id}")).await.json();
            if state["waiting_for"].is_string() {
                return state;
            }
            tokio::task::yield_now().await;
        }
    };
    let state = look(&second).await;
    assert_eq!(
        (state["status"].as_str(), state["position"].as_u64()),
        (Some("queued"), Some(1))
    );
    assert_eq!(state["waiting_for"], "requests/1h one/gpt");
    assert!(state["estimated_start"].is_string(), "{state}");
    assert!(state["expires_at"].is_string());
    assert_eq!(look(&third).await["position"], 2);
    let result = world.get(&format!("/api/requests/{second}/result")).await;
    assert_eq!(
        (result.status.as_u16(), result.header("retry-after")),
        (202, "1")
    );
    // A long poll ends with the request as it is.
    let state = world
        .get(&format!("/api/requests/{third}?wait=0.05"))
        .await
        .json();
    assert_eq!(state["status"], "queued");
}

#[tokio::test]
async fn a_cancelled_request_has_no_result_and_can_be_handed_in_again() {
    let world = World::with(&["requests=1/1h"], "").await;
    let first = world.submit().await;
    world.end(&first).await;
    let id = world.submit().await;
    let path = format!("/api/requests/{id}");
    let got = world.ask(Method::DELETE, &path, &[], "").await;
    assert_eq!(
        (got.status.as_u16(), got.json()["status"].as_str()),
        (200, Some("cancelled"))
    );
    let again = world.ask(Method::DELETE, &path, &[], "").await;
    assert_eq!(again.problem(), (409, "conflict".to_owned()));
    let result = world.get(&format!("{path}/result")).await;
    assert_eq!(result.problem(), (409, "cancelled".to_owned()));
    let retried = world.post(&format!("{path}/retry"), &json!({})).await;
    assert_eq!(retried.status, 202);
    assert_eq!(retried.json()["retry_of"], id.as_str());
    let done = world
        .post(&format!("/api/requests/{first}/retry"), &json!({}))
        .await;
    assert_eq!(done.problem(), (409, "conflict".to_owned()));
}

#[tokio::test]
async fn one_that_does_not_start_in_time_is_gone() {
    let world = World::with(&["requests=1/1h"], "").await;
    let first = world.submit().await;
    world.end(&first).await;
    let mut wanted = request();
    wanted["ttl"] = json!("100ms");
    let got = world.post("/api/requests", &wanted).await;
    let id = got.json()["queue_id"].as_str().unwrap().to_owned();
    assert_eq!(world.end(&id).await["status"], "expired");
    let result = world.get(&format!("/api/requests/{id}/result")).await;
    assert_eq!(result.problem(), (410, "expired".to_owned()));
}

#[tokio::test]
async fn lists_go_from_new_to_old_in_pages_and_filter() {
    let world = World::start().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.submit().await);
    }
    for id in &ids {
        world.end(id).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = world
            .get(&format!("/api/requests?limit=2{cursor}"))
            .await
            .json();
        let page_ids = page["requests"].as_array().unwrap().iter();
        seen.extend(page_ids.map(|state| state["queue_id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    ids.reverse();
    assert_eq!(seen, ids);
    let count = async |query: &str| {
        let page = world.get(&format!("/api/requests?{query}")).await.json();
        page["requests"].as_array().unwrap().len()
    };
    assert_eq!(count("status=completed&model=gpt&priority=normal").await, 5);
    assert_eq!(count("status=queued").await, 0);
    assert_eq!(count("status=pending").await, 0);
    assert_eq!(count("model=other").await, 0);
    assert_eq!(count("created_before=2020-01-01T00:00:00Z").await, 0);
    assert_eq!(count("created_after=2020-01-01T00:00:00Z").await, 5);
}

#[tokio::test]
async fn the_same_key_is_accepted_once_and_another_request_with_it_is_refused() {
    let world = World::start().await;
    let mut wanted = request();
    wanted["idempotency_key"] = json!("order-7");
    let first = world.post("/api/requests", &wanted).await.json();
    let second = world.post("/api/requests", &wanted).await;
    assert_eq!(second.status, 202);
    assert_eq!(second.json()["queue_id"], first["queue_id"]);
    wanted["priority"] = json!("high");
    let other = world.post("/api/requests", &wanted).await;
    assert_eq!(other.problem(), (409, "conflict".to_owned()));
    world.end(first["queue_id"].as_str().unwrap()).await;
    assert_eq!(world.calls(), 1);
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_time_to_come_again_and_drops_nothing() {
    let world = World::with(&["requests=1/1h"], "[store]\nmax_jobs = 10").await;
    let first = world.submit().await;
    world.end(&first).await;
    let mut accepted = 0;
    let full = loop {
        let got = world.post("/api/requests", &request()).await;
        if got.status != 202 {
            break got;
        }
        accepted += 1;
    };
    assert_eq!(full.problem(), (503, "queue_full".to_owned()));
    assert_eq!(full.header("retry-after"), "10");
    assert_eq!(accepted, 8);
    let list = world.get("/api/requests?status=queued").await.json();
    assert_eq!(list["requests"].as_array().unwrap().len(), 8);
}

/// Once a queue seemed as short as the part of it that stands in line.
#[tokio::test]
async fn a_queue_counts_all_that_was_accepted() {
    let world = World::with(&["requests=1/1h"], "").await;
    assert_eq!(
        world.post("/v1/chat/completions", &chat()).await.status,
        200
    );
    for _ in 0..2 {
        assert_eq!(world.post("/api/requests", &request()).await.status, 202);
    }
    let queue = world.get("/api/queues/gpt").await.json();
    assert_eq!(queue["accepted"]["queued"], 2, "{queue}");
    assert_eq!(queue["accepted"]["processing"], 0, "{queue}");
    let metrics = world.get("/metrics").await;
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    let line = r#"llmq_queue_accepted{model="gpt",status="queued"} 2"#;
    assert!(metrics.contains(line), "{metrics}");
}
