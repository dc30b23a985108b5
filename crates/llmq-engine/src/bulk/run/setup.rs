use llmq_core::{LimitKind, LimitSpec, Now};
use llmq_dispatch::{
    Capacity, Dispatcher, LimitId, LimitSetup, QueueId, QueueSetup, Route, Scope, TenantId,
    UpstreamId, UpstreamSetup,
};
use llmq_limit::{
    BreakerConfig, QuotaConfigErrors, QuotaEvent, QuotaMonitor, charge_rule, default_algorithm,
};
use rustc_hash::FxHashMap;

use super::options::{RouteOptions, RunOptions};
use super::spent::{Kept, Spent, learner};
use crate::bulk::Side;

/// A dispatcher for one run, with what the run must know of it.
pub(super) struct Line {
    pub(super) dispatcher: Dispatcher,
    pub(super) queue: QueueId,
    pub(super) tenant: TenantId,
    /// Its limits; the upstreams are in the order of the options' routes.
    pub(super) kept: Kept,
    /// What the quota monitors said while they were restored.
    pub(super) news: Vec<(UpstreamId, QuotaEvent)>,
}

/// A file's rows meet a provider that is down all at once; a few of them are enough to see it,
/// so that the others keep their attempts.
const FAILURES_IN_ROW: u32 = 3;

pub(super) fn line(
    options: &RunOptions,
    side: Option<&Side>,
    spent: &Spent,
    now: Now,
) -> Result<Line, QuotaConfigErrors> {
    let rules = options.quota.check()?;
    let seed = fastrand::u64(..);
    let mut dispatcher = Dispatcher::new(options.rules, seed);
    let tenant = dispatcher.add_tenant(1.0, Vec::new());
    let mut books = Books {
        dispatcher,
        limits: Vec::new(),
    };
    let (mut upstreams, mut learners, mut all_news) = (Vec::new(), Vec::new(), Vec::new());
    let mut shared: FxHashMap<String, Vec<LimitId>> = FxHashMap::default();
    for route in &options.routes {
        let saved = side.map(|side| side.quota[&route.name].to_string());
        let (quota, mut news) = match saved.as_deref().filter(|text| *text != "null") {
            Some(text) => QuotaMonitor::restore(rules.clone(), Some(text), now),
            None => (QuotaMonitor::new(rules.clone(), now), Vec::new()),
        };
        // A pause that goes on is no news to the monitor, but it is to this process.
        let paused = |event: &QuotaEvent| matches!(event, QuotaEvent::Paused(_));
        if let Some(advice) = quota.should_pause(now)
            && !news.iter().any(paused)
        {
            news.push(QuotaEvent::Paused(advice));
        }
        let limits = books.limits_of(route, &mut shared, now);
        let stated = route
            .limits
            .iter()
            .chain(route.shared.iter().flat_map(|(_, limits)| limits));
        let remembered: Vec<LimitSpec> = remembered(route, spent)
            .filter(|learned| !stated.clone().any(|limit| is_same(limit, learned)))
            .collect();
        let concurrency = stated
            .clone()
            .any(|limit| limit.kind == LimitKind::Concurrency);
        let tokens = stated
            .clone()
            .chain(&remembered)
            .any(|limit| !matches!(limit.kind, LimitKind::Requests | LimitKind::Concurrency));
        let setup = UpstreamSetup {
            name: route.name.clone(),
            limits,
            breaker: BreakerConfig {
                failures_in_row: FAILURES_IN_ROW,
                ..BreakerConfig::default()
            },
            adaptive: route.adaptive.filter(|_| !concurrency),
            quota: Some(quota),
            quota_is_saved: true,
            credential: route.credential,
            ask_before_betting: options.ask_before_betting && tokens,
            learn_as: route.learn.then_some(route.provider.host()),
        };
        let upstream = books.dispatcher.add_upstream(setup, now);
        for spec in remembered {
            books.remember(route, upstream, spec, now);
        }
        all_news.extend(news.into_iter().map(|event| (upstream, event)));
        learners.extend(learner_of(route).map(|learner| (upstream, learner)));
        upstreams.push((upstream, route.name.clone()));
    }
    let queue = books.dispatcher.add_queue(queue(options, &upstreams));
    let Books { dispatcher, limits } = books;
    Ok(Line {
        dispatcher,
        queue,
        tenant,
        kept: Kept {
            limits,
            upstreams,
            learners,
        },
        news: all_news,
    })
}

/// What earlier processes learned of a route, counted as its host counts.
fn remembered(route: &RouteOptions, spent: &Spent) -> impl Iterator<Item = LimitSpec> {
    let host = route.provider.host();
    let learned = learner_of(route).map(|learner| spent.learned_at(&learner));
    learned
        .into_iter()
        .flatten()
        .filter(|limit| limit.kind != LimitKind::Concurrency)
        .map(move |limit| {
            let algorithm = default_algorithm(host, limit.period);
            LimitSpec::per(limit.kind, limit.count, limit.period, algorithm)
        })
}

fn learner_of(route: &RouteOptions) -> Option<String> {
    route
        .learn
        .then(|| learner(&route.name, route.provider.authority()))
}

/// Whether headers would take one for the other: then the configured one counts.
fn is_same(configured: &LimitSpec, learned: &LimitSpec) -> bool {
    configured.kind == learned.kind && configured.period == learned.period
}

fn queue(options: &RunOptions, upstreams: &[(UpstreamId, String)]) -> QueueSetup {
    let routes = upstreams.iter().zip(&options.routes);
    let routes = routes.map(|((upstream, _), route)| Route {
        upstream: *upstream,
        weight: route.weight,
    });
    QueueSetup {
        name: options
            .calls
            .model
            .clone()
            .unwrap_or_else(|| "rows".to_owned()),
        routes: routes.collect(),
        fallback: Vec::new(),
        limits: Vec::new(),
        // The run itself bounds what it submits.
        capacity: Capacity::unbounded(),
        reserve: Vec::new(),
        max_attempts: options.max_attempts.max(1),
        retry_ambiguous: options.retry_ambiguous,
    }
}

/// A dispatcher being set up.
struct Books {
    dispatcher: Dispatcher,
    limits: Vec<(LimitId, String)>,
}

impl Books {
    fn limits_of(
        &mut self,
        route: &RouteOptions,
        shared: &mut FxHashMap<String, Vec<LimitId>>,
        now: Now,
    ) -> Vec<LimitId> {
        let mut ids: Vec<LimitId> = Vec::new();
        for spec in &route.limits {
            let name = format!("{} {}", spec.name(), route.name);
            ids.push(self.limit(route, *spec, name, Scope::Upstream, now));
        }
        for (account, specs) in &route.shared {
            if !shared.contains_key(account) {
                let made: Vec<LimitId> = specs
                    .iter()
                    .map(|spec| {
                        self.limit(
                            route,
                            *spec,
                            format!("{} {account}", spec.name()),
                            Scope::Account,
                            now,
                        )
                    })
                    .collect();
                shared.insert(account.clone(), made);
            }
            ids.extend(shared.get(account).into_iter().flatten());
        }
        ids
    }

    /// A limit that an earlier process learned.
    fn remember(&mut self, route: &RouteOptions, upstream: UpstreamId, spec: LimitSpec, now: Now) {
        let name = format!("{} {}", spec.name(), route.name);
        let setup = LimitSetup {
            name: name.clone(),
            spec,
            rule: charge_rule(route.provider.host(), spec.kind),
            scope: Scope::Upstream,
        };
        let id = self.dispatcher.add_learned_limit(upstream, setup, now);
        self.limits.push((id, name));
    }

    fn limit(
        &mut self,
        route: &RouteOptions,
        spec: LimitSpec,
        name: String,
        scope: Scope,
        now: Now,
    ) -> LimitId {
        let rule = charge_rule(route.provider.host(), spec.kind);
        let id = self.dispatcher.add_limit(
            LimitSetup {
                name: name.clone(),
                spec,
                rule,
                scope,
            },
            now,
        );
        self.limits.push((id, name));
        id
    }
}
