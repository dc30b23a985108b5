use llmq_sim::{Family, SeededBug};

use crate::kind::{Kind, unrefused, well_used};

const TENANTS: Kind = Kind {
    family: Family::Tenants,
    each: |_, report| unrefused(report),
    all: well_used,
};

/// Limits of tenants and models are never exceeded, delay nobody else, and tenants that wait for
/// the same get their shares, to within twice the bound of start-time fair queuing.
#[test]
fn tenants_and_models_keep_their_limits_and_get_their_shares() {
    TENANTS.holds();
}

#[test]
fn a_tenants_forgotten_limits_are_noticed() {
    TENANTS.catches(SeededBug::ForgetsTenantLimits);
}

#[test]
fn a_models_forgotten_limits_are_noticed() {
    TENANTS.catches(SeededBug::ForgetsModelLimits);
}

#[test]
fn weights_of_tenants_that_are_ignored_are_noticed() {
    TENANTS.catches(SeededBug::IgnoresTenantWeights);
}
