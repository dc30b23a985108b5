use llmq_core::{CallSize, Priority};

use super::*;

fn lane(queue: &str, priority: Priority, tenant: &str) -> Arc<Lane> {
    Arc::new(Lane {
        queue: queue.to_owned(),
        priority,
        tenant: tenant.to_owned(),
        key: None,
    })
}

fn jobs(places: std::ops::Range<u64>) -> Window {
    let waiting = |place| Waiting {
        job: JobId::new(),
        place: Place(place),
        size: CallSize::default(),
        attempts: 0,
        max_attempts: 5,
        throttles: 0,
        expires_at: None,
    };
    Window {
        jobs: places.map(waiting).collect(),
        due_at: None,
    }
}

fn lease(job: JobId) -> Lease {
    Lease {
        job,
        token: llmq_store::LeaseToken(1),
    }
}

#[test]
fn a_lane_is_read_on_when_its_window_is_half_empty_and_not_before() {
    let (mut table, lane) = (Table::default(), lane("m", Priority::NORMAL, "a"));
    table.came(&lane, Came::Somewhere);
    let wanted = table.begin_read(&lane).unwrap();
    assert_eq!((wanted.after, wanted.count), (None, QUEUE_MAX));
    let taken = table.read(&lane, wanted, &jobs(0..QUEUE_MAX as u64));
    assert_eq!(table.wanted(&lane), None);
    let mut asked_at = None;
    for (at, (waiting, _)) in taken.iter().enumerate() {
        if table.started(waiting.job, lease(waiting.job)).1.is_some() {
            asked_at = asked_at.or(Some(at + 1));
        }
    }
    assert_eq!(asked_at, Some(QUEUE_MAX / 2));
    let wanted = table.begin_read(&lane).unwrap();
    let last = Some(Place(QUEUE_MAX as u64 - 1));
    assert_eq!((wanted.after, wanted.count), (last, QUEUE_MAX));
    table.read(&lane, wanted, &jobs(0..0));
    assert_eq!(table.lanes.len(), 0, "a lane without jobs is forgotten");
}

/// The window is of those that wait: it bounds no provider.
#[test]
fn as_many_run_at_once_as_there_is_room_for() {
    let (mut table, lane) = (Table::default(), lane("m", Priority::NORMAL, "a"));
    let (mut running, mut place) = (0, 0);
    table.came(&lane, Came::Somewhere);
    while running < 10_000 {
        let wanted = table.begin_read(&lane).expect("there is room for more");
        let behind = place + wanted.count as u64;
        let taken = table.read(&lane, wanted, &jobs(place..behind));
        place = behind;
        for (waiting, _) in taken {
            table.started(waiting.job, lease(waiting.job));
            running += 1;
        }
    }
    assert_eq!(table.leases().len(), running);
}

#[test]
fn a_job_is_taken_up_once_however_often_it_is_read() {
    let (mut table, lane) = (Table::default(), lane("m", Priority::NORMAL, "a"));
    table.came(&lane, Came::Somewhere);
    let (wanted, window) = (table.begin_read(&lane).unwrap(), jobs(0..10));
    assert_eq!(table.read(&lane, wanted, &window).len(), 10);
    table.came(&lane, Came::Somewhere);
    let wanted = table.begin_read(&lane).unwrap();
    assert_eq!(wanted.after, None);
    assert_eq!(table.read(&lane, wanted, &window).len(), 0);
}

#[test]
fn a_better_newcomer_goes_in_and_the_worst_go_back() {
    let mut table = Table::default();
    let low = lane("m", Priority::LOW, "a");
    table.came(&low, Came::Somewhere);
    let wanted = table.begin_read(&low).unwrap();
    let taken = table.read(&low, wanted, &jobs(0..QUEUE_MAX as u64));
    let high = lane("m", Priority::HIGH, "a");
    table.came(&high, Came::Somewhere);
    let wanted = table.begin_read(&high).unwrap();
    assert_eq!(wanted.count, QUEUE_MAX / 2);
    assert_eq!(table.read(&high, wanted, &jobs(0..10)).len(), 10);
    let back: Vec<usize> = (0..taken.len())
        .filter(|at| taken[*at].1.is_cancelled())
        .collect();
    assert_eq!(back, (QUEUE_MAX - 10..QUEUE_MAX).collect::<Vec<_>>());
    // They are read again in their turn.
    for (waiting, _) in &taken {
        table.release(waiting.job);
    }
    let wanted = table.wanted(&low).unwrap();
    assert_eq!(wanted.after, Some(Place(QUEUE_MAX as u64 - 11)));
}

#[test]
fn every_lane_has_its_own_window_however_many_there_are() {
    let mut table = Table::default();
    for tenant in 0..1_000 {
        table.came(
            &lane("m", Priority::NORMAL, &tenant.to_string()),
            Came::Somewhere,
        );
    }
    let wanted = table.wanted(&lane("m", Priority::NORMAL, "7")).unwrap();
    assert_eq!(wanted.count, LANE_MIN);
}

#[test]
fn a_lane_is_looked_at_from_its_head_when_somebody_comes_due() {
    let (mut table, lane) = (Table::default(), lane("m", Priority::NORMAL, "a"));
    table.came(&lane, Came::Somewhere);
    let at = Timestamp::from_nanos(50);
    let window = Window {
        due_at: Some(at),
        ..jobs(5..6)
    };
    let wanted = table.begin_read(&lane).unwrap();
    table.read(&lane, wanted, &window);
    assert_eq!(table.due(Timestamp::from_nanos(49)), (vec![], Some(at)));
    assert_eq!(table.due(at), (vec![Arc::clone(&lane)], None));
    assert_eq!(table.wanted(&lane).unwrap().after, None);
}
