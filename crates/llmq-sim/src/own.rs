//! Limits of tenants and models, and what of the providers' is not reserved, kept strictly
//! beside the providers' own.
//!
//! No provider knows of them, so nobody but the judge would see one exceeded.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use llmq_core::{LimitSpec, Timestamp, Usage};
use llmq_strict::{Arrival, CallId, Refusal, StrictProvider};

use crate::ideals::Owner;
use crate::judge::less;
use crate::scenario::Scenario;

/// The strict models of all limits that no provider enforces.
#[derive(Debug)]
pub(crate) struct OwnLimits {
    of: BTreeMap<Owner, StrictProvider>,
}

/// A limit had no room for a call that was sent.
#[derive(Debug)]
pub(crate) struct Breach {
    owner: Owner,
    refusal: Refusal,
}

impl Breach {
    /// The call is above the whole of the limit.
    pub(crate) fn is_too_large(&self) -> bool {
        self.refusal.is_too_large()
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal {
            used,
            count,
            requested,
            ..
        } = self.refusal;
        let owner = self.owner;
        write!(
            f,
            "{owner:?}: {used} of {count} used, {requested} more are sent"
        )
    }
}

/// A call's names in them.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnCall(Vec<(Owner, CallId)>);

impl OwnLimits {
    /// Those of tenants and models.
    pub(crate) fn narrow(scenario: &Scenario, wall_at_zero: Duration, now: Timestamp) -> Self {
        let tenants = scenario.tenants.iter().enumerate();
        let tenants = tenants.map(|(index, plan)| (Owner::Tenant(index), plan.limits.clone()));
        let models = (0..scenario.queue_count())
            .map(|index| (Owner::Model(index), scenario.queue(index).limits));
        Self::new(scenario, tenants.chain(models), wall_at_zero, now)
    }

    /// What of the providers' limits is not reserved for urgent calls.
    pub(crate) fn rest(scenario: &Scenario, wall_at_zero: Duration, now: Timestamp) -> Self {
        let upstreams = scenario.upstreams.iter().enumerate();
        let rest = upstreams.filter_map(|(index, plan)| {
            let share = scenario.reserve?.share;
            let limits = plan.limits.iter().map(|spec| less(spec, share)).collect();
            Some((Owner::Upstream(index), limits))
        });
        Self::new(scenario, rest, wall_at_zero, now)
    }

    fn new(
        scenario: &Scenario,
        limits: impl Iterator<Item = (Owner, Vec<LimitSpec>)>,
        wall_at_zero: Duration,
        now: Timestamp,
    ) -> Self {
        let charge = scenario.upstreams[0].account.charge();
        let model =
            |limits: &[_]| StrictProvider::new(limits, charge, now).with_wall_clock(wall_at_zero);
        let limited = limits.filter(|(_, limits)| !limits.is_empty());
        Self {
            of: limited
                .map(|(owner, limits)| (owner, model(&limits)))
                .collect(),
        }
    }

    /// A call is counted; says which limits had no room for it.
    pub(crate) fn arrive(
        &mut self,
        owners: [Owner; 3],
        arrival: &Arrival,
        now: Timestamp,
    ) -> (OwnCall, Vec<Breach>) {
        let mut call = OwnCall::default();
        let mut breaches = Vec::new();
        for owner in owners {
            let Some(model) = self.of.get_mut(&owner) else {
                continue;
            };
            if let Err(refusal) = model.check(arrival, now) {
                breaches.push(Breach { owner, refusal });
            }
            call.0.push((owner, model.let_in(arrival, now)));
        }
        (call, breaches)
    }

    pub(crate) fn produced(&mut self, call: &OwnCall, tokens: u64, now: Timestamp) {
        for (owner, id) in &call.0 {
            if let Some(model) = self.of.get_mut(owner) {
                model.produced(*id, tokens, now);
            }
        }
    }

    pub(crate) fn finish(&mut self, call: &OwnCall, usage: Usage, now: Timestamp) {
        for (owner, id) in &call.0 {
            if let Some(model) = self.of.get_mut(owner) {
                model.finish(*id, usage, now);
            }
        }
    }

    /// Until when a call cannot go by these limits, whatever margins say; `now` where it may go.
    /// A call in flight that ends may make it earlier.
    pub(crate) fn shut_until(&self, owner: Owner, arrival: &Arrival, now: Timestamp) -> Timestamp {
        let Some(model) = self.of.get(&owner) else {
            return now;
        };
        match model.check(arrival, now) {
            Ok(()) => now,
            Err(refusal) => refusal
                .retry_after
                .map_or(Timestamp::FAR_FUTURE, |wait| now + wait),
        }
    }
}
