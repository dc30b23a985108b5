//! Which waiting call goes next: by urgency, by age, by tenant, and past what is blocked.

use std::time::Duration;

use llmq_core::{CallSize, FailureClass, Priority};
use llmq_dispatch::{Blocker, Call, QueueSetup, Reserve, Route, Scope, TicketId};

use crate::world::{MINUTE, SECOND, World};

#[test]
fn a_call_with_room_starts_at_once() {
    let (mut world, queue, _) = World::simple(&["requests=2/1s"]);
    let first = world.submit(world.call(queue));
    assert_eq!(world.started(), [first]);
}

#[test]
fn without_room_calls_start_in_order_as_the_window_frees() {
    let (mut world, queue, _) = World::simple(&["requests=1/1s"]);
    let calls: Vec<TicketId> = (0..3).map(|_| world.submit(world.call(queue))).collect();
    assert_eq!(world.started(), [calls[0]]);
    world.complete(calls[0]);
    world.advance(Duration::from_millis(1_005));
    assert_eq!(world.started(), [calls[1]]);
    world.complete(calls[1]);
    world.advance(Duration::from_millis(1_005));
    assert_eq!(world.started(), [calls[2]]);
}

#[test]
fn the_more_urgent_goes_first_when_room_comes() {
    let (mut world, queue, _) = World::simple(&["concurrency=1"]);
    let running = world.submit(world.call(queue));
    let low = world.submit(Call {
        priority: Priority::LOW,
        ..world.call(queue)
    });
    let normal = world.submit(world.call(queue));
    let critical = world.submit(Call {
        priority: Priority::CRITICAL,
        ..world.call(queue)
    });
    world.started();
    let mut order = Vec::new();
    let mut last = running;
    for _ in 0..3 {
        world.complete(last);
        let started = world.started();
        assert_eq!(started.len(), 1);
        last = started[0];
        order.push(last);
    }
    assert_eq!(order, [critical, normal, low]);
}

#[test]
fn a_lane_that_waited_ten_minutes_rises_but_never_to_critical() {
    let (mut world, queue, _) = World::simple(&["concurrency=1"]);
    let running = world.submit(world.call(queue));
    let low = world.submit(Call {
        priority: Priority::LOW,
        ..world.call(queue)
    });
    world.advance(Duration::from_secs(1_801));
    let high = world.submit(Call {
        priority: Priority::HIGH,
        ..world.call(queue)
    });
    let critical = world.submit(Call {
        priority: Priority::CRITICAL,
        ..world.call(queue)
    });
    world.started();
    world.complete(running);
    assert_eq!(world.started(), [critical]);
    world.complete(critical);
    assert_eq!(world.started(), [low], "it rose to high and came first");
    world.complete(low);
    assert_eq!(world.started(), [high]);
}

/// Only lanes whose last call had given up were tidied: a gateway kept one for ever for each
/// tenant that had called once.
#[test]
fn lanes_that_are_empty_are_let_go() {
    let (mut world, queue, _) = World::simple(&[]);
    for _ in 0..5_000 {
        let tenant = world.dispatcher.add_tenant(1.0, Vec::new());
        let call = world.submit(Call {
            tenant,
            ..world.call(queue)
        });
        world.complete(call);
    }
    assert!(world.dispatcher.lane_count() <= 1_025);
}

#[test]
fn tenants_take_turns_by_weight_whatever_they_pile_up() {
    let (mut world, queue, _) = World::simple(&["concurrency=1"]);
    let heavy = world.dispatcher.add_tenant(2.0, Vec::new());
    let first = world.submit(world.call(queue));
    for _ in 0..300 {
        world.submit(world.call(queue));
    }
    let mut of_heavy = Vec::new();
    for _ in 0..300 {
        of_heavy.push(world.submit(Call {
            tenant: heavy,
            ..world.call(queue)
        }));
    }
    world.started();
    let mut last = first;
    let mut heavy_starts = 0;
    for _ in 0..150 {
        world.complete(last);
        last = world.started()[0];
        heavy_starts += usize::from(of_heavy.contains(&last));
    }
    assert!((98..=102).contains(&heavy_starts), "{heavy_starts} of 150");
}

#[test]
fn when_a_gate_opens_tenants_share_what_is_free_behind_it() {
    // At a gate the oldest call went first, whoever's it was: when it opened, a tenant with a
    // long line got a whole window before the others had one call.
    let (mut world, queue, _) = World::simple(&["requests=10/1m"]);
    let other = world.dispatcher.add_tenant(1.0, Vec::new());
    let first = world.submit(world.call(queue));
    world.started();
    world.fail(first, FailureClass::QuotaWindow, Some(MINUTE * 2));
    let line = |world: &mut World, tenant| -> Vec<TicketId> {
        let call = Call {
            tenant,
            ..world.call(queue)
        };
        (0..20).map(|_| world.submit(call)).collect()
    };
    let tenant = world.tenant;
    line(&mut world, tenant);
    let others = line(&mut world, other);
    world.advance(MINUTE * 3);
    let started = world.started();
    assert_eq!(started.len(), 10);
    let theirs = started.iter().filter(|call| others.contains(call)).count();
    assert!((4..=6).contains(&theirs), "{theirs} of 10");
}

#[test]
fn nothing_behind_takes_from_the_limit_that_a_head_is_short_of() {
    let (mut world, queue, _) = World::simple(&["tokens=100/10s"]);
    let size = |tokens| CallSize {
        input_tokens: tokens,
        max_output_tokens: Some(0),
        choices: 1,
    };
    let first = world.submit(Call {
        size: size(60),
        ..world.call(queue)
    });
    let large = world.submit(Call {
        size: size(90),
        priority: Priority::HIGH,
        ..world.call(queue)
    });
    let small = world.submit(Call {
        size: size(10),
        ..world.call(queue)
    });
    assert_eq!(world.started(), [first]);
    world.complete(first);
    world.advance(Duration::from_secs(9));
    assert_eq!(
        world.started(),
        [],
        "the small one would fit, but the large one stands before it"
    );
    world.advance(Duration::from_secs(2));
    assert_eq!(world.started(), [large, small]);
}

/// The large one was asked as if nothing were kept back from it, and whatever found room in that
/// difference took from what it waits for.
#[test]
fn nothing_behind_takes_from_the_limit_that_a_head_is_short_of_beside_a_reserve() {
    let mut world = World::new();
    let limit = world.limit("tokens=1000/1m", Scope::Upstream);
    let upstream = world.upstream(&[limit]);
    let queue = world.dispatcher.add_queue(QueueSetup {
        reserve: vec![Reserve {
            priority: Priority::HIGH,
            share: 0.1,
        }],
        ..QueueSetup::to("m", upstream)
    });
    let size = |tokens| CallSize {
        max_output_tokens: Some(0),
        ..CallSize::of_input(tokens)
    };
    let of = |size, priority| Call {
        size,
        priority,
        ..world.call(queue)
    };
    let calls = [
        of(size(500), Priority::NORMAL),
        of(size(450), Priority::NORMAL),
        of(size(50), Priority::LOW),
    ];
    let [first, large, small] = calls.map(|call| world.submit(call));
    assert_eq!(world.started(), [first]);
    world.complete(first);
    world.advance(SECOND * 61);
    assert_eq!(world.started(), [large, small]);
}

#[test]
fn a_line_blocked_by_its_own_limit_delays_nobody() {
    let mut world = World::new();
    let shared = world.limit("requests=1000/1s", Scope::Account);
    let own = world.limit("requests=1/1m", Scope::Tenant);
    let upstream = world.upstream(&[shared]);
    let queue = world.queue(upstream);
    let limited = world.dispatcher.add_tenant(1.0, vec![own]);
    let calls: Vec<TicketId> = (0..2)
        .map(|_| {
            world.submit(Call {
                tenant: limited,
                priority: Priority::HIGH,
                ..world.call(queue)
            })
        })
        .collect();
    let other = world.submit(world.call(queue));
    assert_eq!(world.started(), [calls[0], other]);
}

#[test]
fn a_new_head_is_tried_wherever_its_line_waits() {
    // The large head of a line started at one upstream. The small call behind it would have
    // fitted at the other, where the line stood first; nobody asked, and work that was less
    // urgent took the room.
    let mut world = World::new();
    let upstreams = [(); 2].map(|()| {
        let limit = world.limit("input_tokens=100/1m", Scope::Upstream);
        world.upstream(&[limit])
    });
    let route = |upstream| Route {
        upstream,
        weight: 1.0,
    };
    let both = world.dispatcher.add_queue(QueueSetup {
        routes: upstreams.map(route).to_vec(),
        ..QueueSetup::to("m", upstreams[0])
    });
    // The second upstream is nearly full, and empties first; the first is half full.
    for (upstream, used) in [(upstreams[1], 90), (upstreams[0], 50)] {
        let queue = world.queue(upstream);
        let filler = world.submit(Call {
            size: tokens(used),
            ..world.call(queue)
        });
        world.complete(filler);
        world.advance(SECOND * 10);
    }
    world.started();
    let other = world.dispatcher.add_tenant(1.0, Vec::new());
    let of = |tenant, input| Call {
        size: tokens(input),
        ..Call::new(both, tenant)
    };
    let (large, small) = (of(world.tenant, 80), of(world.tenant, 30));
    let [large, small] = [large, small].map(|call| world.submit(call));
    world.submit(of(other, 80));
    assert_eq!(world.started(), []);
    world.advance(SECOND * 41);
    assert_eq!(world.started(), [large, small]);
}

fn tokens(input_tokens: u32) -> CallSize {
    CallSize {
        input_tokens,
        ..CallSize::default()
    }
}

#[test]
fn a_ticket_says_what_it_waits_for() {
    let (mut world, queue, _) = World::simple(&["requests=1/1m", "tokens=100k/1m"]);
    world.submit(world.call(queue));
    let second = world.submit(world.call(queue));
    let third = world.submit(world.call(queue));
    let why = world.dispatcher.why(second).unwrap();
    assert_eq!(why.blockers, [Blocker::Limit("rpm".into())]);
    assert_eq!(
        (why.ahead, world.dispatcher.why(third).unwrap().ahead),
        (0, 1)
    );
}
