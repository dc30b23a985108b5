//! The day's quota: whom its threshold stops, and what counts against it.

use std::time::Duration;

use llmq_core::{FailureClass, Priority};
use llmq_dispatch::{Call, Effect, Event, Notice, QueueId, UpstreamId, UpstreamSetup};
use llmq_limit::{
    AdaptiveConfig, ChangeReason, PlainPolicy, QuotaConfig, QuotaEvent, QuotaMonitor,
};

use crate::world::{MINUTE, SECOND, World, failure};

const HOUR: Duration = Duration::from_secs(3_600);

/// What the monitor told, in order.
fn told(world: &World) -> Vec<&QuotaEvent> {
    let events = world.effects.iter().filter_map(|effect| match effect {
        Effect::Notice(Notice::Quota(_, event)) => Some(event),
        _ => None,
    });
    events.collect()
}

/// It was asked again after five minutes, and then once an hour, whatever was configured; and
/// nobody told that the pause was over.
#[test]
fn a_day_whose_end_nobody_names_lasts_as_configured_and_its_end_is_told() {
    let (mut world, queue, upstream) = with_quota(1_000);
    let calls = [(); 3].map(|()| world.submit(world.call(queue)));
    assert_eq!(world.started(), calls);
    for call in calls {
        world.fail(call, FailureClass::QuotaDay, None);
        world.advance(SECOND);
    }
    let until = world.now.mono + (HOUR * 24 - SECOND * 3);
    assert_eq!(
        world.dispatcher.upstream_view(upstream).closed,
        Some((FailureClass::QuotaDay, Some(until)))
    );
    world.advance(HOUR * 24 - SECOND * 4);
    assert_eq!(world.started(), [], "a second is left");
    world.advance(SECOND);
    assert_eq!(world.started(), calls);
    let [
        QuotaEvent::Paused(advice),
        QuotaEvent::Resumed { paused_for },
    ] = told(&world)[..]
    else {
        panic!("{:?}", told(&world));
    };
    assert_eq!(advice.reason.to_string(), "quota-day");
    assert_eq!(*paused_for, HOUR * 24);
    assert_eq!(world.dispatcher.upstream_view(upstream).closed, None);
}

#[test]
fn a_day_whose_end_is_named_lasts_until_then_or_until_a_person_opens_it() {
    let (mut world, queue, upstream) = with_quota(1_000);
    let call = world.submit(world.call(queue));
    world.started();
    world.fail(call, FailureClass::QuotaDay, Some(HOUR * 5));
    world.advance(HOUR * 5 - SECOND);
    assert_eq!(world.started(), []);
    // Up to a second of jitter.
    world.advance(SECOND * 2);
    assert_eq!(world.started(), [call]);
    world.fail(call, FailureClass::QuotaDay, Some(HOUR * 5));
    assert_eq!(world.started(), []);
    world.tell(Event::Reopen(upstream));
    assert_eq!(world.started(), [call]);
}

/// Nothing looked at the day's end unless a call waited for it: the upstream was out of service
/// until one came, and a load balancer sends none to a server that says so.
#[test]
fn a_used_up_day_ends_even_if_nobody_waits_for_that() {
    let (mut world, queue, upstream) = with_quota(1_000);
    let call = world.submit(Call {
        start_by: Some(world.now.mono + MINUTE),
        ..world.call(queue)
    });
    world.started();
    world.fail(call, FailureClass::QuotaDay, None);
    world.advance(HOUR * 23);
    assert!(!world.dispatcher.is_in_service(upstream, world.now));
    world.advance(HOUR);
    assert!(world.dispatcher.is_in_service(upstream, world.now));
    let ends = told(&world);
    assert!(
        matches!(
            ends[..],
            [QuotaEvent::Paused(_), QuotaEvent::Resumed { .. }]
        ),
        "{ends:?}"
    );
}

/// A place that is used again knew of a used-up day only after it had sent a call.
#[test]
fn a_used_up_day_is_known_from_the_start_wherever_the_upstream_stands() {
    let (mut world, _, upstream) = with_quota(10);
    let rules = QuotaConfig {
        daily_request_limit: Some(10),
        ..QuotaConfig::default()
    };
    let mut quota = QuotaMonitor::new(rules.check().expect("rules"), world.now);
    for _ in 0..10 {
        quota.record_request(world.now);
    }
    let setup = UpstreamSetup {
        quota: Some(quota),
        ..UpstreamSetup::default()
    };
    world
        .dispatcher
        .replace_upstream(upstream, setup, world.now);
    assert!(!world.dispatcher.is_in_service(upstream, world.now));
    world.advance(HOUR * 24);
    assert!(world.dispatcher.is_in_service(upstream, world.now));
}

/// It was taken for over within a minute, since it is looked at every minute.
#[test]
fn a_used_up_day_is_known_to_last_and_a_fallback_serves_meanwhile() {
    let (mut world, queue, _) = with_quota(1_000);
    let fallback = world.upstream(&[]);
    let fallback = world.queue(fallback);
    let call = world.submit(world.call(queue));
    world.started();
    world.fail(call, FailureClass::QuotaDay, None);
    let ends = world.now.mono + HOUR * 24;
    assert_eq!(world.dispatcher.could_start(call), Some(ends));
    world.dispatcher.set_fallback(queue, vec![fallback]);
    let in_haste = world.submit(Call {
        priority: Priority::HIGH,
        start_by: Some(world.now.mono + MINUTE * 5),
        ..world.call(queue)
    });
    assert_eq!(world.started(), [in_haste]);
}

/// The policy never heard of the day.
#[test]
fn the_plain_policy_sends_less_at_once_when_the_day_is_nearly_used() {
    let mut world = World::new();
    let rules = QuotaConfig {
        daily_request_limit: Some(1_000),
        pause_threshold: 1.0,
        ..QuotaConfig::default()
    };
    let mut quota = QuotaMonitor::new(rules.check().expect("rules"), world.now);
    for _ in 0..910 {
        quota.record_request(world.now);
    }
    let setup = UpstreamSetup {
        quota: Some(quota),
        adaptive: Some(AdaptiveConfig::Plain(PlainPolicy {
            initial: 8,
            ..PlainPolicy::default()
        })),
        ..UpstreamSetup::default()
    };
    let upstream = world.dispatcher.add_upstream(setup, world.now);
    let queue = world.queue(upstream);
    for _ in 0..10 {
        send(&mut world, queue);
    }
    let changes = world.effects.iter().filter_map(|effect| match effect {
        Effect::Notice(Notice::Concurrency(_, change)) => Some(*change),
        _ => None,
    });
    let changes: Vec<_> = changes.collect();
    assert_eq!(changes.len(), 1);
    assert_eq!(
        (changes[0].new, changes[0].reason),
        (6, ChangeReason::QuotaUse)
    );
}

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

/// A refusal for seconds over the threshold kept `high` work out until the day turned, and a
/// second one that lasted longer was not heeded.
#[test]
fn a_short_refusal_over_the_threshold_ends_when_the_provider_said() {
    let (mut world, queue, upstream) = with_quota(100);
    for _ in 0..80 {
        send(&mut world, queue);
    }
    let high = world.submit(Call {
        priority: Priority::HIGH,
        ..world.call(queue)
    });
    let low = world.submit(world.call(queue));
    assert_eq!(world.started(), [high]);
    for wait in [SECOND * 8, MINUTE * 30] {
        world.fail(high, FailureClass::QuotaDay, Some(wait));
        let closed = world.dispatcher.upstream_view(upstream).closed;
        let class = closed.map(|(class, _)| class);
        assert_eq!(class, Some(FailureClass::QuotaDay));
        assert_eq!(world.started(), []);
        // Up to a second of jitter.
        world.advance(wait + SECOND * 2);
        assert_eq!(world.started(), [high]);
    }
    world.complete(high);
    world.advance(HOUR);
    assert_eq!(world.started(), [], "the rest waits for the day to turn");
    world.advance(HOUR * 24);
    assert_eq!(world.started(), [low]);
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
