//! The dispatcher's rules, each as a law on a small world.

use std::time::Duration;

use llmq_core::{
    CallSize, FailureClass, Host, LimitSpec, Now, Pause, Priority, Timestamp, WallTime,
};
use llmq_dispatch::{
    Blocker, Call, CallKind, Capacity, Dispatcher, Effect, Ended, Event, LimitId, LimitSetup,
    Notice, Outcome, QueueId, QueueSetup, Refusal, Reserve, Route, Rules, Scope, TenantId,
    TicketId, UpstreamId, UpstreamSetup,
};
use llmq_limit::charge_rule;

/// A dispatcher with a clock that the test moves.
struct World {
    dispatcher: Dispatcher,
    now: Now,
    tenant: TenantId,
    effects: Vec<Effect>,
}

impl World {
    fn new() -> Self {
        Self::with(Rules::default())
    }

    fn with(rules: Rules) -> Self {
        let mut dispatcher = Dispatcher::new(rules, 7);
        let tenant = dispatcher.add_tenant(1.0, Vec::new());
        let start = Duration::from_secs(1_000);
        let now = Now {
            mono: Timestamp::ZERO + start,
            wall: WallTime::from_micros(0) + start,
        };
        Self {
            dispatcher,
            now,
            tenant,
            effects: Vec::new(),
        }
    }

    fn limit(&mut self, text: &str, scope: Scope) -> LimitId {
        let spec: LimitSpec = text.parse().expect("a limit");
        let rule = charge_rule(Host::Unknown, spec.kind);
        self.dispatcher.add_limit(
            LimitSetup {
                name: spec.name(),
                spec,
                rule,
                scope,
            },
            self.now,
        )
    }

    fn upstream(&mut self, limits: &[LimitId]) -> UpstreamId {
        let setup = UpstreamSetup {
            name: "up".into(),
            limits: limits.to_vec(),
            ..UpstreamSetup::default()
        };
        self.dispatcher.add_upstream(setup, self.now)
    }

    fn queue(&mut self, upstream: UpstreamId) -> QueueId {
        self.dispatcher.add_queue(QueueSetup::to("m", upstream))
    }

    /// One queue over one upstream with these limits.
    fn simple(limits: &[&str]) -> (Self, QueueId, UpstreamId) {
        let mut world = Self::new();
        let limits: Vec<LimitId> = limits
            .iter()
            .map(|text| world.limit(text, Scope::Upstream))
            .collect();
        let upstream = world.upstream(&limits);
        let queue = world.queue(upstream);
        (world, queue, upstream)
    }

    fn call(&self, queue: QueueId) -> Call {
        Call::new(queue, self.tenant)
    }

    fn submit(&mut self, call: Call) -> TicketId {
        self.try_submit(call).expect("accepted")
    }

    fn try_submit(&mut self, call: Call) -> Result<TicketId, Refusal> {
        self.dispatcher.submit(call, self.now, &mut self.effects)
    }

    fn tell(&mut self, event: Event) {
        self.dispatcher.handle(event, self.now, &mut self.effects);
    }

    fn complete(&mut self, ticket: TicketId) {
        self.tell(Event::Sent(ticket));
        self.tell(Event::Ended(ticket, Box::default()));
    }

    fn fail(&mut self, ticket: TicketId, class: FailureClass, told: Option<Duration>) {
        self.tell(Event::Sent(ticket));
        let outcome = Outcome::Failed {
            class,
            told,
            text: None,
        };
        self.tell(Event::Ended(
            ticket,
            Box::new(Ended {
                outcome,
                ..Ended::default()
            }),
        ));
    }

    fn advance(&mut self, span: Duration) {
        let until = self.now.after(span);
        while let Some(wake) = self
            .dispatcher
            .next_wake()
            .filter(|wake| *wake <= until.mono)
        {
            let step = wake - self.now.mono;
            self.now = self.now.after(step);
            self.tell(Event::Tick);
        }
        self.now = until;
        self.tell(Event::Tick);
    }

    /// The calls that were started since this was last asked, in order.
    fn started(&mut self) -> Vec<TicketId> {
        let started = self.effects.iter().filter_map(|effect| match effect {
            Effect::Start(start) => Some(start.ticket),
            _ => None,
        });
        let started = started.collect();
        self.effects
            .retain(|effect| !matches!(effect, Effect::Start(_)));
        started
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

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

#[test]
fn a_reserve_is_left_for_the_urgent() {
    let mut world = World::new();
    let limit = world.limit("requests=10/1m", Scope::Upstream);
    let upstream = world.upstream(&[limit]);
    let mut setup = QueueSetup::to("m", upstream);
    setup.reserve = vec![Reserve {
        priority: Priority::HIGH,
        share: 0.2,
    }];
    let queue = world.dispatcher.add_queue(setup);
    for _ in 0..10 {
        world.submit(world.call(queue));
    }
    assert_eq!(world.started().len(), 8);
    for _ in 0..3 {
        world.submit(Call {
            priority: Priority::HIGH,
            ..world.call(queue)
        });
    }
    assert_eq!(world.started().len(), 2);
}

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

#[test]
fn what_a_dropped_call_held_is_free_if_it_was_never_sent_and_kept_if_it_was() {
    let (mut world, queue, _) = World::simple(&["requests=1/1m"]);
    let unsent = world.submit(world.call(queue));
    let next = world.submit(world.call(queue));
    assert_eq!(world.started(), [unsent]);
    world.tell(Event::Dropped(unsent));
    assert_eq!(world.started(), [next]);
    world.tell(Event::Sent(next));
    world.submit(world.call(queue));
    world.tell(Event::Dropped(next));
    assert_eq!(world.started(), []);
}

#[test]
fn a_call_above_the_whole_limit_fails_at_once_and_the_rest_go_on() {
    let (mut world, queue, _) = World::simple(&["tokens=100/1s"]);
    let huge = world.submit(Call {
        size: CallSize::of_input(101),
        ..world.call(queue)
    });
    let fits = world.submit(Call {
        size: CallSize {
            input_tokens: 50,
            max_output_tokens: Some(10),
            choices: 1,
        },
        ..world.call(queue)
    });
    assert!(world.effects.iter().any(
        |effect| matches!(effect, Effect::TooLarge { ticket, count: 100, .. } if *ticket == huge)
    ));
    assert_eq!(world.started(), [fits]);
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
        let mut world = World::new();
        let upstreams = [world.upstream(&[]), world.upstream(&[])];
        let backup = world.queue(upstreams[1]);
        let mut setup = QueueSetup::to("m", upstreams[0]);
        setup.fallback = vec![backup];
        let queue = world.dispatcher.add_queue(setup);
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
            .any(|effect| matches!(effect, Effect::Start(start) if start.upstream == upstreams[1]));
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

#[test]
fn a_refused_key_stops_everything_that_uses_it() {
    let mut world = World::new();
    let credential = |name: &str| UpstreamSetup {
        name: name.into(),
        credential: Some(1),
        ..UpstreamSetup::default()
    };
    let now = world.now;
    let upstreams = ["a", "b"].map(|name| world.dispatcher.add_upstream(credential(name), now));
    let queues = upstreams.map(|upstream| world.queue(upstream));
    let call = world.submit(world.call(queues[0]));
    world.started();
    world.fail(call, FailureClass::NoAccess, None);
    world.submit(world.call(queues[1]));
    assert_eq!(world.started(), []);
    world.tell(Event::Reopen(upstreams[1]));
    assert_eq!(world.started().len(), 1);
}

#[test]
fn a_refused_model_leaves_the_others_of_its_credential_alone() {
    // A model that the account may not use closed every model of the account.
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
    let call = world.submit(world.call(queues[0]));
    assert_eq!(world.started(), [call]);
    world.tell(Event::Sent(call));
    let ended = Ended {
        outcome: Outcome::Failed {
            class: FailureClass::NoAccess,
            told: None,
            text: None,
        },
        pause: Some(Pause::Upstream),
        ..Ended::default()
    };
    world.tell(Event::Ended(call, Box::new(ended)));
    world.submit(world.call(queues[0]));
    assert_eq!(world.started(), [], "this model is closed");
    let other = world.submit(world.call(queues[1]));
    assert_eq!(world.started(), [other], "the other one is not");
    let closed = upstreams.map(|upstream| world.dispatcher.upstream_view(upstream).closed);
    assert_eq!(closed, [Some((FailureClass::NoAccess, None)), None]);
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

#[test]
fn a_call_whose_time_ran_out_while_it_ran_does_not_start_again() {
    // A refused call went back to its place and was started from there before anybody looked at
    // its deadline, which had passed while it ran.
    let (mut world, queue, _) = World::simple(&["requests=10/1s"]);
    let call = world.submit(Call {
        ttl: Some(SECOND),
        ..world.call(queue)
    });
    assert_eq!(world.started(), [call]);
    world.advance(SECOND * 2);
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
fn an_answer_that_failed_produced_nothing_more_than_was_seen() {
    // The mean answer was charged for every call that failed, although the provider counts no
    // output for an error: with a twentieth of failures that much of the limit was never used.
    let (mut world, queue, _) = World::simple(&["output_tokens=1000/1m"]);
    let mut sent = |class| {
        let call = world.submit(world.call(queue));
        assert_eq!(world.started(), [call]);
        world.fail(call, class, None);
        let id = world.dispatcher.limit_ids().next().expect("a limit");
        world.dispatcher.limit_view(id, world.now).in_use
    };
    assert_eq!(sent(FailureClass::RowFault), 0.0);
    assert!(sent(FailureClass::Ambiguous) > 0.0, "its fate is unknown");
}

#[test]
fn the_answer_that_ends_the_betting_frees_those_who_waited_for_it() {
    // With the fiftieth answer the upstream was no longer asked first, and nobody was told: calls
    // that waited for an answer waited for ever.
    let mut world = World::new();
    let setup = UpstreamSetup {
        name: "up".into(),
        ask_before_betting: true,
        ..UpstreamSetup::default()
    };
    let upstream = world.dispatcher.add_upstream(setup, world.now);
    let queue = world.queue(upstream);
    for _ in 0..300 {
        world.submit(world.call(queue));
    }
    let started = world.started();
    assert_eq!(started.len(), 200);
    let mut more = 0;
    for call in &started[..50] {
        world.complete(*call);
        more += world.started().len();
    }
    assert_eq!(more, 100, "calibrated, with nothing else in the way");
}

/// Calls that hung through an outage timed out after it was over, and shut the upstream again.
#[test]
fn failures_of_calls_from_before_an_outage_do_not_shut_the_upstream_again() {
    let (mut world, queue, upstream) = World::simple(&[]);
    let calls: Vec<TicketId> = (0..40).map(|_| world.submit(world.call(queue))).collect();
    world.started();
    for call in &calls {
        world.tell(Event::Sent(*call));
    }
    let lost = |ticket| {
        let outcome = Outcome::Failed {
            class: FailureClass::Ambiguous,
            told: None,
            text: None,
        };
        Event::Ended(
            ticket,
            Box::new(Ended {
                outcome,
                ..Ended::default()
            }),
        )
    };
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
fn a_call_whose_time_ran_out_while_it_ran_does_not_start_when_its_queue_goes_on() {
    // It came back while the queue stood still, when no deadline is looked at; the queue went
    // on, and the call was started before the deadline that had passed long ago.
    let (mut world, queue, _) = World::simple(&["requests=10/1s"]);
    let call = world.submit(Call {
        ttl: Some(SECOND),
        ..world.call(queue)
    });
    assert_eq!(world.started(), [call]);
    world.advance(SECOND * 2);
    world.tell(Event::Pause(queue));
    world.fail(call, FailureClass::QuotaWindow, Some(Duration::ZERO));
    world.advance(SECOND);
    world.tell(Event::Resume(queue));
    world.advance(SECOND);
    assert_eq!(world.started(), []);
}

fn tokens(input_tokens: u32) -> CallSize {
    CallSize {
        input_tokens,
        ..CallSize::default()
    }
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

#[test]
fn a_head_waits_for_what_is_produced_and_not_for_the_answers_end() {
    // What a running call holds for its answer has no date, so a head that needs it waits for
    // an event. Tokens that stream in have a date, and nobody told the head.
    let mut world = World::new();
    let spec: LimitSpec = "output_tokens=300/1m:bucket".parse().expect("a limit");
    let limit = world.dispatcher.add_limit(
        LimitSetup {
            name: spec.name(),
            spec,
            rule: charge_rule(Host::Anthropic, spec.kind),
            scope: Scope::Upstream,
        },
        world.now,
    );
    let upstream = world.upstream(&[limit]);
    let queue = world.queue(upstream);
    let [streams, waits] = [(); 2].map(|()| world.submit(world.call(queue)));
    assert_eq!(world.started(), [streams]);
    world.tell(Event::Sent(streams));
    world.tell(Event::Produced(streams, 256));
    world.advance(MINUTE);
    assert_eq!(world.started(), [waits]);
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
fn a_failed_call_that_its_fallback_may_not_serve_yet_waits_before_it_comes_again() {
    // A fallback counted as another upstream that might take the call over. Since it serves only
    // for cause, the call came back at once to the upstream that had just failed it, and its
    // attempts were used up within one instant.
    let mut world = World::new();
    let upstreams = [world.upstream(&[]), world.upstream(&[])];
    let backup = world.queue(upstreams[1]);
    let mut setup = QueueSetup::to("m", upstreams[0]);
    setup.fallback = vec![backup];
    let queue = world.dispatcher.add_queue(setup);
    let call = world.submit(world.call(queue));
    assert_eq!(world.started(), [call]);
    world.fail(call, FailureClass::Transient, None);
    assert_eq!(world.started(), []);
    world.advance(SECOND);
    assert_eq!(world.started(), [call]);
}

#[test]
fn a_failed_call_waits_where_no_other_upstream_can_take_it_at_once() {
    // A call whose other upstream was full came back at once to the one that refused
    // connections, five times within five milliseconds, and had failed for good.
    let mut world = World::new();
    let one_place = world.limit("concurrency=1", Scope::Upstream);
    let upstreams = [world.upstream(&[]), world.upstream(&[one_place])];
    let mut setup = QueueSetup::to("m", upstreams[0]);
    setup.routes.push(Route {
        upstream: upstreams[1],
        weight: 1e9,
    });
    let queue = world.dispatcher.add_queue(setup);
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

#[test]
fn a_call_too_large_for_an_upstream_that_is_up_is_not_sent_there_again() {
    // The same: a fallback that could not serve it let the call be refused five times.
    let mut world = World::new();
    let upstreams = [world.upstream(&[]), world.upstream(&[])];
    let backup = world.queue(upstreams[1]);
    let mut setup = QueueSetup::to("m", upstreams[0]);
    setup.fallback = vec![backup];
    let queue = world.dispatcher.add_queue(setup);
    let call = world.submit(world.call(queue));
    assert_eq!(world.started(), [call]);
    world.fail(call, FailureClass::TooLarge, None);
    assert_eq!(world.started(), []);
    let failed =
        |effect: &Effect| matches!(effect, Effect::Failed { ticket, .. } if *ticket == call);
    assert!(world.effects.iter().any(failed));
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

/// A queue with a fallback, each over an upstream of its own.
fn with_fallback(world: &mut World) -> (QueueId, UpstreamId, UpstreamId) {
    let [own, other] = [(); 2].map(|()| world.upstream(&[]));
    let fallback = world.queue(other);
    let queue = world.dispatcher.add_queue(QueueSetup {
        fallback: vec![fallback],
        max_attempts: 2,
        ..QueueSetup::to("m", own)
    });
    (queue, own, other)
}

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
fn a_call_that_has_used_up_its_attempts_has_one_try_at_the_fallback() {
    // It failed for good, with an upstream left that had not been asked.
    let mut world = World::new();
    let (queue, own, other) = with_fallback(&mut world);
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

#[test]
fn a_fallback_serves_while_the_own_upstream_is_broken_even_if_it_may_be_back_in_time() {
    // Calls waited for the breaker's next probe, within their patience, beside an upstream that
    // could have served them.
    let mut world = World::new();
    let (queue, own, other) = with_fallback(&mut world);
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
