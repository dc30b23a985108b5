use std::time::Duration;

use llmq_core::{Priority, Status};

use super::World;
use super::world::new_job;
use crate::{Filter, JobId, NewJob};

async fn all(world: &World, filter: &Filter, limit: usize) -> Vec<JobId> {
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = world.store.list(filter, after, limit).await.unwrap();
        assert!(page.items.len() <= limit);
        seen.extend(page.items.iter().map(|job| job.id));
        after = page.next;
        if after.is_none() {
            return seen;
        }
        // Newcomers are newer than every page, and none of theirs.
        world.job().await;
    }
}

pub async fn lists_filter_and_their_pages_fit(mut world: World) {
    let mut jobs = Vec::new();
    for n in 0..60 {
        let job = NewJob {
            priority: if n % 2 == 0 {
                Priority::LOW
            } else {
                Priority::HIGH
            },
            ..NewJob::new(["a", "b", "c"][n % 3], ["s", "t"][n / 30], "")
        };
        let id = world.accept(job).await;
        if n % 5 == 0 {
            world.finish(id).await;
        }
        jobs.push(id);
        world.advance(Duration::from_secs(1));
    }
    jobs.reverse();
    let begin = world.now.wall.before(Duration::from_secs(60));
    let check = |keep: fn(usize) -> bool| {
        let kept = jobs.iter().enumerate();
        let kept = kept.filter(move |(back, _)| keep(59 - back));
        kept.map(|(_, id)| *id).collect::<Vec<_>>()
    };
    let any = Filter::default;
    let cases: [(Filter, Vec<JobId>); 7] = [
        (
            Filter {
                queue: Some("b".into()),
                ..any()
            },
            check(|n| n % 3 == 1),
        ),
        (
            Filter {
                tenant: Some("t".into()),
                queue: Some("a".into()),
                ..any()
            },
            check(|n| n >= 30 && n % 3 == 0),
        ),
        (
            Filter {
                priority: Some(Priority::HIGH),
                ..any()
            },
            check(|n| n % 2 == 1),
        ),
        (
            Filter {
                status: Some(Status::Completed),
                ..any()
            },
            check(|n| n % 5 == 0),
        ),
        (
            Filter {
                created_after: Some(begin + Duration::from_secs(50)),
                created_before: Some(world.now.wall),
                ..any()
            },
            check(|n| n >= 50),
        ),
        (
            Filter {
                created_before: Some(begin + Duration::from_secs(10)),
                ..any()
            },
            check(|n| n < 10),
        ),
        (
            Filter {
                queue: Some("none".into()),
                ..any()
            },
            Vec::new(),
        ),
    ];
    for (filter, wanted) in cases {
        for limit in [1000, 7] {
            assert_eq!(all(&world, &filter, limit).await, wanted, "{filter:?}");
        }
    }
    assert_eq!(
        all(
            &world,
            &Filter {
                created_before: Some(world.now.wall),
                ..any()
            },
            9
        )
        .await,
        jobs
    );
}

pub async fn counts_follow_every_change(world: World) {
    let jobs: Vec<_> = (0..6).map(|_| new_job()).collect();
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    world.store.enqueue(jobs, world.now).await.unwrap();
    world.accept(NewJob::new("other", "t", "")).await;
    world.finish(ids[0]).await;
    world.start(ids[1]).await;
    world.store.cancel(ids[2], world.now).await.unwrap();
    let counts = world.store.counts().await.unwrap();
    let found = (
        counts.queued,
        counts.processing,
        counts.completed,
        counts.cancelled,
    );
    assert_eq!(found, (4, 1, 1, 1));
    let queues = world.store.queues().await.unwrap();
    let names: Vec<_> = queues.iter().map(|queue| queue.name.as_str()).collect();
    assert_eq!(names, ["m", "other"]);
    assert_eq!((queues[0].counts.queued, queues[1].counts.queued), (3, 1));
    assert_eq!(
        queues[0].counts.bytes + queues[1].counts.bytes,
        counts.bytes
    );
}

pub async fn what_is_not_there_is_none(world: World) {
    let nobody = JobId::new();
    assert_eq!(world.store.job(nobody).await.unwrap(), None);
    assert_eq!(world.store.body(nobody).await.unwrap(), None);
    assert_eq!(world.store.answer(nobody).await.unwrap(), None);
    assert_eq!(world.store.positions(vec![nobody]).await.unwrap(), [None]);
    assert!(world.try_start(nobody).await.is_err());
    let job = world.job().await;
    assert_eq!(world.store.answer(job).await.unwrap(), None);
    assert_eq!(
        world.store.body(job).await.unwrap().unwrap(),
        r#"{"model":"m"}"#
    );
}
