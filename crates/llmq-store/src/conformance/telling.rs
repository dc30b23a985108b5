use std::time::Duration;

use super::World;
use super::world::new_job;
use crate::{
    Attempted, Callback, Delivery, DeliveryState, Details, Endpoint, EndpointId, EventId,
    EventPage, NewEvent, NewJob, Settings, Subject, Target,
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

async fn due(world: &World) -> Vec<Delivery> {
    world
        .store
        .due_deliveries(100, HOLD, world.now)
        .await
        .unwrap()
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
    assert_eq!(store.next_delivery().await.unwrap(), None);
    let job = world.job().await;
    world.finish(job).await;
    assert_eq!(store.next_delivery().await.unwrap(), Some(world.now.wall));
    let first = due(&world).await.remove(0);
    assert!(due(&world).await.is_empty(), "somebody has it");
    world.advance(HOLD);
    assert_eq!(due(&world).await[0].id, first.id, "whoever had it is gone");
    let later = world.now.wall + 2 * HOLD;
    let attempt = |state| Attempted {
        delivery: first.id,
        state,
        outcome: "503".to_owned(),
    };
    store
        .delivered(vec![attempt(DeliveryState::Due(later))], world.now)
        .await
        .unwrap();
    assert_eq!(store.next_delivery().await.unwrap(), Some(later));
    world.advance(2 * HOLD);
    let again = due(&world).await.remove(0);
    assert_eq!(
        (again.attempts, again.last_outcome.as_deref()),
        (1, Some("503"))
    );
    assert_eq!(again.event, first.event);
    store
        .delivered(vec![attempt(DeliveryState::Delivered)], world.now)
        .await
        .unwrap();
    assert_eq!(store.next_delivery().await.unwrap(), None);
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
    assert_eq!(store.next_delivery().await.unwrap(), None);
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
    assert!(store.endpoints().await.unwrap().is_empty());
}
