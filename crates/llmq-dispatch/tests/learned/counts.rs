//! A count that changes while calls are under way says nothing of what is used.

use llmq_core::{FailureClass, Timestamp};
use llmq_dispatch::{Outcome, TicketId};
use llmq_limit::LimitText;

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);

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

    /// A call is refused for no longer than a second, and given up.
    fn refuse(&mut self, refused: Ended) {
        let ticket = self.send(1, 0)[0];
        self.tell(Event::Ended(ticket, Box::new(refused)));
        self.tell(Event::Dropped(ticket));
        self.pass(SECOND * 2);
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

/// A provider's bucket of ten requests a minute: only the texts of its refusals tell of it.
#[derive(Default)]
struct Ten {
    full_at: Timestamp,
    refused: u32,
}

impl Ten {
    const EACH: Duration = Duration::from_secs(6);

    fn answer(&mut self, at: Timestamp) -> Ended {
        let full_at = self.full_at.max(at) + Self::EACH;
        let wait = (full_at - at).saturating_sub(MINUTE);
        if wait.is_zero() {
            self.full_at = full_at;
            return Ended::default();
        }
        self.refused += 1;
        refusal(MINUTE, 10, Some(10), wait)
    }
}

/// A refusal whose text states a limit on requests.
fn refusal(period: Duration, limit: u64, used: Option<u64>, wait: Duration) -> Ended {
    let class = if period == DAY {
        FailureClass::QuotaDay
    } else {
        FailureClass::QuotaWindow
    };
    let text = LimitText {
        class,
        kind: Some(LimitKind::Requests),
        period: Some(period),
        limit: Some(limit),
        used,
        requested: Some(1),
        try_again: Some(wait),
        resets_at: None,
    };
    Ended {
        outcome: Outcome::Failed {
            class,
            told: Some(wait),
            text: Some(text),
        },
        ..Ended::default()
    }
}

/// The count in a text was never heeded: each time that the bucket had room for one call, all that
/// waited were sent and refused.
#[test]
fn a_few_refusals_whose_texts_state_a_limit_are_enough() {
    for configured in [Some("requests=600/1m:bucket"), None] {
        let mut world = World::new();
        if let Some(text) = configured {
            let id = world.configure(text, Scope::Upstream);
            world.add_upstream(id);
        }
        let mut provider = Ten::default();
        let (mut submitted, mut served) = (0, 0);
        // One call each second, until all are served.
        for step in 0..6_000 {
            if step % 10 == 0 && submitted < 24 {
                submitted += 1;
                let call = Call::new(world.queue, world.tenant);
                let (now, effects) = (world.now, &mut world.effects);
                let ticket = world.dispatcher.submit(call, now, effects);
                assert!(ticket.is_ok());
            }
            let effects = std::mem::take(&mut world.effects);
            let started = effects.iter().filter_map(|effect| match effect {
                Effect::Start(start) => Some(start.ticket),
                _ => None,
            });
            for ticket in started {
                world.tell(Event::Sent(ticket, world.now.mono));
                let answer = provider.answer(world.now.mono);
                world.tell(Event::Ended(ticket, Box::new(answer)));
            }
            let ended = |effect: &&Effect| matches!(effect, Effect::Completed { .. });
            served += effects.iter().filter(ended).count();
            world.pass(SECOND / 10);
        }
        assert_eq!(served, 24, "{configured:?}");
        assert!(provider.refused < 8, "{configured:?}: {}", provider.refused);
    }
}

#[test]
fn a_text_is_heeded_as_a_header_is() {
    let refuse = |world: &mut World, period, limit| {
        world.refuse(refusal(period, limit, None, SECOND));
    };
    let mut world = World::new();
    let id = world.configure("requests=40/1m", Scope::Upstream);
    world.add_upstream(id);
    for _ in 0..4 {
        refuse(&mut world, MINUTE, 500);
    }
    let count = |world: &mut World| world.dispatcher.limit_mut(id).spec().count;
    assert_eq!(count(&mut world), 40, "no more than a person stated");
    // Another window of the kind, and one of which no text says when it is free again.
    for _ in 0..4 {
        refuse(&mut world, DAY, 10);
    }
    assert_eq!(count(&mut world), 40);
    assert_eq!(world.kept(), Vec::<String>::new());
    refuse(&mut world, MINUTE, 20);
    assert_eq!(count(&mut world), 20, "lower at once");

    // One that a person stated for the day is known.
    let mut world = World::new();
    let id = world.configure("requests=40/1d", Scope::Upstream);
    world.add_upstream(id);
    refuse(&mut world, DAY, 10);
    assert_eq!(world.dispatcher.limit_mut(id).spec().count, 10);
}

#[test]
fn one_answer_is_one_word_though_its_text_repeats_its_headers() {
    let mut world = World::new();
    for kept in [0, 0, 1] {
        let mut refused = refusal(MINUTE, 20, Some(20), SECOND);
        refused.headers = headers(LimitKind::Requests, &[(20, Some(MINUTE))], 20).headers;
        world.refuse(refused);
        assert_eq!(world.kept().len(), kept);
    }
}
