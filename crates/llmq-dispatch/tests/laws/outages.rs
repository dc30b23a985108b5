//! Upstreams that are broken or closed: whom that stops, and how they come back.

use std::collections::BTreeMap;

use llmq_core::{FailureClass, Pause, Priority};
use llmq_dispatch::{
    Call, CallKind, Effect, Ended, Event, Notice, QueueId, QueueSetup, Route, TicketId, UpstreamId,
    UpstreamSetup,
};

use crate::world::{MINUTE, SECOND, World, failure};

#[test]
fn a_broken_upstream_is_asked_by_one_probe_at_a_time_and_comes_back() {
    let (mut world, queue, upstream) = World::simple(&[]);
    let calls: Vec<TicketId> = (0..20).map(|_| world.submit(world.call(queue))).collect();
    world.started();
    for call in &calls[..6] {
        world.fail(*call, FailureClass::Transient, None);
    }
    assert!(
        world
            .effects
            .iter()
            .any(|e| matches!(e, Effect::Notice(Notice::BreakerOpened(u)) if *u == upstream))
    );
    for call in &calls[6..] {
        world.complete(*call);
    }
    world.advance(SECOND * 3);
    let probes = world.started();
    assert_eq!(probes.len(), 1, "one probe");
    world.complete(probes[0]);
    assert!(
        world
            .effects
            .iter()
            .any(|e| matches!(e, Effect::Notice(Notice::BreakerClosed(_))))
    );
    world.advance(SECOND);
    assert_eq!(world.started().len(), 5);
}

/// Calls that hung through an outage timed out after it was over, and shut the upstream again.
#[test]
fn failures_of_calls_from_before_an_outage_do_not_shut_the_upstream_again() {
    let (mut world, queue, upstream) = World::simple(&[]);
    let calls: Vec<TicketId> = (0..40).map(|_| world.submit(world.call(queue))).collect();
    world.started();
    for call in &calls {
        world.sent(*call);
    }
    let lost = |ticket| Event::Ended(ticket, Box::new(failure(FailureClass::Ambiguous, None)));
    for call in &calls[..10] {
        world.tell(lost(*call));
    }
    world.advance(SECOND * 3);
    let probe = world.started()[0];
    world.complete(probe);
    for call in &calls[20..] {
        world.tell(lost(*call));
    }
    assert_eq!(
        world.dispatcher.upstream_view(upstream).breaker,
        llmq_limit::BreakerState::Closed
    );
}

#[test]
fn an_outage_of_any_length_ends_no_stored_call() {
    // The first of a line is the breaker's probe each time. Its probes were counted as throttles,
    // and after the twentieth, five minutes into an outage, it had failed for good.
    let (mut world, queue, _) = World::simple(&[]);
    let calls: Vec<TicketId> = (0..3)
        .map(|_| {
            world.submit(Call {
                kind: CallKind::Stored,
                ..world.call(queue)
            })
        })
        .collect();
    for _ in 0..100 {
        for call in world.started() {
            world.fail(call, FailureClass::Transient, None);
        }
        world.advance(SECOND * 20);
    }
    let ended = |effect: &Effect| matches!(effect, Effect::Failed { .. });
    assert!(!world.effects.iter().any(ended));
    for _ in 0..3 {
        world.advance(SECOND * 20);
        for call in world.started() {
            world.complete(call);
        }
    }
    let completed = |call: &TicketId| {
        let is =
            |effect: &Effect| matches!(effect, Effect::Completed { ticket, .. } if ticket == call);
        world.effects.iter().any(is)
    };
    assert!(calls.iter().all(completed));
}

#[test]
fn a_probe_ends_no_stored_call_however_often_it_was_throttled_before() {
    let (mut world, queue, _) = World::simple(&[]);
    let calls: Vec<TicketId> = (0..5).map(|_| world.submit(world.call(queue))).collect();
    for call in calls {
        world.fail(call, FailureClass::Transient, None);
    }
    let kept = world.submit(Call {
        kind: CallKind::Stored,
        throttles: 43,
        priority: Priority::CRITICAL,
        ..world.call(queue)
    });
    world.started();
    world.advance(SECOND * 2);
    assert_eq!(world.started(), [kept], "it is the probe");
    world.fail(kept, FailureClass::Overload, None);
    let ended =
        |effect: &Effect| matches!(effect, Effect::Failed { ticket, .. } if *ticket == kept);
    assert!(!world.effects.iter().any(ended));
}

/// Whatever waited was asked again each time, and had failed for good after twenty times: a night
/// without money.
#[test]
fn an_empty_account_ends_no_stored_call_however_long_it_is_empty() {
    let (mut world, queue, _) = World::simple(&[]);
    let stored = Call {
        kind: CallKind::Stored,
        ..world.call(queue)
    };
    let calls: Vec<TicketId> = (0..3).map(|_| world.submit(stored)).collect();
    for _ in 0..50 {
        assert_eq!(world.started(), calls);
        for call in &calls {
            world.fail(*call, FailureClass::Money, None);
        }
        world.advance(MINUTE * 70);
    }
    for call in calls {
        assert!(world.dispatcher.standing(call).expect("in line").throttles <= 1);
        world.complete(call);
    }
    let ended = |effect: &Effect| matches!(effect, Effect::Failed { .. });
    assert!(!world.effects.iter().any(ended));
}

/// An account may have too little left for one call and enough for the others.
#[test]
fn a_call_that_alone_asks_for_more_than_there_is_fails_as_after_any_throttle() {
    let (mut world, queue, _) = World::simple(&[]);
    let dear = world.submit(Call {
        kind: CallKind::Stored,
        ..world.call(queue)
    });
    let failed =
        |effect: &Effect| matches!(effect, Effect::Failed { ticket, .. } if *ticket == dear);
    let mut refusals = 0;
    while !world.effects.iter().any(failed) {
        let other = world.submit(world.call(queue));
        assert_eq!(world.started(), [dear, other]);
        world.complete(other);
        world.fail(dear, FailureClass::Money, None);
        refusals += 1;
        world.advance(MINUTE * 6);
    }
    assert_eq!(refusals, 20);
}

/// It had failed for good, though the upstream that had failed it once served all others.
#[test]
fn a_call_goes_back_to_an_upstream_that_failed_it_where_the_other_one_refuses_the_key() {
    for max_attempts in [1, 3] {
        let mut world = World::new();
        let [refusing, failing] = [(); 2].map(|()| world.upstream(&[]));
        let route = |upstream, weight| Route { upstream, weight };
        let queue = world.dispatcher.add_queue(QueueSetup {
            routes: vec![route(refusing, 1.0), route(failing, 1e9)],
            max_attempts,
            ..QueueSetup::to("m", refusing)
        });
        let call = world.submit(world.call(queue));
        let asked = |world: &mut World| {
            let starts = world.effects.iter().filter_map(|effect| match effect {
                Effect::Start(start) => Some(start.upstream),
                _ => None,
            });
            let asked: Vec<UpstreamId> = starts.collect();
            world.started();
            asked
        };
        assert_eq!(asked(&mut world), [failing]);
        world.fail(call, FailureClass::Transient, None);
        assert_eq!(asked(&mut world), [refusing]);
        world.fail(call, FailureClass::NoAccess, None);
        let back: &[UpstreamId] = if max_attempts > 1 { &[failing] } else { &[] };
        assert_eq!(asked(&mut world), back, "as long as it has attempts");
    }
}

#[test]
fn a_refused_key_stops_everything_that_uses_it() {
    let (mut world, queues, upstreams) = two_of_one_credential();
    let call = world.submit(world.call(queues[0]));
    world.started();
    world.fail(call, FailureClass::NoAccess, None);
    world.submit(world.call(queues[1]));
    assert_eq!(world.started(), []);
    world.tell(Event::Reopen(upstreams[1]));
    assert_eq!(world.started().len(), 1);
}

/// The timer of a gate went with the last call that waited there: the upstream was out until
/// somebody came and stood there when its time was over, and a fallback served meanwhile.
#[test]
fn a_pause_ends_at_its_time_even_if_nobody_waits_for_that() {
    let (mut world, queue, upstreams) = World::with_fallback(3);
    let refused = world.submit(world.call(queue));
    world.started();
    world.fail(refused, FailureClass::Money, None);
    assert_eq!(world.started(), [refused], "by the fallback");
    world.complete(refused);
    assert!(!world.dispatcher.is_in_service(upstreams[0], world.now));
    // Five, and a tenth of jitter.
    world.advance(MINUTE * 6);
    assert!(world.dispatcher.is_in_service(upstreams[0], world.now));
    let reopened = world.effects.iter().any(|effect| {
        matches!(effect, Effect::Notice(Notice::UpstreamReopened { upstream, .. }) if *upstream == upstreams[0])
    });
    assert!(reopened);
    world.submit(world.call(queue));
    let by = world.effects.iter().find_map(|effect| match effect {
        Effect::Start(start) => Some(start.upstream),
        _ => None,
    });
    assert_eq!(by, Some(upstreams[0]));
}

/// Who had read that an upstream pauses read nothing of its end.
#[test]
fn the_end_of_a_pause_is_told_with_how_long_it_was() {
    let (mut world, queue, upstream) = World::simple(&[]);
    let ends = |world: &World| -> Vec<_> {
        let ends = world.effects.iter().filter_map(|effect| match effect {
            Effect::Notice(Notice::UpstreamReopened {
                upstream,
                class,
                closed_for,
            }) => Some((*upstream, *class, *closed_for)),
            _ => None,
        });
        ends.collect()
    };
    let call = world.submit(world.call(queue));
    world.fail(call, FailureClass::QuotaWindow, Some(SECOND * 10));
    assert_eq!(ends(&world), []);
    world.advance(SECOND * 9);
    assert_eq!(ends(&world), []);
    // What was named, and up to a second of jitter.
    world.advance(SECOND * 2);
    let [(_, FailureClass::QuotaWindow, closed_for)] = ends(&world)[..] else {
        panic!("{:?}", ends(&world));
    };
    assert!((SECOND * 10..=SECOND * 11).contains(&closed_for));
    world.effects.clear();
    world.fail(call, FailureClass::NoAccess, None);
    world.advance(MINUTE);
    world.tell(Event::Reopen(upstream));
    assert_eq!(ends(&world), [(upstream, FailureClass::NoAccess, MINUTE)]);
}

#[test]
fn a_refused_model_leaves_the_others_of_its_credential_alone() {
    // A model that the account may not use closed every model of the account.
    let (mut world, queues, upstreams) = two_of_one_credential();
    let call = world.submit(world.call(queues[0]));
    assert_eq!(world.started(), [call]);
    world.sent(call);
    let ended = Ended {
        pause: Some(Pause::Upstream),
        ..failure(FailureClass::NoAccess, None)
    };
    world.tell(Event::Ended(call, Box::new(ended)));
    world.submit(world.call(queues[0]));
    assert_eq!(world.started(), [], "this model is closed");
    let other = world.submit(world.call(queues[1]));
    assert_eq!(world.started(), [other], "the other one is not");
    let closed = upstreams.map(|upstream| world.dispatcher.upstream_view(upstream).closed);
    let until = world.now.mono + MINUTE * 5;
    assert_eq!(closed, [Some((FailureClass::NoAccess, Some(until))), None]);
}

/// A refusal that is perhaps this one call's fault.
fn perhaps_its_own() -> Ended {
    Ended {
        pause: Some(Pause::Upstream),
        may_be_the_calls: true,
        ..failure(FailureClass::NoAccess, None)
    }
}

/// One caller's call of a path that the server lacks closed the model to all, for ever.
#[test]
fn what_one_call_misses_closes_nothing_that_has_answered_another() {
    let (mut world, queue, _) = World::simple(&[]);
    let first = world.submit(world.call(queue));
    world.complete(first);
    let strange = world.submit(world.call(queue));
    world.sent(strange);
    world.tell(Event::Ended(strange, Box::new(perhaps_its_own())));
    let failed =
        |effect: &Effect| matches!(effect, Effect::Failed { ticket, .. } if *ticket == strange);
    assert!(world.effects.iter().any(failed));
    world.started();
    let next = world.submit(world.call(queue));
    assert_eq!(world.started(), [next]);
    world.fail(next, FailureClass::NoAccess, None);
    world.submit(world.call(queue));
    assert_eq!(world.started(), [], "a refused key is");
}

#[test]
fn what_was_refused_and_is_no_key_is_tried_again_by_one_call() {
    let (mut world, queue, _) = World::simple(&[]);
    let first = world.submit(world.call(queue));
    world.started();
    world.sent(first);
    world.tell(Event::Ended(first, Box::new(perhaps_its_own())));
    let waiting: Vec<TicketId> = (0..3).map(|_| world.submit(world.call(queue))).collect();
    for refused in &waiting[..2] {
        world.advance(MINUTE * 4);
        assert_eq!(world.started(), []);
        world.advance(MINUTE + SECOND);
        assert_eq!(world.started(), [*refused], "one call");
        world.sent(*refused);
        let still = Event::Ended(*refused, Box::new(perhaps_its_own()));
        world.tell(still);
    }
    world.advance(MINUTE * 6);
    assert_eq!(world.started(), [waiting[2]]);
    let newcomer = world.submit(world.call(queue));
    assert_eq!(world.started(), []);
    world.complete(waiting[2]);
    assert_eq!(world.started(), [newcomer]);
}

/// A stream that ran on kept the upstream shut for as long as it took, though it was up. Before
/// that the end of such a call ended the trial: all that waited started at once, to be refused one
/// by one.
#[test]
fn a_call_from_before_the_refusal_neither_hinders_nor_decides_a_trial() {
    let (mut world, queue, _) = World::simple(&[]);
    let [streams, refused] = [(); 2].map(|()| world.submit(world.call(queue)));
    assert_eq!(world.started(), [streams, refused]);
    world.sent(refused);
    world.tell(Event::Ended(refused, Box::new(perhaps_its_own())));
    let waiting = [(); 4].map(|()| world.submit(world.call(queue)));
    world.advance(MINUTE * 6);
    assert_eq!(world.started(), [waiting[0]], "one call tries");
    world.tell(Event::Dropped(waiting[0]));
    assert_eq!(world.started(), [waiting[1]], "nothing came of it");
    world.complete(streams);
    assert_eq!(world.started(), []);
    world.complete(waiting[1]);
    assert_eq!(world.started(), waiting[2..]);
}

/// A key was revoked and another one configured: the refusal of a call that was still under way
/// with the old one closed the upstream to the new one.
#[test]
fn a_refused_key_stops_nothing_that_uses_another_one_by_now() {
    let (mut world, queues, upstreams) = two_of_one_credential();
    let call = world.submit(world.call(queues[0]));
    assert_eq!(world.started(), [call]);
    let renewed = UpstreamSetup {
        name: "a".into(),
        credential: Some(2),
        ..UpstreamSetup::default()
    };
    let now = world.now;
    let _ = world.dispatcher.change_upstream(upstreams[0], renewed, now);
    world.fail(call, FailureClass::NoAccess, None);
    let other = world.submit(world.call(queues[0]));
    assert_eq!(world.started(), [other]);
    world.submit(world.call(queues[1]));
    assert_eq!(world.started(), [], "the old one is refused");
}

/// Two upstreams that use one credential, each under a queue of its own.
fn two_of_one_credential() -> (World, [QueueId; 2], [UpstreamId; 2]) {
    let mut world = World::new();
    let now = world.now;
    let upstreams = ["a", "b"].map(|name| {
        let setup = UpstreamSetup {
            name: name.into(),
            credential: Some(1),
            ..UpstreamSetup::default()
        };
        world.dispatcher.add_upstream(setup, now)
    });
    let queues = upstreams.map(|upstream| world.queue(upstream));
    (world, queues, upstreams)
}

/// Without a stated limit nothing held back those that waited for the end of a 429: all of them
/// went in the instant in which the upstream opened, and all but the first few were refused again.
#[test]
fn after_a_429_of_an_unknown_limit_the_first_in_line_goes_alone_and_each_round_doubles() {
    let mut world = World::new();
    let other = world.dispatcher.add_tenant(1.0, Vec::new());
    let upstream = world.upstream(&[]);
    let queue = world.queue(upstream);
    let refused = world.submit(Call {
        priority: Priority::LOW,
        ..world.call(queue)
    });
    world.started();
    world.fail(refused, FailureClass::QuotaWindow, Some(SECOND * 10));
    // The least urgent come first, and two tenants take turns within each priority.
    let mut in_line = BTreeMap::new();
    for (rank, priority) in [Priority::LOW, Priority::NORMAL, Priority::HIGH]
        .into_iter()
        .enumerate()
    {
        for (side, tenant) in [world.tenant, other].into_iter().enumerate() {
            for _ in 0..10 {
                let call = Call {
                    priority,
                    tenant,
                    ..world.call(queue)
                };
                in_line.insert(world.submit(call), (2 - rank, side));
            }
        }
    }
    in_line.insert(refused, (2, 0));
    assert_eq!(world.started(), []);
    // What was named, and up to a second of jitter.
    let mut started = Vec::new();
    while started.is_empty() {
        world.advance(SECOND / 10);
        started = world.started();
    }
    let mut order = Vec::new();
    for round in [1, 2, 4, 8, 16, 30] {
        assert_eq!(started.len(), round, "after {}", order.len());
        order.extend(started.iter().map(|ticket| in_line[ticket]));
        for ticket in started {
            world.complete(ticket);
        }
        started = world.started();
    }
    let by_priority = order.iter().map(|(rank, _)| *rank);
    assert!(by_priority.is_sorted(), "{order:?}");
    for turns in order.chunks(2).take(30) {
        let sides: Vec<usize> = turns.iter().map(|(_, side)| *side).collect();
        assert!(sides == [0, 1] || sides == [1, 0], "{order:?}");
    }
}

#[test]
fn another_429_of_an_unknown_limit_begins_it_anew_and_slow_answers_only_slow_it_down() {
    let (mut world, queue, _) = World::simple(&[]);
    let mut refused = world.submit(world.call(queue));
    world.started();
    world.fail(refused, FailureClass::QuotaWindow, Some(SECOND * 10));
    for _ in 0..100 {
        world.submit(world.call(queue));
    }
    // What was named, and up to a second of jitter.
    for _ in 0..3 {
        world.advance(SECOND * 9);
        assert_eq!(world.started(), []);
        world.advance(SECOND * 2 - SECOND / 1_000);
        let started = world.started();
        assert!(matches!(started.len(), 1 | 2), "{started:?}");
        for probe in started {
            world.fail(probe, FailureClass::QuotaWindow, Some(SECOND * 10));
            refused = probe;
        }
    }
    // Nothing is answered, and nothing refused: twice as many have gone each second.
    world.advance(SECOND * 11);
    let mut gone = world.started().len();
    while gone < 100 {
        world.advance(SECOND);
        let next = world.started().len();
        assert!(next <= gone.max(1), "{next} after {gone}");
        assert!(next > 0);
        gone += next;
    }
    world.complete(refused);
}

/// A caller that goes before its call is sent, or one that no upstream can take, was the one that
/// was to find out.
#[test]
fn the_first_in_line_after_a_429_is_followed_when_it_is_not_sent() {
    for declines in [false, true] {
        let (mut world, queue, _) = World::simple(&[]);
        let refused = world.submit(world.call(queue));
        world.started();
        world.fail(refused, FailureClass::QuotaWindow, Some(SECOND));
        let next = world.submit(world.call(queue));
        world.advance(SECOND * 2);
        assert_eq!(world.started(), [refused]);
        world.tell(match declines {
            true => Event::Declined(refused),
            false => Event::Dropped(refused),
        });
        assert_eq!(world.started(), [next]);
    }
}

#[test]
fn a_limit_that_is_known_paces_what_follows_a_429_by_itself() {
    let (mut world, queue, _) = World::simple(&["requests=100/1s"]);
    let refused = world.submit(world.call(queue));
    world.started();
    world.fail(refused, FailureClass::QuotaWindow, Some(SECOND * 10));
    for _ in 0..50 {
        world.submit(world.call(queue));
    }
    world.advance(SECOND * 12);
    assert_eq!(world.started().len(), 51);
}
