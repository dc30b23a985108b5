use std::time::Duration;

use super::World;
use super::world::new_job;
use crate::{
    Attempted, Callback, Delivery, DeliveryState, Details, Endpoint, EndpointId, EventId,
    EventPage, NewEvent, NewJob, NextTry, Settings, Subject, Take, Target,
};

const HOLD: Duration = Duration::from_secs(60);

fn endpoint(tenant: Option<&str>, events: &[&str]) -> Endpoint {
    Endpoint {
        id: EndpointId::new(),
        tenant: tenant.map(str::to_owned),
        url: "https://example.com/hook".to_owned(),
        events: events.iter().map(|&event| event.to_owned()).collect(),
        disabled: false,
        state: serde_json::json!({"failing_since": null}),
        created_at: llmq_core::WallTime::default(),
    }
}

fn quota_warning() -> NewEvent {
    NewEvent {
        kind: "quota.warning".to_owned(),
        tenant: None,
        subject: Subject::Other("openai".to_owned()),
        data: serde_json::json!({"used": 0.6}),
    }
}

const TAKE: Take = Take {
    max: 100,
    each: 100,
    each_failing: 100,
    hold: HOLD,
};

async fn due(world: &World) -> Vec<Delivery> {
    world
        .store
        .due_deliveries(TAKE, world.now)
        .await
        .unwrap()
        .deliveries
}

/// How long it is until something is due.
async fn wait(world: &World) -> Option<Duration> {
    let none = Take { max: 0, ..TAKE };
    let due = world.store.due_deliveries(none, world.now).await.unwrap();
    due.wait
}

fn attempt(delivery: &Delivery, next: NextTry) -> Attempted {
    Attempted {
        delivery: delivery.id,
        next,
        outcome: "503".to_owned(),
    }
}

pub async fn every_change_is_told_once_and_in_order(world: World) {
    let mut newest = world.store.newest_event();
    assert_eq!(*newest.borrow_and_update(), EventId(0));
    let job = world.job().await;
    world.finish(job).await;
    world
        .store
        .publish(vec![quota_warning()], world.now)
        .await
        .unwrap();
    let many = (0..1500).map(|_| new_job()).collect();
    world.store.enqueue(many, world.now).await.unwrap();
    newest.changed().await.unwrap();
    let told = world.events(EventId(0)).await;
    let numbers: Vec<_> = told.iter().map(|told| told.id.0).collect();
    assert_eq!(numbers, (1..=1504).collect::<Vec<_>>());
    assert_eq!(*world.store.newest_event().borrow(), EventId(1504));
    let kinds: Vec<_> = told[..5]
        .iter()
        .map(|told| told.event.kind.as_str())
        .collect();
    let queued = "request.queued";
    assert_eq!(
        kinds,
        [
            queued,
            "request.started",
            "request.completed",
            "quota.warning",
            queued
        ]
    );
    assert_eq!(told[3].event, quota_warning());
    assert_eq!(told[2].at, world.now.wall);
    let Subject::Job {
        id,
        queue,
        status,
        attempts,
    } = &told[2].event.subject
    else {
        panic!("{:?}", told[2]);
    };
    assert_eq!((*id, queue.as_str(), *attempts), (job, "m", 1));
    assert!(status.is_final());
    assert_eq!(told[2].event.tenant.as_deref(), Some("t"));
    assert_eq!(world.events(EventId(1500)).await, told[1500..]);
    let EventPage::Events(two) = world.store.events(EventId(1), 2).await.unwrap() else {
        panic!("nothing was let go");
    };
    assert_eq!(two, told[1..3]);
}

pub async fn old_events_leave_a_gap_that_is_said(world: World) {
    let mut world = world
        .with(Settings {
            max_events: 10,
            ..Settings::default()
        })
        .await;
    for _ in 0..30 {
        world.job().await;
    }
    world.tend().await;
    let page = world.store.events(EventId(3), 100).await.unwrap();
    assert_eq!(
        page,
        EventPage::Gap {
            oldest: EventId(21)
        }
    );
    assert_eq!(world.events(EventId(20)).await.len(), 10);
    world.advance(Duration::from_secs(24 * 60 * 60));
    world.tend().await;
    world.job().await;
    assert_eq!(world.events(EventId(30)).await[0].id, EventId(31));
    let page = world.store.events(EventId(20), 100).await.unwrap();
    assert!(matches!(page, EventPage::Gap { .. }));
}

pub async fn the_end_of_a_job_is_delivered_to_those_who_ask(world: World) {
    let store = &world.store;
    let (all, batches, other, mine) = (
        endpoint(None, &[]),
        endpoint(None, &["batch.*"]),
        endpoint(Some("other"), &["request.*"]),
        endpoint(Some("t"), &["request.completed"]),
    );
    for endpoint in [&all, &batches, &other, &mine] {
        store
            .put_endpoint(endpoint.clone(), None, world.now)
            .await
            .unwrap();
    }
    assert_eq!(store.endpoints().await.unwrap().len(), 4);
    let callback = Callback {
        url: "https://example.com/done".to_owned(),
        signed_by: None,
    };
    let job = NewJob {
        details: Details {
            callback: Some(callback.clone()),
            ..Details::default()
        },
        ..new_job()
    };
    let job = world.accept(job).await;
    world.finish(job).await;
    let told = due(&world).await;
    let mut targets: Vec<_> = told.iter().map(|told| told.target.clone()).collect();
    targets.sort_by_key(|target| format!("{target:?}"));
    let mut wanted = vec![
        Target::Callback(callback),
        Target::Endpoint(all.id),
        Target::Endpoint(mine.id),
    ];
    wanted.sort_by_key(|target| format!("{target:?}"));
    assert_eq!(targets, wanted);
    let ended = world.events(EventId(2)).await.remove(0);
    assert!(
        told.iter()
            .all(|told| told.event == ended && told.attempts == 0)
    );
    world
        .store
        .publish(vec![quota_warning()], world.now)
        .await
        .unwrap();
    let told = due(&world).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].target, Target::Endpoint(all.id));
}

pub async fn a_delivery_is_held_and_repeated(mut world: World) {
    let store = std::sync::Arc::clone(&world.store);
    let target = endpoint(None, &[]);
    store
        .put_endpoint(target.clone(), None, world.now)
        .await
        .unwrap();
    assert_eq!(wait(&world).await, None);
    let job = world.job().await;
    world.finish(job).await;
    assert_eq!(wait(&world).await, Some(Duration::ZERO));
    let first = due(&world).await.remove(0);
    assert!(due(&world).await.is_empty(), "somebody has it");
    assert_eq!(wait(&world).await, Some(HOLD));
    world.advance(HOLD);
    assert_eq!(due(&world).await[0].id, first.id, "whoever had it is gone");
    store
        .delivered(vec![attempt(&first, NextTry::After(2 * HOLD))], world.now)
        .await
        .unwrap();
    assert_eq!(wait(&world).await, Some(2 * HOLD));
    let shown = store.delivery(first.id).await.unwrap().unwrap();
    assert_eq!(shown.state, DeliveryState::Due(world.now.wall + 2 * HOLD));
    world.advance(2 * HOLD);
    let again = due(&world).await.remove(0);
    assert_eq!(
        (again.attempts, again.last_outcome.as_deref()),
        (1, Some("503"))
    );
    assert_eq!(again.event, first.event);
    store
        .delivered(vec![attempt(&first, NextTry::Delivered)], world.now)
        .await
        .unwrap();
    assert_eq!(wait(&world).await, None);
    let kept = store.delivery(first.id).await.unwrap().unwrap();
    assert_eq!((kept.state, kept.attempts), (DeliveryState::Delivered, 2));
    assert_eq!(kept.last_attempt_at, Some(world.now.wall));
    assert!(store.redeliver(first.id, world.now).await.unwrap());
    assert_eq!(due(&world).await[0].event, first.event);
    assert!(
        !store
            .redeliver(crate::DeliveryId(1_000_000), world.now)
            .await
            .unwrap()
    );
    for _ in 0..3 {
        let job = world.job().await;
        world.finish(job).await;
    }
    let listed = store.deliveries(Some(target.id), None, 2).await.unwrap();
    assert!(listed[0].id > listed[1].id);
    let rest = store
        .deliveries(Some(target.id), Some(listed[1].id), 10)
        .await
        .unwrap();
    assert_eq!(rest.len(), 2);
    let others = store
        .deliveries(Some(EndpointId::new()), None, 10)
        .await
        .unwrap();
    assert!(others.is_empty());
}

/// Jobs that end, so that endpoints are told.
async fn end_jobs(world: &World, count: usize) {
    for _ in 0..count {
        let job = world.job().await;
        world.finish(job).await;
    }
}

async fn put(world: &World, endpoint: &Endpoint) {
    let put = world.store.put_endpoint(endpoint.clone(), None, world.now);
    put.await.unwrap();
}

/// How many of `deliveries` go to `endpoint`.
fn to(deliveries: &[Delivery], endpoint: &Endpoint) -> usize {
    let target = Target::Endpoint(endpoint.id);
    let to_it = deliveries.iter().filter(|one| one.target == target);
    to_it.count()
}

pub async fn one_that_takes_nothing_delays_nobody(mut world: World) {
    let (dead, sound) = (endpoint(None, &[]), endpoint(None, &[]));
    put(&world, &dead).await;
    end_jobs(&world, 30).await;
    put(&world, &sound).await;
    world.advance(Duration::from_secs(1));
    end_jobs(&world, 2).await;
    let take = Take {
        max: 20,
        each: 10,
        each_failing: 1,
        ..TAKE
    };
    let store = std::sync::Arc::clone(&world.store);
    let first = store.due_deliveries(take, world.now).await.unwrap();
    assert_eq!(
        (to(&first.deliveries, &dead), to(&first.deliveries, &sound)),
        (10, 2),
        "the longest due do not keep all that is taken for themselves"
    );
    // None of it has come back, so there is nothing to be taken of what is due.
    let none = store.due_deliveries(take, world.now).await.unwrap();
    assert_eq!((none.deliveries.len(), none.wait), (0, Some(HOLD)));
    let failed = first.deliveries.iter().map(|one| match &one.target {
        target if *target == Target::Endpoint(dead.id) => {
            attempt(one, NextTry::After(Duration::from_secs(5)))
        }
        _ => attempt(one, NextTry::Delivered),
    });
    store.delivered(failed.collect(), world.now).await.unwrap();
    let next = store.due_deliveries(take, world.now).await.unwrap();
    assert_eq!(
        next.deliveries.len(),
        1,
        "one that failed is tried with one"
    );
    let taken = attempt(&next.deliveries[0], NextTry::Delivered);
    store.delivered(vec![taken], world.now).await.unwrap();
    let next = store.due_deliveries(take, world.now).await.unwrap();
    assert_eq!(next.deliveries.len(), 10, "it takes again");
}

pub async fn callbacks_to_one_host_stand_in_one_line(world: World) {
    for n in 0..5 {
        let job = NewJob {
            details: Details {
                callback: Some(Callback {
                    url: format!("https://example.com/done/{n}"),
                    signed_by: None,
                }),
                ..Details::default()
            },
            ..new_job()
        };
        let job = world.accept(job).await;
        world.finish(job).await;
    }
    let take = Take { each: 3, ..TAKE };
    let due = world.store.due_deliveries(take, world.now).await.unwrap();
    assert_eq!(due.deliveries.len(), 3);
}

pub async fn for_more_than_may_wait_the_oldest_is_given_up(world: World) {
    let world = world
        .with(Settings {
            max_deliveries: 3,
            ..Settings::default()
        })
        .await;
    let target = endpoint(None, &[]);
    put(&world, &target).await;
    end_jobs(&world, 1).await;
    let tried = due(&world).await.remove(0);
    end_jobs(&world, 4).await;
    let all = world.store.deliveries(Some(target.id), None, 10).await;
    let mut states: Vec<_> = all.unwrap().into_iter().map(|one| one.state).collect();
    states.reverse();
    let waits = DeliveryState::Due(world.now.wall);
    let gone = DeliveryState::GivenUp;
    assert_eq!(
        states,
        [waits, gone, gone, waits, waits],
        "the one that is being tried is not taken from whoever tries it"
    );
    let given_up = world.store.deliveries(Some(target.id), None, 10).await;
    let outcome = given_up.unwrap()[2].last_outcome.clone();
    assert_eq!(outcome.as_deref(), Some("too many wait"));
    let done = vec![attempt(&tried, NextTry::Delivered)];
    world.store.delivered(done, world.now).await.unwrap();
    assert_eq!(due(&world).await.len(), 2);
}

pub async fn a_jump_of_the_wall_moves_no_delivery(mut world: World) {
    let day = Duration::from_secs(24 * 60 * 60);
    let target = endpoint(None, &[]);
    put(&world, &target).await;
    end_jobs(&world, 1).await;
    let first = due(&world).await.remove(0);
    let later = vec![attempt(&first, NextTry::After(HOLD))];
    world.store.delivered(later, world.now).await.unwrap();
    let wall = world.now.wall;
    world.now.wall = wall + day;
    assert!(due(&world).await.is_empty());
    assert_eq!(wait(&world).await, Some(HOLD));
    world.tend().await;
    let shown = world.store.delivery(first.id).await.unwrap().unwrap();
    assert_eq!(shown.state, DeliveryState::Due(world.now.wall + HOLD));
    world.advance(HOLD);
    world.now.wall = wall.before(day);
    assert_eq!(due(&world).await.len(), 1);
    // Nor does one move how long it is held.
    world.now.wall = wall + day;
    assert!(due(&world).await.is_empty());
    end_jobs(&world, 1).await;
    world.now.wall = wall.before(2 * day);
    assert_eq!(due(&world).await.len(), 1);
}

pub async fn what_a_disabled_endpoint_does_not_ask_for_is_given_up(mut world: World) {
    let mut target = endpoint(None, &[]);
    put(&world, &target).await;
    end_jobs(&world, 3).await;
    target.disabled = true;
    put(&world, &target).await;
    world.advance(Settings::default().keep_results);
    world.tend().await;
    let kept = world.store.deliveries(Some(target.id), None, 10).await;
    let kept = kept.unwrap();
    assert_eq!(kept.len(), 3);
    assert!(kept.iter().all(|one| one.state == DeliveryState::GivenUp));
    target.disabled = false;
    put(&world, &target).await;
    assert!(due(&world).await.is_empty());
    assert!(world.store.redeliver(kept[0].id, world.now).await.unwrap());
    assert_eq!(due(&world).await.len(), 1);
    world.advance(Settings::default().keep_results);
    world.tend().await;
    let kept = world.store.deliveries(Some(target.id), None, 10).await;
    assert_eq!(kept.unwrap().len(), 1, "it still waits");
}

pub async fn a_disabled_endpoint_waits_and_a_deleted_one_is_forgotten(world: World) {
    let store = &world.store;
    let mut target = endpoint(None, &[]);
    store
        .put_endpoint(target.clone(), None, world.now)
        .await
        .unwrap();
    let job = world.job().await;
    world.finish(job).await;
    target.disabled = true;
    let event = NewEvent {
        kind: "webhook.disabled".to_owned(),
        ..quota_warning()
    };
    store
        .put_endpoint(target.clone(), Some(event.clone()), world.now)
        .await
        .unwrap();
    assert_eq!(world.events(EventId(3)).await[0].event, event);
    assert!(due(&world).await.is_empty());
    assert_eq!(wait(&world).await, None);
    let job = world.job().await;
    world.finish(job).await;
    target.disabled = false;
    store
        .put_endpoint(target.clone(), None, world.now)
        .await
        .unwrap();
    assert_eq!(
        due(&world).await.len(),
        1,
        "nothing was added while it was disabled"
    );
    assert!(store.delete_endpoint(target.id).await.unwrap());
    assert!(!store.delete_endpoint(target.id).await.unwrap());
    assert!(store.deliveries(None, None, 10).await.unwrap().is_empty());
    assert!(due(&world).await.is_empty());
    let redelivered = store.redeliver(crate::DeliveryId(1), world.now).await;
    assert!(!redelivered.unwrap());
    assert!(store.endpoints().await.unwrap().is_empty());
    world.tend().await;
    assert!(store.deliveries(None, None, 10).await.unwrap().is_empty());
}
