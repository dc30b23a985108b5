//! The driver: the dispatcher, the providers and everything between them, on virtual time.

use std::cmp::Reverse;
use std::time::Duration;

use fastrand::Rng;
use llmq_core::{FailureClass, LimitKind, LimitSpec, Now, Timestamp, Usage, WallTime};
use llmq_dispatch::{
    Call, CallKind, Capacity, Dispatcher, Effect, Ended, Event, LimitSetup, Notice, Outcome,
    QueueId, QueueSetup, Route, Rules, Scope, TenantId, TicketId, UpstreamId, UpstreamSetup,
};
use llmq_limit::{BreakerState, charge_rule};
use llmq_strict::Arrival;
use rustc_hash::FxHashMap;

use crate::books::{Books, Place};
use crate::heap::Agenda;
use crate::judge::{Ideal, IdealCall, Outputs, Room, WRITE_MAX};
use crate::provider::{Admitted, Decision, Provider, failure};
use crate::report::Report;
use crate::scenario::{Account, OutageKind, Scenario, SeededBug};
use crate::workload::{self, CallPlan};

/// Runs do not begin at zero, so that nothing depends on it.
const START: Duration = Duration::from_secs(1_000);
/// The wall clock at zero; odd, so that no run begins at the edge of a window.
const WALL: Duration = Duration::from_millis(1_790_000_017_345);
/// An answer streams in this many pieces.
const PIECES: u64 = 4;
/// So many steps at one instant mean that the dispatcher asks to be woken for nothing.
const SPIN_MAX: u32 = 20_000;
/// So many refusals of ours are told in words.
const REFUSALS_MAX: usize = 5;
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
                .map(|plan| Ideal::new(plan, scenario.network_max, outputs, wall_at_zero, start))
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

    fn submit(&mut self, index: usize) {
        let plan = self.calls[index].plan;
        let source = self.scenario.sources[plan.source];
        let call = Call {
            priority: source.priority,
            size: plan.size,
            kind: CallKind::Stored,
            ttl: source.ttl,
            ..Call::new(self.queues[source.queue], self.tenants[source.tenant])
        };
        self.report.calls += 1;
        self.books.submitted(index, self.now);
        // The ticket must be known before its effects are looked at; they wait in `effects`.
        match self
            .dispatcher
            .submit(call, now_at(self.now), &mut self.effects)
        {
            Ok(ticket) => {
                self.calls[index].ticket = Some(ticket);
                self.by_ticket.insert(ticket, index);
            }
            Err(refusal) => self.books.fault(self.now, &refusal.to_string()),
        }
        if let Some(after) = plan.leaves_after {
            self.agenda.add(self.now + after, Next::Leave(index));
        }
    }

    fn leave(&mut self, index: usize) {
        let Some(ticket) = self.calls[index].ticket else {
            return;
        };
        let running = match self.books.place(index) {
            Place::Outside | Place::Over => return,
            Place::Running => true,
            Place::Waiting | Place::Delayed(_) => false,
        };
        self.tell(Event::Dropped(ticket));
        self.over(index);
        self.report.dropped += 1;
        if running {
            let call = &mut self.calls[index];
            // The connection is closed, and the provider stops when it sees that.
            let usage = Usage {
                output_tokens: call.produced,
                ..call.plan.usage
            };
            let attempt = call.attempt;
            if let Some(ideal) = call.ideal.take() {
                self.ideals[call.upstream].ended(&ideal, usage, self.now);
            }
            if call.admitted.is_some() {
                self.agenda
                    .add(self.now, Next::Finish(index, attempt, usage));
            } else {
                // Not yet sent or on its way: what is on its way arrives all the same.
                call.ticket = None;
            }
        }
    }

    fn over(&mut self, index: usize) {
        self.books.end(index, self.now);
        self.left -= 1;
        if let Some(ticket) = self.calls[index].ticket {
            self.by_ticket.remove(&ticket);
        }
    }

    fn delay(&mut self) -> Duration {
        self.scenario.network_max.mul_f64(self.rng.f64())
    }

    /// A call is started: its bytes will be written.
    fn start(&mut self, ticket: TicketId, upstream: UpstreamId) {
        let Some(index) = self.by_ticket.get(&ticket).copied() else {
            return self.books.fault(self.now, "an unknown ticket was started");
        };
        self.books.start(index, self.now);
        let upstream = self.upstreams.iter().position(|id| *id == upstream);
        let upstream = upstream.unwrap_or(0);
        let arrival = self.arrival(index);
        let call = &mut self.calls[index];
        call.attempt += 1;
        call.upstream = upstream;
        call.admitted = None;
        call.produced = 0;
        call.told = 0;
        call.heard = self.now;
        call.ideal = Some(self.ideals[upstream].started(&arrival, self.now));
        let attempt = call.attempt;
        self.report.sent += 1;
        if self.providers[upstream].outage(self.now) == Some(OutageKind::Refused) {
            let told = Told::Ended(failure(FailureClass::Transient, None, None));
            let at = self.now + Duration::from_millis(1);
            self.agenda.add(at, Next::Told(index, attempt, told));
            return;
        }
        let write = WRITE_MAX.mul_f64(self.rng.f64());
        self.agenda
            .add(self.now + write, Next::Write(index, attempt));
    }

    fn arrival(&self, index: usize) -> Arrival {
        let plan = &self.calls[index].plan;
        Arrival {
            input_tokens: plan.usage.input_tokens,
            ..Arrival::from(plan.size)
        }
    }

    fn is_present(&self, index: usize, attempt: u32) -> bool {
        self.calls[index].attempt == attempt && self.books.place(index) == Place::Running
    }

    fn write(&mut self, index: usize, attempt: u32) {
        if !self.is_present(index, attempt) {
            return;
        }
        if let Some(ticket) = self.calls[index].ticket {
            self.tell(Event::Sent(ticket));
        }
        let at = self.now + self.delay();
        self.agenda.add(at, Next::Arrive(index, attempt));
    }

    fn arrive(&mut self, index: usize, attempt: u32) {
        let arrival = self.arrival(index);
        let upstream = self.calls[index].upstream;
        match self.providers[upstream].arrive(&arrival, self.now) {
            Decision::Admitted(admitted, headers) => {
                self.calls[index].admitted = Some(admitted);
                self.calls[index].arrived = self.now;
                if self.is_present(index, attempt) {
                    self.serve(index, attempt, headers);
                } else {
                    let usage = Usage {
                        output_tokens: 0,
                        ..self.calls[index].plan.usage
                    };
                    self.finish_at_provider(index, attempt, usage);
                }
            }
            Decision::Refused {
                answer,
                ours,
                by,
                too_large,
            } => {
                if ours && !too_large && self.report.refusals.len() < REFUSALS_MAX {
                    let at = self.now.as_nanos() / 1_000;
                    let text = format!("at {at} µs, upstream {upstream}, {by}");
                    self.report.refusals.push(text);
                }
                if !too_large {
                    self.report.ours += u64::from(ours);
                    self.report.not_ours += u64::from(!ours);
                }
                self.answer(index, attempt, Told::Ended(answer));
            }
            Decision::Down(answer) => self.answer(index, attempt, Told::Ended(answer)),
        }
    }

    /// The provider works on a call: all that will come of it is known now.
    fn serve(&mut self, index: usize, attempt: u32, headers: llmq_limit::RateLimitHeaders) {
        let upstream = self.calls[index].upstream;
        let plan = &self.scenario.upstreams[upstream];
        let spread = plan.latency_spread * (2.0 * self.rng.f64() - 1.0);
        let latency = plan.latency.mul_f64(1.0 + spread);
        let fails = self.rng.f64() < plan.failures;
        let usage = self.calls[index].plan.usage;
        let processing = |span: Duration| plan.tells_processing.then_some(span);
        let (end, usage, told) = if fails {
            let end = latency.mul_f64(self.rng.f64());
            let mut ended = failure(FailureClass::Transient, None, None);
            ended.headers = Some(headers);
            let nothing = Usage {
                output_tokens: 0,
                ..usage
            };
            (end, nothing, ended)
        } else {
            let ended = Box::new(Ended {
                outcome: Outcome::Completed,
                usage: Some(self.reported(usage)),
                headers: Some(headers),
                latency: Some(latency),
            });
            (latency, usage, ended)
        };
        let end_at = self.now + end;
        if plan.account == Account::AsItStreams && !fails {
            self.stream(index, attempt, latency, processing(latency / 3));
        } else {
            let first = Told::FirstByte(processing(end));
            self.answer_at(end_at, index, attempt, first);
        }
        self.agenda.add(end_at, Next::Finish(index, attempt, usage));
        self.answer_at(end_at, index, attempt, Told::Ended(told));
    }

    /// What the client reads of the usage, unless something has been broken on purpose.
    fn reported(&mut self, usage: Usage) -> Usage {
        #[expect(clippy::cast_precision_loss, reason = "token counts")]
        let output = usage.output_tokens as f64;
        self.mean_output += (output - self.mean_output) * 0.05;
        if self.scenario.bug != Some(SeededBug::ForgetsDebt) {
            return usage;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "token counts are positive"
        )]
        let most = (self.mean_output / 2.0) as u64;
        Usage {
            output_tokens: usage.output_tokens.min(most),
            ..usage
        }
    }

    fn stream(
        &mut self,
        index: usize,
        attempt: u32,
        latency: Duration,
        processing: Option<Duration>,
    ) {
        let first = self.now + latency / 3;
        self.answer_at(first, index, attempt, Told::FirstByte(processing));
        let output = self.calls[index].plan.usage.output_tokens;
        let mut told = 0;
        for piece in 1..PIECES {
            let at = first
                + (latency - latency / 3)
                    .mul_f64(f64::from(u32::try_from(piece).unwrap_or(0)) / 4.0);
            let sofar = output * piece / PIECES;
            self.agenda
                .add(at, Next::Produce(index, attempt, sofar - told));
            told = sofar;
            let heard = match self.scenario.bug {
                Some(SeededBug::ForgetsDebt) => 0,
                _ => sofar,
            };
            self.answer_at(at, index, attempt, Told::Produced(heard));
        }
    }

    fn answer(&mut self, index: usize, attempt: u32, told: Told) {
        self.answer_at(self.now, index, attempt, told);
    }

    /// The answer travels back; what was said first comes first.
    fn answer_at(&mut self, said: Timestamp, index: usize, attempt: u32, told: Told) {
        let at = (said + self.delay()).max(self.calls[index].heard);
        self.calls[index].heard = at;
        self.agenda.add(at, Next::Told(index, attempt, told));
    }

    fn produce(&mut self, index: usize, attempt: u32, tokens: u64) {
        let call = &mut self.calls[index];
        if call.attempt != attempt {
            return;
        }
        call.produced += tokens;
        if let Some(admitted) = call.admitted {
            self.providers[call.upstream].produced(admitted, tokens, self.now);
        }
    }

    fn finish_at_provider(&mut self, index: usize, attempt: u32, usage: Usage) {
        let call = &mut self.calls[index];
        if call.attempt != attempt {
            return;
        }
        if let Some(admitted) = call.admitted.take() {
            self.providers[call.upstream].finish(admitted, usage, self.now);
        }
    }

    fn told(&mut self, index: usize, attempt: u32, told: Told) {
        if !self.is_present(index, attempt) {
            return;
        }
        let call = &mut self.calls[index];
        let Some(ticket) = call.ticket else { return };
        match told {
            Told::FirstByte(processing) => self.tell(Event::FirstByte(ticket, processing)),
            Told::Produced(tokens) => {
                let new = tokens.saturating_sub(call.told);
                call.told += new;
                if let Some(ideal) = &mut call.ideal {
                    self.ideals[call.upstream].produced(ideal, new, self.now);
                }
                self.tell(Event::Produced(ticket, tokens));
            }
            Told::Ended(ended) => {
                if let Some(ideal) = call.ideal.take() {
                    let usage = match ended.outcome {
                        Outcome::Completed => call.plan.usage,
                        Outcome::Failed { .. } => Usage::default(),
                    };
                    self.ideals[call.upstream].ended(&ideal, usage, self.now);
                }
                self.tell(Event::Ended(ticket, ended));
            }
        }
    }

    fn others(&mut self, upstream: usize) {
        let Some(foreign) = self.scenario.upstreams[upstream].foreign else {
            return;
        };
        let got = self.providers[upstream].used_by_others(foreign.kind, foreign.amount, self.now);
        self.ideals[upstream].used_by_others(foreign.kind, got, self.now);
        let wait = workload::exponential(foreign.every.as_secs_f64(), &mut self.rng);
        self.agenda.add(self.now + wait, Next::Foreign(upstream));
    }

    fn pause(&mut self, pause: bool) {
        let queue = self.queues[0];
        if pause {
            self.tell(Event::Pause(queue));
            self.books.pause(0, self.now);
        } else {
            self.books.resume(0, self.now);
            self.tell(Event::Resume(queue));
        }
    }

    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.carry_out_one(effect);
        }
        self.effects = effects;
    }

    fn carry_out_one(&mut self, effect: Effect) {
        let (ticket, counter): (TicketId, fn(&mut Report) -> &mut u64) = match effect {
            Effect::Start(start) => return self.start(start.ticket, start.upstream),
            Effect::Notice(notice) => {
                if let Notice::UpstreamPaused {
                    class: FailureClass::QuotaDay | FailureClass::Money,
                    ..
                } = notice
                {
                    self.books.quota_closed();
                }
                return;
            }
            Effect::Requeued {
                ticket, not_before, ..
            } => {
                if let Some(index) = self.by_ticket.get(&ticket).copied() {
                    self.books.requeue(index, not_before, self.now);
                    self.agenda.add(not_before, Next::Due(index));
                }
                return;
            }
            Effect::Failed { ticket, .. } => (ticket, |report| &mut report.failed),
            Effect::Completed { ticket, .. } => (ticket, |report| &mut report.completed),
            Effect::Expired { ticket, .. } => (ticket, |report| &mut report.expired),
            Effect::TooLarge { ticket, .. } => (ticket, |report| &mut report.too_large),
        };
        match self.by_ticket.get(&ticket).copied() {
            Some(index) => {
                *counter(&mut self.report) += 1;
                self.over(index);
            }
            None => self.books.fault(self.now, "an unknown ticket ended"),
        }
    }

    fn check_counts(&mut self) {
        for index in 0..self.queues.len() {
            let view = self.dispatcher.queue_view(self.queues[index]);
            let (jobs, running) = self.books.counts(index);
            if (view.jobs, view.running) != (jobs, running) {
                let text = format!(
                    "{} jobs, {} running are told, {jobs} and {running} are right",
                    view.jobs, view.running
                );
                self.books.fault(self.now, &text);
            }
        }
    }

    /// Adds the time from the last step to `until` to what it belongs to.
    fn account(&mut self, until: Timestamp) {
        let waits = self.waits;
        if !waits.waiting {
            return;
        }
        let span = until - waits.since;
        if waits.by_breaker {
            self.report.breaker += span;
            return;
        }
        self.report.waiting += span;
        let idle = |room: Option<Timestamp>| {
            room.map_or(Duration::ZERO, |room| until - room.max(waits.since))
        };
        self.report.idle += idle(waits.room.plain);
        self.report.idle_unpaced += idle(waits.room.paced);
    }

    /// Sees whether work waits, and since when there is room for the call to be sent next.
    ///
    /// Between two steps nothing changes but the time, so the instant at which room comes is
    /// known exactly. Where several lines are equally urgent, there is room when there is for
    /// the head of each of them.
    fn look(&mut self) {
        let mut waits = Waits {
            since: self.now,
            ..Waits::default()
        };
        let mut room: Option<Room> = None;
        for head in self.books.heads() {
            waits.waiting = true;
            let arrival = self.arrival(head);
            let mut ways = Room::default();
            let mut all_broken = true;
            for index in 0..self.upstreams.len() {
                let view = self.dispatcher.upstream_view(self.upstreams[index]);
                if view.breaker != BreakerState::Closed {
                    continue;
                }
                all_broken = false;
                if self.providers[index].outage(self.now).is_none() {
                    ways = ways.or(self.ideals[index].room_for(&arrival, self.now));
                }
            }
            waits.by_breaker |= all_broken;
            room = Some(room.map_or(ways, |room| room.and(ways)));
        }
        waits.room = room.unwrap_or_default();
        self.waits = waits;
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

fn add_upstreams(dispatcher: &mut Dispatcher, scenario: &Scenario, now: Now) -> Vec<UpstreamId> {
    let mut upstreams = Vec::new();
    for (index, plan) in scenario.upstreams.iter().enumerate() {
        let host = plan.account.host();
        let mut limits = Vec::new();
        for spec in &plan.limits {
            let kept = kept(*spec, scenario.bug);
            let setup = LimitSetup {
                name: format!("{} up{index}", spec.name()),
                spec: kept,
                rule: charge_rule(host, spec.kind),
                scope: Scope::Upstream,
            };
            limits.push(dispatcher.add_limit(setup, now));
        }
        let setup = UpstreamSetup {
            name: format!("up{index}"),
            limits,
            ask_before_betting: plan.asks_first,
            ..UpstreamSetup::default()
        };
        upstreams.push(dispatcher.add_upstream(setup, now));
    }
    upstreams
}

/// A limit as the dispatcher is told of it.
fn kept(spec: LimitSpec, bug: Option<SeededBug>) -> LimitSpec {
    const DAY: Duration = Duration::from_secs(86_400);
    if bug == Some(SeededBug::TakesDayForMinute) && spec.period == DAY {
        LimitSpec {
            period: Duration::from_secs(60),
            ..spec
        }
    } else {
        spec
    }
}

fn add_queues(
    dispatcher: &mut Dispatcher,
    scenario: &Scenario,
    upstreams: &[UpstreamId],
) -> Vec<QueueId> {
    let count = scenario
        .sources
        .iter()
        .map(|source| source.queue + 1)
        .max()
        .unwrap_or(0);
    let routes: Vec<Route> = upstreams
        .iter()
        .map(|upstream| Route {
            upstream: *upstream,
            weight: 1.0,
        })
        .collect();
    (0..count)
        .map(|index| {
            let setup = QueueSetup {
                routes: routes.clone(),
                capacity: Capacity::unbounded(),
                max_attempts: 20,
                ..QueueSetup::to(format!("q{index}"), upstreams[0])
            };
            dispatcher.add_queue(setup)
        })
        .collect()
}

/// The mean and the spread of all answers.
#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn outputs(work: &[CallPlan]) -> Outputs {
    let count = work.len().max(1) as f64;
    let output = |call: &CallPlan| call.usage.output_tokens as f64;
    let mean = work.iter().map(output).sum::<f64>() / count;
    let square = |call: &CallPlan| (output(call) - mean).powi(2);
    Outputs {
        mean,
        deviation: (work.iter().map(square).sum::<f64>() / count).sqrt(),
    }
}

/// How long a call that is first in every order may still have to wait for room.
fn patience(scenario: &Scenario) -> Duration {
    let limits = scenario.upstreams.iter().flat_map(|plan| &plan.limits);
    let longest = limits
        .filter(|spec| spec.kind != LimitKind::Concurrency)
        .map(|spec| spec.period)
        .max();
    longest.unwrap_or_default() * 2 + Duration::from_secs(60)
}
