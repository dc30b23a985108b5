//! One suite that every store runs: each law of [`Store`](crate::Store) as a test.
//!
//! A store's own tests say how an empty one is made, and [`conformance!`](crate::conformance) does
//! the rest:
//!
//! ```
//! use std::sync::Arc;
//! use llmq_store::{MemoryStore, Settings, Store};
//!
//! llmq_store::conformance!(|settings: Settings| async move {
//!     Arc::new(MemoryStore::new(settings)) as Arc<dyn Store>
//! });
//! # fn main() {}
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "these are tests: a law that does not hold is a panic"
)]
#![expect(missing_docs, reason = "the name of a law says what it proves")]

pub mod accepting;
pub mod batches;
pub mod lines;
pub mod looking;
pub mod model;
pub mod running;
pub mod telling;
pub mod waiting;
mod world;

pub use world::World;

/// Makes a test of each law, and one of cases drawn at random against a model of a store
/// ([`model::agrees`]): 2,000 of them, times `LLMQ_TEST_SCALE`.
///
/// `$fresh` is a closure from [`Settings`](crate::Settings) to a future of an empty
/// `Arc<dyn Store>`.
#[macro_export]
macro_rules! conformance {
    ($fresh:expr) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn the_model_agrees_whatever_is_done() {
            let fresh = $fresh;
            for seed in $crate::conformance::seeds() {
                let world = $crate::conformance::World::new(&fresh).await;
                $crate::conformance::model::agrees(world, seed).await;
            }
        }

        $crate::conformance_laws! { $fresh;
            accepting: one_key_makes_one_job, a_key_is_of_its_tenant_and_is_forgotten,
                what_a_retry_cures_may_be_asked_for_again,
                what_may_not_be_sent_again_keeps_its_key, many_are_accepted_whole_or_not_at_all,
                ten_thousand_at_once_are_seen_together, it_refuses_between_its_watermarks,
                bytes_are_counted_and_given_back, a_draining_queue_takes_none,
                what_finds_room_is_accepted_and_started_at_once,
                a_key_finds_its_job_where_nothing_new_is_taken;
            running: a_job_moves_as_the_diagram_says, two_workers_never_hold_one_lease,
                late_and_repeated_reports_are_refused, signs_of_life_keep_a_lease_however_long,
                a_job_that_kills_its_workers_runs_out, a_node_takes_back_what_its_earlier_lives_held,
                what_is_given_back_does_not_count, a_cancelled_job_takes_no_report;
            waiting: a_job_past_its_time_never_starts, time_stands_while_a_queue_does,
                a_jump_of_the_wall_moves_no_wait, an_announced_instant_is_of_the_calendar,
                a_due_instant_waits_again_when_the_wall_is_set_back,
                a_retry_waits_and_keeps_its_place, what_ended_is_kept_for_its_time, a_job_is_kept_as_long_as_its_key,
                what_must_stay_holds_up_no_purge,
                a_clock_that_ran_ahead_keeps_nothing_for_ever;
            lines: first_come_first_served_in_each_lane, a_window_goes_on_behind_a_place,
                a_position_counts_those_who_go_before,
                the_answer_to_an_acceptance_says_the_position;
            looking: lists_filter_and_their_pages_fit, counts_follow_every_change,
                what_is_not_there_is_none;
            telling: every_change_is_told_once_and_in_order, old_events_leave_a_gap_that_is_said,
                the_end_of_a_job_is_delivered_to_those_who_ask, a_delivery_is_held_and_repeated,
                a_disabled_endpoint_waits_and_a_deleted_one_is_forgotten,
                one_that_takes_nothing_delays_nobody, callbacks_to_one_host_stand_in_one_line,
                for_more_than_may_wait_the_oldest_is_given_up, a_jump_of_the_wall_moves_no_delivery,
                what_a_disabled_endpoint_does_not_ask_for_is_given_up;
            batches: a_batch_appears_whole, a_bad_batch_leaves_nothing,
                a_batch_is_told_when_its_last_member_ends, a_line_is_staged_once,
                a_draining_queue_takes_no_members, what_is_still_to_be_written_is_kept, a_file_is_seen_when_it_is_whole,
                the_output_appears_with_the_end_of_its_batch;
        }
    };
}

/// The seeds of a run: 2,000, or 40 for each of `LLMQ_TEST_SCALE` where these are more; or
/// `LLMQ_STORE_SEED` alone if it is set.
///
/// # Panics
///
/// When a variable holds something else than a number.
#[must_use]
pub fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    match number("LLMQ_STORE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..2_000.max(40 * number("LLMQ_TEST_SCALE").unwrap_or(1)),
    }
}

/// The tests of [`conformance!`].
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_laws {
    ($fresh:expr; $($room:ident: $($law:ident),*;)*) => {
        $(mod $room {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $law() {
                let fresh = $fresh;
                let world = $crate::conformance::World::new(&fresh).await;
                $crate::conformance::$room::$law(world).await;
            })*
        })*
    };
}
