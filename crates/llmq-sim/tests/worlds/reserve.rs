use llmq_sim::{Family, SeededBug};

use crate::kind::{Kind, unrefused, well_used};

const RESERVE: Kind = Kind {
    family: Family::Reserve,
    each: |_, report| unrefused(report),
    all: well_used,
};

/// Calls that are not urgent leave the reserve alone, and urgent ones find it.
#[test]
fn a_reserve_is_kept_for_urgent_calls() {
    RESERVE.holds();
}

#[test]
fn a_reserve_that_everybody_spends_is_noticed() {
    RESERVE.catches(SeededBug::SpendsReserve);
}

#[test]
fn a_reserve_that_nobody_may_spend_is_noticed() {
    RESERVE.catches(SeededBug::HoardsReserve);
}
