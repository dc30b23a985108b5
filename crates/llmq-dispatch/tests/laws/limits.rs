//! What a call takes of its limits, and what it gives back.

use std::time::Duration;

use llmq_core::{CallSize, FailureClass, Host, LimitKind, LimitSpec, Priority};
use llmq_dispatch::{
    Call, Effect, Ended, Event, LimitSetup, Notice, Outcome, QueueSetup, Reserve, Scope,
    UpstreamSetup,
};
use llmq_limit::{LimitText, RateLimitHeaders, charge_rule};

use crate::world::{MINUTE, SECOND, World};

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

/// An account and a model that both named one limit took two of it for each call, and half of
/// it lay idle.
#[test]
fn a_call_meets_a_limit_once_however_often_it_is_named() {
    let mut world = World::new();
    let limit = world.limit("requests=10/1m", Scope::Account);
    let upstream = world.upstream(&[limit, limit]);
    let queue = world.queue(upstream);
    for _ in 0..12 {
        world.submit(world.call(queue));
    }
    assert_eq!(world.started().len(), 10);
    let setup = UpstreamSetup {
        limits: vec![limit, limit],
        ..UpstreamSetup::default()
    };
    let now = world.now;
    let _ = world.dispatcher.change_upstream(upstream, setup, now);
    assert_eq!(world.dispatcher.upstream_view(upstream).limits, [limit]);
}

#[test]
fn headers_that_cannot_be_read_are_told_of_once_a_minute() {
    let (mut world, queue, upstream) = World::simple(&[]);
    let mut answered = |after| {
        world.advance(after);
        let call = world.submit(world.call(queue));
        world.sent(call);
        let headers = RateLimitHeaders {
            garbled: Some("x-ratelimit-limit-requests: many".to_owned()),
            ..RateLimitHeaders::default()
        };
        let ended = Ended {
            headers: Some(headers),
            ..Ended::default()
        };
        world.effects.clear();
        world.tell(Event::Ended(call, Box::new(ended)));
        let notice = Notice::HeaderGarbled {
            upstream,
            header: "x-ratelimit-limit-requests: many".to_owned(),
        };
        world.effects.contains(&Effect::Notice(notice))
    };
    assert!(answered(SECOND));
    assert!(!answered(SECOND));
    assert!(!answered(SECOND * 58));
    assert!(answered(SECOND));
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
fn what_a_dropped_call_held_is_free_if_it_was_never_sent_and_kept_if_it_was() {
    let (mut world, queue, _) = World::simple(&["requests=1/1m"]);
    let unsent = world.submit(world.call(queue));
    let next = world.submit(world.call(queue));
    assert_eq!(world.started(), [unsent]);
    world.tell(Event::Dropped(unsent));
    assert_eq!(world.started(), [next]);
    world.sent(next);
    world.submit(world.call(queue));
    world.tell(Event::Dropped(next));
    assert_eq!(world.started(), []);
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

/// Every limit on the way of a refused call held more back, a key's own too: a file with a few rows
/// that were too large left a part of each idle.
#[test]
fn only_a_limit_that_may_have_refused_grows_cautious() {
    let of = |kind| LimitText {
        class: FailureClass::QuotaWindow,
        kind: Some(kind),
        period: Some(MINUTE),
        limit: None,
        used: None,
        requested: None,
        try_again: None,
        resets_at: None,
    };
    let (requests, tokens) = (of(LimitKind::Requests), of(LimitKind::InputTokens));
    for (scope, class, text, starts) in [
        (Scope::Upstream, FailureClass::TooLarge, None, 10),
        (
            Scope::Upstream,
            FailureClass::QuotaWindow,
            Some(requests),
            10,
        ),
        (Scope::Tenant, FailureClass::QuotaWindow, None, 10),
        (Scope::Upstream, FailureClass::QuotaWindow, Some(tokens), 9),
    ] {
        let mut world = World::new();
        let tokens = world.limit("input_tokens=10000/1m", scope);
        let requests = world.limit("requests=1000/1m", Scope::Upstream);
        let upstream = if scope == Scope::Tenant {
            world.tenant = world.dispatcher.add_tenant(1.0, vec![tokens]);
            world.upstream(&[requests])
        } else {
            world.upstream(&[requests, tokens])
        };
        let queue = world.queue(upstream);
        let call = Call {
            size: CallSize::of_input(1_000),
            ..world.call(queue)
        };
        let refused = world.submit(call);
        assert_eq!(world.started(), [refused]);
        world.sent(refused);
        let outcome = Outcome::Failed {
            class,
            told: Some(SECOND),
            text,
        };
        let ended = Ended {
            outcome,
            ..Ended::default()
        };
        world.tell(Event::Ended(refused, Box::new(ended)));
        for _ in 0..10 {
            world.submit(call);
        }
        world.advance(SECOND * 3);
        assert_eq!(world.started().len(), starts, "{scope:?} {class:?}");
    }
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
    world.sent(streams);
    world.tell(Event::Produced(streams, 256));
    world.advance(MINUTE);
    assert_eq!(world.started(), [waits]);
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

/// Whatever a busy machine was late with passed for a slow network, and for minutes every call was
/// dated as much later.
#[test]
fn a_call_that_is_told_of_late_proves_no_slow_network() {
    let (mut world, queue, _) = World::simple(&["requests=1/1m"]);
    let [first, _second, third] = [(); 3].map(|()| world.submit(world.call(queue)));
    let written_at = world.now.mono;
    world.advance(Duration::from_millis(300));
    world.tell(Event::Sent(first, written_at));
    world.advance(Duration::from_millis(1));
    world.tell(Event::FirstByte(first, Some(Duration::from_millis(2))));
    world.tell(Event::Ended(first, Box::default()));
    world.started();
    world.advance(MINUTE + Duration::from_millis(5));
    let second = world.started()[0];
    world.sent(second);
    let until = world.dispatcher.why(third).and_then(|why| why.until);
    let waits = until.expect("it waits") - world.now.mono;
    assert!(waits <= MINUTE + Duration::from_millis(5), "{waits:?}");
}
