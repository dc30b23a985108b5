//! The library's laws, over drawn loads in paused time: whatever is submitted, whoever leaves
//! and whatever fails.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod load;
mod order;
mod world;

use std::collections::BTreeMap;

use llmq::{QueueError, Status};
use proptest::prelude::*;

use crate::load::{Leave, config, jobs};
use crate::world::play;

const CASES: u32 = 128;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn every_submitted_request_gets_exactly_one_final_status(
        config in config(), jobs in jobs(1..40),
    ) {
        let run = play(&config, &jobs);
        let accepted = run.lives.len() as u64;
        for life in run.lives.values() {
            prop_assert_eq!((life.queued, life.ended), (1, 1));
        }
        for job in &run.jobs {
            let status = run.statuses.get(&job.id);
            prop_assert_eq!(status.is_some(), run.lives.contains_key(&job.id));
            prop_assert!(status.is_none_or(|status| status.is_final()), "{:?}", status);
            prop_assert!(agree(job.answer.as_ref(), status), "{:?} {:?}", job.answer, status);
        }
        let metrics = run.metrics;
        let ends = metrics.completed + metrics.failed + metrics.timed_out + metrics.cancelled;
        prop_assert_eq!((metrics.accepted, ends), (accepted, accepted));
        let submitted = metrics.accepted + metrics.refused + metrics.deduplicated;
        prop_assert_eq!(submitted, jobs.len() as u64);
    }

    #[test]
    fn no_more_calls_run_at_once_than_the_limit(config in config(), jobs in jobs(1..40)) {
        let run = play(&config, &jobs);
        let mut steps: Vec<_> = run
            .attempts
            .iter()
            .flat_map(|attempt| [(attempt.end, -1_i64), (attempt.start, 1)])
            .collect();
        // At one instant, those that end make room for those that start.
        steps.sort_unstable();
        let mut running = 0;
        for (_, step) in steps {
            running += step;
            prop_assert!(running <= i64::from(config.concurrency));
        }
    }

    #[test]
    fn no_window_holds_more_calls_than_the_limit(config in config(), jobs in jobs(1..40)) {
        let run = play(&config, &jobs);
        let mut starts: Vec<_> = run.attempts.iter().map(|attempt| attempt.start).collect();
        starts.sort_unstable();
        for (first, next) in starts.iter().zip(starts.iter().skip(config.per_period as usize)) {
            prop_assert!(*next - *first >= config.period, "{:?}", *next - *first);
        }
    }

    #[test]
    fn whoever_leaves_gives_its_place_back(config in config(), jobs in jobs(1..40)) {
        let run = play(&config, &jobs);
        prop_assert_eq!((run.left_waiting, run.left_running), (0, 0));
        // Once its windows are empty again, the whole width of the queue is free at once.
        prop_assert_eq!(run.probes_took, load::PROBE);
    }

    #[test]
    fn only_identical_requests_in_flight_are_joined(config in config(), jobs in jobs(1..40)) {
        let run = play(&config, &jobs);
        let mut by_key: BTreeMap<u8, Vec<_>> = BTreeMap::new();
        for (job, told) in jobs.iter().zip(&run.jobs) {
            let Some(Ok(response)) = &told.answer else { continue };
            let ran = run.index_of(response.request_id);
            if ran != told.index {
                // Joined: to one of the same key, which was in flight.
                prop_assert!(job.key.is_some() && jobs[ran].key == job.key);
                let other = &run.lives[&response.request_id];
                prop_assert!(other.accepted <= told.submitted);
                prop_assert!(told.submitted <= other.over.unwrap());
            }
            if let Some(result) = response.result {
                prop_assert_eq!(result, ran);
            }
        }
        for job in &run.jobs {
            if let (Some(key), Some(life)) = (jobs[job.index].key, run.lives.get(&job.id)) {
                by_key.entry(key).or_default().push((life.accepted, life.over.unwrap()));
            }
        }
        for lives in by_key.values_mut() {
            lives.sort_unstable();
            for pair in lives.windows(2) {
                prop_assert!(pair[0].1 <= pair[1].0, "two of one key in flight at once");
            }
        }
    }

    #[test]
    fn a_full_queue_refuses_and_drops_nothing(config in config(), jobs in jobs(1..40)) {
        let run = play(&config, &jobs);
        prop_assert!(run.most_in_flight <= config.capacity);
        for job in &run.jobs {
            if let Some(Err(QueueError::QueueFull { requests, .. })) = &job.answer {
                prop_assert_eq!(*requests, config.capacity);
                prop_assert!(!run.lives.contains_key(&job.id));
            }
        }
        // What was accepted and did not leave by itself was tried.
        for job in &run.jobs {
            let stays = matches!(jobs[job.index].leave, Leave::Stays) && jobs[job.index].timeout.is_none();
            if stays && run.lives.contains_key(&job.id) {
                prop_assert!(run.attempts.iter().any(|attempt| attempt.index == job.index));
            }
        }
    }
}

/// Whether what the submitter heard and what is remembered say the same.
fn agree(answer: Option<&world::Answer>, status: Option<&Status>) -> bool {
    match (answer, status) {
        (Some(Ok(response)), Some(status)) => {
            response.status == *status || !response.status.is_final()
        }
        (Some(Err(error)), Some(status)) => match error {
            QueueError::QueueTimeout { attempts: 0, .. } => *status == Status::Expired,
            QueueError::Cancelled { .. } => *status == Status::Cancelled,
            _ => *status == Status::Failed,
        },
        // It was refused or joined, or its submitter had gone.
        (Some(_), None) | (None, _) => true,
    }
}
