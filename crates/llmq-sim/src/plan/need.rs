use std::time::Duration;

use llmq_core::LimitSpec;
use llmq_limit::Adaptive;

use super::play::Play;
use super::{PlanReport, PlanRow, PlanSetup, plan, raised};

/// What it takes to finish a file in time.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanNeed {
    /// The limits that are enough; none is lower than it is now.
    pub limits: Vec<LimitSpec>,
    /// The plan with them.
    pub report: PlanReport,
    /// What must be allowed at the least, whatever the limits are now.
    pub pace: Pace,
}

/// The even pace that finishes a file just in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Calls started a minute.
    pub requests_per_minute: u64,
    /// Input and output tokens a minute.
    pub tokens_per_minute: u64,
    /// Calls in flight.
    pub calls_at_once: u64,
}

/// No limit is raised beyond this many times.
const FACTOR_MAX: f64 = 1e6;
/// Needs are found to within two per cent.
const PRECISION: f64 = 1.02;

/// The least limits, to within two per cent, with which `rows` are finished within `time`, none
/// of them lower than it is now; nothing where no limit helps, since a single call takes longer.
#[must_use]
pub fn finish_in(rows: &[PlanRow], setup: &PlanSetup, time: Duration) -> Option<PlanNeed> {
    if !rows.is_empty() && setup.latency > time {
        return None;
    }
    // A number of calls at once that is found on the way may be found too late: then it is needed.
    let searched = |setup: &PlanSetup| {
        let alone = PlanSetup {
            limits: Vec::new(),
            ..setup.clone()
        };
        Play::new(rows, &alone).run().elapsed
    };
    let stated;
    let setup = match setup.adaptive {
        Some(adaptive) if searched(setup) > time => {
            let mut limits = setup.limits.clone();
            limits.push(LimitSpec::concurrency(Adaptive::new(adaptive).limit()));
            stated = PlanSetup {
                limits,
                adaptive: None,
                ..setup.clone()
            };
            &stated
        }
        _ => setup,
    };
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
            let pace = Pace::of(&report, setup.latency, time);
            return Some(PlanNeed {
                limits,
                report,
                pace,
            });
        }
        more *= PRECISION;
        if more > FACTOR_MAX {
            return None;
        }
    }
}

impl Pace {
    /// The last call starts one latency before the end.
    fn of(report: &PlanReport, latency: Duration, time: Duration) -> Self {
        let rows = report.rows;
        // Without rows the time may be shorter than any call.
        let starts = time.saturating_sub(latency);
        let starts = starts.max(Duration::from_nanos(1)).as_nanos();
        let a_minute = |amount: u64| {
            let minute = Duration::from_secs(60).as_nanos();
            let rate = (u128::from(amount) * minute).div_ceil(starts);
            // What is over before a minute has passed needs no more than all of it.
            u64::try_from(rate).unwrap_or(u64::MAX).min(amount)
        };
        let rounds = time.as_nanos() / latency.as_nanos().max(1);
        let rounds = u64::try_from(rounds).unwrap_or(u64::MAX).max(1);
        Self {
            requests_per_minute: a_minute(rows),
            tokens_per_minute: a_minute(report.input_tokens + report.output_tokens),
            calls_at_once: rows.div_ceil(rounds),
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
