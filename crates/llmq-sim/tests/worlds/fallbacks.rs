use llmq_sim::{Family, Report, Scenario, SeededBug};

use crate::kind::{Kind, Sum, unrefused, well_used};

const FALLBACKS: Kind = Kind {
    family: Family::Fallbacks,
    each: |_, report| nothing_lost(report),
    all: used,
};

fn nothing_lost(report: &Report) -> Result<(), String> {
    unrefused(report)?;
    if report.failed + report.expired > 0 {
        return Err(format!("{} calls failed for good", report.failed));
    }
    Ok(())
}

fn used(sum: &Sum) -> Result<(), String> {
    if sum.report.fallbacks == 0 {
        return Err("no fallback was ever used".to_owned());
    }
    well_used(sum)
}

/// A fallback serves calls while their own model is down, and never only because they wait.
#[test]
fn a_fallback_is_used_for_cause_and_then_it_is() {
    FALLBACKS.holds();
}

#[test]
fn a_fallback_that_serves_calls_that_merely_wait_is_noticed() {
    FALLBACKS.catches(SeededBug::FallsBackForWaiting);
}

#[test]
fn a_fallback_that_is_never_used_is_noticed() {
    FALLBACKS.catches(SeededBug::NeverFallsBack);
}

/// A plan without a fallback is no world of this kind.
#[test]
fn every_world_has_a_fallback() {
    let has = |seed| {
        !Scenario::drawn(Family::Fallbacks, seed).queues[0]
            .fallback
            .is_empty()
    };
    assert!((0..20).all(has));
}
