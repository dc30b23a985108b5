use std::time::Duration;

use llmq_sim::{Family, HeaderStyle, Knowledge, Report, Scenario, SeededBug, run};

use crate::kind::{Kind, Sum, lawful};

const LEARNED: Kind = Kind {
    family: Family::Learned,
    each: learned,
    all: seldom_refused,
};
/// By rule so many calls may be unanswered while nothing is known of a provider.
const UNANSWERED_MAX: u64 = 200;
/// What not knowing may cost: a window that was overdrawn, and the wait after a refusal that
/// named no time.
const COST_MAX: Duration = Duration::from_secs(90);

fn learned(scenario: &Scenario, report: &Report) -> Result<(), String> {
    lawful(report)?;
    if report.failed + report.expired > 0 {
        return Err(format!("{} calls failed for good", report.failed));
    }
    let upstream = &scenario.upstreams[0];
    let before = report.ours - report.ours_when_known;
    // Where no window is named it has to be inferred, which an empty limit does not allow.
    if upstream.headers != HeaderStyle::Bare && before > UNANSWERED_MAX {
        return Err(format!("{before} refusals before the limits were known"));
    }
    let mut told = scenario.clone();
    told.upstreams[0].knowledge = Knowledge::Told;
    let cost = report.elapsed.saturating_sub(run(&told).elapsed);
    if cost > COST_MAX + upstream.limits[0].period {
        return Err(format!("not to know the limits cost {cost:?}"));
    }
    Ok(())
}

/// What calls had used that ended before a limit was learned is known from words alone, and calls
/// sent meanwhile may be refused, though fewer than one in a hundred.
fn seldom_refused(sum: &Sum) -> Result<(), String> {
    let report = &sum.report;
    if report.ours_when_known * 100 > report.sent {
        return Err(format!(
            "{} of {} calls were refused by limits that were known",
            report.ours_when_known, report.sent
        ));
    }
    Ok(())
}

/// Limits that nobody configured are learned from headers: with at most 200 refusals before, and
/// fewer than one call in a hundred after; and it takes little longer than if they were known.
#[test]
fn limits_that_nobody_configured_are_learned() {
    LEARNED.holds();
}

#[test]
fn limits_that_are_not_learned_are_noticed() {
    LEARNED.catches(SeededBug::NeverLearns);
}
