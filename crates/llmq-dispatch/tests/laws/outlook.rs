//! What a waiting call is told of its turn, and when that comes.

use std::time::Duration;

use llmq_core::{FailureClass, Priority};
use llmq_dispatch::{Call, Effect, Outlook, QueueSetup, Route, Scope, TicketId};

use crate::world::{MINUTE, SECOND, World};

impl World {
    fn outlook(&mut self, call: TicketId) -> Outlook {
        self.dispatcher
            .outlook(call, self.now)
            .expect("it is known")
    }
}

/// The instant at which the head of the line might move was told to everybody in it: one second,
/// to a caller with four hundred before it.
#[test]
fn each_of_a_line_is_told_its_own_turn() {
    for limits in [
        &["requests=10/10s"][..],
        &["requests=10/10s:bucket"],
        &["requests=10/10s:fixed"],
        &["requests=50/1s", "tokens=1000/10s"],
    ] {
        let (mut world, queue, _) = World::simple(limits);
        let size = llmq_core::CallSize {
            input_tokens: 100,
            max_output_tokens: Some(0),
            ..llmq_core::CallSize::default()
        };
        let calls: Vec<TicketId> = (0..45)
            .map(|_| {
                world.submit(Call {
                    size,
                    ..world.call(queue)
                })
            })
            .collect();
        let begin = world.now.mono;
        for started in world.started() {
            world.complete(started);
        }
        let waiting: Vec<(TicketId, Outlook)> = calls
            .into_iter()
            .filter_map(|call| Some((call, world.dispatcher.outlook(call, world.now)?)))
            .collect();
        assert!(waiting.len() >= 30, "{limits:?}: {}", waiting.len());
        for (index, (_, outlook)) in waiting.iter().enumerate() {
            assert_eq!(outlook.ahead, index as u64, "{limits:?}");
        }
        let mut left = waiting;
        while !left.is_empty() {
            world.advance(Duration::from_millis(100));
            let now = world.now.mono;
            for started in world.started() {
                let at = left.iter().position(|(call, _)| *call == started).unwrap();
                let (_, outlook) = left.remove(at);
                let told = outlook.start.expect("its time is known");
                let off = (told - now).max(now - told);
                assert!(
                    off <= SECOND * 2,
                    "{limits:?}: {} before it, told {:?}, came {:?}",
                    outlook.ahead,
                    told - begin,
                    now - begin
                );
                world.complete(started);
            }
            assert!(now - begin < MINUTE * 2);
        }
    }
}

#[test]
fn calls_of_more_urgent_lines_count_and_those_of_less_urgent_ones_do_not() {
    let (mut world, queue, _) = World::simple(&["requests=10/1m"]);
    let of = |world: &World, priority| Call {
        priority,
        ..world.call(queue)
    };
    for _ in 0..10 {
        world.submit(of(&world, Priority::NORMAL));
    }
    for started in world.started() {
        world.complete(started);
    }
    let low = world.submit(of(&world, Priority::LOW));
    assert_eq!(world.outlook(low).ahead, 0);
    for _ in 0..25 {
        world.submit(of(&world, Priority::HIGH));
    }
    let high = world.submit(of(&world, Priority::HIGH));
    assert_eq!(
        (world.outlook(low).ahead, world.outlook(high).ahead),
        (26, 25)
    );
    // Two whole windows go to the others first.
    let wait = world.outlook(low).start.unwrap() - world.now.mono;
    assert!((MINUTE * 2..MINUTE * 4).contains(&wait), "{wait:?}");
    // One that comes now stands behind them all.
    let next = of(&world, Priority::HIGH);
    assert_eq!(world.dispatcher.outlook_of(&next, world.now).ahead, 26);
}

#[test]
fn other_tenants_count_as_often_as_they_take_turns() {
    let (mut world, queue, _) = World::simple(&["requests=10/1m"]);
    let other = world.dispatcher.add_tenant(2.0, Vec::new());
    for _ in 0..10 {
        world.submit(world.call(queue));
    }
    for started in world.started() {
        world.complete(started);
    }
    for _ in 0..100 {
        world.submit(Call {
            tenant: other,
            ..world.call(queue)
        });
    }
    let mut mine = Vec::new();
    for _ in 0..11 {
        mine.push(world.submit(world.call(queue)));
    }
    let ahead = world.outlook(mine[10]).ahead;
    assert!(
        (30..=31).contains(&ahead),
        "ten of ours, twenty of theirs: {ahead}"
    );
}

#[test]
fn a_closed_upstream_is_told_and_two_upstreams_take_half_each() {
    let (mut world, queue, upstream) = World::simple(&[]);
    let call = world.submit(world.call(queue));
    world.started();
    world.fail(call, FailureClass::QuotaWindow, Some(SECOND * 42));
    let next = world.submit(world.call(queue));
    let closed = world.dispatcher.upstream_view(upstream).closed;
    let opens = closed.and_then(|(_, until)| until).expect("it has a time");
    assert!(opens >= world.now.mono + SECOND * 42);
    assert_eq!(world.outlook(next).start, Some(opens));
    let fresh = world.call(queue);
    let fresh = world.dispatcher.outlook_of(&fresh, world.now);
    assert_eq!((fresh.ahead, fresh.start), (2, Some(opens)));

    let wait_of = |upstreams: usize| {
        let mut world = World::new();
        let mut routes = Vec::new();
        for _ in 0..upstreams {
            let limit = world.limit("requests=10/1m", Scope::Upstream);
            let upstream = world.upstream(&[limit]);
            routes.push(Route {
                upstream,
                weight: 1.0,
            });
        }
        let mut setup = llmq_dispatch::QueueSetup::to("m", routes[0].upstream);
        setup.routes = routes;
        let queue = world.dispatcher.add_queue(setup);
        let calls: Vec<TicketId> = (0..80).map(|_| world.submit(world.call(queue))).collect();
        for started in world.started() {
            world.complete(started);
        }
        let start = world.outlook(calls[79]).start.unwrap();
        (start - world.now.mono).as_secs() / 60
    };
    assert_eq!((wait_of(1), wait_of(2)), (7, 3));
}

/// Nobody knows when calls in flight will end.
#[test]
fn behind_calls_in_flight_no_time_is_told() {
    let (mut world, queue, _) = World::simple(&["concurrency=1"]);
    let calls = [(); 3].map(|()| world.submit(world.call(queue)));
    let seen = calls.map(|call| world.outlook(call));
    assert_eq!(seen.map(|outlook| outlook.start), [None; 3]);
    assert_eq!(seen[2].ahead, 1);
    let told = |effect: &Effect| matches!(effect, Effect::Start(_));
    assert!(world.effects.iter().any(told));
}

/// A run with two accounts and `--no-wait` ended because the day of one of them was used up.
#[test]
fn a_queue_stands_until_the_first_of_its_upstreams_has_room() {
    let mut world = World::new();
    let upstreams = ["requests=1/1d", "requests=1/10s"].map(|text| {
        let limit = world.limit(text, Scope::Upstream);
        world.upstream(&[limit])
    });
    let queue = world.dispatcher.add_queue(QueueSetup {
        routes: upstreams
            .map(|upstream| Route {
                upstream,
                weight: 1.0,
            })
            .to_vec(),
        ..QueueSetup::to("m", upstreams[0])
    });
    let calls = [(); 3].map(|()| world.submit(world.call(queue)));
    for call in &calls[..2] {
        world.complete(*call);
    }
    let (until, _) = world.dispatcher.stands_until(queue).expect("it stands");
    let wait = until - world.now.mono;
    assert!(wait <= SECOND * 11, "{wait:?}");
}
