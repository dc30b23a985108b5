//! The dispatcher as a scenario wants it.

use std::time::Duration;

use llmq_core::{LimitKind, LimitSpec, Now};
use llmq_dispatch::{
    Capacity, Dispatcher, LimitSetup, QueueId, QueueSetup, Route, Scope, UpstreamId, UpstreamSetup,
};
use llmq_limit::charge_rule;

use crate::judge::Outputs;
use crate::scenario::{Scenario, SeededBug};
use crate::workload::CallPlan;

pub(super) fn add_upstreams(
    dispatcher: &mut Dispatcher,
    scenario: &Scenario,
    now: Now,
) -> Vec<UpstreamId> {
    let mut upstreams = Vec::new();
    for (index, plan) in scenario.upstreams.iter().enumerate() {
        let host = plan.account.host();
        let mut limits = Vec::new();
        for spec in &plan.limits {
            let kept = kept(*spec, scenario.bug);
            let setup = LimitSetup {
                name: format!("{} up{index}", spec.name()),
                spec: kept,
                rule: charge_rule(host, spec.kind),
                scope: Scope::Upstream,
            };
            limits.push(dispatcher.add_limit(setup, now));
        }
        let setup = UpstreamSetup {
            name: format!("up{index}"),
            limits,
            ask_before_betting: plan.asks_first,
            ..UpstreamSetup::default()
        };
        upstreams.push(dispatcher.add_upstream(setup, now));
    }
    upstreams
}

/// A limit as the dispatcher is told of it.
fn kept(spec: LimitSpec, bug: Option<SeededBug>) -> LimitSpec {
    const DAY: Duration = Duration::from_secs(86_400);
    if bug == Some(SeededBug::TakesDayForMinute) && spec.period == DAY {
        LimitSpec {
            period: Duration::from_secs(60),
            ..spec
        }
    } else {
        spec
    }
}

pub(super) fn add_queues(
    dispatcher: &mut Dispatcher,
    scenario: &Scenario,
    upstreams: &[UpstreamId],
) -> Vec<QueueId> {
    let count = scenario
        .sources
        .iter()
        .map(|source| source.queue + 1)
        .max()
        .unwrap_or(0);
    let routes: Vec<Route> = upstreams
        .iter()
        .map(|upstream| Route {
            upstream: *upstream,
            weight: 1.0,
        })
        .collect();
    (0..count)
        .map(|index| {
            let setup = QueueSetup {
                routes: routes.clone(),
                capacity: Capacity::unbounded(),
                max_attempts: 20,
                ..QueueSetup::to(format!("q{index}"), upstreams[0])
            };
            dispatcher.add_queue(setup)
        })
        .collect()
}

/// The mean and the spread of all answers.
#[expect(clippy::cast_precision_loss, reason = "token counts")]
pub(super) fn outputs(work: &[CallPlan]) -> Outputs {
    let count = work.len().max(1) as f64;
    let output = |call: &CallPlan| call.usage.output_tokens as f64;
    let mean = work.iter().map(output).sum::<f64>() / count;
    let square = |call: &CallPlan| (output(call) - mean).powi(2);
    Outputs {
        mean,
        deviation: (work.iter().map(square).sum::<f64>() / count).sqrt(),
    }
}

/// How long a call that is first in every order may still have to wait for room.
pub(super) fn patience(scenario: &Scenario) -> Duration {
    let limits = scenario.upstreams.iter().flat_map(|plan| &plan.limits);
    let longest = limits
        .filter(|spec| spec.kind != LimitKind::Concurrency)
        .map(|spec| spec.period)
        .max();
    longest.unwrap_or_default() * 2 + Duration::from_secs(60)
}
