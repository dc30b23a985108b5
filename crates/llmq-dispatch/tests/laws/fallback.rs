//! Which of several upstreams serves a call: by weight, by room, and a fallback only for cause.

use llmq_core::FailureClass;
use llmq_dispatch::{
    Bounded, Call, Effect, Event, QueueId, QueueSetup, Route, Scope, TicketId, UpstreamId,
};

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

/// A queue over both upstreams.
fn over_both(world: &mut World, upstreams: [UpstreamId; 2]) -> QueueId {
    let route = |upstream| Route {
        upstream,
        weight: 1.0,
    };
    world.dispatcher.add_queue(QueueSetup {
        routes: upstreams.map(route).to_vec(),
        ..QueueSetup::to("m", upstreams[0])
    })
}

/// It stood at the head of its line, and everything behind it waited with it for an upstream that
/// was shut, beside an idle one.
#[test]
fn a_call_that_may_go_to_one_upstream_only_delays_none_that_may_go_elsewhere() {
    let mut world = World::new();
    let upstreams = [(); 2].map(|()| world.upstream(&[]));
    let queue = over_both(&mut world, upstreams);
    let shut = world.queue(upstreams[1]);
    let refused = world.submit(world.call(shut));
    world.fail(refused, FailureClass::QuotaWindow, Some(SECOND * 30));
    world.tell(Event::Dropped(refused));
    world.started();
    let tied = world.submit(world.call(queue));
    assert_eq!(world.started(), [tied]);
    world.tell(Event::Declined(tied));
    assert_eq!(world.started(), []);
    let free = world.submit(world.call(queue));
    assert_eq!(world.started(), [free]);
    world.complete(free);
    world.advance(SECOND * 32);
    assert_eq!(world.started(), [tied]);
}

#[test]
fn a_call_that_may_go_to_one_upstream_only_goes_there_before_those_that_came_later() {
    let mut world = World::new();
    let limits = ["concurrency=1", "requests=1/1m"];
    let limits = limits.map(|text| world.limit(text, Scope::Upstream));
    let upstreams = limits.map(|limit| world.upstream(&[limit]));
    let queue = over_both(&mut world, upstreams);
    let full = world.queue(upstreams[1]);
    let first = world.submit(world.call(full));
    world.complete(first);
    let tied = world.submit(world.call(queue));
    assert_eq!(world.started(), [first, tied]);
    world.tell(Event::Declined(tied));
    let [free, later] = [(); 2].map(|()| world.submit(world.call(queue)));
    assert_eq!(world.started(), [free]);
    world.advance(SECOND * 61);
    assert_eq!(world.started(), [tied]);
    world.complete(free);
    assert_eq!(world.started(), [later]);
}

/// Everything behind it waited with it for the fallback's limit.
#[test]
fn a_call_that_waits_for_its_try_at_the_fallback_delays_none_behind_it() {
    let mut world = World::new();
    let limit = world.limit("requests=1/1m", Scope::Upstream);
    let upstreams = [world.upstream(&[]), world.upstream(&[limit])];
    let fallback = world.queue(upstreams[1]);
    let queue = world.dispatcher.add_queue(QueueSetup {
        fallback: vec![fallback],
        max_attempts: 1,
        ..QueueSetup::to("m", upstreams[0])
    });
    let full = world.submit(world.call(fallback));
    world.complete(full);
    let failed = world.submit(world.call(queue));
    assert_eq!(world.started(), [full, failed]);
    world.fail(failed, FailureClass::Transient, None);
    assert_eq!(world.started(), []);
    let behind = world.submit(world.call(queue));
    assert_eq!(world.started(), [behind]);
    world.advance(SECOND * 61);
    assert_eq!(world.started(), [failed]);
}

/// It waited nowhere, and nothing ever woke it.
#[test]
fn a_call_whose_only_upstream_is_taken_away_is_told_so() {
    let mut world = World::new();
    let limit = world.limit("requests=1/1m", Scope::Upstream);
    let upstreams = [world.upstream(&[]), world.upstream(&[limit])];
    let queue = over_both(&mut world, upstreams);
    let full = world.queue(upstreams[1]);
    let first = world.submit(world.call(full));
    world.complete(first);
    let tied = world.submit(world.call(queue));
    world.tell(Event::Declined(tied));
    let setup = QueueSetup::to("m", upstreams[0]);
    world.dispatcher.change_queue(queue, setup);
    world.started();
    world.dispatcher.reconsider(world.now, &mut world.effects);
    let gone = Effect::NoUpstream { ticket: tied };
    assert!(world.effects.contains(&gone), "{:?}", world.effects);
    assert_eq!(world.dispatcher.queue_view(queue).jobs, 0);
}
