//! The wall clock is set while jobs wait and run: back an hour, forth a day, as by a person or a
//! time server.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Clock, Status};
use llmq_engine::SystemClock;
use llmq_store::{Lines as _, NewJob, Store};
use llmq_testkit::{FakeClock, FaultyStore, PATIENCE};
use tokio::time::Instant;

use crate::world::{Act, Upstream, World, job};

over_each_store! {
    a_wall_that_is_set_breaks_no_limit_ends_no_lease_and_holds_nothing_up,
    a_date_is_of_the_calendar_and_comes_when_the_wall_is_set_to_it,
    a_date_that_is_to_come_again_is_waited_for,
}

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// A wall to be set.
struct Wall(Arc<FakeClock>);

impl Wall {
    fn new() -> Self {
        let clock = FakeClock::with_tokio();
        clock.set_wall(SystemClock::new().now().wall);
        Self(Arc::new(clock))
    }

    fn clock(&self) -> SystemClock {
        SystemClock::with_wall_of(Arc::clone(&self.0) as Arc<dyn Clock>)
    }

    fn back(&self, span: Duration) {
        self.0.set_wall(self.0.now().wall.before(span));
    }

    fn forth(&self, span: Duration) {
        self.0.set_wall(self.0.now().wall + span);
    }
}

async fn a_wall_that_is_set_breaks_no_limit_ends_no_lease_and_holds_nothing_up(
    store: Arc<dyn Store>,
) {
    let upstream = Upstream::start(|number| match number {
        0 => Act::Wait,
        // Told to come again in a second.
        1 => Act::Later(1),
        _ => Act::Answer("soon".to_owned()),
    })
    .await;
    let wall = Wall::new();
    let lease = Duration::from_millis(300);
    let limits = "custom = [\"requests=3/2s\"]";
    let store = FaultyStore::new(store);
    let world = World::by(wall.clock(), store.clone(), &upstream, limits, lease).await;
    let began = Instant::now();
    let running = world.accept().await;
    upstream.got(1).await;
    let delayed = world.accept().await;
    upstream.got(2).await;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let in_time = NewJob {
            ttl: Some(PATIENCE),
            ..job()
        };
        waiting.push(world.runner.accept(in_time).await.unwrap().id);
    }
    let sets: [fn(&Wall); 3] = [|it| it.back(HOUR), |it| it.forth(DAY), |it| it.back(DAY)];
    for set in sets {
        set(&wall);
        // Silent leases are looked for before and behind a sign of life by that wall.
        for method in ["tend", "extend", "tend"] {
            store.holds(method).reached().await;
        }
        assert_eq!(world.status(running).await, Status::Processing);
    }
    for id in waiting.into_iter().chain([delayed]) {
        assert_eq!(world.end(id).await.status, Status::Completed);
    }
    // Eight calls, three in each two seconds: the last ones go in the third window.
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(4) && took < PATIENCE,
        "{took:?}"
    );
    upstream.go(1);
    let job = world.end(running).await;
    assert_eq!((job.status, job.attempts), (Status::Completed, 1));
    assert_eq!(
        upstream.count(),
        8,
        "one of them twice, by its provider's word"
    );
}

async fn a_date_is_of_the_calendar_and_comes_when_the_wall_is_set_to_it(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Answer("then".to_owned())).await;
    let wall = Wall::new();
    let lease = Duration::from_secs(30);
    let world = World::by(wall.clock(), store, &upstream, "", lease).await;
    let dated = NewJob {
        not_before: Some(wall.0.now().wall + HOUR),
        ..job()
    };
    let id = world.runner.accept(dated).await.unwrap().id;
    assert_eq!(world.status(id).await, Status::Queued);
    wall.forth(HOUR);
    assert_eq!(world.end(id).await.status, Status::Completed);
}

/// Its turn came, it was not due and was handed out as due: again and again for that hour.
async fn a_date_that_is_to_come_again_is_waited_for(store: Arc<dyn Store>) {
    const MANY: usize = 1_000_000;
    let upstream = Upstream::start(|number| match number {
        0 => Act::Wait,
        _ => Act::Answer("then".to_owned()),
    })
    .await;
    let (wall, store) = (Wall::new(), FaultyStore::new(store));
    let lease = Duration::from_secs(30);
    let world = World::by(
        wall.clock(),
        store.clone(),
        &upstream,
        "concurrency = 1",
        lease,
    )
    .await;
    let running = world.accept().await;
    upstream.got(1).await;
    let dated = NewJob {
        not_before: Some(wall.0.now().wall),
        ..job()
    };
    let id = world.runner.accept(dated).await.unwrap().id;
    let lanes = store.lanes(wall.clock().now()).await.unwrap();
    assert_eq!(lanes[0].due, 1, "its time has come");
    wall.back(HOUR);
    let start = store.holds("start");
    upstream.go(1);
    start.reached().await;
    store.fails("start", MANY);
    drop(start);
    for _ in 0..3 {
        store.holds("tend").reached().await;
    }
    assert_eq!(store.fails_left("start"), MANY, "it is not asked again");
    store.fails("start", 0);
    assert_eq!(world.end(running).await.status, Status::Completed);
    assert_eq!(world.status(id).await, Status::Queued);
    wall.forth(HOUR);
    assert_eq!(world.end(id).await.status, Status::Completed);
}
