//! The day's quota: whom its threshold stops, and what counts against it.

use llmq_core::{FailureClass, Priority};
use llmq_dispatch::{Call, Event, QueueId, UpstreamId, UpstreamSetup};
use llmq_limit::{QuotaConfig, QuotaMonitor};

use crate::world::{MINUTE, World, failure};

/// Work below `high` went through the pause that the threshold had made: a lane that waited for
/// the day to turn rose to `high` by its age, every twenty minutes.
#[test]
fn low_work_does_not_pass_the_thresholds_pause_by_growing_old() {
    let (mut world, queue, _) = with_quota(10);
    for _ in 0..8 {
        send(&mut world, queue);
    }
    for priority in [Priority::LOW, Priority::NORMAL] {
        world.submit(Call {
            priority,
            ..world.call(queue)
        });
    }
    world.advance(3 * 60 * MINUTE);
    assert_eq!(world.started(), [], "it waits for the day to turn");
    let high = world.submit(Call {
        priority: Priority::HIGH,
        ..world.call(queue)
    });
    assert_eq!(world.started(), [high]);
}

/// Every call that found no connection was counted, and so was each probe of the breaker: an
/// outage of a few hours reached the threshold without one request sent.
#[test]
fn what_was_never_sent_does_not_count_against_the_day() {
    let (mut world, queue, upstream) = with_quota(10);
    let used = |world: &World| {
        let quota = world.dispatcher.quota(upstream).expect("a quota");
        quota.metrics(world.now).requests_used_today
    };
    send(&mut world, queue);
    for _ in 0..4 {
        let call = world.submit(world.call(queue));
        let refused = failure(FailureClass::Transient, None);
        world.tell(Event::Ended(call, Box::new(refused)));
        world.tell(Event::Dropped(call));
    }
    assert_eq!(used(&world), 1, "no connection");
    let declined = world.submit(world.call(queue));
    world.tell(Event::Declined(declined));
    assert_eq!(used(&world), 1, "declined");
    let dropped = world.submit(world.call(queue));
    world.tell(Event::Dropped(dropped));
    assert_eq!(used(&world), 1, "dropped before it was sent");
    world.started();
    send(&mut world, queue);
    assert_eq!(used(&world), 2);
}

/// The threshold's pause ends when a call that reached it turns out to have never been sent.
#[test]
fn a_pause_that_an_unsent_call_made_ends_with_it() {
    let (mut world, queue, _) = with_quota(10);
    for _ in 0..7 {
        send(&mut world, queue);
    }
    let unsent = world.submit(world.call(queue));
    let waiting = world.submit(world.call(queue));
    assert_eq!(world.started(), [unsent]);
    world.tell(Event::Dropped(unsent));
    assert_eq!(world.started(), [waiting]);
}

/// One queue over one upstream that takes this many requests a day.
fn with_quota(daily_limit: u64) -> (World, QueueId, UpstreamId) {
    let mut world = World::new();
    let rules = QuotaConfig {
        daily_request_limit: Some(daily_limit),
        ..QuotaConfig::default()
    };
    let rules = rules.check().expect("rules");
    let setup = UpstreamSetup {
        name: "up".into(),
        quota: Some(QuotaMonitor::new(rules, world.now)),
        ..UpstreamSetup::default()
    };
    let upstream = world.dispatcher.add_upstream(setup, world.now);
    let queue = world.queue(upstream);
    (world, queue, upstream)
}

fn send(world: &mut World, queue: QueueId) {
    let call = world.submit(world.call(queue));
    assert_eq!(world.started(), [call]);
    world.complete(call);
}
