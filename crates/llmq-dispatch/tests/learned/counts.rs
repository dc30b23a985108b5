//! A count that changes while calls are under way says nothing of what is used.

use llmq_core::FailureClass;
use llmq_dispatch::{Outcome, TicketId};
use llmq_limit::LimitText;

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

impl World {
    /// Submits calls of this size; all of them start and are written at once.
    fn send(&mut self, calls: usize, input_tokens: u32) -> Vec<TicketId> {
        let started = self.start(calls, input_tokens);
        assert_eq!(started.len(), calls, "there is room");
        for ticket in &started {
            self.tell(Event::Sent(*ticket, self.now.mono));
        }
        started
    }

    /// Submits calls of this size; names those that start.
    fn start(&mut self, calls: usize, input_tokens: u32) -> Vec<TicketId> {
        self.effects.clear();
        for _ in 0..calls {
            let call = Call {
                size: CallSize {
                    input_tokens,
                    ..CallSize::default()
                },
                ..Call::new(self.queue, self.tenant)
            };
            let ticket = self.dispatcher.submit(call, self.now, &mut self.effects);
            ticket.expect("accepted");
        }
        let started = self.effects.iter().filter_map(|effect| match effect {
            Effect::Start(start) => Some(start.ticket),
            _ => None,
        });
        started.collect()
    }

    fn tell(&mut self, event: Event) {
        self.dispatcher.handle(event, self.now, &mut self.effects);
    }

    /// The answer to a call states that so many of so many are used.
    fn states(&mut self, ticket: TicketId, limit: u64, used: u64) {
        let answer = headers(LimitKind::Requests, &[(limit, Some(MINUTE))], used);
        self.tell(Event::Ended(ticket, answer));
    }

    fn used(&mut self, id: LimitId) -> i64 {
        let view = self.dispatcher.limit_view(id, self.now);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "a small count"
        )]
        let used = (view.in_use * view.spec.count as f64).round() as i64;
        used
    }
}

/// When nothing was under way any more, the whole use was given back as if it had never been:
/// what a word had left of the old count was compared with what the books had left of the new one.
/// The next burst was refused.
#[test]
fn what_a_burst_used_stays_used_when_its_answers_lower_the_count() {
    for text in ["requests=1000/1m", "requests=1000/1m:bucket"] {
        for calls in [1, 60] {
            let mut world = World::new();
            let id = world.configure(text, Scope::Upstream);
            world.add_upstream(id);
            let burst = world.send(calls, 0);
            for (ticket, used) in burst.into_iter().zip(1..) {
                world.states(ticket, 500, used);
            }
            let view = world.dispatcher.limit_view(id, world.now);
            assert_eq!(view.spec.count, 500, "{text}");
            // A bucket may have a margin's refill more.
            let used = world.used(id) - i64::try_from(calls).expect("few");
            assert!(
                (-1..=1).contains(&used),
                "{text}: {calls} calls, {used} too many"
            );
        }
    }
}

/// It was measured by the count of before the change, since it had been written before it.
#[test]
fn a_call_that_is_told_of_after_the_count_has_changed_has_met_the_new_one() {
    for (stated, answers) in [(500, 1), (2_000, 3)] {
        let mut world = World::new();
        let id = world.remember("requests=1000/1m");
        let others = world.send(answers, 0);
        let last = world.start(1, 0)[0];
        let written_at = world.now.mono;
        world.pass(MILLISECOND);
        for (ticket, used) in others.into_iter().zip(1..) {
            world.states(ticket, stated, used);
        }
        assert_eq!(
            world.dispatcher.limit_view(id, world.now).spec.count,
            stated
        );
        world.pass(MILLISECOND);
        world.tell(Event::Sent(last, written_at));
        let used = answers + 1;
        world.states(last, stated, used as u64);
        assert_eq!(
            world.used(id),
            i64::try_from(used).expect("few"),
            "{stated}"
        );
    }
}

/// The whole difference of the counts was taken for others' use: with a tenfold limit configured
/// nothing was sent for minutes, as long as one call was still under way.
#[test]
fn a_refusal_of_calls_that_were_sent_by_a_higher_count_makes_no_debt() {
    for with_headers in [true, false] {
        let mut world = World::new();
        let spec: LimitSpec = "tokens=100000/1m:bucket".parse().expect("a limit");
        let setup = LimitSetup {
            name: spec.name(),
            spec,
            rule: charge_rule(Host::Mock, spec.kind),
            scope: Scope::Upstream,
        };
        let id = world.dispatcher.add_limit(setup, world.now);
        world.add_upstream(id);
        let mut burst = world.send(10, 900).into_iter();
        let _streams = burst.next();
        let each = world.used(id) / 10;
        let count = 6 * u64::try_from(each).expect("positive");
        let first = burst.next().expect("ten");
        let stated = [(count, Some(MINUTE))];
        world.tell(Event::Ended(
            first,
            headers(LimitKind::Tokens, &stated, count),
        ));
        for ticket in burst.skip(4) {
            let text = LimitText {
                class: FailureClass::QuotaWindow,
                kind: Some(LimitKind::Tokens),
                period: Some(MINUTE),
                limit: Some(count),
                used: Some(count),
                requested: Some(count / 6),
                try_again: None,
                resets_at: None,
            };
            let headers = headers(LimitKind::Tokens, &stated, count).headers;
            let refused = Ended {
                outcome: Outcome::Failed {
                    class: FailureClass::QuotaWindow,
                    told: None,
                    text: Some(text),
                },
                headers: headers.filter(|_| with_headers),
                ..Ended::default()
            };
            world.tell(Event::Ended(ticket, Box::new(refused)));
        }
        assert_eq!(world.used(id), 6 * each, "headers: {with_headers}");
    }
}

/// Long streams state at their end what was so when they began, and three of them in a row put the
/// old count back in force.
#[test]
fn what_calls_of_before_a_change_state_changes_nothing() {
    for (before, after, calls) in [(1_000, 500, 1), (500, 1_000, 3)] {
        let mut world = World::new();
        let id = world.configure("requests=1000/1m", Scope::Upstream);
        world.add_upstream(id);
        world.answer(&[(before, Some(MINUTE))]);
        let streams = world.send(5, 0);
        world.pass(SECOND);
        for ticket in world.send(calls, 0) {
            world.states(ticket, after, 1);
        }
        assert_eq!(world.dispatcher.limit_view(id, world.now).spec.count, after);
        for ticket in streams {
            world.states(ticket, before, 1);
            assert_eq!(world.dispatcher.limit_view(id, world.now).spec.count, after);
        }
    }
}

/// What was sent before a limit was known was in no book of it, and what those calls' answers
/// said of it was not heard: as many again were started.
#[test]
fn calls_that_are_under_way_count_when_their_limit_is_learned() {
    let mut world = World::new();
    let quick = world.send(3, 0);
    world.pass(SECOND);
    let slow = world.send(10, 0);
    world.pass(SECOND);
    for (ticket, used) in quick.into_iter().zip(1..) {
        world.states(ticket, 20, used);
    }
    assert_eq!(world.kept(), ["requests=20/1m"]);
    let id = world.dispatcher.learned_limits(world.upstream)[0];
    assert_eq!(world.used(id), 13);
    assert_eq!(world.start(20, 0).len(), 7);
    // Another client was there before them.
    world.states(slow[9], 20, 15);
    assert_eq!(world.used(id), 22, "seven are under way");
}

#[test]
fn calls_that_are_under_way_count_at_a_limit_that_is_configured_anew() {
    let mut world = World::new();
    let _ = world.send(3, 0);
    world.pass(SECOND);
    let granted = world.start(1, 0)[0];
    let id = world.configure("requests=6/1m", Scope::Upstream);
    let setup = UpstreamSetup {
        limits: vec![id],
        ..UpstreamSetup::default()
    };
    let (upstream, now) = (world.upstream, world.now);
    let _ = world.dispatcher.change_upstream(upstream, setup, now);
    assert_eq!(world.used(id), 4);
    world.tell(Event::Sent(granted, world.now.mono));
    assert_eq!(world.start(9, 0).len(), 2);
}
