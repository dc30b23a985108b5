//! What one call's failure costs it: a wait, an attempt, or its place.

use std::time::Duration;

use llmq_core::FailureClass;
use llmq_dispatch::{
    Call, CallKind, Effect, Ended, Event, QueueId, QueueSetup, Route, Scope, TicketId, UpstreamId,
};

use crate::world::{SECOND, World, failure};

#[test]
fn a_429_stops_the_upstream_until_the_instant_named_and_counts_no_attempt() {
    let (mut world, queue, _) = World::simple(&["requests=100/1s"]);
    let first = world.submit(world.call(queue));
    world.started();
    world.fail(
        first,
        FailureClass::QuotaWindow,
        Some(Duration::from_secs(42)),
    );
    let second = world.submit(world.call(queue));
    assert_eq!(world.started(), []);
    world.advance(Duration::from_millis(41_999));
    assert_eq!(world.started(), []);
    world.advance(Duration::from_millis(1_101));
    // It is back in its place, before the one that came later, and still on its first attempt.
    let starts: Vec<(TicketId, u32)> = world
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Start(start) => Some((start.ticket, start.attempt)),
            _ => None,
        })
        .collect();
    assert_eq!(starts, [(first, 1), (second, 1)]);
}

#[test]
fn throttles_in_a_row_end_a_plain_call_at_six_and_a_stored_one_at_twenty() {
    for (kind, most) in [(CallKind::Plain, 6), (CallKind::Stored, 20)] {
        let (mut world, queue, _) = World::simple(&[]);
        let call = world.submit(Call {
            kind,
            ..world.call(queue)
        });
        let mut throttles = 0;
        while !world
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Failed { .. }))
        {
            assert_eq!(world.started(), [call]);
            world.fail(call, FailureClass::QuotaWindow, Some(SECOND));
            throttles += 1;
            world.advance(SECOND * 2);
        }
        assert_eq!(throttles, most);
    }
}

#[test]
fn after_rising_too_fast_half_of_each_limit_is_left_alone() {
    let (mut world, queue, _) = World::simple(&["requests=100/1m"]);
    let first = world.submit(world.call(queue));
    world.started();
    world.fail(first, FailureClass::Ramp, Some(SECOND));
    for _ in 0..100 {
        world.submit(world.call(queue));
    }
    world.advance(SECOND * 3);
    // The refused call counts too, and the share has begun to grow again.
    let started = world.started().len();
    assert!((49..=50).contains(&started), "{started}");
}

#[test]
fn transient_failures_use_up_attempts_with_growing_waits() {
    let (mut world, queue, _) = World::simple(&[]);
    let call = world.submit(world.call(queue));
    let mut waits = Vec::new();
    for _ in 0..5 {
        world.started();
        world.fail(call, FailureClass::Transient, None);
        let from = world.now.mono;
        if let Some(Effect::Requeued { not_before, .. }) = world
            .effects
            .iter()
            .rev()
            .find(|effect| matches!(effect, Effect::Requeued { .. }))
        {
            waits.push((*not_before - from).as_secs_f64());
        }
        world
            .effects
            .retain(|effect| !matches!(effect, Effect::Requeued { .. }));
        world.advance(SECOND * 5);
    }
    assert!(
        world
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Failed { attempts: 5, .. }))
    );
    let expected = [0.5, 1.0, 2.0, 4.0];
    assert_eq!(waits.len(), 4);
    for (wait, base) in waits.iter().zip(expected) {
        assert!((base..=base * 1.1).contains(wait), "{wait} for {base}");
    }
}

/// A queue over two upstreams, of which the second is preferred and takes one call at a time.
fn beside_one_place() -> (World, QueueId, [UpstreamId; 2]) {
    let mut world = World::new();
    let one_place = world.limit("concurrency=1", Scope::Upstream);
    let upstreams = [world.upstream(&[]), world.upstream(&[one_place])];
    let mut setup = QueueSetup::to("m", upstreams[0]);
    setup.routes.push(Route {
        upstream: upstreams[1],
        weight: 1e9,
    });
    let queue = world.dispatcher.add_queue(setup);
    (world, queue, upstreams)
}

#[test]
fn a_failed_call_waits_where_no_other_upstream_can_take_it_at_once() {
    // A call whose other upstream was full came back at once to the one that refused
    // connections, five times within five milliseconds, and had failed for good.
    let (mut world, queue, _) = beside_one_place();
    let first = world.submit(world.call(queue));
    let second = world.submit(world.call(queue));
    assert_eq!(world.started(), [first, second]);
    world.fail(second, FailureClass::Transient, None);
    assert_eq!(world.started(), [], "the other one is full");
    world.advance(SECOND);
    assert_eq!(world.started(), [second]);
    world.complete(first);
    world.fail(second, FailureClass::Transient, None);
    assert_eq!(world.started(), [second], "the other one takes it over");
}

/// The setting was heeded for the same upstream only: with another one, or with a fallback while
/// that one was down, what might have been billed was sent a second time.
#[test]
fn what_may_have_been_billed_is_sent_nowhere_again_where_that_is_set() {
    for ways in 1..=3 {
        let mut world = World::new();
        let upstreams = [(); 3].map(|()| world.upstream(&[]));
        let fallback = world.queue(upstreams[2]);
        let mut setup = QueueSetup {
            retry_ambiguous: false,
            // Used up at once, so that what is left is a last chance elsewhere.
            max_attempts: if ways == 3 { 1 } else { 5 },
            ..QueueSetup::to("m", upstreams[0])
        };
        if ways >= 2 {
            setup.routes.push(Route {
                upstream: upstreams[1],
                weight: 1.0,
            });
        }
        setup.fallback.push(fallback);
        let queue = world.dispatcher.add_queue(setup);
        let call = world.submit(world.call(queue));
        assert_eq!(world.started(), [call]);
        world.fail(call, FailureClass::Ambiguous, None);
        world.advance(SECOND * 60);
        assert_eq!(world.started(), [], "{ways}");
        let failed = |effect: &Effect| matches!(effect, Effect::Failed { .. });
        assert!(world.effects.iter().any(failed), "{ways}");
        // What did not reach anybody goes elsewhere all the same.
        let call = world.submit(world.call(queue));
        world.fail(call, FailureClass::Transient, None);
        world.advance(SECOND * 60);
        assert_eq!(world.started(), [call, call], "{ways}");
    }
}

/// A call went back to the silent upstream where the other one was full, or where there was no
/// other: five times, each perhaps billed.
#[test]
fn a_silent_upstream_is_not_asked_again_by_the_same_call() {
    let silence = || Ended {
        was_silent: true,
        ..failure(FailureClass::Ambiguous, None)
    };
    let (mut world, queue, upstreams) = beside_one_place();
    let busy = world.submit(world.call(queue));
    let call = world.submit(world.call(queue));
    assert_eq!(
        starts(&mut world),
        [(busy, upstreams[1]), (call, upstreams[0])]
    );
    world.sent(call);
    world.tell(Event::Ended(call, Box::new(silence())));
    world.advance(SECOND * 60);
    assert_eq!(starts(&mut world), [], "the other one is full");
    world.complete(busy);
    assert_eq!(starts(&mut world), [(call, upstreams[1])]);

    // With nobody else it has failed; what nobody waits for asks again.
    for (kind, is_awaited, again) in [
        (CallKind::Plain, false, false),
        (CallKind::Stored, false, true),
        (CallKind::Stored, true, false),
    ] {
        let (mut world, queue, _) = World::simple(&[]);
        let call = world.submit(Call {
            kind,
            ..world.call(queue)
        });
        assert_eq!(world.started(), [call]);
        world.sent(call);
        let ended = Ended {
            is_awaited,
            ..silence()
        };
        world.tell(Event::Ended(call, Box::new(ended)));
        world.advance(SECOND * 60);
        assert_eq!(world.started() == [call], again, "{kind:?} {is_awaited}");
    }
}

/// What was started since this was last asked, and where.
fn starts(world: &mut World) -> Vec<(TicketId, UpstreamId)> {
    let starts = world.effects.iter().filter_map(|effect| match effect {
        Effect::Start(start) => Some((start.ticket, start.upstream)),
        _ => None,
    });
    let starts = starts.collect();
    world.started();
    starts
}
