use llmq_core::Priority;
use uuid::Uuid;

use super::World;
use super::world::{lane, new_job};
use crate::{JobId, NewJob, Position};

pub async fn first_come_first_served_in_each_lane(world: World) {
    let of = |queue: &str, tenant: &str, priority, key| {
        let mut job = NewJob::new(queue, tenant, "");
        job.priority = priority;
        job.details.key = key;
        job
    };
    let keys = [None, Some(Uuid::from_u128(7))];
    let mut jobs = Vec::new();
    for _ in 0..20 {
        for queue in ["m", "n"] {
            for tenant in ["t", "u"] {
                for priority in [Priority::LOW, Priority::HIGH] {
                    jobs.extend(keys.map(|key| of(queue, tenant, priority, key)));
                }
            }
        }
    }
    let (one_by_one, together) = jobs.split_at(80);
    for job in one_by_one {
        world.accept(job.clone()).await;
    }
    world
        .store
        .enqueue(together.to_vec(), world.now)
        .await
        .unwrap();
    let lanes = world.store.lanes(world.now).await.unwrap();
    assert_eq!(lanes.len(), 16);
    for depth in lanes {
        assert_eq!((depth.due, depth.delayed, depth.due_at), (20, 0, None));
        let wanted = jobs.iter().filter(|job| job.lane() == depth.lane);
        let wanted: Vec<_> = wanted.map(|job| job.id).collect();
        assert_eq!(world.waiting(&depth.lane).await, wanted);
    }
}

pub async fn a_window_goes_on_behind_a_place(world: World) {
    let jobs: Vec<_> = (0..100).map(|_| new_job()).collect();
    let wanted: Vec<_> = jobs.iter().map(|job| job.id).collect();
    world.store.enqueue(jobs, world.now).await.unwrap();
    let here = lane("m", "t");
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let window = world.store.next(&here, after, 32, world.now).await.unwrap();
        let Some(last) = window.jobs.last() else {
            break;
        };
        assert!(window.jobs.len() <= 32);
        after = Some(last.place);
        seen.extend(window.jobs.iter().map(|waiting| waiting.job));
        // What was seen and starts meanwhile moves nobody.
        world.start(seen[0]).await;
        world.store.cancel(seen[0], world.now).await.unwrap();
        seen.rotate_left(1);
    }
    seen.sort_unstable();
    let mut sorted = wanted;
    sorted.sort_unstable();
    assert_eq!(seen, sorted);
}

pub async fn a_position_counts_those_who_go_before(world: World) {
    async fn accept(world: &World, queue: &str, tenant: &str, priority: Priority) -> JobId {
        let job = NewJob {
            priority,
            ..NewJob::new(queue, tenant, "")
        };
        world.accept(job).await
    }
    let normal = Priority::NORMAL;
    let first = accept(&world, "m", "t", normal).await;
    accept(&world, "n", "t", Priority::HIGH).await;
    let second = accept(&world, "m", "u", normal).await;
    let third = accept(&world, "m", "t", normal).await;
    let low = accept(&world, "m", "t", Priority::LOW).await;
    let high = accept(&world, "m", "u", Priority::HIGH).await;
    for (job, position) in [(high, 1), (first, 2), (second, 3), (third, 4), (low, 5)] {
        assert_eq!(
            position_of(&world, job).await,
            Some(Position::Exactly(position))
        );
    }
    world.start(first).await;
    assert_eq!(position_of(&world, first).await, None);
    assert_eq!(position_of(&world, low).await, Some(Position::Exactly(4)));
    let many: Vec<_> = (0..10_000).map(|_| NewJob::new("m", "t", "")).collect();
    let last = many[9_999].id;
    world.store.enqueue(many, world.now).await.unwrap();
    let least = Some(Position::AtLeast(10_000));
    assert_eq!(position_of(&world, last).await, least);
}

async fn position_of(world: &World, job: JobId) -> Option<Position> {
    let found = world.store.positions(vec![job]).await.unwrap();
    assert_eq!(found.len(), 1);
    found[0]
}

pub async fn the_answer_to_an_acceptance_says_the_position(world: World) {
    let urgent = NewJob {
        priority: Priority::HIGH,
        ..NewJob::new("m", "u", "")
    };
    let of_both = vec![NewJob::new("m", "t", ""), urgent, NewJob::new("m", "u", "")];
    let accepted = world.store.enqueue(of_both, world.now).await.unwrap();
    let told: Vec<_> = accepted.iter().map(|accepted| accepted.position).collect();
    // Each as it came: the first was overtaken only afterwards.
    assert_eq!(told, [1, 1, 3].map(|place| Some(Position::Exactly(place))));
    // So many that they are written in slices.
    let many: Vec<_> = (0..1_200).map(|_| NewJob::new("m", "t", "")).collect();
    let accepted = world.store.enqueue(many, world.now).await.unwrap();
    let (first, last) = (accepted[0].position, accepted[1_199].position);
    assert_eq!(first, Some(Position::Exactly(4)));
    assert_eq!(last, Some(Position::Exactly(1_203)));
}
