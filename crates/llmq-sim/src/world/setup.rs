//! The dispatcher as a scenario wants it.

use std::time::Duration;

use llmq_core::{LimitKind, LimitSpec, Now, Priority};
use llmq_dispatch::{
    Capacity, Dispatcher, LimitId, LimitSetup, QueueId, QueueSetup, Reserve, Route, Scope,
    TenantId, UpstreamId, UpstreamSetup,
};
use llmq_limit::{BreakerConfig, charge_rule};

use crate::judge::Outputs;
use crate::scenario::{Knowledge, Scenario, SeededBug, UpstreamPlan};
use crate::workload::CallPlan;

pub(super) fn add_tenants(
    dispatcher: &mut Dispatcher,
    scenario: &Scenario,
    now: Now,
) -> Vec<TenantId> {
    let tenants = scenario.tenants.iter().enumerate();
    tenants
        .map(|(index, plan)| {
            let limits = match scenario.bug {
                Some(SeededBug::ForgetsTenantLimits) => Vec::new(),
                _ => own_limits(
                    dispatcher,
                    scenario,
                    &plan.limits,
                    Scope::Tenant,
                    index,
                    now,
                ),
            };
            let weight = match scenario.bug {
                Some(SeededBug::IgnoresTenantWeights) => 1.0,
                _ => plan.weight,
            };
            dispatcher.add_tenant(weight, limits)
        })
        .collect()
}

/// Limits of a tenant or a model, charged as the providers charge.
fn own_limits(
    dispatcher: &mut Dispatcher,
    scenario: &Scenario,
    specs: &[LimitSpec],
    scope: Scope,
    index: usize,
    now: Now,
) -> Vec<LimitId> {
    let host = scenario.upstreams[0].account.host();
    let setup = |spec: &LimitSpec| LimitSetup {
        name: format!("{} {scope:?} {index}", spec.name()),
        spec: *spec,
        rule: charge_rule(host, spec.kind),
        scope,
    };
    specs
        .iter()
        .map(|spec| dispatcher.add_limit(setup(spec), now))
        .collect()
}

pub(super) fn add_upstreams(
    dispatcher: &mut Dispatcher,
    scenario: &Scenario,
    now: Now,
) -> Vec<UpstreamId> {
    let mut upstreams = Vec::new();
    for (index, plan) in scenario.upstreams.iter().enumerate() {
        let host = plan.account.host();
        let mut limits = Vec::new();
        let told = plan.limits.iter();
        for spec in told.filter(|_| plan.knowledge == Knowledge::Told) {
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
            learn_as: learns(plan, scenario.bug).then_some(host),
            breaker: breaker(scenario.bug),
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

fn learns(plan: &UpstreamPlan, bug: Option<SeededBug>) -> bool {
    plan.knowledge == Knowledge::Learned && bug != Some(SeededBug::NeverLearns)
}

fn breaker(bug: Option<SeededBug>) -> BreakerConfig {
    const HOUR: Duration = Duration::from_secs(3_600);
    match bug {
        Some(SeededBug::SleepsOn) => BreakerConfig {
            open_base: HOUR,
            open_max: HOUR,
            ..BreakerConfig::default()
        },
        _ => BreakerConfig::default(),
    }
}

pub(super) fn add_queues(
    dispatcher: &mut Dispatcher,
    scenario: &Scenario,
    upstreams: &[UpstreamId],
    now: Now,
) -> Vec<QueueId> {
    let count = scenario.queue_count();
    let mut ids: Vec<Option<QueueId>> = vec![None; count];
    // A queue that falls back on others needs their names: it comes after them.
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|index| !scenario.queue(*index).fallback.is_empty());
    for index in order {
        let setup = queue(dispatcher, scenario, index, upstreams, &ids, now);
        ids[index] = Some(dispatcher.add_queue(setup));
    }
    ids.into_iter().flatten().collect()
}

fn queue(
    dispatcher: &mut Dispatcher,
    scenario: &Scenario,
    index: usize,
    upstreams: &[UpstreamId],
    others: &[Option<QueueId>],
    now: Now,
) -> QueueSetup {
    let mut plan = scenario.queue(index);
    match scenario.bug {
        Some(SeededBug::ForgetsModelLimits) => plan.limits.clear(),
        Some(SeededBug::IgnoresRouteWeights) => {
            plan.routes.iter_mut().for_each(|(_, weight)| *weight = 1.0);
        }
        Some(SeededBug::FallsBackForWaiting) => {
            let others = std::mem::take(&mut plan.fallback).into_iter();
            plan.routes
                .extend(others.flat_map(|other| scenario.queue(other).routes));
        }
        Some(SeededBug::NeverFallsBack) => plan.fallback.clear(),
        _ => {}
    }
    let routes = plan.routes.iter().map(|(upstream, weight)| Route {
        upstream: upstreams[*upstream],
        weight: *weight,
    });
    let limits = own_limits(dispatcher, scenario, &plan.limits, Scope::Model, index, now);
    let fallback = plan.fallback.iter().filter_map(|other| others[*other]);
    QueueSetup {
        routes: routes.collect(),
        fallback: fallback.collect(),
        limits,
        capacity: Capacity::unbounded(),
        reserve: reserve(scenario).into_iter().collect(),
        max_attempts: match scenario.bug {
            Some(SeededBug::GivesUpInOutages) => 1,
            _ => scenario.max_attempts,
        },
        ..QueueSetup::to(format!("q{index}"), upstreams[0])
    }
}

fn reserve(scenario: &Scenario) -> Option<Reserve> {
    match scenario.bug {
        Some(SeededBug::SpendsReserve) => None,
        Some(SeededBug::HoardsReserve) => scenario.reserve.map(|reserve| Reserve {
            priority: Priority::CRITICAL,
            ..reserve
        }),
        _ => scenario.reserve,
    }
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
    let upstreams = scenario.upstreams.iter().flat_map(|plan| &plan.limits);
    let tenants = scenario.tenants.iter().flat_map(|plan| &plan.limits);
    let queues = scenario.queues.iter().flat_map(|plan| &plan.limits);
    let limits = upstreams.chain(tenants).chain(queues);
    let longest = limits
        .filter(|spec| spec.kind != LimitKind::Concurrency)
        .map(|spec| spec.period)
        .max();
    longest.unwrap_or_default() * 2 + Duration::from_secs(60)
}
