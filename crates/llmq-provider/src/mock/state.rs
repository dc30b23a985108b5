use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmq_core::{LimitKind, LimitSpec, Timestamp, Usage};
use llmq_strict::{Book, CallId, Refusal, StrictProvider};
use tokio::time::Instant;

use super::call::Call;
use super::config::{Foreign, MockConfig};
use super::report::{AnswerCounts, LimitReport, Report};

/// Bodies whose answers are counted, so that memory stays bounded: about 32 MB of digests.
const BODIES_MAX: usize = 1 << 20;

/// How finely the use of others is spread over time.
const FOREIGN_TICK: Duration = Duration::from_millis(10);

/// What all connections share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: MockConfig,
    started: Instant,
    /// The time since 1970 at the start.
    wall_at_start: Duration,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    provider: StrictProvider,
    random: fastrand::Rng,
    foreign: ForeignUse,
    paid: HashMap<u64, u32>,
    report: Report,
}

/// A call that every limit let in.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) running: Running,
    pub(super) fate: Fate,
    /// How long its answer takes in all.
    pub(super) latency: Duration,
    pub(super) books: Vec<Book>,
}

/// What becomes of an admitted call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    Broken,
    BrokenHtml,
    Dropped,
}

/// Why a call was not let in.
#[derive(Debug)]
pub(super) enum Denied {
    NoMoney,
    Limited {
        spec: LimitSpec,
        refusal: Refusal,
        books: Vec<Book>,
    },
}

impl State {
    pub(super) fn new(config: MockConfig, wall_at_start: Duration) -> Self {
        let provider = StrictProvider::new(&config.limits, config.charge, Timestamp::ZERO)
            .with_wall_clock(wall_at_start);
        let ledger = Ledger {
            provider,
            random: fastrand::Rng::with_seed(config.seed),
            foreign: ForeignUse::new(&config.foreign),
            paid: HashMap::new(),
            report: Report::default(),
        };
        Self {
            config,
            started: Instant::now(),
            wall_at_start,
            ledger: Mutex::new(ledger),
        }
    }

    /// The time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The time since 1970, if the wall clock has not jumped since the start.
    pub(super) fn wall(&self) -> Duration {
        self.wall_at_start + self.elapsed()
    }

    pub(super) fn in_outage(&self) -> bool {
        let elapsed = self.elapsed();
        let outages = self.config.outages.iter();
        outages
            .into_iter()
            .any(|outage| outage.from <= elapsed && elapsed < outage.until)
    }

    /// A call has arrived; returns its number.
    pub(super) fn count_call(&self) -> u64 {
        let at = micros(self.elapsed());
        let report = &mut self.lock().report;
        report.calls += 1;
        report.first_arrival_us.get_or_insert(at);
        report.last_arrival_us = Some(at);
        report.calls
    }

    pub(super) fn count_outage(&self) {
        self.lock().report.in_outage += 1;
    }

    /// An answer goes out that belongs to no admitted call.
    pub(super) fn count_status(&self, status: u16) {
        *self.lock().report.status.entry(status).or_insert(0) += 1;
    }

    /// Asks the limits, all or none, and draws what becomes of the call. `identity` tells equal
    /// bodies.
    pub(super) fn arrive(
        self: &Arc<Self>,
        call: &Call<'_>,
        identity: u64,
    ) -> Result<Admitted, Denied> {
        let mut ledger = self.lock();
        let now = self.now();
        ledger.use_by_others(now);
        if self
            .config
            .quota
            .is_some_and(|quota| ledger.provider.accepted() >= quota)
        {
            ledger.report.out_of_money += 1;
            return Err(Denied::NoMoney);
        }
        let arrival = call.arrival();
        let id = match ledger.provider.arrive(&arrival, now) {
            Ok(id) => id,
            Err(refusal) => {
                return Err(Denied::Limited {
                    spec: self.config.limits[refusal.limit],
                    refusal,
                    books: ledger.provider.books(now),
                });
            }
        };
        ledger.report.input_tokens += arrival.input_tokens;
        let in_flight = ledger.provider.in_flight() as u64;
        ledger.report.in_flight_max = ledger.report.in_flight_max.max(in_flight);
        let running = Running {
            state: Arc::clone(self),
            id,
            identity,
            usage: Usage {
                input_tokens: arrival.input_tokens,
                ..Usage::default()
            },
            end: End::Abandoned,
        };
        Ok(Admitted {
            running,
            fate: ledger.draw_fate(&self.config),
            latency: ledger.draw_latency(&self.config),
            books: ledger.provider.books(now),
        })
    }

    pub(super) fn report(&self) -> Report {
        let mut ledger = self.lock();
        let now = self.now();
        ledger.use_by_others(now);
        let limits = ledger
            .provider
            .books(now)
            .into_iter()
            .map(|book| LimitReport {
                limit: book.spec.to_string(),
                refused: book.refused,
                used: book.used,
                remaining: book.remaining,
                foreign: ledger.foreign.taken_of(book.spec.kind),
            });
        let limits = limits.collect();
        Report {
            accepted: ledger.provider.accepted(),
            refused: ledger.provider.refused(),
            in_flight: ledger.provider.in_flight() as u64,
            uptime_us: micros(self.elapsed()),
            limits,
            ..ledger.report.clone()
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.elapsed()
    }

    /// Books stay whole whatever panics elsewhere, so a poisoned lock is taken as it is.
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

impl Ledger {
    fn use_by_others(&mut self, now: Timestamp) {
        self.foreign.advance(&mut self.provider, now);
    }

    fn draw_fate(&mut self, config: &MockConfig) -> Fate {
        if config.drop > 0.0 && self.random.f64() < config.drop {
            return Fate::Dropped;
        }
        if config.fail > 0.0 && self.random.f64() < config.fail {
            return if self.random.bool() {
                Fate::Broken
            } else {
                Fate::BrokenHtml
            };
        }
        Fate::Answered
    }

    /// Even over the mean ± the jitter's share of it.
    fn draw_latency(&mut self, config: &MockConfig) -> Duration {
        if config.latency.is_zero() {
            return Duration::ZERO;
        }
        let jitter = config.jitter.clamp(0.0, 1.0);
        let factor = 1.0 + jitter * (2.0 * self.random.f64() - 1.0);
        config.latency.mul_f64(factor)
    }

    fn count_paid(&mut self, identity: u64) {
        let AnswerCounts {
            distinct,
            repeated,
            most,
            untracked,
        } = &mut self.report.answers;
        if self.paid.len() >= BODIES_MAX && !self.paid.contains_key(&identity) {
            *untracked += 1;
            return;
        }
        let answers = self.paid.entry(identity).or_insert(0);
        *answers += 1;
        if *answers == 1 {
            *distinct += 1;
        } else {
            *repeated += 1;
        }
        *most = (*most).max(u64::from(*answers));
    }
}

/// An admitted call until its end. Dropped before that, it was left by its client: it no longer
/// runs, and what it produced so far is what it used.
#[derive(Debug)]
pub(super) struct Running {
    state: Arc<State>,
    id: CallId,
    identity: u64,
    usage: Usage,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Abandoned,
    Dropped,
    Answered(u16),
}

impl Running {
    /// The call produces `tokens` more of output.
    pub(super) fn produced(&mut self, tokens: u64) {
        if tokens > 0 {
            self.usage.output_tokens += tokens;
            let mut ledger = self.state.lock();
            ledger.provider.produced(self.id, tokens, self.state.now());
        }
    }

    /// The whole answer is about to leave, and with it the output not yet told of.
    pub(super) fn answered(mut self, status: u16, output_tokens: u64) {
        self.usage.output_tokens = self.usage.output_tokens.max(output_tokens);
        self.end = End::Answered(status);
    }

    /// The call is served, and its answer thrown away.
    pub(super) fn dropped(mut self, output_tokens: u64) {
        self.usage.output_tokens = output_tokens;
        self.end = End::Dropped;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut ledger = self.state.lock();
        ledger
            .provider
            .finish(self.id, self.usage, self.state.now());
        match self.end {
            End::Abandoned => ledger.report.abandoned += 1,
            End::Dropped => ledger.report.dropped += 1,
            End::Answered(status) => {
                *ledger.report.status.entry(status).or_insert(0) += 1;
                if status == 200 {
                    ledger.report.output_tokens += self.usage.output_tokens;
                    ledger.count_paid(self.identity);
                }
            }
        }
    }
}

/// The use of the account by others, charged tick by tick at the instants at which it falls due.
#[derive(Debug)]
struct ForeignUse {
    rates: Vec<(Foreign, u64)>,
    taken: HashMap<LimitKind, u64>,
    /// The last tick that was charged.
    at: Timestamp,
}

impl ForeignUse {
    fn new(rates: &[Foreign]) -> Self {
        Self {
            rates: rates.iter().map(|rate| (*rate, 0)).collect(),
            taken: HashMap::new(),
            at: Timestamp::ZERO,
        }
    }

    fn taken_of(&self, kind: LimitKind) -> u64 {
        self.taken.get(&kind).copied().unwrap_or(0)
    }

    fn advance(&mut self, provider: &mut StrictProvider, now: Timestamp) {
        if self.rates.is_empty() {
            return;
        }
        while self.at + FOREIGN_TICK <= now {
            self.at = self.at + FOREIGN_TICK;
            for (rate, charged) in &mut self.rates {
                let due = due(rate, self.at);
                if due > *charged {
                    let taken = provider.charge_outside(rate.kind, due - *charged, self.at);
                    *self.taken.entry(rate.kind).or_insert(0) += taken;
                    *charged = due;
                }
            }
        }
    }
}

/// What a rate comes to by `at`.
fn due(rate: &Foreign, at: Timestamp) -> u64 {
    let nanos = rate.period.as_nanos().max(1);
    let whole = u128::from(rate.count) * u128::from(at.as_nanos()) / nanos;
    u64::try_from(whole).unwrap_or(u64::MAX)
}
