//! A server that is told to stop, or that has a place of its own.

use std::time::Duration;

use serde_json::json;

use crate::server::{PATIENCE, Place};

#[test]
fn a_stop_lets_what_runs_end_and_the_next_server_does_the_rest() {
    let place = Place::new(Duration::from_millis(300), "concurrency = 2");
    let server = place.serve();
    let ids: Vec<String> = (0..6).map(|_| server.submit()).collect();
    assert_eq!(server.stop(), 0);
    // What had been sent was finished: nothing is sent twice.
    let server = place.serve();
    for id in &ids {
        let state = server.end(id);
        assert_eq!(state["status"], "completed");
        assert!(state["may_have_been_sent"].is_null(), "{state}");
        assert_eq!(state["attempts"], 1);
    }
    assert_eq!(server.stop(), 0);
    assert_eq!(place.calls(), 6);
}

#[test]
fn a_pause_and_what_waits_outlive_a_kill() {
    let place = Place::new(Duration::from_millis(1), "");
    let server = place.serve();
    server.post("/api/queues/gpt/pause", &serde_json::json!({}));
    let id = server.submit();
    // The pause is recorded with the next look at the queues.
    let recorded = tokio::time::Instant::now();
    while server.get("/api/requests?status=queued").1["requests"][0]["waiting_for"] != "paused" {
        assert!(recorded.elapsed() < crate::server::PATIENCE);
        std::thread::yield_now();
    }
    server.kill();
    let server = place.serve();
    let (_, queue) = server.get("/api/queues/gpt");
    assert_eq!(queue["state"], "paused");
    let (_, state) = server.get(&format!("/api/requests/{id}"));
    assert_eq!(state["status"], "queued");
    server.post("/api/queues/gpt/resume", &serde_json::json!({}));
    assert_eq!(server.end(&id)["status"], "completed");
}

/// A configuration named its store and `--mock` was given as well: what was accepted was kept in
/// memory, and lost with the process.
#[test]
fn a_store_that_the_configuration_names_is_used_with_the_stand_in_too() {
    let place = Place::new(Duration::from_millis(1), "");
    place.append("[store]\nurl = \"sqlite:queue.db\"\n");
    let server = place.serve_with(&["--mock"]);
    let id = server.submit();
    server.kill();
    let server = place.serve_with(&["--mock"]);
    assert_eq!(server.end(&id)["status"], "completed");
}

/// A machine that sleeps, or a process that a debugger holds: its leases have run out when it goes
/// on, and nobody else could take them.
#[test]
fn a_server_that_stood_still_for_longer_than_a_lease_goes_on_with_what_it_holds() {
    /// A little more than a lease lasts.
    const STOOD: Duration = Duration::from_secs(32);
    let place = Place::new(Duration::from_secs(34), "concurrency = 4");
    let server = place.serve();
    let ids: Vec<String> = (0..4).map(|_| server.submit()).collect();
    let begun = tokio::time::Instant::now();
    while place.calls() < 4 {
        assert!(begun.elapsed() < PATIENCE, "the calls are sent");
        std::thread::yield_now();
    }
    server.signal("STOP");
    // What is tested is what time does to it.
    std::thread::sleep(STOOD);
    server.signal("CONT");
    for id in &ids {
        let state = server.end(id);
        assert_eq!(
            (&state["status"], &state["attempts"]),
            (&json!("completed"), &json!(1)),
            "{state}"
        );
        assert!(state["may_have_been_sent"].is_null(), "{state}");
    }
    assert_eq!(place.calls(), 4, "each was sent once");
    assert_eq!(server.stop(), 0);
    let checked = llmq_store_sqlite::check(&place.file(), true).unwrap();
    assert!(checked.is_sound(), "{checked:?}");
}
