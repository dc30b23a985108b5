//! Nothing that was accepted is lost, and each has one end, whatever is killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llmq_testkit::{env_number, scale};
use serde_json::json;

use crate::server::{PATIENCE, Place, ask, request};

const KILLS: u64 = 4;
/// Those who hand in, each in singles and in bulk.
const CALLERS: usize = 3;

#[test]
fn every_accepted_request_is_finished_once_over_kills_under_load() {
    let seed = env_number("LLMQ_KILLS_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("LLMQ_KILLS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Slow and narrow enough that there is always something waiting and something running.
    let place = Place::new(Duration::from_millis(20), "concurrency = 16");
    let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut killed_with_work = 0;
    for _ in 0..KILLS * scale() {
        let server = place.serve();
        let (addr, over) = (server.addr, Arc::new(AtomicBool::new(false)));
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (over, acknowledged) = (Arc::clone(&over), Arc::clone(&acknowledged));
                std::thread::spawn(move || hand_in(addr, caller, &over, &acknowledged))
            })
            .collect();
        let before = acknowledged.lock().unwrap().len();
        let enough = random.usize(20..120);
        let begun = tokio::time::Instant::now();
        while acknowledged.lock().unwrap().len() < before + enough {
            assert!(begun.elapsed() < PATIENCE, "nothing is accepted");
            std::thread::yield_now();
        }
        let (_, stats) = server.get("/api/requests?status=processing&limit=1");
        killed_with_work += usize::from(stats["requests"] != json!([]));
        server.kill();
        over.store(true, Ordering::Relaxed);
        callers
            .into_iter()
            .for_each(|caller| caller.join().unwrap());
    }
    assert!(
        killed_with_work > 0,
        "no kill found anything running: the test proves nothing"
    );
    let server = place.serve();
    let acknowledged = acknowledged.lock().unwrap().clone();
    let mut sent_twice = 0;
    for id in &acknowledged {
        let state = server.end(id);
        assert_eq!(state["status"], "completed", "{state}");
        sent_twice += usize::from(state["may_have_been_sent"] == true);
        let (status, result) = server.get(&format!("/api/requests/{id}/result"));
        assert_eq!(
            (status, result["object"].as_str()),
            (200, Some("chat.completion"))
        );
    }
    // What was recorded but never acknowledged is finished too, before the last look.
    let begun = tokio::time::Instant::now();
    while server.get("/api/requests?status=queued").1["requests"] != json!([])
        || server.get("/api/requests?status=processing").1["requests"] != json!([])
    {
        assert!(begun.elapsed() < PATIENCE, "something does not end");
        std::thread::yield_now();
    }
    assert_eq!(server.stop(), 0);
    let ends = place.ends();
    for id in &acknowledged {
        assert_eq!(
            ends.get(id).map(Vec::as_slice),
            Some(["request.completed".to_owned()].as_slice())
        );
    }
    assert!(
        ends.values().all(|ends| ends.len() == 1),
        "an end that came twice"
    );
    println!(
        "{} acknowledged, {} finished, {sent_twice} perhaps sent twice, {} calls at the provider",
        acknowledged.len(),
        ends.len(),
        place.mock.report().calls
    );
}

/// Hands in until the server is gone; keeps what was acknowledged.
fn hand_in(
    addr: std::net::SocketAddr,
    caller: usize,
    over: &AtomicBool,
    acknowledged: &Mutex<Vec<String>>,
) {
    let id = |state: &serde_json::Value| state["queue_id"].as_str().unwrap().to_owned();
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let text = format!("{caller} {number}");
        let body = match number % 5 {
            4 => json!({"requests": [request(&text), request(&text), request(&text)]}),
            _ => request(&text),
        };
        let Some((status, answer)) = ask(addr, "POST", "/api/requests", &body.to_string()) else {
            return;
        };
        assert_eq!(status, 202, "{answer}");
        let mut acknowledged = acknowledged.lock().unwrap();
        match answer["requests"].as_array() {
            Some(many) => acknowledged.extend(many.iter().map(id)),
            None => acknowledged.push(id(&answer)),
        }
    }
}
