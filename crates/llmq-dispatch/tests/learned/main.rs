//! Limits that headers told of: kept from one process to the next, and corrected.

mod counts;

use std::time::Duration;

use llmq_core::{CallSize, Host, LimitKind, LimitSpec, Now};
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

    /// A limit that a person stated.
    fn configure(&mut self, text: &str, scope: Scope) -> LimitId {
        let spec: LimitSpec = text.parse().expect("a limit");
        let setup = LimitSetup {
            name: spec.name(),
            spec,
            rule: charge_rule(Host::Unknown, spec.kind),
            scope,
        };
        self.dispatcher.add_limit(setup, self.now)
    }

    /// Another upstream that learns, with this limit and a queue, in the place of the first.
    fn add_upstream(&mut self, limit: LimitId) {
        let setup = UpstreamSetup {
            limits: vec![limit],
            learn_as: Some(Host::Unknown),
            ..UpstreamSetup::default()
        };
        self.upstream = self.dispatcher.add_upstream(setup, self.now);
        self.queue = self
            .dispatcher
            .add_queue(QueueSetup::to("n", self.upstream));
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
        self.answer_of(LimitKind::Requests, stated, used);
    }

    /// The same for limits of another kind.
    fn answer_of(&mut self, kind: LimitKind, stated: &[(u64, Option<Duration>)], used: u64) {
        self.answer_as(headers(kind, stated, used));
    }

    /// A call that ends like this.
    fn answer_as(&mut self, ended: Box<Ended>) {
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
            Event::Sent(ticket, self.now.mono),
            Event::Ended(ticket, ended),
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
fn small(count: u64) -> u32 {
    u32::try_from(count).expect("a small count")
}

fn headers(kind: LimitKind, stated: &[(u64, Option<Duration>)], used: u64) -> Box<Ended> {
    let observation = |(limit, window): &(u64, Option<Duration>)| Observation {
        kind,
        source: HeaderSource::Standard,
        limit: Some(*limit),
        remaining: Some(limit - used),
        // As a bucket's: the time until it is full.
        reset: window.map(|window| window * small(used) / small(*limit)),
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
fn a_configured_limit_is_not_raised_above_what_a_person_stated() {
    let mut world = World::new();
    let id = world.configure("requests=40/1m", Scope::Upstream);
    world.add_upstream(id);
    for _ in 0..10 {
        world.answer(&[(500, Some(MINUTE))]);
    }
    assert_eq!(world.dispatcher.limit_mut(id).spec().count, 40);
    assert_eq!(world.kept(), Vec::<String>::new());
}

/// Calls of another kind may have a lower limit under the same header's name, and tiers go down
/// and up: one such answer lowered a limit until somebody loaded the configuration again.
#[test]
fn a_configured_limit_that_was_lowered_comes_back() {
    let mut world = World::new();
    let id = world.configure("requests=40/1m", Scope::Upstream);
    world.add_upstream(id);
    world.answer(&[(5, Some(MINUTE))]);
    assert_eq!(world.dispatcher.limit_mut(id).spec().count, 5);
    for stated in [500, 40, 40, 40] {
        assert_eq!(world.dispatcher.limit_mut(id).spec().count, 5);
        world.pass(MINUTE);
        world.answer(&[(stated, Some(MINUTE))]);
    }
    assert_eq!(world.dispatcher.limit_mut(id).spec().count, 40);
    assert_eq!(world.kept(), Vec::<String>::new());
}

/// It was refused as too large for ever, and a run wrote its whole file off within a second.
#[test]
fn one_answer_makes_no_call_too_large() {
    let mut world = World::new();
    let id = world.configure("tokens=100000/1m", Scope::Upstream);
    world.add_upstream(id);
    let submit = |world: &mut World, input_tokens| {
        let call = Call {
            size: CallSize {
                input_tokens,
                ..CallSize::default()
            },
            ..Call::new(world.queue, world.tenant)
        };
        world.effects.clear();
        let (now, effects) = (world.now, &mut world.effects);
        let ticket = world.dispatcher.submit(call, now, effects);
        let ticket = ticket.expect("accepted");
        // Started, or above a whole limit of so many.
        let answer = effects.iter().find_map(|effect| match effect {
            Effect::TooLarge { count, .. } => Some(Err(*count)),
            Effect::Start(_) => Some(Ok(())),
            _ => None,
        });
        world
            .dispatcher
            .handle(Event::Dropped(ticket), now, effects);
        answer
    };
    world.answer_of(LimitKind::Tokens, &[(100, Some(MINUTE))], 1);
    assert_eq!(world.dispatcher.limit_mut(id).spec().count, 100);
    world.pass(MINUTE * 2);
    assert_eq!(
        submit(&mut world, 5_000),
        Some(Ok(())),
        "one answer can mislead"
    );
    assert_eq!(submit(&mut world, 200_000), Some(Err(100_000)));
    for _ in 0..2 {
        world.pass(MINUTE * 2);
        world.answer_of(LimitKind::Tokens, &[(100, Some(MINUTE))], 1);
    }
    assert_eq!(submit(&mut world, 5_000), Some(Err(100)));
}

/// It was taken for the minute's, and never learned: the minute had room for what the day refused.
#[test]
fn a_days_number_is_not_taken_for_a_minutes_that_is_the_same() {
    let mut world = World::new();
    let id = world.configure("requests=40/1m", Scope::Upstream);
    world.add_upstream(id);
    for used in 31..=33 {
        world.answer_with(&[(40, Some(MINUTE * 60 * 24))], used);
    }
    assert_eq!(world.kept(), ["requests=40/1d"]);
    let in_use = world.dispatcher.limit_view(id, world.now).in_use;
    assert!(in_use < 0.1, "three of forty, not thirty-three: {in_use}");
}

#[test]
fn a_window_that_is_inferred_of_a_fixed_ones_reset_is_none() {
    for stated in ["requests=60/1m:fixed", "requests=60/1m"] {
        let mut world = World::new();
        let id = world.configure(stated, Scope::Upstream);
        world.add_upstream(id);
        // The first call of each minute is told that the minute lasts that long.
        for _ in 0..5 {
            world.answer_with(&[(60, Some(MINUTE * 60))], 1);
            world.pass(MINUTE);
        }
        assert_eq!(world.kept(), Vec::<String>::new(), "{stated}");
    }
}

/// Each answer's two counts replaced each other, so that neither was ever believed.
#[test]
fn of_a_projects_limit_and_its_organizations_the_lower_one_holds() {
    let answer = |world: &mut World, project: u64| {
        let stated = [4_000_000, project].map(|count| (count, Some(MINUTE)));
        let mut ended = headers(LimitKind::Tokens, &stated, 1_000);
        let told = ended.headers.as_mut().expect("headers");
        told.observations[1].source = HeaderSource::Project;
        world.answer_as(ended);
        world.pass(SECOND);
    };
    let mut world = World::new();
    for project in [1_000_000, 2_000_000] {
        for _ in 0..3 {
            answer(&mut world, project);
        }
        let limit = world.dispatcher.learned_limits(world.upstream);
        assert_eq!(limit.len(), 1);
        let count = world.dispatcher.limit_mut(limit[0]).spec().count;
        assert_eq!(count, project);
    }

    let mut world = World::new();
    let id = world.configure("tokens=4000000/1m", Scope::Upstream);
    world.add_upstream(id);
    for _ in 0..3 {
        answer(&mut world, 1_000_000);
    }
    let call = Call {
        size: CallSize::of_input(2_000_000),
        ..Call::new(world.queue, world.tenant)
    };
    let (now, effects) = (world.now, &mut world.effects);
    let ticket = world.dispatcher.submit(call, now, effects);
    assert!(ticket.is_ok());
    let too_large = world.effects.iter().find_map(|effect| match effect {
        Effect::TooLarge { count, .. } => Some(*count),
        _ => None,
    });
    assert_eq!(too_large, Some(1_000_000));
}

/// The model with the lowest limit set that of all models of its account.
#[test]
fn a_lower_limit_of_one_upstream_is_not_that_of_its_account() {
    let mut world = World::new();
    let shared = world.configure("requests=100/1m", Scope::Account);
    let [small, large] = [(); 2].map(|()| {
        world.add_upstream(shared);
        (world.upstream, world.queue)
    });
    (world.upstream, world.queue) = small;
    for _ in 0..3 {
        world.answer(&[(10, Some(MINUTE))]);
        world.pass(SECOND);
    }
    assert_eq!(world.kept(), ["requests=10/1m"]);
    assert_eq!(world.dispatcher.limit_mut(shared).spec().count, 100);
    (world.upstream, world.queue) = large;
    for used in 4..94 {
        world.answer_with(&[(100, Some(MINUTE))], used);
    }
    assert_eq!(world.kept(), Vec::<String>::new());
    // Its own follows what is stated, though that is the account's number now.
    (world.upstream, world.queue) = small;
    world.pass(MINUTE);
    for _ in 0..3 {
        world.pass(SECOND);
        world.answer(&[(100, Some(MINUTE))]);
    }
    assert_eq!(world.kept(), ["requests=100/1m"]);
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
            world.dispatcher.handle(
                Event::Sent(ticket, world.now.mono),
                world.now,
                &mut world.effects,
            );
            ticket
        };
        let early = submit(&mut world);
        for used in 2..=4 {
            world.pass(SECOND);
            world.answer_with(&[(stated, Some(MINUTE))], used);
        }
        let headers = headers(LimitKind::Requests, &[(stated, Some(MINUTE))], 1);
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

/// What was learned was not told of a stream's output before the next start.
#[test]
fn a_start_says_whether_a_limit_on_its_way_counts_output_as_it_comes() {
    let mut world = World::new();
    let counts = |world: &mut World| {
        world.answer_of(LimitKind::OutputTokens, &[(10_000, Some(MINUTE))], 1);
        world
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Start(start) if start.counts_output))
    };
    for _ in 0..3 {
        assert!(!counts(&mut world));
        world.pass(SECOND);
    }
    assert!(counts(&mut world), "three answers agree");
}
