//! Which of several upstreams serves a call: by weight, by room, and a fallback only for cause.

use llmq_core::FailureClass;
use llmq_dispatch::{Bounded, Call, Effect, QueueSetup, Route, Scope, TicketId, UpstreamId};

use crate::world::{MINUTE, SECOND, World};

#[test]
fn two_upstreams_share_by_weight_and_the_one_with_room_takes_over() {
    let mut world = World::new();
    let limits = [
        world.limit("requests=30/1m", Scope::Upstream),
        world.limit("requests=30/1m", Scope::Upstream),
    ];
    let upstreams = limits.map(|limit| world.upstream(&[limit]));
    let mut setup = QueueSetup::to("m", upstreams[0]);
    setup.routes = vec![
        Route {
            upstream: upstreams[0],
            weight: 2.0,
        },
        Route {
            upstream: upstreams[1],
            weight: 1.0,
        },
    ];
    let queue = world.dispatcher.add_queue(setup);
    for _ in 0..30 {
        world.submit(world.call(queue));
    }
    let to = |world: &World, upstream| {
        world
            .effects
            .iter()
            .filter(|e| matches!(e, Effect::Start(s) if s.upstream == upstream))
            .count()
    };
    assert_eq!(
        (to(&world, upstreams[0]), to(&world, upstreams[1])),
        (20, 10)
    );
    for _ in 0..40 {
        world.submit(world.call(queue));
    }
    assert_eq!(
        (to(&world, upstreams[0]), to(&world, upstreams[1])),
        (30, 30)
    );
}

#[test]
fn a_fallback_serves_only_when_the_own_upstream_cannot_in_time() {
    for (patience, fallback_serves) in [(SECOND * 30, false), (SECOND, true)] {
        let (mut world, queue, [_, other]) = World::with_fallback(5);
        let start_by = Some(world.now.mono + patience);
        let call = world.submit(Call {
            start_by,
            ..world.call(queue)
        });
        assert_eq!(world.started(), [call]);
        world.fail(call, FailureClass::QuotaWindow, Some(SECOND * 10));
        let moved = world
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Start(start) if start.upstream == other));
        assert_eq!(moved, fallback_serves, "{patience:?}");
        world.advance(SECOND * 12);
        assert_eq!(
            world.started(),
            [call],
            "it was started again, there or here"
        );
    }
}

#[test]
fn a_fallback_serves_while_the_own_upstream_is_broken_even_if_it_may_be_back_in_time() {
    // Calls waited for the breaker's next probe, within their patience, beside an upstream that
    // could have served them.
    let (mut world, queue, [own, other]) = World::with_fallback(2);
    let calls: Vec<TicketId> = (0..10).map(|_| world.submit(world.call(queue))).collect();
    assert_eq!(upstreams_of(&mut world), vec![own; 10]);
    for call in calls {
        world.fail(call, FailureClass::Overload, None);
    }
    upstreams_of(&mut world);
    let patient = Call {
        start_by: Some(world.now.mono + MINUTE * 10),
        ..world.call(queue)
    };
    world.submit(patient);
    assert_eq!(upstreams_of(&mut world), [other]);
}

#[test]
fn a_call_that_has_used_up_its_attempts_has_one_try_at_the_fallback() {
    // It failed for good, with an upstream left that had not been asked.
    let (mut world, queue, [own, other]) = World::with_fallback(2);
    let call = world.submit(world.call(queue));
    assert_eq!(upstreams_of(&mut world), [own]);
    for asked in [own, other] {
        world.fail(call, FailureClass::Transient, None);
        world.advance(MINUTE);
        assert_eq!(upstreams_of(&mut world), [asked]);
    }
    world.fail(call, FailureClass::Transient, None);
    let failed = |effect: &Effect| matches!(effect, Effect::Failed { .. });
    assert!(world.effects.iter().any(failed), "each had its try");
}

/// The upstreams of the calls that were started since this was last asked, in order.
fn upstreams_of(world: &mut World) -> Vec<UpstreamId> {
    let starts = world.effects.iter().filter_map(|effect| match effect {
        Effect::Start(start) => Some(start.upstream),
        _ => None,
    });
    let upstreams = starts.collect();
    world.started();
    upstreams
}

#[test]
fn a_failed_call_that_its_fallback_may_not_serve_yet_waits_before_it_comes_again() {
    // A fallback counted as another upstream that might take the call over. Since it serves only
    // for cause, the call came back at once to the upstream that had just failed it, and its
    // attempts were used up within one instant.
    let (mut world, queue, _) = World::with_fallback(5);
    let call = world.submit(world.call(queue));
    assert_eq!(world.started(), [call]);
    world.fail(call, FailureClass::Transient, None);
    assert_eq!(world.started(), []);
    world.advance(SECOND);
    assert_eq!(world.started(), [call]);
}

#[test]
fn a_call_too_large_for_an_upstream_that_is_up_is_not_sent_there_again() {
    // The same: a fallback that could not serve it let the call be refused five times.
    let (mut world, queue, _) = World::with_fallback(5);
    let call = world.submit(world.call(queue));
    assert_eq!(world.started(), [call]);
    world.fail(call, FailureClass::TooLarge, None);
    assert_eq!(world.started(), []);
    let failed =
        |effect: &Effect| matches!(effect, Effect::Failed { ticket, .. } if *ticket == call);
    assert!(world.effects.iter().any(failed));
}

/// The deadline ran on while a call was at an upstream. At the defaults, where a first byte may
/// take as long as the wait, a silent upstream never handed over: the call expired instead.
#[test]
fn time_at_an_upstream_is_no_waiting() {
    let (mut world, queue, [_, other]) = World::with_fallback(1);
    let patience = MINUTE;
    let call = world.submit(Call {
        start_by: Some(world.now.mono + patience),
        bounded: Bounded::Wait,
        ..world.call(queue)
    });
    assert_eq!(world.started(), [call]);
    world.advance(patience * 2);
    world.fail(call, FailureClass::Ambiguous, None);
    assert_eq!(upstreams_of(&mut world), [other], "another one takes over");

    // What it has waited before still counts.
    let (mut world, queue, upstream) = World::simple(&["concurrency=1"]);
    let first = world.submit(world.call(queue));
    let call = world.submit(Call {
        start_by: Some(world.now.mono + patience),
        bounded: Bounded::Wait,
        ..world.call(queue)
    });
    world.advance(SECOND * 50);
    world.complete(first);
    assert_eq!(world.started(), [first, call]);
    world.advance(MINUTE * 5);
    world.fail(call, FailureClass::QuotaWindow, Some(MINUTE));
    assert!(world.dispatcher.upstream_view(upstream).closed.is_some());
    let expired = |world: &World| {
        let expired = |effect: &Effect| matches!(effect, Effect::Expired { .. });
        world.effects.iter().any(expired)
    };
    world.advance(SECOND * 9);
    assert!(!expired(&world), "ten of its sixty seconds are left");
    world.advance(SECOND * 2);
    assert!(expired(&world));
}
