use llmq_sim::{Family, Report, Scenario, SeededBug};

use crate::kind::{Kind, unrefused, well_used};

const WEIGHTS: Kind = Kind {
    family: Family::Weights,
    each: shared_by_weight,
    all: well_used,
};
/// How far a provider's part of the calls may be from its share.
const OFF_MAX: f64 = 0.03;

#[expect(clippy::cast_precision_loss, reason = "counts of calls")]
fn shared_by_weight(scenario: &Scenario, report: &Report) -> Result<(), String> {
    unrefused(report)?;
    let routes = &scenario.queues[0].routes;
    let weights: f64 = routes.iter().map(|(_, weight)| weight).sum();
    for (upstream, weight) in routes {
        let part = report.sent_to[*upstream] as f64 / report.sent as f64;
        let share = weight / weights;
        if (part - share).abs() > OFF_MAX {
            return Err(format!(
                "upstream {upstream} got {part:.3} and not {share:.3}"
            ));
        }
    }
    Ok(())
}

/// Below their capacity, the providers of a model get calls by their weights.
#[test]
fn calls_are_shared_by_weight() {
    WEIGHTS.holds();
}

#[test]
fn weights_of_upstreams_that_are_ignored_are_noticed() {
    WEIGHTS.catches(SeededBug::IgnoresRouteWeights);
}
