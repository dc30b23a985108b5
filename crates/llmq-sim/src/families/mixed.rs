//! Everything at once: providers, lines, tenants and limits, bursts, faults, outages.

use std::time::Duration;

use fastrand::Rng;
use llmq_core::{Algorithm, LimitKind, LimitSpec, Priority};

use super::{Family, pick};
use crate::scenario::{
    Account, Arrivals, Estimates, Foreign, HeaderStyle, Outage, OutageKind, Scenario, Sizes,
    Source, Spread, TenantPlan, UpstreamPlan,
};

const PERIODS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(3_600),
];
const DAY: Duration = Duration::from_secs(86_400);
const CALLS_MAX: u32 = 4_000;

pub(super) fn drawn(family: Family, seed: u64) -> Scenario {
    let mut rng = Rng::with_seed(seed);
    let rng = &mut rng;
    let account = *pick(
        &[Account::OnArrival, Account::ToUsage, Account::AsItStreams],
        rng,
    );
    let sizes = sizes(family, rng);
    let per_window = rng.u32(10..300);
    let period = *pick(&PERIODS, rng);
    let steady = family == Family::Steady;
    let count = if steady { 1 } else { rng.usize(1..=3) };
    let limits = limits(account, sizes, per_window, period, rng);
    let mut upstreams: Vec<UpstreamPlan> = (0..count)
        .map(|_| upstream(family, account, limits.clone(), period, rng))
        .collect();
    let windows = if steady { 20 } else { 12 };
    let calls = (per_window * windows).clamp(200, CALLS_MAX);
    let capacity = f64::from(per_window) / period.as_secs_f64() * f64::from(small(count));
    if family == Family::Shared {
        share(&mut upstreams, &limits, rng);
    }
    let span = f64::from(calls) / capacity;
    if !steady && rng.u32(..4) == 0 {
        upstreams[0].outages.push(outage(span, rng));
    }
    let (sources, tenants) = if steady {
        let source = source(Arrivals::AtOnce, calls, sizes);
        (vec![source], vec![TenantPlan::default()])
    } else {
        sources(calls, per_window, capacity, sizes, rng)
    };
    let shortest = period.min(Duration::from_secs(60));
    Scenario {
        tenants,
        network_max: Duration::from_millis(2)
            .min(shortest / 100)
            .mul_f64(rng.f64()),
        estimates: estimates(family, rng),
        leavers: if steady {
            0.0
        } else {
            pick(&[0.0, 0.02], rng) * 1.0
        },
        aging: Duration::from_secs(366 * 86_400),
        pause: (!steady && rng.u32(..8) == 0).then(|| Duration::from_secs_f64(span / 10.0)),
        ..Scenario::new(seed, upstreams, sources)
    }
}

pub(super) fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn sizes(family: Family, rng: &mut Rng) -> Sizes {
    let spreads = [Spread::None, Spread::Even, Spread::Pareto(2.2)];
    Sizes {
        input: rng.u32(20..2_000),
        output: rng.u32(10..800),
        cap: pick(&[None, Some(1.0), Some(2.5)], rng).to_owned(),
        spread: match family {
            Family::Steady => *pick(&spreads[..2], rng),
            _ => *pick(&spreads, rng),
        },
    }
}

/// One limit that binds and up to two others.
fn limits(
    account: Account,
    sizes: Sizes,
    per_window: u32,
    period: Duration,
    rng: &mut Rng,
) -> Vec<LimitSpec> {
    let kinds = [
        LimitKind::Requests,
        LimitKind::Tokens,
        LimitKind::InputTokens,
        LimitKind::OutputTokens,
    ];
    let first = *pick(&kinds, rng);
    let mut limits = vec![limit(account, first, sizes, per_window, period, 1.0, rng)];
    let second = *pick(&kinds, rng);
    if rng.bool() && second != first {
        let share = 0.8 + rng.f64();
        limits.push(limit(
            account, second, sizes, per_window, period, share, rng,
        ));
    }
    match rng.u32(..6) {
        0 => limits.push(LimitSpec::concurrency(rng.u64(4..64))),
        1 => {
            let algorithm = algorithm(DAY, rng);
            let a_day = u64::from(per_window) * rng.u64(4..9);
            limits.push(LimitSpec::per(LimitKind::Requests, a_day, DAY, algorithm));
        }
        _ => {}
    }
    limits
}

pub(super) fn limit(
    account: Account,
    kind: LimitKind,
    sizes: Sizes,
    per_window: u32,
    period: Duration,
    share: f64,
    rng: &mut Rng,
) -> LimitSpec {
    let output = match (account, sizes.cap) {
        (Account::OnArrival, Some(cap)) => f64::from(sizes.output) * cap,
        (Account::OnArrival, None) => 16.0,
        _ => f64::from(sizes.output),
    };
    let each = match kind {
        LimitKind::Requests | LimitKind::Concurrency => 1.0,
        LimitKind::InputTokens => f64::from(sizes.input),
        LimitKind::OutputTokens => output,
        LimitKind::Tokens => f64::from(sizes.input) + output,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive count"
    )]
    let count = (f64::from(per_window) * each * share).ceil() as u64;
    LimitSpec::per(kind, count.max(1), period, algorithm(period, rng))
}

pub(super) fn algorithm(period: Duration, rng: &mut Rng) -> Algorithm {
    match rng.u32(..5) {
        0 | 1 => Algorithm::Sliding,
        2 => Algorithm::Fixed,
        3 => Algorithm::Bucket { depth: period },
        _ => Algorithm::Bucket {
            depth: (period / 6).max(Duration::from_secs(1)).min(period),
        },
    }
}

fn upstream(
    family: Family,
    account: Account,
    limits: Vec<LimitSpec>,
    period: Duration,
    rng: &mut Rng,
) -> UpstreamPlan {
    let headers = [
        HeaderStyle::None,
        HeaderStyle::Full,
        HeaderStyle::Bare,
        HeaderStyle::Rounded,
    ];
    let asks_first = matches!(family, Family::Off15 | Family::Off30);
    let faulty = family != Family::Steady && rng.u32(..3) == 0;
    let latency = Duration::from_secs_f64(0.02 + 3.0 * rng.f64().powi(2));
    UpstreamPlan {
        latency: latency.min(period * 5),
        latency_spread: rng.f64() * 0.8,
        failures: if faulty { 0.05 } else { 0.0 },
        // Only headers tell how a provider counts.
        headers: if asks_first {
            HeaderStyle::Full
        } else {
            *pick(&headers, rng)
        },
        tells_wait: rng.u32(..4) > 0,
        tells_processing: rng.bool(),
        asks_first,
        ..UpstreamPlan::new(account, limits)
    }
}

fn share(upstreams: &mut [UpstreamPlan], limits: &[LimitSpec], rng: &mut Rng) {
    let counted = limits
        .iter()
        .find(|spec| spec.kind != LimitKind::Concurrency);
    let Some(spec) = counted else { return };
    for plan in upstreams {
        // Between a twentieth and a third of the limit, in steps of a hundredth.
        let amount = (spec.count / 100).max(1);
        let rate = 0.05 + 0.28 * rng.f64();
        // Of the slowest limit of the kind: else a day's would be theirs within minutes.
        let slowest = limits
            .iter()
            .filter(|other| other.kind == spec.kind)
            .min_by(|a, b| per_second(a).total_cmp(&per_second(b)))
            .unwrap_or(spec);
        let every = part(amount, rate * per_second(slowest));
        plan.headers = HeaderStyle::Full;
        plan.tells_wait = true;
        plan.foreign = Some(Foreign {
            kind: spec.kind,
            amount,
            every,
        });
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count")]
fn per_second(spec: &LimitSpec) -> f64 {
    spec.count as f64 / spec.period.as_secs_f64()
}

/// How long it takes to use `amount` at this rate.
#[expect(clippy::cast_precision_loss, reason = "a count")]
fn part(amount: u64, per_second: f64) -> Duration {
    Duration::from_secs_f64(amount as f64 / per_second)
}

fn outage(span: f64, rng: &mut Rng) -> Outage {
    Outage {
        after: Duration::from_secs_f64(span * (0.2 + 0.4 * rng.f64())),
        lasts: Duration::from_secs_f64((span * 0.1).clamp(0.5, 600.0)),
        kind: *pick(&[OutageKind::Refused, OutageKind::Overload], rng),
    }
}

pub(super) fn source(arrivals: Arrivals, calls: u32, sizes: Sizes) -> Source {
    Source {
        queue: 0,
        tenant: 0,
        priority: Priority::NORMAL,
        arrivals,
        calls,
        sizes,
        ttl: None,
    }
}

fn sources(
    calls: u32,
    per_window: u32,
    capacity: f64,
    sizes: Sizes,
    rng: &mut Rng,
) -> (Vec<Source>, Vec<TenantPlan>) {
    let tenants: Vec<TenantPlan> = (0..rng.usize(1..=3))
        .map(|_| TenantPlan::of_weight(rng.f64() * 4.0 + 0.5))
        .collect();
    let count = rng.u32(1..=4);
    let priorities = [
        Priority::LOW,
        Priority::NORMAL,
        Priority::HIGH,
        Priority::CRITICAL,
    ];
    let queues = rng.usize(1..=2);
    let window_s = f64::from(per_window) / capacity;
    let sources = (0..count).map(|_| {
        let arrivals = match rng.u32(..3) {
            0 => Arrivals::AtOnce,
            1 => Arrivals::Random {
                per_second: capacity * (0.7 + rng.f64()) / f64::from(count),
            },
            _ => Arrivals::Bursts {
                size: (2 * per_window / count).max(1),
                every: Duration::from_secs_f64(window_s * (2.0 + rng.f64())),
            },
        };
        Source {
            queue: rng.usize(..queues),
            tenant: rng.usize(..tenants.len()),
            priority: *pick(&priorities, rng),
            ttl: (rng.u32(..6) == 0).then(|| Duration::from_secs_f64(window_s * 4.0)),
            ..source(arrivals, (calls / count).max(1), sizes)
        }
    });
    let mut sources: Vec<Source> = sources.collect();
    // Queues are counted from zero without gaps.
    if sources.iter().all(|source| source.queue == 1) {
        sources[0].queue = 0;
    }
    (sources, tenants)
}

fn estimates(family: Family, rng: &mut Rng) -> Estimates {
    let off = match family {
        Family::Off15 => 0.15,
        Family::Off30 => 0.3,
        _ => 0.0,
    };
    let bias = off * rng.f64() * if rng.bool() { 1.0 } else { -1.0 };
    Estimates {
        bias,
        noise: off - bias.abs(),
    }
}
