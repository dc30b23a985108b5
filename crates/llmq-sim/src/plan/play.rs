use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::{Now, Priority, Timestamp, Usage, WallTime};
use llmq_dispatch::{
    Blocker, Call, CallKind, Capacity, Dispatcher, Effect, Ended, Event, LimitSetup, QueueId,
    QueueSetup, Rules, Scope, TenantId, TicketId, UpstreamSetup,
};
use llmq_limit::charge_rule;

use super::{Binding, PlanReport, PlanRow, PlanSetup};

/// So many rows stand in line at once; more would change nothing and cost memory.
const WINDOW: usize = 1_024;
/// Limits that hold up less than this share of the time are not told of.
const SHARE_MIN: f64 = 0.001;
const UPSTREAM: &str = "plan";

/// One pass over the rows.
pub(super) struct Play<'a> {
    setup: &'a PlanSetup,
    rows: std::slice::Iter<'a, PlanRow>,
    dispatcher: Dispatcher,
    queue: QueueId,
    tenant: TenantId,
    now: Timestamp,
    effects: Vec<Effect>,
    /// In line, in the order in which they will start: there is one line.
    waiting: VecDeque<(TicketId, PlanRow)>,
    /// Every call takes equally long, so they end in the order in which they started.
    running: VecDeque<(Timestamp, TicketId, PlanRow)>,
    /// How long the head waited for each limit.
    held_up: Vec<Duration>,
    /// How long it waited for the number of calls at once that was found so far.
    searching: Duration,
    names: Vec<String>,
    report: PlanReport,
}

impl<'a> Play<'a> {
    pub(super) fn new(rows: &'a [PlanRow], setup: &'a PlanSetup) -> Self {
        let now = Timestamp::ZERO + Duration::from_secs(1);
        let mut dispatcher = Dispatcher::new(Rules::default(), 0);
        let tenant = dispatcher.add_tenant(1.0, Vec::new());
        let names: Vec<String> = (0..setup.limits.len()).map(|n| n.to_string()).collect();
        let mut limits = Vec::new();
        for (spec, name) in setup.limits.iter().zip(&names) {
            let limit = LimitSetup {
                name: name.clone(),
                spec: *spec,
                rule: charge_rule(setup.host, spec.kind),
                scope: Scope::Upstream,
            };
            limits.push(dispatcher.add_limit(limit, now_at(now)));
        }
        let upstream = UpstreamSetup {
            name: UPSTREAM.to_owned(),
            limits,
            adaptive: setup.adaptive,
            ..UpstreamSetup::default()
        };
        let upstream = dispatcher.add_upstream(upstream, now_at(now));
        let queue = dispatcher.add_queue(QueueSetup {
            capacity: Capacity::unbounded(),
            ..QueueSetup::to("plan", upstream)
        });
        Self {
            setup,
            rows: rows.iter(),
            dispatcher,
            queue,
            tenant,
            now,
            effects: Vec::new(),
            waiting: VecDeque::new(),
            running: VecDeque::new(),
            held_up: vec![Duration::ZERO; setup.limits.len()],
            searching: Duration::ZERO,
            names,
            report: PlanReport {
                rows: 0,
                too_large: 0,
                elapsed: Duration::ZERO,
                input_tokens: 0,
                output_tokens: 0,
                cost_usd: 0.0,
                in_flight_max: 0,
                binding: Vec::new(),
                searching: 0.0,
            },
        }
    }

    pub(super) fn run(mut self) -> PlanReport {
        let start = self.now;
        self.fill();
        while let Some(at) = self.next_at() {
            self.blame(at - self.now);
            self.now = at;
            match self.running.front().copied() {
                Some((ends, ticket, row)) if ends <= at => {
                    self.running.pop_front();
                    self.end(ticket, row);
                }
                _ => self.tell(Event::Tick),
            }
            self.fill();
        }
        let elapsed = self.now - start;
        self.report(elapsed)
    }

    /// The next end or wake; none when all is done.
    fn next_at(&self) -> Option<Timestamp> {
        let ends = self.running.front().map(|(at, ..)| *at);
        let wake = self.dispatcher.next_wake().map(|at| at.max(self.now));
        match (ends, wake.filter(|_| !self.waiting.is_empty())) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn fill(&mut self) {
        while self.waiting.len() < WINDOW {
            let Some(row) = self.rows.next().copied() else {
                return;
            };
            let call = Call {
                priority: Priority::LOW,
                size: row.size,
                kind: CallKind::Stored,
                ..Call::new(self.queue, self.tenant)
            };
            let now = now_at(self.now);
            // A queue without bounds refuses nothing.
            if let Ok(ticket) = self.dispatcher.submit(call, now, &mut self.effects) {
                self.waiting.push_back((ticket, row));
            }
            self.carry_out();
        }
    }

    fn tell(&mut self, event: Event) {
        let now = now_at(self.now);
        self.dispatcher.handle(event, now, &mut self.effects);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        let mut at = 0;
        while let Some(effect) = self.effects.get(at).cloned() {
            at += 1;
            match effect {
                Effect::Start(start) => self.start(start.ticket),
                Effect::TooLarge { ticket, .. } => {
                    self.report.too_large += 1;
                    self.waiting.retain(|(other, _)| *other != ticket);
                }
                _ => {}
            }
        }
        self.effects.clear();
    }

    fn start(&mut self, ticket: TicketId) {
        let position = self.waiting.iter().position(|(other, _)| *other == ticket);
        let Some((_, row)) = position.and_then(|position| self.waiting.remove(position)) else {
            return;
        };
        let now = now_at(self.now);
        self.dispatcher
            .handle(Event::Sent(ticket, now.mono), now, &mut self.effects);
        let ends = self.now + self.setup.latency;
        self.running.push_back((ends, ticket, row));
        let in_flight = u64::try_from(self.running.len()).unwrap_or(u64::MAX);
        self.report.in_flight_max = self.report.in_flight_max.max(in_flight);
        self.report.rows += 1;
        self.report.input_tokens += u64::from(row.size.input_tokens);
        self.report.output_tokens += u64::from(row.output_tokens);
    }

    fn end(&mut self, ticket: TicketId, row: PlanRow) {
        let ended = Ended {
            usage: Some(Usage {
                input_tokens: u64::from(row.size.input_tokens),
                output_tokens: u64::from(row.output_tokens),
                ..Usage::default()
            }),
            latency: Some(self.setup.latency),
            ..Ended::default()
        };
        self.tell(Event::Ended(ticket, Box::new(ended)));
    }

    /// The next row has waited for `span`: for what?
    fn blame(&mut self, span: Duration) {
        let Some((head, _)) = self.waiting.front().filter(|_| !span.is_zero()) else {
            return;
        };
        let Some(why) = self.dispatcher.why(*head) else {
            return;
        };
        let parts = u32::try_from(why.blockers.len()).unwrap_or(u32::MAX).max(1);
        for blocker in why.blockers {
            if let Blocker::Limit(name) = blocker {
                match self.names.iter().position(|other| *other == name) {
                    Some(limit) => self.held_up[limit] += span / parts,
                    // The one that was not stated.
                    None => self.searching += span / parts,
                }
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a price")]
    fn report(mut self, elapsed: Duration) -> PlanReport {
        let report = &mut self.report;
        report.elapsed = elapsed;
        report.cost_usd = (report.input_tokens as f64 * self.setup.price_input
            + report.output_tokens as f64 * self.setup.price_output)
            / 1e6;
        let share_of =
            |span: Duration| span.as_secs_f64() / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        report.searching = share_of(self.searching);
        for (limit, held_up) in self.setup.limits.iter().zip(&self.held_up) {
            let share = share_of(*held_up);
            if share >= SHARE_MIN {
                report.binding.push(Binding {
                    limit: *limit,
                    share,
                    if_doubled: elapsed,
                });
            }
        }
        report.binding.sort_by(|a, b| b.share.total_cmp(&a.share));
        self.report
    }
}

fn now_at(mono: Timestamp) -> Now {
    Now {
        mono,
        wall: WallTime::from_micros(0) + Duration::from_nanos(mono.as_nanos()),
    }
}
