//! In what order, and how many: laws of a line that is full before it moves.

use std::sync::{Arc, Mutex};

use llmq::{ModelConfig, Priority, ProcessorError, QueueError, QueueManager, QueueRequest, Uuid};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::load::{MODEL, priority};

/// A paused queue with a line of requests; whom it accepted, and the order of their starts.
fn line(config: ModelConfig, priorities: &[Priority]) -> (Vec<usize>, Vec<usize>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let order = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&order);
        let manager = QueueManager::new();
        let queue = manager
            .register_queue(config, move |request: QueueRequest<usize>| {
                noted.lock().unwrap().push(request.params);
                std::future::ready(Ok::<_, ProcessorError>(()))
            })
            .unwrap();
        queue.pause();
        let mut accepted: Vec<(usize, Uuid)> = Vec::new();
        for (index, priority) in priorities.iter().enumerate() {
            let request = QueueRequest::new(MODEL, index)
                .priority(*priority)
                .without_waiting();
            match queue.submit(request).await {
                Ok(response) => accepted.push((index, response.request_id)),
                Err(error) => assert!(matches!(error, QueueError::QueueFull { .. }), "{error}"),
            }
        }
        queue.resume();
        for (_, id) in &accepted {
            queue.wait(*id).await.unwrap();
        }
        let order = order.lock().unwrap().clone();
        (
            accepted.into_iter().map(|(index, _)| index).collect(),
            order,
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(super::CASES))]

    #[test]
    fn priorities_are_kept_and_within_one_who_came_first(
        priorities in vec(priority(), 1..40), concurrency in 1..4_u64, rate in 1..10_u64,
    ) {
        let config = ModelConfig::new(MODEL)
            .concurrent(concurrency)
            .requests_per(rate, std::time::Duration::from_secs(1));
        let (accepted, order) = line(config, &priorities);
        let mut expected = accepted;
        expected.sort_by_key(|index| std::cmp::Reverse(priorities[*index]));
        prop_assert_eq!(order, expected);
    }

    #[test]
    fn exactly_the_capacity_is_accepted_and_all_of_it_is_done(
        priorities in vec(priority(), 1..40), capacity in 1..50_u64,
    ) {
        let (accepted, mut order) = line(ModelConfig::new(MODEL).capacity(capacity), &priorities);
        let room = usize::try_from(capacity).unwrap();
        let expected: Vec<usize> = (0..priorities.len().min(room)).collect();
        prop_assert_eq!(&accepted, &expected);
        order.sort_unstable();
        prop_assert_eq!(order, expected);
    }
}
