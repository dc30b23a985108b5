//! One account with one of its models: an upstream of the dispatcher, with its limits and quota.

use std::sync::Arc;

use llmq_core::{LimitKind, LimitSpec, Now};
use llmq_dispatch::{Dispatcher, LimitId, LimitSetup, Notice, Scope, UpstreamId, UpstreamSetup};
use llmq_limit::{QuotaEvent, QuotaMonitor, charge_rule};
use llmq_provider::Provider;

use super::{Accounts, AssembledRoute};
use crate::books::{learner, limit_names};
use crate::config::RouteSettings;

impl Accounts {
    /// The upstream that a route leads to: made, changed, or as another model made it already.
    /// None where its account is not there.
    pub(super) fn route(
        &mut self,
        dispatcher: &mut Dispatcher,
        public: &str,
        route: &RouteSettings,
        routes: &mut Vec<AssembledRoute>,
        now: Now,
    ) -> Option<UpstreamId> {
        let model = route.model_for(public).to_owned();
        let made = (route.upstream.clone(), model.clone());
        if let Some(upstream) = self.made.get(&made) {
            return Some(*upstream);
        }
        let account = self.accounts.get(&route.upstream)?.clone();
        let provider = account.provider;
        let name = format!("{}/{model}", route.upstream);
        let learner = learner(&name, provider.authority());
        let known = self.known.upstreams.get(&learner).copied();
        let limits_from = self.stated.get(&made).unwrap_or(route).clone();
        let (limits, stated) = {
            let shared = limits_from.shared_limits.iter();
            let shared = shared.chain(&account.settings.shared_limits);
            self.limits_of(
                dispatcher,
                &provider,
                &name,
                known,
                &limits_from,
                shared,
                now,
            )
        };
        let concurrency = stated
            .iter()
            .any(|spec| spec.kind == LimitKind::Concurrency);
        let by_usage = |spec: &LimitSpec| charge_rule(provider.host(), spec.kind).heeds_usage();
        let counts_usage = stated.iter().any(by_usage);
        let learned = self.learned(&learner, &provider, &stated);
        let counts_tokens = stated
            .iter()
            .chain(&learned)
            .any(|spec| !matches!(spec.kind, LimitKind::Requests | LimitKind::Concurrency));
        let (quota, news) = self.quota(dispatcher, known, &name, now);
        let setup = UpstreamSetup {
            name: name.clone(),
            limits,
            adaptive: account.settings.adaptive.filter(|_| !concurrency),
            quota: Some(quota),
            quota_is_saved: self.memory.is_some(),
            credential: Some(account.credential),
            ask_before_betting: counts_tokens && !account.settings.is_own(),
            learn_as: Some(provider.host()),
            ..UpstreamSetup::default()
        };
        let upstream = match known {
            Some(upstream) => {
                let ended = dispatcher.change_upstream(upstream, setup, now);
                self.news.extend(ended);
                upstream
            }
            None => {
                let upstream = match self.known.spare_upstreams.pop() {
                    Some(spare) => {
                        dispatcher.replace_upstream(spare, setup, now);
                        spare
                    }
                    None => dispatcher.add_upstream(setup, now),
                };
                self.remember(dispatcher, upstream, &name, &provider, &learned, now);
                self.known.upstreams.insert(learner.clone(), upstream);
                upstream
            }
        };
        self.news
            .extend(news.into_iter().map(|event| Notice::Quota(upstream, event)));
        routes.push(AssembledRoute {
            upstream,
            account: route.upstream.clone(),
            name: name.into(),
            learner,
            provider,
            // Named even where it is as people call it: a call that comes as another model's
            // fallback names that one.
            model: Some(model),
            counts_usage,
            pass_headers: account.settings.pass_headers.into(),
            found_out: Arc::default(),
        });
        self.made.insert(made, upstream);
        Some(upstream)
    }

    /// The limits that a route states, its own and those that it shares, and what they are.
    #[expect(
        clippy::too_many_arguments,
        reason = "all of it says what one route is"
    )]
    fn limits_of<'a>(
        &mut self,
        dispatcher: &mut Dispatcher,
        provider: &Provider,
        name: &str,
        known: Option<UpstreamId>,
        route: &RouteSettings,
        shared: impl Iterator<Item = &'a String>,
        now: Now,
    ) -> (Vec<LimitId>, Vec<LimitSpec>) {
        let host = provider.host();
        let mut stated = route.limits.specs(host);
        let own = setups(provider, &stated, name, Scope::Upstream);
        let whose = learner(name, provider.authority());
        let mut limits = self.stated_limits(dispatcher, own, &whose, known, now);
        for shared in shared {
            let specs = self.limits.get(shared).map(|table| table.specs(host));
            let specs = specs.unwrap_or_default();
            stated.extend(specs.iter().copied());
            let ids = match self.shared.get(shared) {
                Some(ids) => ids.clone(),
                None => {
                    let of_all = setups(provider, &specs, shared, Scope::Account);
                    let made = self.stated_limits(dispatcher, of_all, shared, None, now);
                    self.shared.insert(shared.clone(), made.clone());
                    made
                }
            };
            // A call meets a limit once, however often it is referred to.
            let new = ids.into_iter().filter(|id| !limits.contains(id));
            limits.extend(new.collect::<Vec<_>>());
        }
        (limits, stated)
    }

    /// The limits of `whose`, with what is used of those that were stated before, or learned of
    /// `upstream`, for the same kind and period.
    fn stated_limits(
        &mut self,
        dispatcher: &mut Dispatcher,
        stated: Vec<LimitSetup>,
        whose: &str,
        upstream: Option<UpstreamId>,
        now: Now,
    ) -> Vec<LimitId> {
        let key = |setup: &LimitSetup| format!("{} {whose}", setup.spec.name());
        // Looked up before any is made: several may be of one kind and period.
        let mut known = Vec::with_capacity(stated.len());
        for setup in &stated {
            let before = self.known.limits.get(&key(setup));
            let mut before = before.cloned().unwrap_or_default();
            before.extend(upstream.and_then(|id| dispatcher.learned_as(id, &setup.spec)));
            known.push(before);
        }
        for setup in &stated {
            self.known.limits.remove(&key(setup));
        }
        let mut limits = Vec::with_capacity(stated.len());
        for (setup, before) in stated.into_iter().zip(known) {
            let key = key(&setup);
            let id = self.limit(dispatcher, setup, &before, now);
            self.known.limits.entry(key).or_default().push(id);
            limits.push(id);
        }
        limits
    }

    /// A limit: the one of those before that counts as it does, with its books; else a new one,
    /// with what is used of those before, or was by an earlier process.
    fn limit(
        &self,
        dispatcher: &mut Dispatcher,
        setup: LimitSetup,
        before: &[LimitId],
        now: Now,
    ) -> LimitId {
        let restated = |id: &&LimitId| dispatcher.restate_limit(**id, &setup, now);
        if let Some(id) = before.iter().find(restated) {
            return *id;
        }
        let used = |id: &&LimitId| -> u64 {
            let used = dispatcher.limit_mut(**id).saved(now.mono);
            used.iter().map(|(_, used)| used).sum()
        };
        if let Some(most_used) = before.iter().max_by_key(used) {
            let id = dispatcher.replace_limit(*most_used, setup, now);
            if let Some(memory) = &self.memory {
                memory.write_ahead(dispatcher, id);
            }
            return id;
        }
        let id = dispatcher.add_limit(setup, now);
        if let Some(memory) = &self.memory {
            memory.open(dispatcher, id, now);
        }
        id
    }

    /// The quota of an upstream: what was counted goes on under the rules of now.
    fn quota(
        &self,
        dispatcher: &Dispatcher,
        known: Option<UpstreamId>,
        name: &str,
        now: Now,
    ) -> (QuotaMonitor, Vec<QuotaEvent>) {
        let rules = self.quota.clone();
        let before = known.and_then(|known| dispatcher.quota(known));
        if let Some(before) = before {
            return before.under(rules, now);
        }
        match &self.memory {
            Some(memory) => memory.earlier().quota(name, rules, now),
            None => (QuotaMonitor::new(rules, now), Vec::new()),
        }
    }

    /// What an earlier process learned of an upstream's limits, beside those that are stated.
    fn learned(&self, learner: &str, provider: &Provider, stated: &[LimitSpec]) -> Vec<LimitSpec> {
        self.memory.as_ref().map_or_else(Vec::new, |memory| {
            memory.earlier().learned(learner, provider.host(), stated)
        })
    }

    /// Gives a new upstream what an earlier process learned of its limits.
    fn remember(
        &self,
        dispatcher: &mut Dispatcher,
        upstream: UpstreamId,
        name: &str,
        provider: &Provider,
        learned: &[LimitSpec],
        now: Now,
    ) {
        let Some(memory) = &self.memory else { return };
        for setup in setups(provider, learned, name, Scope::Upstream) {
            let id = dispatcher.add_learned_limit(upstream, setup, now);
            memory.open(dispatcher, id, now);
        }
    }
}

fn setups(provider: &Provider, limits: &[LimitSpec], whose: &str, scope: Scope) -> Vec<LimitSetup> {
    let names = limit_names(limits, whose).into_iter();
    let setups = names.zip(limits).map(|(name, spec)| LimitSetup {
        name,
        spec: *spec,
        rule: charge_rule(provider.host(), spec.kind),
        scope,
    });
    setups.collect()
}
