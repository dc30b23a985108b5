use std::cmp::Reverse;
use std::collections::BTreeSet;

use llmq_core::{Priority, Timestamp};
use rustc_hash::FxHashMap;

use crate::ids::{LaneId, LimitId, TenantId, UpstreamId};

/// Something a lane can wait at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Spot {
    /// A limit without room.
    Limit(LimitId),
    /// An upstream that takes nothing at present.
    Gate(UpstreamId),
    /// An upstream that takes only `high` and above, to spare its daily quota.
    LowGate(UpstreamId),
}

/// A lane's place at one spot: by priority, then by its tenant's fair share, then by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) priority: Reverse<Priority>,
    pub(crate) tag: u64,
    pub(crate) seq: u64,
    pub(crate) lane: LaneId,
}

/// The lanes that wait at one spot, best first.
#[derive(Debug, Clone, Default)]
pub(crate) struct WaitList {
    order: BTreeSet<Rank>,
    /// When the best of them may pass; none: at an event.
    pub(crate) wake: Option<Timestamp>,
}

impl WaitList {
    pub(crate) fn best(&self) -> Option<Rank> {
        self.order.first().copied()
    }

    /// All of them, best first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Rank> {
        self.order.iter().copied()
    }

    pub(crate) fn insert(&mut self, rank: Rank) {
        self.order.insert(rank);
    }

    pub(crate) fn remove(&mut self, rank: &Rank) {
        self.order.remove(rank);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }
}

/// Start-time fair queuing over the tenants of one limit (Goyal, Vin and Cheng, 1996), in the
/// cost of that limit: a tenant's next call is tagged with the end of its last one, and the
/// lowest tag goes first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fair {
    /// The tag of the call that started last.
    clock: u64,
    /// Where each tenant's last call ended.
    finish: FxHashMap<TenantId, u64>,
}

/// More tenants than this are not remembered: those that owe least are forgotten.
const TENANTS_KEPT: usize = 1_024;
/// Tags are in 1/1,024 of a unit of cost, so that weights do not round to nothing.
const TAG_UNIT: f64 = 1_024.0;

impl Fair {
    /// The tag of the tenant's next call.
    pub(crate) fn tag(&self, tenant: TenantId) -> u64 {
        self.finish
            .get(&tenant)
            .map_or(self.clock, |finish| (*finish).max(self.clock))
    }

    /// A call of the tenant that was tagged `tag` starts and costs `cost`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a cost is at most 10^15 and weights are positive"
    )]
    pub(crate) fn started(&mut self, tenant: TenantId, tag: u64, cost: u64, weight: f64) {
        self.clock = self.clock.max(tag);
        let length = (cost as f64 * TAG_UNIT / weight).max(1.0) as u64;
        self.finish.insert(tenant, tag.saturating_add(length));
        if self.finish.len() > TENANTS_KEPT {
            self.forget_the_least();
        }
    }

    /// Forgets the half whose last call ended first: they would be put at the clock anyway,
    /// or nearly so.
    fn forget_the_least(&mut self) {
        let mut ends: Vec<u64> = self.finish.values().copied().collect();
        let middle = ends.len() / 2;
        let (_, median, _) = ends.select_nth_unstable(middle);
        let median = *median;
        self.finish.retain(|_, finish| *finish > median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_share_by_weight_in_cost_not_in_calls() {
        let (a, b) = (TenantId(0), TenantId(1));
        let mut fair = Fair::default();
        let mut served = [0u64; 2];
        // `a` sends calls of 10, `b` calls of 1 with twice the weight; both always have more.
        for _ in 0..10_000 {
            let (tag_a, tag_b) = (fair.tag(a), fair.tag(b));
            if tag_a <= tag_b {
                fair.started(a, tag_a, 10, 1.0);
                served[0] += 10;
            } else {
                fair.started(b, tag_b, 1, 2.0);
                served[1] += 1;
            }
        }
        let ratio = f64::from(u32::try_from(served[1]).unwrap())
            / f64::from(u32::try_from(served[0]).unwrap());
        assert!((ratio - 2.0).abs() < 0.02, "{ratio}");
    }

    #[test]
    fn who_was_away_gets_no_arrears() {
        let (a, b) = (TenantId(0), TenantId(1));
        let mut fair = Fair::default();
        for _ in 0..1_000 {
            let tag = fair.tag(a);
            fair.started(a, tag, 1, 1.0);
        }
        assert!(fair.tag(b) + 2 * 1_024 >= fair.tag(a));
    }

    #[test]
    fn tenants_without_information_are_forgotten() {
        let mut fair = Fair::default();
        for tenant in 0..100_000 {
            let tag = fair.tag(TenantId(tenant));
            fair.started(TenantId(tenant), tag, 1, 1.0);
        }
        assert!(fair.finish.len() <= TENANTS_KEPT + 1);
    }
}
