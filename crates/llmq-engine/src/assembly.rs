//! From settings to a running line: the dispatcher with its upstreams, limits and queues, and
//! the providers that its grants lead to.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use llmq_core::{Clock, LimitKind, LimitSpec, Now};
use llmq_dispatch::{
    Capacity, Dispatcher, LimitId, LimitSetup, QueueId, QueueSetup, Route, Rules, Scope, TenantId,
    UpstreamId, UpstreamSetup,
};
use llmq_limit::{QuotaConfigErrors, QuotaEvent, QuotaMonitor, QuotaRules, charge_rule};
use llmq_provider::{ConfigError, Provider, ProviderConfig, Recorder, Secret, SecretError};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::FoundOut;
use crate::books::{Memory, learner};
use crate::config::{
    Ambiguous, KeySource, LimitTable, ModelSettings, RouteSettings, Settings, UpstreamSettings,
};

/// Tenants of calls whose callers have no name.
const DEFAULT_WEIGHT: f64 = 1.0;

/// What settings make: a dispatcher to be set running with [`crate::run`], and what belongs to
/// its ids.
pub struct Assembly {
    /// Upstreams, limits and queues are in it.
    pub dispatcher: Dispatcher,
    /// Who calls without a name.
    pub tenant: TenantId,
    /// One account and provider model each, by [`UpstreamId`].
    pub routes: Vec<AssembledRoute>,
    /// The public models, by name.
    pub models: BTreeMap<String, AssembledModel>,
    /// How to make more of them, and to change them.
    pub accounts: Accounts,
}

/// One provider account with one of its models: an upstream of the dispatcher.
#[derive(Debug, Clone)]
pub struct AssembledRoute {
    /// Its id in the dispatcher.
    pub upstream: UpstreamId,
    /// The account's name in the configuration.
    pub account: String,
    /// What people call it: account and provider model.
    pub name: Arc<str>,
    /// What the books call it: see [`learner`].
    pub learner: String,
    /// Its connections.
    pub provider: Provider,
    /// What the provider calls the model; `None`: as the caller does.
    pub model: Option<String>,
    /// How long the first token of a stream may take after the first byte.
    pub first_token: Duration,
    /// Whether a limit on the way is charged by what an answer says that it used.
    pub counts_usage: bool,
    /// Headers of a caller that choose whose limits are charged, and that it may see all the same.
    pub pass_headers: Arc<[HeaderName]>,
    /// What has shown since.
    pub found_out: Arc<FoundOut>,
}

/// A public model.
#[derive(Debug, Clone)]
pub struct AssembledModel {
    /// Its line.
    pub queue: QueueId,
    /// The upstreams of its own.
    pub upstreams: Vec<UpstreamId>,
    /// Its settings.
    pub settings: ModelSettings,
}

/// Where calls and answers are recorded in development, in the directory of the process.
const RECORDINGS: &str = "llm_response_logs";

/// Settings cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssemblyError {
    /// An upstream's key is not there.
    #[error("upstreams.{upstream}.api_key: {source}")]
    Key {
        /// The upstream's name.
        upstream: String,
        /// Why.
        source: SecretError,
    },
    /// An upstream's address or key cannot be used.
    #[error("upstreams.{upstream}: {source}")]
    Upstream {
        /// The upstream's name.
        upstream: String,
        /// Why.
        source: ConfigError,
    },
    /// Answers cannot be recorded.
    #[error("record_llm_responses: {RECORDINGS}: {source}")]
    Recorder {
        /// Why.
        source: std::io::Error,
    },
    /// The quota settings make no sense.
    #[error("quota: {0}")]
    Quota(QuotaConfigErrors),
}

/// The accounts of the configuration, with what it takes to make models of them, and to take
/// another configuration over while a dispatcher runs.
#[derive(Debug, Clone)]
pub struct Accounts {
    accounts: BTreeMap<String, Account>,
    limits: BTreeMap<String, LimitTable>,
    quota: QuotaRules,
    rules: Rules,
    max_attempts: u32,
    retry_ambiguous: bool,
    /// None: nothing is kept from one process to the next.
    memory: Option<Memory>,
    known: Known,
    /// By name, the limits of `[limits.NAME]` that this configuration has used so far.
    shared: FxHashMap<String, Vec<LimitId>>,
    /// By account and provider model, the route that states their limits: it does so for every
    /// model that leads there.
    stated: FxHashMap<(String, String), RouteSettings>,
    /// By account and provider model, the upstreams that this configuration has used so far.
    made: FxHashMap<(String, String), UpstreamId>,
    news: Vec<(UpstreamId, QuotaEvent)>,
}

#[derive(Debug, Clone)]
struct Account {
    settings: UpstreamSettings,
    provider: Provider,
    credential: u32,
}

/// What the dispatcher holds, also of earlier configurations: it has a place there for ever, and
/// is found again when it comes back.
#[derive(Debug, Clone, Default)]
struct Known {
    /// By name and, where they are an upstream's own, its server.
    limits: FxHashMap<String, LimitId>,
    /// By [`learner`].
    upstreams: FxHashMap<String, UpstreamId>,
    /// By the public model.
    queues: FxHashMap<String, QueueId>,
    /// By server and key, which is known by a hash alone, the numbers of credentials. Another key
    /// has another number, so that what befalls calls with the old one does not befall it.
    credentials: FxHashMap<(String, u64), u32>,
    hashes: RandomState,
}

impl Known {
    /// The number of a server's key.
    fn credential(&mut self, base_url: &str, key: Option<&Secret>) -> u32 {
        let key = self.hashes.hash_one(key.map(Secret::expose));
        let next = u32::try_from(self.credentials.len()).unwrap_or(u32::MAX);
        let known = self.credentials.entry((base_url.to_owned(), key));
        *known.or_insert(next)
    }
}

/// Sets up what `settings` say. Connects to nothing. With a `memory` the books of limits are
/// those of an earlier process, and long limits wait until theirs are written.
///
/// # Errors
///
/// [`AssemblyError`], which names the upstream.
pub fn assemble(
    settings: &Settings,
    memory: Option<Memory>,
    clock: &Arc<dyn Clock>,
    now: Now,
) -> Result<Assembly, AssemblyError> {
    let mut accounts = Accounts::open(settings, memory, Known::default(), clock)?;
    let mut dispatcher = Dispatcher::new(accounts.rules, fastrand::u64(..));
    let tenant = dispatcher.add_tenant(DEFAULT_WEIGHT, Vec::new());
    let mut routes = Vec::new();
    let models = accounts.models(&mut dispatcher, &settings.models, &mut routes, now);
    Ok(Assembly {
        dispatcher,
        tenant,
        routes,
        models,
        accounts,
    })
}

/// What records all calls, where that is asked for.
fn recorder(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Arc<Recorder>>, AssemblyError> {
    if !settings.record_llm_responses {
        return Ok(None);
    }
    let recorder = Recorder::open(RECORDINGS, Arc::clone(clock))
        .map_err(|source| AssemblyError::Recorder { source })?;
    tracing::warn!(directory = RECORDINGS, "prompts and answers are recorded");
    Ok(Some(Arc::new(recorder)))
}

impl Accounts {
    fn open(
        settings: &Settings,
        memory: Option<Memory>,
        mut known: Known,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, AssemblyError> {
        let recorder = recorder(settings, clock)?;
        let mut accounts: BTreeMap<String, Account> = BTreeMap::new();
        for (name, upstream) in &settings.upstreams {
            let key = key(name, upstream)?;
            let credential = known.credential(&upstream.base_url, key.as_ref());
            let config = ProviderConfig {
                api_key: key,
                host: upstream.host(),
                timeouts: upstream.timeouts,
                http2: upstream.http2,
                recorder: recorder.clone(),
                ..ProviderConfig::new(upstream.provider.dialect(), upstream.base_url.clone())
            };
            let provider = Provider::new(config, Arc::clone(clock)).map_err(|source| {
                AssemblyError::Upstream {
                    upstream: name.clone(),
                    source,
                }
            })?;
            let account = Account {
                settings: upstream.clone(),
                provider,
                credential,
            };
            accounts.insert(name.clone(), account);
        }
        Ok(Self {
            accounts,
            limits: settings.limits.clone(),
            quota: settings.quota.check().map_err(AssemblyError::Quota)?,
            rules: Rules {
                capacity: settings.store.capacity,
                backoffs: settings.retry.backoffs,
                ..Rules::default()
            },
            max_attempts: settings.retry.max_attempts,
            retry_ambiguous: settings.retry.ambiguous == Ambiguous::Retry,
            memory,
            known,
            shared: FxHashMap::default(),
            stated: FxHashMap::default(),
            made: FxHashMap::default(),
            news: Vec::new(),
        })
    }

    /// The accounts of other settings, for the dispatcher of these. Changes nothing yet.
    ///
    /// # Errors
    ///
    /// [`AssemblyError`], which names the upstream.
    pub fn renewed(
        &self,
        settings: &Settings,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, AssemblyError> {
        Self::open(settings, self.memory.clone(), self.known.clone(), clock)
    }

    /// The public models, each with its queue and upstreams: those that are there already are
    /// changed, the others made. What is new of upstreams, or has new connections, is added to
    /// `routes`.
    pub fn models(
        &mut self,
        dispatcher: &mut Dispatcher,
        settings: &BTreeMap<String, ModelSettings>,
        routes: &mut Vec<AssembledRoute>,
        now: Now,
    ) -> BTreeMap<String, AssembledModel> {
        dispatcher.set_rules(self.rules);
        for (name, model) in settings {
            let routes = model.upstreams.iter().filter(|route| route.states_limits());
            for route in routes {
                let key = (route.upstream.clone(), route.model_for(name).to_owned());
                self.stated.entry(key).or_insert_with(|| route.clone());
            }
        }
        let models: BTreeMap<String, AssembledModel> = settings
            .iter()
            .map(|(name, model)| {
                (
                    name.clone(),
                    self.model(dispatcher, name, model, routes, now),
                )
            })
            .collect();
        for model in models.values() {
            let fallback = model.settings.fallback.iter();
            let fallback = fallback.filter_map(|name| models.get(name).map(|model| model.queue));
            dispatcher.set_fallback(model.queue, fallback.collect());
        }
        models
    }

    /// One public model without its fallbacks, as [`Accounts::models`] makes it.
    pub fn model(
        &mut self,
        dispatcher: &mut Dispatcher,
        name: &str,
        settings: &ModelSettings,
        routes: &mut Vec<AssembledRoute>,
        now: Now,
    ) -> AssembledModel {
        let mut ways = Vec::new();
        for route in &settings.upstreams {
            if let Some(upstream) = self.route(dispatcher, name, route, routes, now) {
                ways.push(Route {
                    upstream,
                    weight: route.weight,
                });
            }
        }
        let upstreams = ways.iter().map(|way| way.upstream).collect();
        let setup = QueueSetup {
            name: name.to_owned(),
            routes: ways,
            fallback: Vec::new(),
            limits: Vec::new(),
            // What waits is bounded over all queues together.
            capacity: Capacity::unbounded(),
            reserve: settings.reserve.clone(),
            max_attempts: self.max_attempts,
            retry_ambiguous: self.retry_ambiguous,
        };
        let queue = match self.known.queues.get(name) {
            Some(queue) => {
                dispatcher.change_queue(*queue, setup);
                *queue
            }
            None => {
                let queue = dispatcher.add_queue(setup);
                self.known.queues.insert(name.to_owned(), queue);
                queue
            }
        };
        AssembledModel {
            queue,
            upstreams,
            settings: settings.clone(),
        }
    }

    /// Lets go of the queues and upstreams that are known and not used by this configuration,
    /// whose models are all that `is_offered` says. Their calls come to their ends.
    pub fn retire_others(&self, dispatcher: &mut Dispatcher, is_offered: impl Fn(&str) -> bool) {
        for (name, queue) in &self.known.queues {
            if !is_offered(name) {
                dispatcher.retire_queue(*queue);
            }
        }
        let used: FxHashSet<UpstreamId> = self.made.values().copied().collect();
        for upstream in self.known.upstreams.values() {
            if !used.contains(upstream) {
                dispatcher.retire_upstream(*upstream);
            }
        }
    }

    /// What the quotas of upstreams had to tell when they were restored.
    pub fn take_news(&mut self) -> Vec<(UpstreamId, QuotaEvent)> {
        std::mem::take(&mut self.news)
    }

    fn route(
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
                dispatcher.change_upstream(upstream, setup, now);
                upstream
            }
            None => {
                let upstream = dispatcher.add_upstream(setup, now);
                self.remember(dispatcher, upstream, &name, &provider, learned, now);
                self.known.upstreams.insert(learner.clone(), upstream);
                upstream
            }
        };
        self.news
            .extend(news.into_iter().map(|event| (upstream, event)));
        routes.push(AssembledRoute {
            upstream,
            account: route.upstream.clone(),
            name: name.into(),
            learner,
            provider,
            // Named even where it is as people call it: a call that comes as another model's
            // fallback names that one.
            model: Some(model),
            first_token: account.settings.first_token,
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
        let mut limits = Vec::new();
        for spec in &stated {
            let setup = limit(provider, *spec, name, Scope::Upstream);
            let key = format!("{} at {}", setup.name, provider.authority());
            let learned = known.and_then(|known| learned_as(dispatcher, known, spec));
            limits.push(self.limit(dispatcher, key, setup, learned, now));
        }
        for shared in shared {
            let specs = self.limits.get(shared).map(|table| table.specs(host));
            let specs = specs.unwrap_or_default();
            stated.extend(specs.iter().copied());
            let ids = match self.shared.get(shared) {
                Some(ids) => ids.clone(),
                None => {
                    let made = specs.iter().map(|spec| {
                        let setup = limit(provider, *spec, shared, Scope::Account);
                        self.limit(dispatcher, setup.name.clone(), setup, None, now)
                    });
                    let made: Vec<LimitId> = made.collect();
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

    /// A limit: the one that is known by `key`, or `learned`, with its books; else a new one.
    fn limit(
        &mut self,
        dispatcher: &mut Dispatcher,
        key: String,
        setup: LimitSetup,
        learned: Option<LimitId>,
        now: Now,
    ) -> LimitId {
        let known = self.known.limits.get(&key).copied().or(learned);
        if let Some(id) = known
            && dispatcher.restate_limit(id, &setup, now)
        {
            self.known.limits.insert(key, id);
            return id;
        }
        let id = dispatcher.add_limit(setup, now);
        if let Some(memory) = &self.memory {
            memory.open(dispatcher, id, now);
        }
        self.known.limits.insert(key, id);
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
            let state = serde_json::to_string(&before.to_final_state());
            return QuotaMonitor::restore(rules, state.ok().as_deref(), now);
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
        learned: Vec<LimitSpec>,
        now: Now,
    ) {
        let Some(memory) = &self.memory else { return };
        for spec in learned {
            let setup = limit(provider, spec, name, Scope::Upstream);
            let id = dispatcher.add_learned_limit(upstream, setup, now);
            memory.open(dispatcher, id, now);
        }
    }

    /// The names of the accounts with their providers.
    pub fn providers(&self) -> impl Iterator<Item = (&str, &Provider)> {
        self.accounts
            .iter()
            .map(|(name, account)| (name.as_str(), &account.provider))
    }
}

/// The limit of an upstream that headers told of, if it is of the kind and period of `spec`.
fn learned_as(
    dispatcher: &mut Dispatcher,
    upstream: UpstreamId,
    spec: &LimitSpec,
) -> Option<LimitId> {
    let mut learned = dispatcher.learned_limits(upstream).into_iter();
    learned.find(|id| {
        let learned = dispatcher.limit_mut(*id).spec();
        (learned.kind, learned.period) == (spec.kind, spec.period)
    })
}

fn limit(provider: &Provider, spec: LimitSpec, whose: &str, scope: Scope) -> LimitSetup {
    LimitSetup {
        name: format!("{} {whose}", spec.name()),
        spec,
        rule: charge_rule(provider.host(), spec.kind),
        scope,
    }
}

fn key(name: &str, upstream: &UpstreamSettings) -> Result<Option<Secret>, AssemblyError> {
    let key = upstream.api_key.as_ref().map(KeySource::resolve);
    key.transpose().map_err(|source| AssemblyError::Key {
        upstream: name.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
