//! The driver: the dispatcher, the providers and everything between them, on virtual time.

use std::cmp::Reverse;
use std::time::Duration;

use fastrand::Rng;
use llmq_core::{Now, Timestamp, Usage, WallTime};
use llmq_dispatch::{
    Dispatcher, Effect, Ended, Event, QueueId, Rules, TenantId, TicketId, UpstreamId,
};
use rustc_hash::FxHashMap;

use crate::books::Books;
use crate::heap::Agenda;
use crate::judge::{Ideal, IdealCall, Room};
use crate::provider::{Admitted, Provider};
use crate::report::Report;
use crate::scenario::{Scenario, SeededBug};
use crate::workload::{self, CallPlan};

mod callers;
mod effects;
mod idle;
mod network;
mod service;
mod setup;

use setup::{add_queues, add_upstreams, outputs, patience};

/// Runs do not begin at zero, so that nothing depends on it.
const START: Duration = Duration::from_secs(1_000);
/// The wall clock at zero; odd, so that no run begins at the edge of a window.
const WALL: Duration = Duration::from_millis(1_790_000_017_345);
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
    Arrive(usize, u32),
    Produce(usize, u32, u64),
    Finish(usize, u32, Usage),
    Told(usize, u32, Told),
    Due(usize),
    Foreign(usize),
    Pause(bool),
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
    ideal: Option<IdealCall>,
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
    ideals: Vec<Ideal>,
    calls: Vec<Live>,
    by_ticket: FxHashMap<TicketId, usize>,
    agenda: Agenda<Next>,
    books: Books,
    effects: Vec<Effect>,
    waits: Waits,
    report: Report,
    left: usize,
    spins: u32,
    mean_output: f64,
}

/// What holds from one step to the next.
#[derive(Debug, Clone, Copy, Default)]
struct Waits {
    since: Timestamp,
    waiting: bool,
    by_breaker: bool,
    room: Room,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let mut rng = Rng::with_seed(scenario.seed);
        let start = Timestamp::ZERO + START;
        let now = now_at(start);
        let rules = Rules {
            aging: match scenario.bug {
                Some(SeededBug::Starves) => Duration::from_secs(366 * 86_400),
                _ => scenario.aging,
            },
            ..Rules::default()
        };
        let mut dispatcher = Dispatcher::new(rules, rng.u64(..));
        let tenants = scenario
            .tenants
            .iter()
            .map(|weight| dispatcher.add_tenant(*weight, Vec::new()))
            .collect();
        let upstreams = add_upstreams(&mut dispatcher, scenario, now);
        let queues = add_queues(&mut dispatcher, scenario, &upstreams);
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
                .clone()
                .map(|plan| Provider::new(plan, wall_at_zero, start))
                .collect(),
            ideals: plans
                .map(|plan| {
                    let noise = scenario.estimates.noise;
                    Ideal::new(plan, scenario.network_max, outputs, noise, wall_at_zero, start)
                })
                .collect(),
            calls: Vec::new(),
            by_ticket: FxHashMap::default(),
            agenda: Agenda::new(),
            books,
            effects: Vec::new(),
            waits: Waits::default(),
            report: Report::default(),
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
                ideal: None,
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
            self.look();
        }
        self.finish()
    }

    fn next_at(&self) -> Option<Timestamp> {
        let wake = self.dispatcher.next_wake().map(|at| at.max(self.now));
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
            Next::Arrive(call, attempt) => self.arrive(call, attempt),
            Next::Produce(call, attempt, tokens) => self.produce(call, attempt, tokens),
            Next::Finish(call, attempt, usage) => self.finish_at_provider(call, attempt, usage),
            Next::Told(call, attempt, told) => self.told(call, attempt, told),
            Next::Due(call) => self.books.due(call, self.now),
            Next::Foreign(upstream) => self.others(upstream),
            Next::Pause(pause) => self.pause(pause),
        }
    }

    fn tell(&mut self, event: Event) {
        self.dispatcher
            .handle(event, now_at(self.now), &mut self.effects);
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
        self.report.not_ours_in_a_window = self
            .providers
            .iter()
            .map(|provider| provider.surprises_max)
            .max()
            .unwrap_or(0);
        self.report.faults = self.books.into_faults();
        self.report
    }
}

fn now_at(mono: Timestamp) -> Now {
    let wall = WallTime::from_micros(0) + WALL + Duration::from_nanos(mono.as_nanos());
    Now { mono, wall }
}
