use llmq_core::{Host, LimitKind, LimitSpec};
use llmq_limit::{Factor, charge_rule};

use super::*;
use crate::Refusal;
use crate::events::{Call, Event};
use crate::ids::TenantId;
use crate::learned::Learned;
use crate::setup::{Route, Scope};

fn stated(text: &str) -> LimitSetup {
    let spec: LimitSpec = text.parse().unwrap();
    LimitSetup {
        name: spec.name(),
        spec,
        rule: charge_rule(Host::Unknown, spec.kind),
        scope: Scope::Upstream,
    }
}

struct World {
    dispatcher: Dispatcher,
    limit: LimitId,
    upstream: UpstreamId,
    queue: QueueId,
    tenant: TenantId,
    now: Now,
    effects: Vec<Effect>,
}

fn world(limit: &str) -> World {
    let now = Now::default().after(Duration::from_secs(100));
    let mut dispatcher = Dispatcher::new(Rules::default(), 1);
    let limit = dispatcher.add_limit(stated(limit), now);
    let upstream = dispatcher.add_upstream(to(&[limit]), now);
    let queue = dispatcher.add_queue(QueueSetup::to("m", upstream));
    let tenant = dispatcher.add_tenant(1.0, Vec::new());
    World {
        dispatcher,
        limit,
        upstream,
        queue,
        tenant,
        now,
        effects: Vec::new(),
    }
}

fn to(limits: &[LimitId]) -> UpstreamSetup {
    UpstreamSetup {
        limits: limits.to_vec(),
        ..UpstreamSetup::default()
    }
}

impl World {
    fn submit(&mut self, calls: usize) {
        for _ in 0..calls {
            let call = Call::new(self.queue, self.tenant);
            let ticket = self.dispatcher.submit(call, self.now, &mut self.effects);
            ticket.unwrap();
        }
    }

    fn starts(&mut self) -> usize {
        let effects = std::mem::take(&mut self.effects);
        let starts = effects.iter().filter_map(|effect| match effect {
            Effect::Start(start) => Some(start.ticket),
            _ => None,
        });
        let starts: Vec<_> = starts.collect();
        for ticket in &starts {
            self.dispatcher.handle(
                Event::Sent(*ticket, self.now.mono),
                self.now,
                &mut self.effects,
            );
        }
        starts.len()
    }

    fn reconsider(&mut self) -> usize {
        self.dispatcher.reconsider(self.now, &mut self.effects);
        self.starts()
    }
}

#[test]
fn a_limit_that_is_raised_lets_exactly_the_difference_go() {
    let mut world = world("requests=3/60s");
    world.submit(10);
    assert_eq!(world.starts(), 3);
    let (limit, now) = (world.limit, world.now);
    assert!(
        world
            .dispatcher
            .restate_limit(limit, &stated("requests=5/60s"), now)
    );
    assert_eq!(world.reconsider(), 2);
    assert!(
        world
            .dispatcher
            .restate_limit(limit, &stated("requests=4/60s"), now)
    );
    assert_eq!(world.reconsider(), 0);
    for other in ["requests=5/30s", "tokens=5/60s", "requests=5/60s:bucket"] {
        assert!(
            !world.dispatcher.restate_limit(limit, &stated(other), now),
            "{other}"
        );
    }
}

/// The provider had lowered a limit, somebody changed a setting that had nothing to do with
/// it, and the file's count was in force again: all that was above the provider's was refused.
#[test]
fn a_limit_that_is_stated_as_before_stays_as_the_provider_lowered_it() {
    let mut world = world("requests=10/60s");
    world.submit(5);
    assert_eq!(world.starts(), 5);
    let slot = &mut world.dispatcher.limits[world.limit.index()];
    slot.limit.set_count(5, world.now.mono);
    world.submit(10);
    for (again, starts) in [("requests=10/60s", 0), ("requests=12/60s", 7)] {
        let (limit, now) = (world.limit, world.now);
        let is_same = world.dispatcher.restate_limit(limit, &stated(again), now);
        assert!(is_same);
        assert_eq!(world.reconsider(), starts, "{again}");
    }
}

#[test]
fn a_limit_that_was_learned_is_stated_no_higher_than_answers_say() {
    for (is_stated, count) in [(true, 5), (false, 10)] {
        let mut world = world("requests=9/1s");
        let (upstream, now) = (world.upstream, world.now);
        let learned = stated("requests=5/60s");
        let id = world.dispatcher.add_learned_limit(upstream, learned, now);
        if is_stated {
            world.dispatcher.limits[id.index()].learned = Some(Learned::stated());
        }
        let again = stated("requests=10/60s");
        assert!(world.dispatcher.restate_limit(id, &again, now));
        assert_eq!(world.dispatcher.limit_view(id, now).spec.count, count);
    }
}

/// Room came without an event, as when a caution ends with time, and the next newcomer took it.
#[test]
fn room_that_nobody_was_told_of_is_for_those_who_wait() {
    let mut world = world("requests=1/60s");
    world.submit(3);
    assert_eq!(world.starts(), 1);
    let limit = world.dispatcher.limit_mut(world.limit);
    limit.set_count(3, world.now.mono);
    let low = Call {
        priority: llmq_core::Priority::LOW,
        ..Call::new(world.queue, world.tenant)
    };
    let low = world.dispatcher.submit(low, world.now, &mut world.effects);
    let first: Vec<_> = world
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Start(start) => Some(start.ticket),
            _ => None,
        })
        .collect();
    assert_eq!(first.len(), 2);
    assert!(!first.contains(&low.unwrap()));
}

#[test]
fn calls_that_wait_for_a_limit_that_goes_are_tried_at_once() {
    let mut world = world("requests=1/60s");
    world.submit(3);
    assert_eq!(world.starts(), 1);
    let (upstream, now) = (world.upstream, world.now);
    let _ = world.dispatcher.change_upstream(upstream, to(&[]), now);
    assert_eq!(world.reconsider(), 2);
    // And back: what the first call used is still in the books.
    let limit = world.limit;
    let _ = world
        .dispatcher
        .change_upstream(upstream, to(&[limit]), now);
    world.submit(1);
    assert_eq!(world.starts(), 0);
}

/// Streams that had begun long before counted as if they had just been sent.
#[test]
fn a_bucket_that_joins_owes_nothing_for_calls_of_an_hour_ago() {
    let mut world = world("requests=9/1s");
    world.submit(9);
    assert_eq!(world.starts(), 9);
    world.now = world.now.after(Duration::from_secs(3_600));
    let (upstream, now) = (world.upstream, world.now);
    let bucket = stated("requests=9/60s:bucket");
    let bucket = world.dispatcher.add_limit(bucket, now);
    let limits = to(&[world.limit, bucket]);
    let _ = world.dispatcher.change_upstream(upstream, limits, now);
    world.submit(1);
    assert_eq!(world.starts(), 1);
}

/// A limit that was to count by another algorithm began unused: a whole window, or a whole
/// day's, went out above what the provider gave.
#[test]
fn a_limit_that_counts_otherwise_keeps_what_is_used_and_counts_calls_under_way_once() {
    for (from, into) in [
        ("", ":bucket"),
        ("", ":fixed"),
        (":bucket", ""),
        (":bucket", ":fixed"),
        (":fixed", ""),
        (":fixed", ":bucket"),
    ] {
        let mut world = world(&format!("requests=1000/1d{from}"));
        let (old, upstream, now) = (world.limit, world.upstream, world.now);
        let before = world.dispatcher.limit_mut(old);
        before.restore(&[(Duration::ZERO, 10)], Duration::ZERO, now.mono);
        world.submit(40);
        assert_eq!(world.starts(), 40);
        let setup = stated(&format!("requests=1000/1d{into}"));
        assert!(!world.dispatcher.restate_limit(old, &setup, now));
        let new = world.dispatcher.replace_limit(old, setup, now);
        let _ = world.dispatcher.change_upstream(upstream, to(&[new]), now);
        let used = world.dispatcher.limit_mut(new).saved(now.mono);
        let used: u64 = used.iter().map(|(_, used)| used).sum();
        assert_eq!(used, 50, "`{from}` to `{into}`");
    }
}

/// It went on correcting to usage at a provider that keeps the cap charged.
#[test]
fn a_limit_that_charges_otherwise_keeps_what_is_used_and_not_how_that_was_charged() {
    let mut world = world("tokens=60000/60s");
    let (old, now) = (world.limit, world.now);
    let before = world.dispatcher.limit_mut(old);
    before.restore(&[(Duration::ZERO, 10)], Duration::ZERO, now.mono);
    before.set_factor(Factor::remembered(2.0));
    let rule = charge_rule(Host::Cerebras, LimitKind::Tokens);
    let setup = LimitSetup {
        rule,
        ..stated("tokens=60000/60s")
    };
    assert!(!world.dispatcher.restate_limit(old, &setup, now));
    let new = world.dispatcher.replace_limit(old, setup, now);
    let limit = world.dispatcher.limit_mut(new);
    assert_eq!((limit.rule(), limit.learned_factor()), (rule, None));
    let used: u64 = limit.saved(now.mono).iter().map(|(_, used)| used).sum();
    assert_eq!(used, 10);
}

/// The provider had lowered the count, and with the algorithm the file's was in force again.
#[test]
fn a_limit_that_counts_otherwise_stays_as_the_provider_lowered_it() {
    let mut world = world("requests=10/60s");
    let (limit, now) = (world.limit, world.now);
    world.dispatcher.limit_mut(limit).set_count(5, now.mono);
    for (again, count) in [("requests=10/60s:fixed", 5), ("requests=8/60s:fixed", 8)] {
        let new = world.dispatcher.replace_limit(limit, stated(again), now);
        assert_eq!(world.dispatcher.limit_view(new, now).spec.count, count);
    }
}

/// An account without credit was closed for up to an hour more, whatever key was stated.
#[test]
fn an_upstream_that_refused_us_is_tried_again_with_another_key() {
    let refusals = [
        (FailureClass::Money, None, 4),
        // What is refused fails its call, so one finds out for the rest.
        (FailureClass::NoAccess, Some(llmq_core::Pause::Upstream), 1),
    ];
    for (class, pause, starts) in refusals {
        let mut world = world("requests=9/1s");
        let (upstream, now) = (world.upstream, world.now);
        world.submit(1);
        let first = world.effects.iter().find_map(|effect| match effect {
            Effect::Start(start) => Some(start.ticket),
            _ => None,
        });
        assert_eq!(world.starts(), 1);
        let refused = crate::Ended {
            outcome: crate::Outcome::Failed {
                class,
                told: None,
                text: None,
            },
            pause,
            ..crate::Ended::default()
        };
        let ended = Event::Ended(first.unwrap(), Box::new(refused));
        world.dispatcher.handle(ended, now, &mut world.effects);
        let closed = world.dispatcher.upstream_view(upstream).closed;
        assert!(matches!(closed, Some((_, Some(_)))), "{class}: {closed:?}");
        let setup = UpstreamSetup {
            credential: Some(2),
            ..to(&[world.limit])
        };
        let ended = world.dispatcher.change_upstream(upstream, setup, now);
        assert!(matches!(ended[..], [Notice::UpstreamReopened { .. }]));
        world.submit(3);
        assert_eq!(world.reconsider(), starts, "{class}");
    }
}

#[test]
fn what_was_learned_stays_until_it_is_stated() {
    let mut world = world("requests=9/60s");
    let (upstream, now) = (world.upstream, world.now);
    let learned = stated("tokens=100/60s");
    let learned = world.dispatcher.add_learned_limit(upstream, learned, now);
    let limits = |world: &World| world.dispatcher.upstream_view(upstream).limits;
    let _ = world.dispatcher.change_upstream(upstream, to(&[]), now);
    assert_eq!(limits(&world), [learned]);
    let own = world.dispatcher.add_limit(stated("tokens=50/60s"), now);
    let _ = world.dispatcher.change_upstream(upstream, to(&[own]), now);
    assert_eq!(limits(&world), [own]);
}

#[test]
fn what_a_change_ends_is_told() {
    let mut world = world("requests=9/60s");
    let (upstream, now) = (world.upstream, world.now);
    world.dispatcher.upstreams[upstream.index()].closed = Some(crate::upstream::Closed {
        class: llmq_core::FailureClass::NoAccess,
        until: None,
        since: now.mono,
    });
    let breaker = &mut world.dispatcher.upstreams[upstream.index()].breaker;
    for _ in 0..20 {
        breaker.failed(llmq_limit::CallRole::Normal, now);
    }
    let other = UpstreamSetup {
        breaker: llmq_limit::BreakerConfig {
            failures_in_row: 99,
            ..Default::default()
        },
        ..to(&[])
    };
    let ended = world
        .dispatcher
        .change_upstream(upstream, other.clone(), now);
    assert!(
        matches!(
            ended[..],
            [Notice::UpstreamReopened { .. }, Notice::BreakerClosed(_)]
        ),
        "{ended:?}"
    );
    assert_eq!(world.dispatcher.change_upstream(upstream, other, now), []);
}

/// Once it came back running, though a person had drained it.
#[test]
fn a_queue_that_was_drained_is_drained_when_it_is_offered_again() {
    let mut world = world("requests=9/60s");
    let (queue, upstream) = (world.queue, world.upstream);
    for drained in [true, false] {
        world.dispatcher.drain(queue, drained);
        for _ in 0..2 {
            world.dispatcher.retire_queue(queue);
        }
        world
            .dispatcher
            .change_queue(queue, QueueSetup::to("m", upstream));
        assert_eq!(world.dispatcher.queue_view(queue).draining, drained);
    }
}

/// A place was taken for ever by a name that a provider did not know.
#[test]
fn a_place_that_nothing_came_of_is_as_new_to_the_next_one() {
    let mut world = world("requests=9/60s");
    let (upstream, queue, now) = (world.upstream, world.queue, world.now);
    assert!(world.dispatcher.is_unproven(queue));
    world.submit(1);
    assert!(!world.dispatcher.is_unproven(queue), "it holds a call");
    let effects = std::mem::take(&mut world.effects);
    let ticket = effects.iter().find_map(|effect| match effect {
        Effect::Start(start) => Some(start.ticket),
        _ => None,
    });
    let refused = crate::Ended {
        outcome: crate::Outcome::Failed {
            class: llmq_core::FailureClass::NoAccess,
            told: None,
            text: None,
        },
        ..crate::Ended::default()
    };
    let ended = Event::Ended(ticket.unwrap(), Box::new(refused));
    world.dispatcher.handle(ended, now, &mut world.effects);
    assert!(world.dispatcher.is_unproven(queue));
    assert!(!world.dispatcher.is_usable(upstream, now));
    world.dispatcher.retire_queue(queue);
    world.dispatcher.retire_upstream(upstream);
    let other = UpstreamSetup {
        name: "other".into(),
        ..UpstreamSetup::default()
    };
    world.dispatcher.replace_upstream(upstream, other, now);
    let setup = QueueSetup::to("other", upstream);
    world.dispatcher.change_queue(queue, setup);
    assert!(world.dispatcher.is_usable(upstream, now));
    world.submit(1);
    assert_eq!(world.starts(), 1);
    world
        .dispatcher
        .handle(Event::Pause(queue), now, &mut world.effects);
    assert!(
        !world.dispatcher.is_unproven(queue),
        "a person has been here"
    );
}

#[test]
fn a_retired_queue_finishes_what_waits_and_takes_nothing_new() {
    let mut world = world("requests=1/60s");
    world.submit(2);
    assert_eq!(world.starts(), 1);
    let queue = world.queue;
    world.dispatcher.retire_queue(queue);
    assert_eq!(world.reconsider(), 0);
    let call = Call::new(queue, world.tenant);
    let refused = world.dispatcher.submit(call, world.now, &mut world.effects);
    assert_eq!(refused, Err(Refusal::Draining));
    world.now = world.now.after(Duration::from_secs(61));
    world
        .dispatcher
        .handle(Event::Tick, world.now, &mut world.effects);
    assert_eq!(world.starts(), 1);
    let setup = QueueSetup {
        routes: vec![Route {
            upstream: world.upstream,
            weight: 1.0,
        }],
        ..QueueSetup::to("m", world.upstream)
    };
    world.dispatcher.change_queue(queue, setup);
    world.submit(1);
}
