//! Whether tenants that wait for the same limit get their shares of it.

use llmq_core::LimitKind;
use llmq_strict::{Arrival, Charge};

use crate::scenario::{Estimates, Knowledge, Scenario};

/// A lane's place is brought up to date when its turn comes, not at each start of another: so
/// much further than the bound two tenants may be apart.
const SLACK: f64 = 2.0;

/// What each tenant has had, in the cost of the one limit that all wait for.
///
/// While two of them wait without a break, what they got over their weights differs by no more
/// than their largest calls over theirs: the bound of start-time fair queuing (Goyal, Vin and
/// Cheng, 1996, theorem 1).
#[derive(Debug)]
pub(crate) struct Shares {
    /// The limit's kind and how it is charged; none where several limits or lines make it
    /// unclear in what to compare.
    measure: Option<(LimitKind, Charge)>,
    tenants: Vec<Share>,
    /// By how much each pair differed when both began to wait.
    since: Vec<Option<f64>>,
}

#[derive(Debug)]
struct Share {
    weight: f64,
    /// It waits for nothing else.
    compares: bool,
    had: f64,
    largest: f64,
}

impl Shares {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let tenants: Vec<Share> = scenario
            .tenants
            .iter()
            .map(|plan| Share {
                weight: plan.weight,
                compares: plan.limits.is_empty(),
                had: 0.0,
                largest: 0.0,
            })
            .collect();
        Self {
            measure: measure(scenario),
            since: vec![None; tenants.len() * tenants.len()],
            tenants,
        }
    }

    pub(crate) fn started(&mut self, tenant: usize, arrival: &Arrival) {
        let Some(measure) = self.measure else {
            return;
        };
        let cost = cost(measure, arrival);
        let share = &mut self.tenants[tenant];
        share.had += cost;
        share.largest = share.largest.max(cost);
    }

    /// Looks at who waits now; says which two have had what they should not.
    pub(crate) fn check(&mut self, waits: &[bool]) -> Option<String> {
        self.measure?;
        let count = self.tenants.len();
        for first in 0..count {
            for second in first + 1..count {
                let (a, b) = (&self.tenants[first], &self.tenants[second]);
                let since = &mut self.since[first * count + second];
                if !(waits[first] && waits[second] && a.compares && b.compares) {
                    *since = None;
                    continue;
                }
                let ahead = a.had / a.weight - b.had / b.weight;
                let off = (ahead - *since.get_or_insert(ahead)).abs();
                let bound = a.largest / a.weight + b.largest / b.weight;
                if off > bound * SLACK {
                    return Some(format!(
                        "tenants {first} and {second} are {off:.3} apart, at most {bound:.3} is fair"
                    ));
                }
            }
        }
        None
    }
}

/// In what shares are to be compared: all calls equally urgent, one provider, and one limit of
/// it whose cost is known when a call starts.
fn measure(scenario: &Scenario) -> Option<(LimitKind, Charge)> {
    let [upstream] = &scenario.upstreams[..] else {
        return None;
    };
    let [limit] = &upstream.limits[..] else {
        return None;
    };
    let first = scenario.sources.first()?;
    let alike = scenario
        .sources
        .iter()
        .all(|source| source.priority == first.priority);
    let plain = (0..scenario.queue_count()).all(|queue| scenario.queue(queue).limits.is_empty());
    let charge = upstream.account.charge();
    let known = match limit.kind {
        LimitKind::Requests | LimitKind::InputTokens => true,
        LimitKind::Tokens | LimitKind::OutputTokens => charge == Charge::Arrival,
        LimitKind::Concurrency => false,
    };
    let told = upstream.knowledge == Knowledge::Told && scenario.reserve.is_none();
    let exact = scenario.estimates == Estimates::default();
    (alike && plain && known && told && exact).then_some((limit.kind, charge))
}

#[expect(clippy::cast_precision_loss, reason = "token counts")]
fn cost((kind, _): (LimitKind, Charge), arrival: &Arrival) -> f64 {
    let tokens = match kind {
        LimitKind::Requests | LimitKind::Concurrency => 1,
        LimitKind::InputTokens => arrival.input_tokens,
        LimitKind::OutputTokens => arrival.output_cap(),
        LimitKind::Tokens => arrival.input_tokens + arrival.output_cap(),
    };
    tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Account, TenantPlan, UpstreamPlan};
    use crate::{Arrivals, Family, Source};

    fn shares() -> Shares {
        let drawn = Scenario::drawn(Family::Steady, 0);
        let source = Source {
            arrivals: Arrivals::AtOnce,
            ..drawn.sources[0]
        };
        let limit = "requests=10/1m".parse().unwrap();
        let upstream = UpstreamPlan::new(Account::OnArrival, vec![limit]);
        Shares::new(&Scenario {
            tenants: vec![TenantPlan::of_weight(1.0), TenantPlan::of_weight(2.0)],
            ..Scenario::new(0, vec![upstream], vec![source])
        })
    }

    #[test]
    fn who_gets_by_weight_is_fair_and_who_gets_all_is_not() {
        let mut shares = shares();
        for round in 0..30 {
            for tenant in [0, 1, 1] {
                shares.started(tenant, &Arrival::of_input(1));
                assert_eq!(shares.check(&[true, true]), None, "round {round}");
            }
        }
        for _ in 0..5 {
            shares.started(0, &Arrival::of_input(1));
        }
        assert!(shares.check(&[true, true]).is_some());
    }

    #[test]
    fn who_does_not_wait_is_not_compared() {
        let mut shares = shares();
        for _ in 0..100 {
            shares.started(0, &Arrival::of_input(1));
            assert_eq!(shares.check(&[true, false]), None);
        }
        assert_eq!(shares.check(&[true, true]), None, "no arrears");
    }
}
