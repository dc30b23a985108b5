use std::time::Duration;

use llmq_sim::{Family, Report, Scenario, SeededBug};

use crate::kind::{Kind, unrefused, well_used};

const OUTAGES: Kind = Kind {
    family: Family::Outages,
    each: survived,
    all: well_used,
};
/// After an outage its end is found out within this time, while work waits for it: the longest
/// that a breaker stays open (15 s and a tenth), and that a probe from before the end may hang
/// (30 s), and a probe's answer.
const FOUND_WITHIN: Duration = Duration::from_secs(52);

fn survived(scenario: &Scenario, report: &Report) -> Result<(), String> {
    unrefused(report)?;
    if report.failed + report.expired > 0 {
        return Err(format!("{} calls failed for good", report.failed));
    }
    let outages: usize = scenario
        .upstreams
        .iter()
        .map(|plan| plan.outages.len())
        .sum();
    let most = FOUND_WITHIN * u32::try_from(outages).unwrap_or(u32::MAX);
    if report.late > most {
        return Err(format!("outages were over for {:?} unnoticed", report.late));
    }
    Ok(())
}

/// An outage of up to ten minutes, of whatever kind, ends no call, costs no refusal, and its end
/// is found out soon.
#[test]
fn outages_lose_nothing_and_their_end_is_found_soon() {
    OUTAGES.holds();
}

#[test]
fn an_upstream_that_is_not_tried_again_is_noticed() {
    OUTAGES.catches(SeededBug::SleepsOn);
}

#[test]
fn calls_that_are_given_up_in_outages_are_noticed() {
    OUTAGES.catches(SeededBug::GivesUpInOutages);
}
