//! Limits that headers told of: kept from one process to the next, and corrected.

use std::time::Duration;

use llmq_core::{Host, LimitKind, LimitSpec, Now};
use llmq_dispatch::{
    Call, Dispatcher, Effect, Ended, Event, LimitId, LimitSetup, Notice, QueueId, QueueSetup,
    Rules, Scope, TenantId, UpstreamId, UpstreamSetup,
};
use llmq_limit::{HeaderSource, Observation, RateLimitHeaders, charge_rule};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// An upstream that learns, its queue, and what was heard of it.
struct World {
    dispatcher: Dispatcher,
    now: Now,
    tenant: TenantId,
    upstream: UpstreamId,
    queue: QueueId,
    effects: Vec<Effect>,
}

impl World {
    fn new() -> Self {
        let now = Now::default().after(Duration::from_secs(1_000));
        let mut dispatcher = Dispatcher::new(Rules::default(), 7);
        let tenant = dispatcher.add_tenant(1.0, Vec::new());
        let setup = UpstreamSetup {
            name: "up".into(),
            learn_as: Some(Host::Unknown),
            ..UpstreamSetup::default()
        };
        let upstream = dispatcher.add_upstream(setup, now);
        let queue = dispatcher.add_queue(QueueSetup::to("m", upstream));
        Self {
            dispatcher,
            now,
            tenant,
            upstream,
            queue,
            effects: Vec::new(),
        }
    }

    /// A limit that an earlier process had learned.
    fn remember(&mut self, text: &str) -> LimitId {
        let spec: LimitSpec = text.parse().expect("a limit");
        let setup = LimitSetup {
            name: spec.name(),
            spec,
            rule: charge_rule(Host::Unknown, spec.kind),
            scope: Scope::Upstream,
        };
        self.dispatcher
            .add_learned_limit(self.upstream, setup, self.now)
    }

    /// A call whose answer states these limits, with one call of each used.
    fn answer(&mut self, stated: &[(u64, Option<Duration>)]) {
        self.answer_with(stated, 1);
    }

    /// The same with so many calls used.
    fn answer_with(&mut self, stated: &[(u64, Option<Duration>)], used: u64) {
        self.effects.clear();
        let call = Call::new(self.queue, self.tenant);
        let ticket = self
            .dispatcher
            .submit(call, self.now, &mut self.effects)
            .expect("accepted");
        let granted =
            |effect: &Effect| matches!(effect, Effect::Start(start) if start.ticket == ticket);
        assert!(self.effects.iter().any(granted), "there is room");
        for event in [
            Event::Sent(ticket),
            Event::Ended(ticket, headers(stated, used)),
        ] {
            self.dispatcher.handle(event, self.now, &mut self.effects);
        }
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        self.dispatcher
            .handle(Event::Tick, self.now, &mut self.effects);
    }

    /// What is kept, by its text.
    fn kept(&mut self) -> Vec<String> {
        let ids = self.dispatcher.learned_limits(self.upstream);
        ids.into_iter()
            .map(|id| self.dispatcher.limit_mut(id).spec().to_string())
            .collect()
    }

    fn heard(&self, notice: impl Fn(&Notice) -> bool) -> bool {
        let heard = |effect: &Effect| matches!(effect, Effect::Notice(told) if notice(told));
        self.effects.iter().any(heard)
    }
}

/// An answer that states these limits.
fn headers(stated: &[(u64, Option<Duration>)], used: u64) -> Box<Ended> {
    let observation = |(limit, window): &(u64, Option<Duration>)| Observation {
        kind: LimitKind::Requests,
        source: HeaderSource::Standard,
        limit: Some(*limit),
        remaining: Some(limit - used),
        reset: None,
        window: *window,
        rounding: 1,
        query_cost: None,
    };
    Box::new(Ended {
        headers: Some(RateLimitHeaders {
            observations: stated.iter().map(observation).collect(),
            ..RateLimitHeaders::default()
        }),
        ..Ended::default()
    })
}

#[test]
fn a_remembered_limit_holds_from_the_first_call_on() {
    let mut world = World::new();
    let id = world.remember("requests=2/1m");
    world.answer(&[]);
    world.answer(&[]);
    let call = Call::new(world.queue, world.tenant);
    let third = world
        .dispatcher
        .submit(call, world.now, &mut world.effects)
        .expect("accepted");
    let until = world.dispatcher.why(third).and_then(|why| why.until);
    let waits = until.expect("it waits") - world.now.mono;
    assert!(waits >= MINUTE && waits < MINUTE + SECOND, "{waits:?}");
    assert_eq!(world.dispatcher.learned_limits(world.upstream), [id]);
}

#[test]
fn a_learned_limit_follows_what_is_stated_up_and_down() {
    let mut world = World::new();
    world.remember("requests=100/1m");
    world.answer(&[(40, Some(MINUTE))]);
    assert_eq!(world.kept(), ["requests=40/1m"], "lower at once");
    for _ in 0..2 {
        world.pass(SECOND);
        world.answer(&[(500, Some(MINUTE))]);
        assert_eq!(world.kept(), ["requests=40/1m"], "one answer can mislead");
    }
    world.pass(SECOND);
    world.answer(&[(500, Some(MINUTE))]);
    assert_eq!(world.kept(), ["requests=500/1m"]);
    assert!(world.heard(|notice| matches!(notice, Notice::LimitLearned(..))));
}

#[test]
fn answers_that_agree_only_now_and_then_raise_nothing() {
    let mut world = World::new();
    world.remember("requests=40/1m");
    for _ in 0..8 {
        world.pass(SECOND);
        world.answer(&[(500, Some(MINUTE))]);
        world.answer(&[(40, Some(MINUTE))]);
    }
    assert_eq!(world.kept(), ["requests=40/1m"]);
}

#[test]
fn a_configured_limit_is_not_raised() {
    let mut world = World::new();
    let spec: LimitSpec = "requests=40/1m".parse().expect("a limit");
    let setup = LimitSetup {
        name: spec.name(),
        spec,
        rule: charge_rule(Host::Unknown, spec.kind),
        scope: Scope::Upstream,
    };
    let id = world.dispatcher.add_limit(setup, world.now);
    let setup = UpstreamSetup {
        limits: vec![id],
        learn_as: Some(Host::Unknown),
        ..UpstreamSetup::default()
    };
    world.upstream = world.dispatcher.add_upstream(setup, world.now);
    world.queue = world
        .dispatcher
        .add_queue(QueueSetup::to("n", world.upstream));
    for _ in 0..10 {
        world.answer(&[(500, Some(MINUTE))]);
    }
    assert_eq!(world.dispatcher.limit_mut(id).spec().count, 40);
    assert_eq!(world.kept(), Vec::<String>::new());
}

/// A remembered limit would bind for ever after the provider has replaced it by another window.
#[test]
fn a_remembered_limit_that_answers_refute_is_forgotten() {
    let mut world = World::new();
    world.remember("requests=100/1s");
    for _ in 0..49 {
        world.answer(&[(5_000, Some(MINUTE))]);
    }
    assert_eq!(world.kept(), ["requests=100/1s", "requests=5k/1m"]);
    world.pass(SECOND);
    world.answer(&[(5_000, Some(MINUTE))]);
    assert_eq!(world.kept(), ["requests=5k/1m"]);
    assert!(world.heard(|notice| matches!(notice, Notice::LimitForgotten(..))));
}

#[test]
fn silence_and_numbers_without_a_window_refute_nothing() {
    let mut world = World::new();
    world.remember("requests=1000/1s");
    for _ in 0..100 {
        world.answer(&[]);
        world.answer(&[(5_000, None)]);
        world.pass(SECOND);
    }
    assert_eq!(world.kept(), ["requests=1k/1s"]);
}

#[test]
fn a_limit_that_was_stated_once_is_kept_beside_others() {
    let mut world = World::new();
    world.remember("requests=100/1s");
    world.answer(&[(100, Some(SECOND))]);
    for _ in 0..100 {
        world.answer(&[(5_000, Some(MINUTE))]);
        world.pass(SECOND);
    }
    assert_eq!(world.kept(), ["requests=100/1s", "requests=5k/1m"]);
}

/// The difference of the counts passed for use by others: a limit that was lowered stood still
/// for a whole window, and one that was raised would have been taken to charge too much.
#[test]
fn another_count_says_nothing_of_what_is_used() {
    for stated in [40, 500] {
        let mut world = World::new();
        let id = world.remember("requests=100/1m");
        let submit = |world: &mut World| {
            let call = Call::new(world.queue, world.tenant);
            let ticket = world
                .dispatcher
                .submit(call, world.now, &mut world.effects)
                .expect("accepted");
            world
                .dispatcher
                .handle(Event::Sent(ticket), world.now, &mut world.effects);
            ticket
        };
        let early = submit(&mut world);
        for used in 2..=4 {
            world.pass(SECOND);
            world.answer_with(&[(stated, Some(MINUTE))], used);
        }
        let headers = headers(&[(stated, Some(MINUTE))], 1);
        world
            .dispatcher
            .handle(Event::Ended(early, headers), world.now, &mut world.effects);
        let view = world.dispatcher.limit_view(id, world.now);
        assert_eq!(view.spec.count, stated);
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let used = view.in_use * stated as f64;
        assert_eq!(used.round(), 4.0, "{stated}");
    }
}

/// Each limit that a server states was learned, however many it stated, and each is asked at every
/// decision.
#[test]
fn a_server_cannot_teach_limits_without_end() {
    let mut world = World::new();
    let stated: Vec<_> = (1..50)
        .map(|seconds: u32| {
            let count = 1_000_000 + u64::from(seconds);
            (count, Some(MINUTE + SECOND * seconds))
        })
        .collect();
    for _ in 0..50 {
        world.answer(&stated);
    }
    assert_eq!(world.kept().len(), 16);
}
