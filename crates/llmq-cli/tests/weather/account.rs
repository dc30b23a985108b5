//! What an account can do to a run: refuse the key, run out of money.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::common::World;
use crate::support::{Provider, Reply, Running};
use crate::{is_whole, kept, line, run_at};

const ROWS: usize = 20;
/// So many calls are answered before the account closes.
const GOOD: usize = 7;

/// A provider that answers `refusal` from the eighth call on, until the switch is turned.
fn closing(refusal: fn() -> Reply) -> (Provider, Arc<AtomicBool>) {
    let open_again = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&open_again);
    let provider = Provider::start(move |call| {
        if call.number < GOOD || switch.load(Ordering::SeqCst) {
            Reply::ok()
        } else {
            refusal()
        }
    });
    (provider, open_again)
}

fn bad_key() -> Reply {
    let error = json!({"error": {"message": "Incorrect API key provided",
                                 "type": "invalid_request_error", "code": "invalid_api_key"}});
    Reply::Raw("401 Unauthorized", String::new(), error.to_string())
}

fn no_money() -> Reply {
    let error = json!({"error": {"message": "You exceeded your current quota, please check your \
                                             plan and billing details",
                                 "type": "insufficient_quota", "code": "insufficient_quota"}});
    Reply::Raw("429 Too Many Requests", String::new(), error.to_string())
}

/// The same command finishes what was left, and asks for nothing that it has.
fn continues(world: &World, provider: &Provider, open_again: &AtomicBool) {
    let before = kept(world);
    assert_eq!(before.len(), GOOD);
    open_again.store(true, Ordering::SeqCst);
    run_at(world, provider.addr, "").says(0, &["20 completed, 0 failed"]);
    is_whole(world, ROWS);
    let counts = provider.counts();
    assert!(before.iter().all(|prompt| counts[prompt] == 1));
}

#[test]
fn a_key_that_is_revoked_on_the_way_stops_the_run_and_fails_no_row() {
    let world = World::new().with_rows(ROWS);
    let (provider, open_again) = closing(bad_key);
    let stopped = run_at(&world, provider.addr, "--concurrency 2");
    stopped.says(4, &["refuses the key", "This continues:"]);
    // Two calls were in flight; one more may have left before the first refusal was read.
    assert!(provider.prompts().len() <= GOOD + 3);
    continues(&world, &provider, &open_again);
}

#[test]
fn an_account_without_money_pauses_the_run_and_fails_no_row() {
    let world = World::new().with_rows(ROWS);
    let (provider, open_again) = closing(no_money);
    let flags = "--concurrency 2 --progress json";
    let mut running = Running::start(&world, &line(provider.addr, flags));
    let paused = running.wait_for("\"paused\":{");
    assert!(
        paused.contains("money") && paused.contains("\"until\":\"2"),
        "{paused}"
    );
    running.signal("-INT");
    let (code, _, said) = running.end();
    assert_eq!(code, 130, "{said}");
    continues(&world, &provider, &open_again);
}

#[test]
fn an_account_without_money_ends_a_run_that_does_not_wait() {
    let world = World::new().with_rows(ROWS);
    let (provider, open_again) = closing(no_money);
    let stopped = run_at(&world, provider.addr, "--concurrency 2 --no-wait");
    stopped.says(4, &["stopped by the account", "money", "This continues:"]);
    continues(&world, &provider, &open_again);
}
