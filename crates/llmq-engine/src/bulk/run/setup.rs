use llmq_core::{LimitKind, LimitSpec, Now};
use llmq_dispatch::{
    Capacity, Dispatcher, LimitId, LimitSetup, QueueId, QueueSetup, Route, Scope, TenantId,
    UpstreamId, UpstreamSetup,
};
use llmq_limit::{BreakerConfig, QuotaConfigErrors, QuotaEvent, charge_rule};
use rustc_hash::FxHashMap;

use super::options::{RouteOptions, RunOptions};
use crate::books::{Earlier, allow_first, learner, limit_names};

/// A dispatcher for one run, with what the run must know of it.
pub(super) struct Line {
    pub(super) dispatcher: Dispatcher,
    pub(super) queue: QueueId,
    pub(super) tenant: TenantId,
    /// Its limits: those that were stated, and those that an earlier process had learned.
    pub(super) limits: Vec<LimitId>,
    /// The upstreams with their names, in the order of the options' routes.
    pub(super) upstreams: Vec<(UpstreamId, String)>,
    /// Those whose headers are learned from.
    pub(super) learners: Vec<(UpstreamId, String)>,
    /// What the quota monitors said while they were restored.
    pub(super) news: Vec<(UpstreamId, QuotaEvent)>,
}

/// A file's rows meet a provider that is down all at once; a few of them are enough to see it,
/// so that the others keep their attempts.
const FAILURES_IN_ROW: u32 = 3;

pub(super) fn line(
    options: &RunOptions,
    earlier: &Earlier,
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
        let (quota, news) = earlier.quota(&route.name, rules.clone(), now);
        let limits = books.limits_of(route, &mut shared, now);
        let shared_specs = route.shared.iter().flat_map(|(_, limits)| limits);
        let stated: Vec<LimitSpec> = route.limits.iter().chain(shared_specs).copied().collect();
        let learner = learner_of(route);
        let remembered = learner.as_deref().map_or_else(Vec::new, |learner| {
            earlier.learned(learner, route.provider.host(), &stated)
        });
        let concurrency = stated
            .iter()
            .any(|limit| limit.kind == LimitKind::Concurrency);
        let tokens = stated
            .iter()
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
        learners.extend(learner.map(|learner| (upstream, learner)));
        upstreams.push((upstream, route.name.clone()));
    }
    let queue = books.dispatcher.add_queue(queue(options, &upstreams));
    let Books {
        mut dispatcher,
        limits,
    } = books;
    for limit in &limits {
        earlier.restore(&mut dispatcher, *limit, now);
        allow_first(&mut dispatcher, *limit, now);
    }
    Ok(Line {
        dispatcher,
        queue,
        tenant,
        limits,
        upstreams,
        learners,
        news: all_news,
    })
}

fn learner_of(route: &RouteOptions) -> Option<String> {
    route
        .learn
        .then(|| learner(&route.name, route.provider.authority()))
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
    limits: Vec<LimitId>,
}

impl Books {
    fn limits_of(
        &mut self,
        route: &RouteOptions,
        shared: &mut FxHashMap<String, Vec<LimitId>>,
        now: Now,
    ) -> Vec<LimitId> {
        let mut ids: Vec<LimitId> = Vec::new();
        let names = limit_names(&route.limits, &route.name);
        for (spec, name) in route.limits.iter().zip(names) {
            ids.push(self.limit(route, *spec, name, Scope::Upstream, now));
        }
        for (account, specs) in &route.shared {
            if !shared.contains_key(account) {
                let names = limit_names(specs, account);
                let made: Vec<LimitId> = specs
                    .iter()
                    .zip(names)
                    .map(|(spec, name)| self.limit(route, *spec, name, Scope::Account, now))
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
            name,
            spec,
            rule: charge_rule(route.provider.host(), spec.kind),
            scope: Scope::Upstream,
        };
        let id = self.dispatcher.add_learned_limit(upstream, setup, now);
        self.limits.push(id);
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
                name,
                spec,
                rule,
                scope,
            },
            now,
        );
        self.limits.push(id);
        id
    }
}
