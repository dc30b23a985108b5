use llmq_sim::{Family, Report, Scenario, SeededBug, run};

use crate::kind::{Kind, unrefused, well_used};

const CLOCKS: Kind = Kind {
    family: Family::Clocks,
    each: as_if_no_clock_were_set,
    all: well_used,
};

/// A wall clock that is set changes nothing at all.
fn as_if_no_clock_were_set(scenario: &Scenario, report: &Report) -> Result<(), String> {
    unrefused(report)?;
    let undisturbed = Scenario {
        wall_jumps: Vec::new(),
        ..scenario.clone()
    };
    let same = run(&undisturbed) == *report;
    same.then_some(())
        .ok_or_else(|| "the run went another way".to_owned())
}

/// Our wall clock is set by up to an hour, forwards and back, and the provider's is off by as
/// much: no window moves, and instants by the provider's clock are understood.
#[test]
fn clocks_that_are_set_or_off_move_nothing() {
    CLOCKS.holds();
}

#[test]
fn windows_that_follow_the_wall_clock_are_noticed() {
    CLOCKS.catches(SeededBug::FollowsTheWall);
}

#[test]
fn dates_that_are_read_by_our_own_clock_are_noticed() {
    CLOCKS.catches(SeededBug::ReadsDatesByOwnClock);
}
