//! The driver: the dispatcher, the providers and everything between them, on virtual time.

use std::cmp::Reverse;
use std::time::Duration;

use fastrand::Rng;
use llmq_core::{Timestamp, Usage};
use llmq_dispatch::{
    Dispatcher, Effect, Ended, Event, QueueId, Rules, TenantId, TicketId, UpstreamId,
};
use rustc_hash::FxHashMap;

use crate::books::Books;
use crate::fair::Shares;
use crate::heap::Agenda;
use crate::ideals::{IdealCalls, Ideals};
use crate::own::{OwnCall, OwnLimits};
use crate::provider::{Admitted, Provider};
use crate::report::Report;
use crate::scenario::{QueuePlan, Scenario, SeededBug};
use crate::surprises::Knew;
use crate::workload::{self, CallPlan};

mod callers;
mod clock;
mod effects;
mod idle;
mod laws;
mod network;
mod service;
mod setup;

use clock::{Clock, WALL};
use idle::Waits;
use setup::{add_queues, add_tenants, add_upstreams, outputs, patience};

/// Runs do not begin at zero, so that nothing depends on it.
const START: Duration = Duration::from_secs(1_000);
/// So many steps at one instant mean that the dispatcher asks to be woken for nothing.
const SPIN_MAX: u32 = 20_000;
/// Nothing runs longer than this; what still waits then is stuck.
const LONGEST: Duration = Duration::from_secs(90 * 86_400);

/// Plays a scenario to its end.
#[must_use]
pub fn run(scenario: &Scenario) -> Report {
    World::new(scenario).play()
}

/// What will happen.
#[derive(Debug)]
enum Next {
    Submit(usize),
    Leave(usize),
    Write(usize, u32),
    Written(usize, u32),
    Arrive(usize, u32),
    Produce(usize, u32, u64),
    Finish(usize, u32, Usage),
    Told(usize, u32, Told),
    Due(usize),
    Foreign(usize),
    Pause(bool),
    WallSet(i64),
}

/// What the client hears.
#[derive(Debug)]
enum Told {
    FirstByte(Option<Duration>),
    Produced(u64),
    Ended(Box<Ended>),
}

#[derive(Debug)]
struct Live {
    plan: CallPlan,
    ticket: Option<TicketId>,
    /// Attempts of calls that left go on without being told of.
    attempt: u32,
    upstream: usize,
    admitted: Option<Admitted>,
    arrived: Timestamp,
    /// What was known of its provider when it was sent.
    knew: Knew,
    ideal: Option<IdealCalls>,
    own: OwnCall,
    rest: OwnCall,
    /// The queue whose limits hold on its way.
    served_by: usize,
    /// When it was sent, how many limits its provider was known to have.
    limits_known: usize,
    /// By its provider's word it must not come again before that.
    asked_until: Option<Timestamp>,
    /// It was written then, and nobody has told of it yet.
    untold: Option<Timestamp>,
    /// The index of the limit that refused it, until our side hears of it.
    refused_by: Option<usize>,
    /// Answers come in order.
    heard: Timestamp,
    /// Output so far, at the provider …
    produced: u64,
    /// … and as told.
    told: u64,
}

#[derive(Debug)]
struct World<'a> {
    scenario: &'a Scenario,
    rng: Rng,
    now: Timestamp,
    start: Timestamp,
    dispatcher: Dispatcher,
    queues: Vec<QueueId>,
    upstreams: Vec<UpstreamId>,
    tenants: Vec<TenantId>,
    providers: Vec<Provider>,
    ideals: Ideals,
    own: OwnLimits,
    rest: OwnLimits,
    shares: Shares,
    clock: Clock,
    plans: Vec<QueuePlan>,
    calls: Vec<Live>,
    by_ticket: FxHashMap<TicketId, usize>,
    agenda: Agenda<Next>,
    books: Books,
    effects: Vec<Effect>,
    waits: Waits,
    /// As of when each provider last told what was left.
    told: Vec<Timestamp>,
    report: Report,
    left: usize,
    spins: u32,
    mean_output: f64,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let mut rng = Rng::with_seed(scenario.seed);
        let start = Timestamp::ZERO + START;
        let clock = Clock::default();
        let now = clock.at(start);
        let rules = Rules {
            aging: match scenario.bug {
                Some(SeededBug::Starves) => Duration::from_secs(366 * 86_400),
                _ => scenario.aging,
            },
            ..Rules::default()
        };
        let mut dispatcher = Dispatcher::new(rules, rng.u64(..));
        let tenants = add_tenants(&mut dispatcher, scenario, now);
        let upstreams = add_upstreams(&mut dispatcher, scenario, now);
        let queues = add_queues(&mut dispatcher, scenario, &upstreams, now);
        let patience = patience(scenario);
        let books = Books::new(queues.len(), scenario.aging, patience);
        let wall_at_zero = WALL;
        let work = workload::calls(scenario, &mut rng);
        let outputs = outputs(&work);
        let plans = scenario.upstreams.iter();
        let mut world = Self {
            scenario,
            now: start,
            start,
            dispatcher,
            queues,
            upstreams,
            tenants,
            providers: plans
                .map(|plan| Provider::new(plan, wall_at_zero, start))
                .collect(),
            ideals: Ideals::new(scenario, outputs, wall_at_zero, start),
            own: OwnLimits::narrow(scenario, wall_at_zero, start),
            rest: OwnLimits::rest(scenario, wall_at_zero, start),
            shares: Shares::new(scenario),
            clock,
            plans: (0..scenario.queue_count())
                .map(|index| scenario.queue(index))
                .collect(),
            calls: Vec::new(),
            by_ticket: FxHashMap::default(),
            agenda: Agenda::new(),
            books,
            effects: Vec::new(),
            waits: Waits::default(),
            told: vec![Timestamp::ZERO; scenario.upstreams.len()],
            report: Report {
                sent_to: vec![0; scenario.upstreams.len()],
                ..Report::default()
            },
            left: 0,
            spins: 0,
            mean_output: 0.0,
            rng: rng.fork(),
        };
        world.schedule(work);
        world
    }

    fn schedule(&mut self, plans: Vec<CallPlan>) {
        let last = plans.last().map_or(Duration::ZERO, |plan| plan.after);
        self.left = plans.len();
        for (index, plan) in plans.into_iter().enumerate() {
            let source = &self.scenario.sources[plan.source];
            let lane = (Reverse(source.priority), source.queue, source.tenant);
            self.books.expect(lane, source.ttl);
            self.agenda
                .add(self.start + plan.after, Next::Submit(index));
            self.calls.push(Live {
                plan,
                ticket: None,
                attempt: 0,
                upstream: 0,
                admitted: None,
                arrived: Timestamp::ZERO,
                knew: Knew::default(),
                ideal: None,
                own: OwnCall::default(),
                rest: OwnCall::default(),
                served_by: source.queue,
                limits_known: 0,
                asked_until: None,
                untold: None,
                refused_by: None,
                heard: Timestamp::ZERO,
                produced: 0,
                told: 0,
            });
        }
        for (index, plan) in self.scenario.upstreams.iter().enumerate() {
            if plan.foreign.is_some() {
                self.agenda.add(self.start, Next::Foreign(index));
            }
        }
        for jump in &self.scenario.wall_jumps {
            let at = self.start + jump.after;
            self.agenda.add(at, Next::WallSet(jump.by_ms));
        }
        if let Some(pause) = self.scenario.pause {
            let middle = self.start + last / 2;
            self.agenda.add(middle, Next::Pause(true));
            self.agenda.add(middle + pause, Next::Pause(false));
        }
    }

    fn play(mut self) -> Report {
        while self.left > 0 && self.report.faults.is_empty() {
            let Some(at) = self.next_at() else {
                self.books
                    .fault(self.now, "work waits and nothing will happen");
                break;
            };
            if at - self.start > LONGEST {
                self.books.fault(self.now, "work waits for ever");
                break;
            }
            self.account(at);
            if !self.step_to(at) {
                break;
            }
            self.carry_out();
            self.check_counts();
            self.books.check_step(self.now);
            self.check_shares();
            self.look();
        }
        self.finish()
    }

    fn next_at(&self) -> Option<Timestamp> {
        let wake = self.dispatcher.next_wake();
        let wake = wake.map(|at| self.clock.instant(at).max(self.now));
        match (self.agenda.next_at(), wake) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Moves time on and does the one thing that is next; false when time stands still.
    fn step_to(&mut self, at: Timestamp) -> bool {
        self.spins = if at == self.now { self.spins + 1 } else { 0 };
        if self.spins > SPIN_MAX {
            self.books.fault(self.now, "time stands still");
            return false;
        }
        self.now = at;
        // What the dispatcher wants to be woken for at the same instant, it does with any event.
        if self.agenda.next_at() == Some(at)
            && let Some(next) = self.agenda.pop()
        {
            self.happen(next);
        } else {
            self.tell(Event::Tick);
        }
        true
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Submit(call) => self.submit(call),
            Next::Leave(call) => self.leave(call),
            Next::Write(call, attempt) => self.write(call, attempt),
            Next::Written(call, attempt) => self.written(call, attempt),
            Next::Arrive(call, attempt) => self.arrive(call, attempt),
            Next::Produce(call, attempt, tokens) => self.produce(call, attempt, tokens),
            Next::Finish(call, attempt, usage) => self.finish_at_provider(call, attempt, usage),
            Next::Told(call, attempt, told) => self.told(call, attempt, told),
            Next::Due(call) => self.books.due(call, self.now),
            Next::Foreign(upstream) => self.others(upstream),
            Next::Pause(pause) => self.pause(pause),
            Next::WallSet(by_ms) => self.set_wall(by_ms),
        }
    }

    fn set_wall(&mut self, by_ms: i64) {
        if self.scenario.bug == Some(SeededBug::FollowsTheWall) {
            self.clock.set_both(by_ms);
        } else {
            self.clock.set(by_ms);
        }
        // A sleeper looks at the wall again after a minute at most.
        self.tell(Event::Tick);
    }

    fn tell(&mut self, event: Event) {
        self.dispatcher
            .handle(event, self.clock.at(self.now), &mut self.effects);
    }

    fn finish(mut self) -> Report {
        self.books.check_end(self.now);
        let ids: Vec<_> = self.dispatcher.limit_ids().collect();
        for id in ids {
            let limit = self.dispatcher.limit_mut(id);
            if limit.held() != 0 && self.left == 0 {
                let text = format!("{} holds {} for nobody", limit.spec(), limit.held());
                self.books.fault(self.now, &text);
            }
        }
        self.report.elapsed = self.now - self.start;
        for provider in &self.providers {
            let surprises = &provider.surprises;
            let most = &mut self.report.not_ours_in_a_window;
            *most = surprises.most.max(*most);
            let most_told = &mut self.report.told_in_a_window;
            *most_told = surprises.most_told.max(*most_told);
            let most_heard = &mut self.report.heard_in_a_window;
            *most_heard = surprises.most_heard.max(*most_heard);
            self.report
                .surprises
                .extend(surprises.words.iter().cloned());
        }
        self.report.faults = self.books.into_faults();
        self.report
    }
}
