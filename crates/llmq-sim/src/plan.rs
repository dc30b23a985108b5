//! How long a file of calls will take, found by playing it with the real dispatcher.

use std::collections::VecDeque;
use std::time::Duration;

use llmq_core::{CallSize, Host, LimitKind, LimitSpec, Now, Priority, Timestamp, Usage, WallTime};
use llmq_dispatch::{
    Blocker, Call, CallKind, Capacity, Dispatcher, Effect, Ended, Event, LimitSetup, QueueId,
    QueueSetup, Rules, Scope, TenantId, TicketId, UpstreamSetup,
};
use llmq_limit::charge_rule;

/// One row of a file, as far as a plan needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanRow {
    /// The call, as it will be estimated.
    pub size: CallSize,
    /// The output it is expected to produce, in tokens, over all its answers.
    pub output_tokens: u32,
}

/// What a file will be sent to.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanSetup {
    /// The limits that hold, concurrency among them.
    pub limits: Vec<LimitSpec>,
    /// How they charge.
    pub host: Host,
    /// The mean time from sending a call to the end of its answer.
    pub latency: Duration,
    /// US dollars per million input tokens.
    pub price_input: f64,
    /// US dollars per million output tokens.
    pub price_output: f64,
}

/// What a file will take.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanReport {
    /// Rows that get an answer.
    pub rows: u64,
    /// Rows above the whole of a limit, which fail at once.
    pub too_large: u64,
    /// From the first call to the end of the last, with every limit unused at the start.
    pub elapsed: Duration,
    /// Input tokens of all rows that are sent.
    pub input_tokens: u64,
    /// Output tokens of all rows that are sent.
    pub output_tokens: u64,
    /// US dollars.
    pub cost_usd: f64,
    /// The most calls in flight at one time.
    pub in_flight_max: u64,
    /// The limits that held the file up, the one that did so longest first.
    pub binding: Vec<Binding>,
}

/// A limit that holds a file up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Binding {
    /// The limit.
    pub limit: LimitSpec,
    /// The share of the whole time in which the next row waited for it, 0 to 1. Where it waited
    /// for several at once, each has an equal part.
    pub share: f64,
    /// How long the file would take if this limit alone were twice as high.
    pub if_doubled: Duration,
}

/// What it takes to finish a file in time.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanNeed {
    /// The limits that are enough; none is lower than it is now.
    pub limits: Vec<LimitSpec>,
    /// The plan with them.
    pub report: PlanReport,
}

/// So many rows stand in line at once; more would change nothing and cost memory.
const WINDOW: usize = 1_024;
/// Limits that hold up less than this share of the time are not told of.
const SHARE_MIN: f64 = 0.001;
/// No limit is raised beyond this many times.
const FACTOR_MAX: f64 = 1e6;
/// Needs are found to within two per cent.
const PRECISION: f64 = 1.02;

/// Plays `rows` on virtual time: with the limits, the charge rules and the order that a run
/// has, every call taking the mean latency and using what is expected.
///
/// ```
/// use llmq_core::{CallSize, Host};
/// use llmq_sim::{PlanRow, PlanSetup, plan};
/// use std::time::Duration;
///
/// let row = PlanRow { size: CallSize::of_input(100), output_tokens: 50 };
/// let setup = PlanSetup {
///     limits: vec!["requests=10/1m".parse().unwrap()],
///     host: Host::Unknown,
///     latency: Duration::from_secs(1),
///     price_input: 0.15,
///     price_output: 0.60,
/// };
/// let report = plan(&[row; 25], &setup);
/// assert_eq!(report.elapsed.as_secs(), 121);
/// assert_eq!(report.binding[0].limit, setup.limits[0]);
/// assert_eq!(report.binding[0].if_doubled.as_secs(), 61);
/// ```
#[must_use]
pub fn plan(rows: &[PlanRow], setup: &PlanSetup) -> PlanReport {
    let mut report = Play::new(rows, setup).run();
    for binding in &mut report.binding {
        let doubled = PlanSetup {
            limits: raised(&setup.limits, |limit| {
                if *limit == binding.limit { 2.0 } else { 1.0 }
            }),
            ..setup.clone()
        };
        binding.if_doubled = Play::new(rows, &doubled).run().elapsed;
    }
    report
}

/// The least limits, to within two per cent, with which `rows` are finished within `time`; none
/// where no limit helps, since a single call takes longer.
#[must_use]
pub fn finish_in(rows: &[PlanRow], setup: &PlanSetup, time: Duration) -> Option<PlanNeed> {
    if !rows.is_empty() && setup.latency > time {
        return None;
    }
    let with = |limits: Vec<LimitSpec>| PlanSetup {
        limits,
        ..setup.clone()
    };
    let takes = |limits: Vec<LimitSpec>| Play::new(rows, &with(limits)).run().elapsed;
    let mut factors = Vec::with_capacity(setup.limits.len());
    for limit in &setup.limits {
        let alone = |factor: f64| takes(raised(&[*limit], |_| factor)) <= time;
        factors.push(least(alone)?);
    }
    // Together they may hold up more than each alone does.
    let mut more = 1.0;
    loop {
        let mut each = factors.iter();
        let limits = raised(&setup.limits, |_| match each.next() {
            Some(factor) if *factor > 1.0 => factor * more,
            Some(_) | None if more > PRECISION.powi(20) => more,
            Some(_) | None => 1.0,
        });
        if takes(limits.clone()) <= time {
            let report = plan(rows, &with(limits.clone()));
            return Some(PlanNeed { limits, report });
        }
        more *= PRECISION;
        if more > FACTOR_MAX {
            return None;
        }
    }
}

/// The least factor of at least 1 that is enough, by doubling and halving.
fn least(enough: impl Fn(f64) -> bool) -> Option<f64> {
    if enough(1.0) {
        return Some(1.0);
    }
    let (mut low, mut high) = (1.0_f64, 2.0_f64);
    while !enough(high) {
        (low, high) = (high, high * 2.0);
        if high > FACTOR_MAX {
            return None;
        }
    }
    while high / low > PRECISION {
        let middle = (low * high).sqrt();
        if enough(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a positive count times a factor; saturates"
)]
fn raised(limits: &[LimitSpec], mut factor: impl FnMut(&LimitSpec) -> f64) -> Vec<LimitSpec> {
    let raise = |limit: &LimitSpec| LimitSpec {
        count: (limit.count as f64 * factor(limit)).ceil() as u64,
        ..*limit
    };
    limits.iter().map(raise).collect()
}

/// One pass over the rows.
struct Play<'a> {
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
    names: Vec<String>,
    report: PlanReport,
}

impl<'a> Play<'a> {
    fn new(rows: &'a [PlanRow], setup: &'a PlanSetup) -> Self {
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
            limits,
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
            },
        }
    }

    fn run(mut self) -> PlanReport {
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
            .handle(Event::Sent(ticket), now, &mut self.effects);
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
            if let Blocker::Limit(name) = blocker
                && let Some(limit) = self.names.iter().position(|other| *other == name)
            {
                self.held_up[limit] += span / parts;
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
        for (limit, held_up) in self.setup.limits.iter().zip(&self.held_up) {
            let share = held_up.as_secs_f64() / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
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

impl PlanSetup {
    /// The limit of calls in flight, if there is one.
    #[must_use]
    pub fn concurrency(&self) -> Option<u64> {
        let places = |limit: &&LimitSpec| limit.kind == LimitKind::Concurrency;
        self.limits
            .iter()
            .filter(places)
            .map(|limit| limit.count)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(limits: &[&str]) -> PlanSetup {
        PlanSetup {
            limits: limits.iter().map(|text| text.parse().unwrap()).collect(),
            host: Host::Unknown,
            latency: Duration::from_secs(1),
            price_input: 1.0,
            price_output: 2.0,
        }
    }

    fn rows(count: usize) -> Vec<PlanRow> {
        let row = PlanRow {
            size: CallSize::of_input(100),
            output_tokens: 50,
        };
        vec![row; count]
    }

    #[test]
    fn without_limits_all_rows_take_one_latency() {
        let report = plan(&rows(3_000), &setup(&[]));
        assert_eq!(report.elapsed, Duration::from_secs(1));
        assert_eq!((report.rows, report.in_flight_max), (3_000, 3_000));
        assert_eq!(
            (report.input_tokens, report.output_tokens),
            (300_000, 150_000)
        );
        assert!((report.cost_usd - 0.6).abs() < 1e-9);
        assert!(report.binding.is_empty());
    }

    #[test]
    fn concurrency_alone_gives_rounds_of_one_latency_each() {
        let report = plan(&rows(1_000), &setup(&["concurrency=10", "requests=1M/1m"]));
        assert_eq!(report.elapsed, Duration::from_secs(100));
        assert_eq!(report.binding.len(), 1);
        assert_eq!(report.binding[0].limit.kind, LimitKind::Concurrency);
        assert_eq!(report.binding[0].if_doubled, Duration::from_secs(50));
    }

    #[test]
    fn a_limit_of_a_day_takes_days_and_no_time_to_compute() {
        let report = plan(
            &rows(10_000),
            &setup(&["requests=1000/1d", "requests=500/1m"]),
        );
        let days = report.elapsed.as_secs_f64() / 86_400.0;
        assert!((days - 9.0).abs() < 0.01, "{days}");
        assert_eq!(report.binding[0].limit.count, 1_000);
    }

    #[test]
    fn a_row_above_a_whole_limit_is_counted_apart() {
        let mut rows = rows(3);
        rows[1].size.input_tokens = 5_000;
        let report = plan(&rows, &setup(&["tokens=1000/1m"]));
        assert_eq!((report.rows, report.too_large), (2, 1));
    }

    #[test]
    fn what_is_needed_is_enough_and_little_more_than_that() {
        let setup = setup(&["requests=100/1m", "tokens=10k/1m", "concurrency=1"]);
        let rows = rows(2_000);
        let time = Duration::from_secs(300);
        let need = finish_in(&rows, &setup, time).unwrap();
        assert!(need.report.elapsed <= time);
        for (now, then) in setup.limits.iter().zip(&need.limits) {
            assert!(then.count >= now.count);
        }
        let less = PlanSetup {
            limits: raised(&need.limits, |_| 0.9),
            ..setup
        };
        assert!(plan(&rows, &less).elapsed > time);
        assert_eq!(finish_in(&rows, &setup, Duration::from_millis(10)), None);
    }
}
