//! From settings to a running line: the dispatcher with its upstreams, limits and queues, and
//! the providers that its grants lead to.

mod open;
mod route;

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::sync::Arc;

use http::HeaderName;
use llmq_core::{Clock, Now};
use llmq_dispatch::{
    Capacity, Dispatcher, LimitId, Notice, QueueId, QueueSetup, Route, Rules, TenantId, UpstreamId,
};
use llmq_limit::{QuotaConfigErrors, QuotaRules};
use llmq_provider::{ConfigError, Provider, SecretError};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::FoundOut;
use crate::books::Memory;
use crate::config::{
    LimitTable, ModelSettings, RouteSettings, Settings, UpstreamSettings, stated_routes,
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
    /// What the books call it: see [`learner`](crate::books::learner).
    pub learner: String,
    /// Its connections.
    pub provider: Provider,
    /// What the provider calls the model; `None`: as the caller does.
    pub model: Option<String>,
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
    /// Answers cannot be recorded.
    #[error("record_llm_responses: {}: {source}", open::RECORDINGS)]
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
    news: Vec<Notice>,
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
    /// By kind, period and whose they are, of an upstream's own by its server too: those that
    /// were stated last.
    limits: FxHashMap<String, Vec<LimitId>>,
    /// By [`learner`](crate::books::learner).
    upstreams: FxHashMap<String, UpstreamId>,
    /// By the public model.
    queues: FxHashMap<String, QueueId>,
    /// Places of models that were let go, for the next ones.
    spare_queues: Vec<QueueId>,
    spare_upstreams: Vec<UpstreamId>,
    /// By server and key, which is known by a hash alone, the numbers of credentials. Another key
    /// has another number, so that what befalls calls with the old one does not befall it.
    credentials: FxHashMap<(String, u64), u32>,
    hashes: RandomState,
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

impl Accounts {
    /// The accounts of other settings, for the dispatcher of these. Changes nothing yet: what that
    /// holds they know once they [follow](Accounts::follow) these.
    ///
    /// # Errors
    ///
    /// [`AssemblyError`], which names the upstream.
    pub fn renewed(
        &self,
        settings: &Settings,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, AssemblyError> {
        let known = Known {
            credentials: self.known.credentials.clone(),
            hashes: self.known.hashes.clone(),
            ..Known::default()
        };
        Self::open(settings, self.memory.clone(), known, clock)
    }

    /// Has [renewed](Accounts::renewed) accounts go on from what the dispatcher holds by now:
    /// models of `before` may have been made and let go since.
    pub fn follow(&mut self, before: &mut Self) {
        let credentials = std::mem::take(&mut self.known.credentials);
        self.known = std::mem::take(&mut before.known);
        self.known.credentials = credentials;
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
        for (made, route) in stated_routes(settings) {
            self.stated.entry(made).or_insert(route);
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
        let known = self.known.queues.get(name).copied();
        let queue = match known.or_else(|| self.known.spare_queues.pop()) {
            Some(queue) => {
                dispatcher.change_queue(queue, setup);
                queue
            }
            None => dispatcher.add_queue(setup),
        };
        self.known.queues.insert(name.to_owned(), queue);
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

    /// Lets go of a model of these settings that [nothing came
    /// of](Dispatcher::is_unproven): the next one that is made takes its place in the dispatcher.
    pub fn let_go(&mut self, dispatcher: &mut Dispatcher, name: &str, settings: &ModelSettings) {
        if let Some(queue) = self.known.queues.remove(name) {
            dispatcher.retire_queue(queue);
            self.known.spare_queues.push(queue);
        }
        for route in &settings.upstreams {
            let made = (route.upstream.clone(), route.model_for(name).to_owned());
            if let Some(upstream) = self.made.remove(&made) {
                dispatcher.retire_upstream(upstream);
                self.known.upstreams.retain(|_, known| *known != upstream);
                self.known.spare_upstreams.push(upstream);
            }
        }
    }

    /// What is to be told of upstreams since they were made or changed: their quotas' news, and
    /// pauses that a change ended.
    pub fn take_news(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.news)
    }

    /// The names of the accounts with their providers.
    pub fn providers(&self) -> impl Iterator<Item = (&str, &Provider)> {
        self.accounts
            .iter()
            .map(|(name, account)| (name.as_str(), &account.provider))
    }
}

#[cfg(test)]
mod tests;
