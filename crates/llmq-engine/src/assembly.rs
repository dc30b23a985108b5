//! From settings to a running line: the dispatcher with its upstreams, limits and queues, and
//! the providers that its grants lead to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use llmq_core::{Clock, LimitKind, LimitSpec, Now};
use llmq_dispatch::{
    Dispatcher, LimitId, LimitSetup, QueueId, QueueSetup, Route, Rules, Scope, TenantId,
    UpstreamId, UpstreamSetup,
};
use llmq_limit::{QuotaConfigErrors, QuotaMonitor, charge_rule};
use llmq_provider::{ConfigError, Provider, ProviderConfig, Secret, SecretError};
use rustc_hash::FxHashMap;

use crate::FoundOut;
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
    /// How to make more of them.
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
    /// The quota settings make no sense.
    #[error("quota: {0}")]
    Quota(QuotaConfigErrors),
}

/// The accounts of the configuration, with what it takes to add a model of one of them.
#[derive(Debug, Clone)]
pub struct Accounts {
    providers: BTreeMap<String, (UpstreamSettings, Provider, u32)>,
    limits: BTreeMap<String, LimitTable>,
    quota: llmq_limit::QuotaConfig,
    rules: Rules,
    max_attempts: u32,
    retry_ambiguous: bool,
    shared: FxHashMap<String, Vec<LimitId>>,
    made: FxHashMap<(String, Option<String>), UpstreamId>,
}

/// Sets up what `settings` say. Connects to nothing; `keys` gives a key where a setting names
/// none.
///
/// # Errors
///
/// [`AssemblyError`], which names the upstream.
pub fn assemble(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    now: Now,
) -> Result<Assembly, AssemblyError> {
    let mut accounts = Accounts::open(settings, clock)?;
    let mut dispatcher = Dispatcher::new(accounts.rules, fastrand::u64(..));
    let tenant = dispatcher.add_tenant(DEFAULT_WEIGHT, Vec::new());
    let mut routes = Vec::new();
    let mut models = BTreeMap::new();
    for (name, model) in &settings.models {
        let setup = accounts.queue(&mut dispatcher, name, model, &mut routes, now)?;
        let upstreams = setup.routes.iter().map(|route| route.upstream).collect();
        let queue = dispatcher.add_queue(setup);
        let model = AssembledModel {
            queue,
            upstreams,
            settings: model.clone(),
        };
        models.insert(name.clone(), model);
    }
    for model in models.values() {
        let fallback = |names: &[String]| -> Vec<QueueId> {
            names
                .iter()
                .filter_map(|name| models.get(name).map(|model| model.queue))
                .collect()
        };
        dispatcher.set_fallback(model.queue, fallback(&model.settings.fallback));
    }
    Ok(Assembly {
        dispatcher,
        tenant,
        routes,
        models,
        accounts,
    })
}

impl Accounts {
    fn open(settings: &Settings, clock: &Arc<dyn Clock>) -> Result<Self, AssemblyError> {
        settings.quota.check().map_err(AssemblyError::Quota)?;
        let mut providers: BTreeMap<String, (UpstreamSettings, Provider, u32)> = BTreeMap::new();
        for (number, (name, upstream)) in settings.upstreams.iter().enumerate() {
            let key = key(name, upstream)?;
            let config = ProviderConfig {
                api_key: key,
                host: upstream.host(),
                timeouts: upstream.timeouts,
                http2: upstream.http2,
                ..ProviderConfig::new(upstream.provider.dialect(), upstream.base_url.clone())
            };
            let provider = Provider::new(config, Arc::clone(clock)).map_err(|source| {
                AssemblyError::Upstream {
                    upstream: name.clone(),
                    source,
                }
            })?;
            let same = |(other, ..): &&(UpstreamSettings, Provider, u32)| {
                other.api_key == upstream.api_key && other.base_url == upstream.base_url
            };
            let credential = providers
                .values()
                .find(same)
                .map_or(u32::try_from(number).unwrap_or(u32::MAX), |(.., first)| {
                    *first
                });
            providers.insert(name.clone(), (upstream.clone(), provider, credential));
        }
        Ok(Self {
            providers,
            limits: settings.limits.clone(),
            quota: settings.quota.clone(),
            rules: Rules {
                backoffs: settings.retry.backoffs,
                ..Rules::default()
            },
            max_attempts: settings.retry.max_attempts,
            retry_ambiguous: settings.retry.ambiguous == Ambiguous::Retry,
            shared: FxHashMap::default(),
            made: FxHashMap::default(),
        })
    }

    /// The queue of a public model, with upstreams for each of its routes that has none yet;
    /// those are added to `routes`.
    ///
    /// # Errors
    ///
    /// [`AssemblyError::Quota`].
    pub fn queue(
        &mut self,
        dispatcher: &mut Dispatcher,
        name: &str,
        model: &ModelSettings,
        routes: &mut Vec<AssembledRoute>,
        now: Now,
    ) -> Result<QueueSetup, AssemblyError> {
        let mut ways = Vec::new();
        for route in &model.upstreams {
            let Some(upstream) = self.route(dispatcher, name, route, routes, now)? else {
                continue;
            };
            ways.push(Route {
                upstream,
                weight: route.weight,
            });
        }
        Ok(QueueSetup {
            name: name.to_owned(),
            routes: ways,
            fallback: Vec::new(),
            limits: Vec::new(),
            capacity: llmq_dispatch::Capacity::default(),
            reserve: model.reserve.clone(),
            max_attempts: self.max_attempts,
            retry_ambiguous: self.retry_ambiguous,
        })
    }

    fn route(
        &mut self,
        dispatcher: &mut Dispatcher,
        public: &str,
        route: &RouteSettings,
        routes: &mut Vec<AssembledRoute>,
        now: Now,
    ) -> Result<Option<UpstreamId>, AssemblyError> {
        let made = (
            route.upstream.clone(),
            Some(route.model.clone().unwrap_or_else(|| public.to_owned())),
        );
        if let Some(upstream) = self.made.get(&made) {
            return Ok(Some(*upstream));
        }
        let Some((account, provider, credential)) = self.providers.get(&route.upstream).cloned()
        else {
            return Ok(None);
        };
        let model = made.1.as_deref().unwrap_or(public);
        let name = format!("{}/{model}", route.upstream);
        let host = provider.host();
        let own = route.limits.specs(host);
        let mut limits = Vec::new();
        for spec in &own {
            let full = format!("{} {name}", spec.name());
            limits.push(limit(
                dispatcher,
                &provider,
                *spec,
                full,
                Scope::Upstream,
                now,
            ));
        }
        let mut specs = own;
        let accounts = route.shared_limits.iter().chain(&account.shared_limits);
        for shared in accounts {
            let stated = self.limits.get(shared).map(|table| table.specs(host));
            let stated = stated.unwrap_or_default();
            specs.extend(stated.iter().copied());
            let ids = self.shared.entry(shared.clone()).or_insert_with(|| {
                let made = stated.iter().map(|spec| {
                    let full = format!("{} {shared}", spec.name());
                    limit(dispatcher, &provider, *spec, full, Scope::Account, now)
                });
                made.collect()
            });
            limits.extend(ids.iter().copied());
        }
        let by_usage = |spec: &LimitSpec| charge_rule(host, spec.kind).heeds_usage();
        let counts_usage = specs.iter().any(by_usage);
        let states = |kinds: fn(LimitKind) -> bool| specs.iter().any(|spec| kinds(spec.kind));
        let concurrency = states(|kind| kind == LimitKind::Concurrency);
        let rules = self.quota.check().map_err(AssemblyError::Quota)?;
        let setup = UpstreamSetup {
            name: name.clone(),
            limits,
            adaptive: account.adaptive.filter(|_| !concurrency),
            quota: Some(QuotaMonitor::new(rules, now)),
            credential: Some(credential),
            learn_as: Some(host),
            ..UpstreamSetup::default()
        };
        let upstream = dispatcher.add_upstream(setup, now);
        routes.push(AssembledRoute {
            upstream,
            account: route.upstream.clone(),
            name: name.into(),
            provider,
            // Named even where it is as people call it: a call that comes as another model's
            // fallback names that one.
            model: made.1.clone(),
            first_token: account.first_token,
            counts_usage,
            pass_headers: account.pass_headers.into(),
            found_out: Arc::default(),
        });
        self.made.insert(made, upstream);
        Ok(Some(upstream))
    }

    /// The names of the accounts with their providers.
    pub fn providers(&self) -> impl Iterator<Item = (&str, &Provider)> {
        self.providers
            .iter()
            .map(|(name, (_, provider, _))| (name.as_str(), provider))
    }
}

fn limit(
    dispatcher: &mut Dispatcher,
    provider: &Provider,
    spec: LimitSpec,
    name: String,
    scope: Scope,
    now: Now,
) -> LimitId {
    let rule = charge_rule(provider.host(), spec.kind);
    let setup = LimitSetup {
        name,
        spec,
        rule,
        scope,
    };
    dispatcher.add_limit(setup, now)
}

fn key(name: &str, upstream: &UpstreamSettings) -> Result<Option<Secret>, AssemblyError> {
    let key = upstream.api_key.as_ref().map(KeySource::resolve);
    key.transpose().map_err(|source| AssemblyError::Key {
        upstream: name.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemClock;
    use crate::config::Config;

    fn assembled(toml: &str) -> Assembly {
        let config = Config::parse("test.toml", toml).unwrap();
        let settings = config.check().unwrap();
        let clock = SystemClock::new();
        let now = clock.now();
        let clock: Arc<dyn Clock> = Arc::new(clock);
        assemble(&settings, &clock, now).unwrap()
    }

    const TWO_MODELS: &str = r#"
        [upstreams.one]
        provider = "mock"
        base_url = "http://127.0.0.1:9/v1"
        shared_limits = ["account"]
        [models.a]
        upstreams = [{ upstream = "one", model = "x", limits = { rpm = 10 } }]
        fallback = ["b"]
        [models.b]
        upstreams = [{ upstream = "one", model = "y" }, { upstream = "one", model = "x" }]
        [limits.account]
        rpm = 100
    "#;

    #[test]
    fn an_account_and_model_are_one_upstream_whoever_refers_to_them() {
        let assembly = assembled(TWO_MODELS);
        let names: Vec<&str> = assembly.routes.iter().map(|route| &*route.name).collect();
        assert_eq!(names, ["one/x", "one/y"]);
        assert_eq!(assembly.models.len(), 2);
    }

    #[test]
    fn a_shared_limit_is_one_limit() {
        let assembly = assembled(TWO_MODELS);
        let limits = |index: usize| {
            let upstream = assembly.routes[index].upstream;
            assembly.dispatcher.upstream_view(upstream).limits
        };
        let common: Vec<LimitId> = limits(0)
            .into_iter()
            .filter(|limit| limits(1).contains(limit))
            .collect();
        assert_eq!(common.len(), 1);
    }
}
