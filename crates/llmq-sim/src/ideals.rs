//! The ideals of a whole world: of each provider, tenant and model that has limits.

use std::collections::BTreeMap;

use llmq_core::{Timestamp, Usage};
use llmq_strict::Arrival;

use crate::judge::{Ground, Ideal, IdealCall, Outputs, Room};
use crate::scenario::Scenario;

/// Whose limits they are. The narrower ones come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Tenant(usize),
    Model(usize),
    Upstream(usize),
}

/// As the limits are for urgent calls, and what is left of them for all others.
#[derive(Debug)]
struct Tiers {
    whole: Ideal,
    rest: Option<Ideal>,
}

/// Every owner's ideal.
#[derive(Debug)]
pub(crate) struct Ideals {
    of: BTreeMap<Owner, Tiers>,
}

/// A call's names with every ideal that it concerns.
#[derive(Debug, Clone)]
pub(crate) struct IdealCalls(Vec<(Owner, IdealCall, Option<IdealCall>)>);

impl Ideals {
    pub(crate) fn new(
        scenario: &Scenario,
        outputs: Outputs,
        wall_at_zero: std::time::Duration,
        now: Timestamp,
    ) -> Self {
        let margins = scenario
            .upstreams
            .iter()
            .map(|plan| Ground::margin(plan, scenario.network_max));
        let ground = |upstream: usize| Ground {
            charge: scenario.upstreams[upstream].account.charge(),
            margin: margins.clone().nth(upstream).unwrap_or_default(),
            foreign: scenario.upstreams[upstream].foreign,
            outputs,
            noise: scenario.estimates.noise,
            asks_first: scenario.upstreams[upstream].asks_first,
            wall_at_zero,
            now,
        };
        let widest = Ground {
            margin: margins.clone().max().unwrap_or_default(),
            foreign: None,
            ..ground(0)
        };
        let tiers = |limits: &[_], ground: &Ground| Tiers {
            whole: Ideal::new(limits, 0.0, ground),
            rest: scenario
                .reserve
                .map(|reserve| Ideal::new(limits, reserve.share, ground)),
        };
        let mut of = BTreeMap::new();
        for (index, plan) in scenario.upstreams.iter().enumerate() {
            of.insert(Owner::Upstream(index), tiers(&plan.limits, &ground(index)));
        }
        for (index, plan) in scenario.tenants.iter().enumerate() {
            of.insert(Owner::Tenant(index), tiers(&plan.limits, &widest));
        }
        for index in 0..scenario.queue_count() {
            let limits = scenario.queue(index).limits;
            of.insert(Owner::Model(index), tiers(&limits, &widest));
        }
        Self { of }
    }

    pub(crate) fn started(
        &mut self,
        owners: [Owner; 3],
        arrival: &Arrival,
        now: Timestamp,
    ) -> IdealCalls {
        let calls = owners.iter().filter_map(|owner| {
            let tiers = self.of.get_mut(owner)?;
            let whole = tiers.whole.started(arrival, now);
            let rest = tiers.rest.as_mut().map(|rest| rest.started(arrival, now));
            Some((*owner, whole, rest))
        });
        IdealCalls(calls.collect())
    }

    pub(crate) fn produced(&mut self, calls: &mut IdealCalls, tokens: u64, now: Timestamp) {
        for (owner, whole, rest) in &mut calls.0 {
            let Some(tiers) = self.of.get_mut(owner) else {
                continue;
            };
            tiers.whole.produced(whole, tokens, now);
            if let (Some(ideal), Some(call)) = (&mut tiers.rest, rest) {
                ideal.produced(call, tokens, now);
            }
        }
    }

    pub(crate) fn ended(&mut self, calls: &IdealCalls, usage: Usage, now: Timestamp) {
        for (owner, whole, rest) in &calls.0 {
            let Some(tiers) = self.of.get_mut(owner) else {
                continue;
            };
            tiers.whole.ended(whole, usage, now);
            if let (Some(ideal), Some(call)) = (&mut tiers.rest, rest) {
                ideal.ended(call, usage, now);
            }
        }
    }

    pub(crate) fn of_upstream(&mut self, upstream: usize) -> impl Iterator<Item = &mut Ideal> {
        let tiers = self.of.get_mut(&Owner::Upstream(upstream));
        tiers
            .into_iter()
            .flat_map(|tiers| std::iter::once(&mut tiers.whole).chain(tiers.rest.as_mut()))
    }

    /// Since when there is room in an owner's limits; urgent calls may use what is reserved.
    pub(crate) fn room_for(
        &self,
        owner: Owner,
        arrival: &Arrival,
        may_be: u64,
        urgent: bool,
        now: Timestamp,
    ) -> Room {
        let Some(tiers) = self.of.get(&owner) else {
            return Room::at(now);
        };
        match &tiers.rest {
            Some(rest) if !urgent => rest.room_for(arrival, may_be, now),
            _ => tiers.whole.room_for(arrival, may_be, now),
        }
    }
}
