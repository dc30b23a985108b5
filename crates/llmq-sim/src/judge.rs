//! How much room lay idle: the strict model, told of our calls at the instant they are started
//! and made narrower by exactly what nobody can know.

use std::time::Duration;

use llmq_core::{Algorithm, LimitKind, LimitSpec, Timestamp, Usage};
use llmq_strict::{Arrival, CallId, Charge, StrictProvider};

use crate::others::Others;
use crate::scenario::{Foreign, UpstreamPlan};

/// The smallest margin of a limiter. It is never more than one per cent of the window.
const MARGIN_MIN: Duration = Duration::from_millis(2);
/// Providers state times in whole units of this.
const STATED_TO: Duration = Duration::from_millis(1);
/// A call's bytes are written at most this long after its start.
pub(crate) const WRITE_MAX: Duration = Duration::from_micros(200);
/// Windows are kept in at most this many slices, by rule.
const SLICES: u32 = 4_096;
/// Answers in flight may be longer than the mean; so many standard deviations of their sum are
/// left alone for it.
const DEVIATIONS: f64 = 4.0;
/// The mean of answers is learned from the last hundred or so: it is known to this share of
/// their deviation.
const MEAN_ERROR: f64 = 0.15;
/// What an answer is taken for before there was any.
const FIRST_GUESS: f64 = 256.0;
/// By rule, until so many answers have shown how a provider counts, only so many calls and this
/// part of a limit of tokens are out unanswered.
const ANSWERS_ASKED: u32 = 50;
const UNANSWERED_MAX: u32 = 200;
const UNANSWERED_PART: u64 = 10;

/// The strict model of one provider with narrowed limits. What it admits, the provider admits
/// whatever delays inside the margin the calls met, and whatever the answers in flight become:
/// not to send then is to leave room idle.
#[derive(Debug)]
pub(crate) struct Ideal {
    limits: Vec<Narrowed>,
    charge: Charge,
    outputs: Outputs,
    /// Each size is only known to this share, either way.
    noise: f64,
    asks_first: bool,
    in_flight: u32,
    answers: u32,
    /// Whether any answer has shown how long answers are.
    answered: bool,
    others: Option<Others>,
}

/// What is known of answers beforehand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outputs {
    pub(crate) mean: f64,
    pub(crate) deviation: f64,
}

#[derive(Debug)]
struct Narrowed {
    kind: LimitKind,
    model: StrictProvider,
    period: Duration,
    /// The wall clock at zero where windows are the calendar's.
    calendar: Option<Duration>,
    /// The most it can hold.
    depth: u64,
    /// It only holds where a full bucket is not to be spent in one instant.
    is_pace: bool,
    /// Output of calls in flight that is expected and not charged yet.
    held: f64,
    in_flight: u32,
    /// What calls in flight are charged on arrival, and the squares of their inputs.
    unanswered: u64,
    squares: f64,
}

/// A call's names in every model.
#[derive(Debug, Clone)]
pub(crate) struct IdealCall {
    ids: Vec<CallId>,
    arrival: Arrival,
    /// What is still held for its answer.
    held: f64,
}

/// Since when there is room, if nothing changes; `None`: not known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    pub(crate) plain: Option<Timestamp>,
    pub(crate) paced: Option<Timestamp>,
}

impl Room {
    /// Room of any kind since then.
    pub(crate) fn at(now: Timestamp) -> Self {
        Self {
            plain: Some(now),
            paced: Some(now),
        }
    }

    /// Whichever room comes first.
    pub(crate) fn or(self, other: Self) -> Self {
        let earlier = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self {
            plain: earlier(self.plain, other.plain),
            paced: earlier(self.paced, other.paced),
        }
    }

    /// When there is room for both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            plain: later(self.plain, other.plain),
            paced: later(self.paced, other.paced),
        }
    }
}

fn later(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.zip(b).map(|(a, b)| a.max(b))
}

/// What an ideal is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground {
    pub(crate) charge: Charge,
    /// The margin that nobody can know away.
    pub(crate) margin: Duration,
    /// Who else uses the account.
    pub(crate) foreign: Option<Foreign>,
    pub(crate) outputs: Outputs,
    /// Each size is only known to this share, either way.
    pub(crate) noise: f64,
    /// Whether the dispatcher holds back until it knows the charges.
    pub(crate) asks_first: bool,
    pub(crate) wall_at_zero: Duration,
    pub(crate) now: Timestamp,
}

impl Ground {
    /// The margin for delays on the way to a provider, at least.
    pub(crate) fn margin(plan: &UpstreamPlan, network_max: Duration) -> Duration {
        // All that an answer can prove is the way there and back together.
        if plan.tells_processing {
            MARGIN_MIN.max(network_max * 2 + STATED_TO)
        } else {
            MARGIN_MIN
        }
    }
}

impl Ideal {
    /// Judges by `limits`, of each of which a share is left alone.
    pub(crate) fn new(limits: &[LimitSpec], left_alone: f64, ground: &Ground) -> Self {
        let Ground { charge, now, .. } = *ground;
        let model = |spec: LimitSpec, wall_at_zero: Duration, is_pace| {
            let kind = spec.kind;
            let spec = LimitSpec {
                kind: charged_as(kind, charge, ground.foreign),
                ..spec
            };
            Narrowed {
                kind,
                period: spec.period,
                calendar: (spec.algorithm == Algorithm::Fixed).then_some(wall_at_zero),
                depth: depth(&spec),
                model: StrictProvider::new(&[spec], charge, now).with_wall_clock(wall_at_zero),
                is_pace,
                held: 0.0,
                in_flight: 0,
                unanswered: 0,
                squares: 0.0,
            }
        };
        let narrowed = limits.iter().flat_map(|spec| {
            let kept = narrowed(&less(spec, left_alone), ground.margin);
            let margin = ground.margin.min(spec.period / 100) + WRITE_MAX;
            let early = ground.wall_at_zero.saturating_sub(margin);
            let late = ground.wall_at_zero + margin;
            // Next to an edge nobody knows in which of two windows a call is counted.
            let walls = match spec.algorithm {
                Algorithm::Fixed => vec![early, late],
                Algorithm::Sliding | Algorithm::Bucket { .. } => vec![ground.wall_at_zero],
            };
            walls.into_iter().map(move |wall| model(kept, wall, false))
        });
        let paces = limits.iter().filter_map(pace);
        let paces = paces.map(|spec| model(spec, ground.wall_at_zero, true));
        Self {
            limits: narrowed.chain(paces).collect(),
            charge,
            outputs: ground.outputs,
            noise: ground.noise,
            asks_first: ground.asks_first,
            in_flight: 0,
            answers: 0,
            answered: false,
            others: ground.foreign.map(|plan| {
                let concerned = limits.iter().filter(|spec| spec.kind == plan.kind);
                let longest = concerned.map(|spec| spec.period).max();
                Others::new(plan, longest.unwrap_or_default(), now)
            }),
        }
    }

    /// The output that a call is expected to be charged later.
    fn expected(&self, arrival: &Arrival) -> f64 {
        let mean = if self.answered {
            self.outputs.mean
        } else {
            self.outputs.mean.max(FIRST_GUESS)
        };
        match (self.charge, arrival.max_output_tokens) {
            (Charge::Arrival, _) => 0.0,
            (_, Some(_)) => mean.min(float(arrival.output_cap())),
            (_, None) => mean,
        }
    }

    pub(crate) fn started(&mut self, arrival: &Arrival, now: Timestamp) -> IdealCall {
        let held = self.expected(arrival);
        let charge = self.charge;
        self.in_flight += 1;
        let ids = self.limits.iter_mut().map(|limit| {
            limit.held += held;
            limit.in_flight += 1;
            limit.unanswered += limit.on_arrival(arrival, charge);
            limit.squares += float(arrival.input_tokens).powi(2);
            limit.model.let_in(&limit.as_charged(arrival), now)
        });
        IdealCall {
            ids: ids.collect(),
            arrival: *arrival,
            held,
        }
    }

    pub(crate) fn produced(&mut self, call: &mut IdealCall, tokens: u64, now: Timestamp) {
        let freed = float(tokens).min(call.held);
        call.held -= freed;
        for (limit, id) in self.limits.iter_mut().zip(&call.ids) {
            limit.held -= freed;
            limit.model.produced(*id, tokens, now);
        }
    }

    pub(crate) fn ended(&mut self, call: &IdealCall, usage: Usage, now: Timestamp) {
        self.answered |= usage.output_tokens > 0;
        self.answers += 1;
        self.in_flight -= 1;
        let charge = self.charge;
        for (limit, id) in self.limits.iter_mut().zip(&call.ids) {
            limit.held -= call.held;
            limit.in_flight -= 1;
            limit.unanswered -= limit.on_arrival(&call.arrival, charge);
            limit.squares -= float(call.arrival.input_tokens).powi(2);
            limit.model.finish(*id, usage, now);
        }
    }

    pub(crate) fn used_by_others(&mut self, kind: LimitKind, amount: u64, now: Timestamp) {
        let charged = charged_as(kind, self.charge, self.others.as_ref().map(Others::plan));
        for limit in self.limits.iter_mut().filter(|limit| limit.kind == kind) {
            limit.model.charge_outside(charged, amount, now);
        }
        if let Some(others) = &mut self.others {
            others.used(amount, now);
        }
    }

    /// The provider has told what was left as of then.
    pub(crate) fn told(&mut self, as_of: Timestamp) {
        if let Some(others) = &mut self.others {
            others.told(as_of);
        }
    }

    /// Since when there is room for a call, if nothing changes: `plain` for the call as it is,
    /// `paced` for the largest that it `may_be`, beside the rules that hold calls back.
    pub(crate) fn room_for(&self, arrival: &Arrival, may_be: u64, now: Timestamp) -> Room {
        let largest = Arrival {
            input_tokens: may_be,
            ..*arrival
        };
        let mut room = Room {
            plain: Some(now),
            paced: Some(now).filter(|_| !self.is_bold(&largest)),
        };
        for limit in &self.limits {
            let beside = limit.stray(self.noise) + limit.others(self, now);
            room.paced = later(room.paced, limit.room_for(&largest, self, beside, now));
            if !limit.is_pace {
                room.plain = later(room.plain, limit.room_for(arrival, self, 0, now));
            }
        }
        room
    }

    /// Whether one call more would be a bet on how the provider counts, by rule.
    fn is_bold(&self, arrival: &Arrival) -> bool {
        let asks = self.asks_first && self.answers < ANSWERS_ASKED;
        asks && (self.in_flight >= UNANSWERED_MAX
            || self
                .limits
                .iter()
                .any(|limit| limit.is_bold(arrival, self.charge)))
    }
}

impl Narrowed {
    fn counts_output(&self) -> bool {
        matches!(self.kind, LimitKind::Tokens | LimitKind::OutputTokens)
    }

    /// A limit of output alone is kept as one of tokens, with the input left out, so that what
    /// is held for answers can be asked for as if it were input.
    ///
    /// So is one of requests that others use as well kept as one of input.
    fn as_charged(&self, arrival: &Arrival) -> Arrival {
        let input_tokens = match self.kind {
            LimitKind::OutputTokens => 0,
            LimitKind::Requests => 1,
            LimitKind::Tokens | LimitKind::InputTokens | LimitKind::Concurrency => {
                arrival.input_tokens
            }
        };
        Arrival {
            input_tokens,
            ..*arrival
        }
    }

    /// What the call is charged on arrival, as far as estimates matter for it.
    fn on_arrival(&self, arrival: &Arrival, charge: Charge) -> u64 {
        let output = match charge {
            Charge::Arrival => arrival.output_cap(),
            Charge::Usage | Charge::Stream => 0,
        };
        match self.kind {
            LimitKind::Requests | LimitKind::Concurrency => 0,
            LimitKind::Tokens => arrival.input_tokens + output,
            LimitKind::InputTokens => arrival.input_tokens,
            LimitKind::OutputTokens => output,
        }
    }

    fn is_bold(&self, arrival: &Arrival, charge: Charge) -> bool {
        let asked = self.on_arrival(arrival, charge);
        asked > 0 && self.unanswered > 0 && self.unanswered + asked > self.depth / UNANSWERED_PART
    }

    /// How much more than estimated calls in flight may have been charged.
    fn stray(&self, noise: f64) -> u64 {
        match self.kind {
            LimitKind::Tokens | LimitKind::InputTokens if noise > 0.0 => {
                // Estimates are off evenly over the whole share.
                whole(DEVIATIONS * noise / 3.0_f64.sqrt() * self.squares.max(0.0).sqrt())
            }
            _ => 0,
        }
    }

    /// What others may have used of it that nobody can know of.
    fn others(&self, ideal: &Ideal, now: Timestamp) -> u64 {
        let others = ideal.others.as_ref();
        let Some(others) = others.filter(|others| others.plan().kind == self.kind && !self.is_pace)
        else {
            return 0;
        };
        let since = match self.calendar {
            Some(wall) => now.before(since_edge(wall, self.period, now)),
            None => now.before(self.period),
        };
        others.may_be_more(since, now)
    }

    fn room_for(
        &self,
        arrival: &Arrival,
        ideal: &Ideal,
        beside: u64,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut asked = self.as_charged(arrival);
        asked.input_tokens += beside;
        if self.counts_output() && ideal.charge != Charge::Arrival {
            let calls = f64::from(self.in_flight + 1);
            let deviations = DEVIATIONS * calls.sqrt() + MEAN_ERROR * calls;
            let spread = ideal.outputs.deviation * deviations;
            let held = if self.is_pace {
                0.0
            } else {
                self.held + spread
            };
            let later = whole(ideal.expected(arrival) + held);
            asked.input_tokens += later;
            // What is held for answers must fit beside what is used, and only an answer's end
            // frees it.
            if self.held > 0.0 && asked.input_tokens > self.depth {
                return None;
            }
        }
        match self.model.check(&asked, now) {
            Ok(()) => Some(now),
            Err(refusal) => refusal.retry_after.map(|wait| now + wait),
        }
    }
}

/// As what a limit is kept, so that anything can be asked for beside a call.
fn charged_as(kind: LimitKind, charge: Charge, foreign: Option<Foreign>) -> LimitKind {
    let shared = foreign.is_some_and(|plan| plan.kind == kind);
    match (kind, charge) {
        (LimitKind::OutputTokens, Charge::Usage | Charge::Stream) => LimitKind::Tokens,
        (LimitKind::OutputTokens, _) if shared => LimitKind::Tokens,
        (LimitKind::Requests, _) if shared => LimitKind::InputTokens,
        _ => kind,
    }
}

/// How long ago the calendar's window began, by a wall clock that showed `wall` at zero.
fn since_edge(wall: Duration, period: Duration, now: Timestamp) -> Duration {
    let nanos = wall.as_nanos() + u128::from(now.as_nanos());
    let since = nanos % period.as_nanos().max(1);
    Duration::from_nanos(u64::try_from(since).unwrap_or(0))
}

/// A limit less what nobody can know: a slot comes back a margin and a slice later, a bucket is
/// a margin shallower; windows on the calendar are moved instead.
fn narrowed(spec: &LimitSpec, margin: Duration) -> LimitSpec {
    let margin = margin.min(spec.period / 100) + WRITE_MAX;
    match spec.algorithm {
        _ if spec.kind == LimitKind::Concurrency => *spec,
        Algorithm::Sliding => LimitSpec {
            period: spec.period + margin + spec.period / SLICES + Duration::from_nanos(1),
            ..*spec
        },
        Algorithm::Bucket { depth } => LimitSpec {
            algorithm: Algorithm::Bucket {
                depth: depth.saturating_sub(margin).max(depth / 2),
            },
            ..*spec
        },
        Algorithm::Fixed => *spec,
    }
}

/// A limit of which a share of the count is left alone: as if it were that much smaller, and
/// came back as fast.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a count"
)]
pub(crate) fn less(spec: &LimitSpec, share: f64) -> LimitSpec {
    let kept = (spec.count as f64 * share) as u64;
    match spec.algorithm {
        Algorithm::Bucket { depth } if spec.kind != LimitKind::Concurrency => LimitSpec {
            algorithm: Algorithm::Bucket {
                depth: depth.saturating_sub(part(spec.period, kept, spec.count)),
            },
            ..*spec
        },
        Algorithm::Bucket { .. } | Algorithm::Sliding | Algorithm::Fixed => LimitSpec {
            count: spec.count - kept,
            ..*spec
        },
    }
}

/// The time in which `of` a period's `count` flow in, rounded down.
fn part(period: Duration, of: u64, count: u64) -> Duration {
    let nanos = period.as_nanos() * u128::from(of) / u128::from(count.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn depth(spec: &LimitSpec) -> u64 {
    match spec.algorithm {
        Algorithm::Bucket { depth } if !spec.period.is_zero() => {
            let held = u128::from(spec.count) * depth.as_nanos() / spec.period.as_nanos();
            u64::try_from(held).unwrap_or(u64::MAX)
        }
        Algorithm::Bucket { .. } | Algorithm::Sliding | Algorithm::Fixed => spec.count,
    }
}

/// A tenth of a full bucket at once, and nine times its rate on top.
fn pace(spec: &LimitSpec) -> Option<LimitSpec> {
    match spec.algorithm {
        Algorithm::Bucket { depth } if spec.kind != LimitKind::Concurrency => Some(LimitSpec {
            count: spec.count * 9,
            algorithm: Algorithm::Bucket { depth: depth / 90 },
            ..*spec
        }),
        Algorithm::Bucket { .. } | Algorithm::Sliding | Algorithm::Fixed => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn float(tokens: u64) -> f64 {
    tokens as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "token counts that are not negative"
)]
fn whole(tokens: f64) -> u64 {
    tokens.ceil().max(0.0) as u64
}
