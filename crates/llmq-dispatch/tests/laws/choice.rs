//! Calls with one prompt stay together, and calls that an upstream cannot take go elsewhere.

use llmq_dispatch::{Call, Effect, Event, QueueId, QueueSetup, Route, Scope, UpstreamId};

use crate::world::World;

/// A queue over `count` upstreams with 40 requests a minute each.
fn several(count: usize) -> (World, QueueId, Vec<UpstreamId>) {
    let mut world = World::new();
    let limits: Vec<_> = (0..count)
        .map(|_| world.limit("requests=40/1m", Scope::Upstream))
        .collect();
    let upstreams: Vec<_> = limits
        .into_iter()
        .map(|limit| world.upstream(&[limit]))
        .collect();
    let routes = upstreams.iter().map(|upstream| Route {
        upstream: *upstream,
        weight: 1.0,
    });
    let mut setup = QueueSetup::to("m", upstreams[0]);
    setup.routes = routes.collect();
    let queue = world.dispatcher.add_queue(setup);
    (world, queue, upstreams)
}

/// Where the calls went that have started, in order.
fn gone_to(world: &World) -> Vec<UpstreamId> {
    let started = world.effects.iter().filter_map(|effect| match effect {
        Effect::Start(start) => Some(start.upstream),
        _ => None,
    });
    started.collect()
}

fn send(world: &mut World, queue: QueueId, affinity: u64, times: usize) {
    for _ in 0..times {
        world.submit(Call {
            affinity,
            ..world.call(queue)
        });
    }
}

#[test]
fn one_prompt_stays_at_one_upstream_and_moves_before_that_is_full() {
    for prompt in 1..50 {
        let (mut world, queue, upstreams) = several(3);
        send(&mut world, queue, prompt, 120);
        let gone = gone_to(&world);
        assert_eq!(gone.len(), 120, "no call waits while an upstream has room");
        let home = gone[0];
        assert!(gone[..30].iter().all(|upstream| *upstream == home));
        let other = gone[30];
        assert_ne!(other, home, "three quarters are enough");
        assert!(gone[30..60].iter().all(|upstream| *upstream == other));
        for upstream in upstreams {
            let count = gone.iter().filter(|gone| **gone == upstream).count();
            assert_eq!(count, 40, "each limit is used in full");
        }
    }
}

#[test]
fn many_prompts_spread_evenly() {
    let (mut world, queue, upstreams) = several(3);
    for prompt in 1..=60 {
        send(&mut world, queue, prompt * 7_919, 1);
    }
    let gone = gone_to(&world);
    for upstream in upstreams {
        let count = gone.iter().filter(|gone| **gone == upstream).count();
        assert!((10..=30).contains(&count), "{count} of 60");
    }
}

#[test]
fn a_call_that_an_upstream_cannot_take_goes_to_the_others_at_no_cost() {
    let (mut world, queue, upstreams) = several(2);
    let call = world.submit(world.call(queue));
    let first = gone_to(&world)[0];
    world.tell(Event::Declined(call));
    let gone = gone_to(&world);
    assert_ne!(gone[1], first);
    assert!(upstreams.contains(&gone[1]));
    let attempt = world.effects.iter().rev().find_map(|effect| match effect {
        Effect::Start(start) => Some(start.attempt),
        _ => None,
    });
    assert_eq!(attempt, Some(1), "what was not sent is no attempt");
    // What it had taken is free again: all forty are left to others.
    send(&mut world, queue, 0, 79);
    assert_eq!(gone_to(&world).len(), 81);
}

#[test]
fn a_call_that_none_can_take_is_given_up() {
    let (mut world, queue, _) = several(2);
    let call = world.submit(world.call(queue));
    world.tell(Event::Declined(call));
    world.tell(Event::Declined(call));
    let given_up =
        |effect: &Effect| matches!(effect, Effect::Failed { ticket, .. } if *ticket == call);
    assert!(world.effects.iter().any(given_up), "{:?}", world.effects);
    assert_eq!(gone_to(&world).len(), 2);
}
