//! What a queue does with the calls in it: pauses, deadlines, capacity.

use std::time::Duration;

use llmq_core::FailureClass;
use llmq_dispatch::{
    Blocker, Call, Capacity, Effect, Event, QueueId, QueueSetup, Rules, Scope, TicketId,
};

use crate::world::{MINUTE, SECOND, World};

#[test]
fn a_paused_queue_starts_nothing_and_resumes_where_it_was() {
    let (mut world, queue, _) = World::simple(&[]);
    world.tell(Event::Pause(queue));
    let call = world.submit(world.call(queue));
    world.advance(MINUTE);
    assert_eq!(world.started(), []);
    assert_eq!(
        world.dispatcher.why(call).unwrap().blockers,
        [Blocker::Paused]
    );
    world.tell(Event::Resume(queue));
    assert_eq!(world.started(), [call]);
}

/// A fallback's upstream served on while a person had paused its queue.
#[test]
fn a_paused_queue_is_nobodys_fallback_until_it_resumes() {
    let mut world = World::new();
    let [own, other] = [(); 2].map(|()| world.upstream(&[]));
    let fallback = world.queue(other);
    let queue = world.dispatcher.add_queue(QueueSetup {
        fallback: vec![fallback],
        max_attempts: 1,
        ..QueueSetup::to("m", own)
    });
    world.tell(Event::Pause(fallback));
    let first = world.submit(world.call(queue));
    world.fail(first, FailureClass::NoAccess, None);
    let failed =
        |effect: &Effect| matches!(effect, Effect::Failed { ticket, .. } if *ticket == first);
    assert!(world.effects.iter().any(failed), "there is no other way");
    world.effects.clear();
    let second = world.submit(world.call(queue));
    assert_eq!(world.started(), [], "the own is closed, the other paused");
    world.tell(Event::Resume(fallback));
    assert_eq!(world.started(), [second]);
}

#[test]
fn a_full_queue_refuses_and_drops_nothing() {
    let mut world = World::new();
    let limit = world.limit("concurrency=1", Scope::Upstream);
    let upstream = world.upstream(&[limit]);
    let mut setup = QueueSetup::to("m", upstream);
    setup.capacity = Capacity {
        jobs: 10,
        ..Capacity::default()
    };
    let queue = world.dispatcher.add_queue(setup);
    let accepted: Vec<TicketId> = (0..20)
        .filter_map(|_| world.try_submit(world.call(queue)).ok())
        .collect();
    assert_eq!(accepted.len(), 8);
    let mut done = Vec::new();
    while let Some(next) = world.started().first().copied() {
        done.push(next);
        world.complete(next);
    }
    assert_eq!(done, accepted);
}

/// Each model had room for the whole of what was configured for all of them.
#[test]
fn what_all_queues_hold_together_is_bounded() {
    let mut world = World::with(Rules {
        capacity: Capacity {
            jobs: 10,
            ..Capacity::default()
        },
        ..Rules::default()
    });
    let limit = world.limit("concurrency=1", Scope::Upstream);
    let upstream = world.upstream(&[limit]);
    let queues = [(); 2].map(|()| world.queue(upstream));
    let accepted = |world: &mut World, queue| world.try_submit(world.call(queue)).is_ok();
    let first = (0..5).filter(|_| accepted(&mut world, queues[0])).count();
    let second = (0..5).filter(|_| accepted(&mut world, queues[1])).count();
    assert_eq!((first, second), (5, 3));
    for _ in 0..3 {
        let running = world.started()[0];
        world.complete(running);
    }
    assert!(accepted(&mut world, queues[0]), "below the low mark");
}

#[test]
fn a_time_to_live_stands_still_while_its_queue_is_paused() {
    let (mut world, queue, _) = World::simple(&["concurrency=1"]);
    world.submit(world.call(queue));
    let waits = world.submit(Call {
        ttl: Some(MINUTE),
        ..world.call(queue)
    });
    world.advance(SECOND * 50);
    world.tell(Event::Pause(queue));
    world.advance(SECOND * 1_000);
    world.tell(Event::Resume(queue));
    world.advance(SECOND * 9);
    assert!(
        !world
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Expired { .. }))
    );
    world.advance(SECOND * 2);
    assert!(
        world
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Expired { ticket, .. } if *ticket == waits))
    );
}

#[test]
fn a_call_whose_time_ran_out_while_it_ran_does_not_start_again() {
    // A refused call went back to its place and was started from there before anybody looked at
    // its deadline, which had passed while it ran.
    let (mut world, _, call) = one_out_of_time();
    world.fail(call, FailureClass::QuotaWindow, Some(Duration::ZERO));
    world.advance(SECOND);
    assert_eq!(world.started(), []);
    let expired =
        |effect: &Effect| matches!(effect, Effect::Expired { ticket, .. } if *ticket == call);
    assert_eq!(
        world
            .effects
            .iter()
            .filter(|effect| expired(effect))
            .count(),
        1
    );
}

#[test]
fn a_call_whose_time_ran_out_while_it_ran_does_not_start_when_its_queue_goes_on() {
    // It came back while the queue stood still, when no deadline is looked at; the queue went
    // on, and the call was started before the deadline that had passed long ago.
    let (mut world, queue, call) = one_out_of_time();
    world.tell(Event::Pause(queue));
    world.fail(call, FailureClass::QuotaWindow, Some(Duration::ZERO));
    world.advance(SECOND);
    world.tell(Event::Resume(queue));
    world.advance(SECOND);
    assert_eq!(world.started(), []);
}

/// A call that runs still, with its time to live over.
fn one_out_of_time() -> (World, QueueId, TicketId) {
    let (mut world, queue, _) = World::simple(&["requests=10/1s"]);
    let call = world.submit(Call {
        ttl: Some(SECOND),
        ..world.call(queue)
    });
    assert_eq!(world.started(), [call]);
    world.advance(SECOND * 2);
    (world, queue, call)
}

/// Whoever shared the fallback's limit waited behind a call that could not take from it.
#[test]
fn a_call_waits_no_more_for_a_fallback_that_is_paused() {
    let mut world = World::new();
    let limit = world.limit("requests=1/60s", Scope::Upstream);
    let (own, other) = (world.upstream(&[]), world.upstream(&[limit]));
    let fallback = world.queue(other);
    let queue = world.dispatcher.add_queue(QueueSetup {
        fallback: vec![fallback],
        ..QueueSetup::to("m", own)
    });
    let refused = world.submit(world.call(queue));
    world.started();
    world.fail(refused, FailureClass::Money, None);
    let waits = world.submit(world.call(queue));
    let blockers = |world: &World| world.dispatcher.why(waits).expect("it waits").blockers;
    let is_limit = |blocker: &Blocker| matches!(blocker, Blocker::Limit(_));
    assert!(blockers(&world).iter().any(is_limit));
    world.tell(Event::Pause(fallback));
    assert!(!blockers(&world).iter().any(is_limit));
}
