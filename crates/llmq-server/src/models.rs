//! Which line a model's calls wait in.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use llmq_core::{Clock, Usage};
use llmq_dispatch::{Effect, QueueId, UpstreamId};
use llmq_engine::config::{
    LimitTable, ModelSettings, OnUnavailable, RouteSettings, Settings, StreamRecovery, StreamUsage,
};
use llmq_engine::{
    Accounts, AssembledModel, AssembledRoute, AssemblyError, Hub, Outgoing, Saying, StreamOf,
};
use llmq_provider::translate::Untranslatable;
use llmq_provider::{Dialect, Operation, Provider};
use rustc_hash::FxHashMap;

/// A public model, as calls need it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) queue: QueueId,
    pub(crate) settings: ModelSettings,
    /// Where its calls may go before any fallback.
    pub(crate) routes: Vec<Arc<AssembledRoute>>,
}

impl Model {
    /// A call of it, as its caller made it.
    pub(crate) fn saying<'a>(
        &'a self,
        operation: Operation,
        body: &'a Bytes,
        stream: StreamOf,
    ) -> Saying<'a> {
        Saying {
            operation,
            model: &self.name,
            settings: &self.settings,
            body,
            stream,
        }
    }

    /// What a call cost, in billionths of a dollar; 0 where no price is configured.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a price is not negative, and a call costs far less than 2^63 nano dollars"
    )]
    pub(crate) fn nano_usd(&self, usage: &Usage) -> u64 {
        let price = self.settings.price;
        price.map_or(0, |price| {
            (price.of(usage.input_tokens, usage.output_tokens) * 1e9).round() as u64
        })
    }
}

/// Models that nobody configured are made as callers name them, this many at most. When that many
/// are there, one that nothing came of goes for each new one.
const UNNAMED_MAX: usize = 1_000;
/// A longer name is no model's.
const NAME_BYTES_MAX: usize = 200;

/// The public models and the upstreams they lead to.
#[derive(Debug)]
pub(crate) struct Models {
    inner: RwLock<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Whether any name leads to an account: nothing was configured.
    any_name: bool,
    by_name: FxHashMap<String, Arc<Model>>,
    /// By name, those that earlier configurations had and this one has not: jobs in line for them
    /// and under way go on.
    gone: FxHashMap<String, Arc<Model>>,
    routes: Routes,
    accounts: Accounts,
    unnamed: usize,
}

type Routes = FxHashMap<UpstreamId, Arc<AssembledRoute>>;

impl Inner {
    /// Makes room for a name: one goes that no provider has ever answered a call of, as one that
    /// was misspelt. Whether there was one.
    fn lets_one_go(&mut self, hub: &Hub) -> bool {
        // Whoever is about to call it holds the model; no more can come while the table is held.
        let is_free = |model: &Arc<Model>| Arc::strong_count(model) == 1;
        let unproven = hub.with(|dispatcher| {
            let mut models = self.by_name.values();
            models
                .find(|model| is_free(model) && dispatcher.is_unproven(model.queue))
                .map(|model| model.name.clone())
        });
        let Some(model) = unproven.and_then(|name| self.by_name.remove(&name)) else {
            return false;
        };
        hub.change(|dispatcher, _, _| {
            let accounts = &mut self.accounts;
            accounts.let_go(dispatcher, &model.name, &model.settings);
        });
        for route in &model.routes {
            self.routes.remove(&route.upstream);
        }
        self.unnamed -= 1;
        true
    }
}

fn by_name(
    models: BTreeMap<String, AssembledModel>,
    routes: &Routes,
) -> FxHashMap<String, Arc<Model>> {
    models
        .into_iter()
        .map(|(name, assembled)| {
            let model = model(&name, assembled, routes);
            (name, Arc::new(model))
        })
        .collect()
}

fn model(name: &str, assembled: AssembledModel, routes: &Routes) -> Model {
    Model {
        name: name.to_owned(),
        queue: assembled.queue,
        settings: assembled.settings,
        routes: of(routes, assembled.upstreams.iter().copied()),
    }
}

fn of(routes: &Routes, upstreams: impl Iterator<Item = UpstreamId>) -> Vec<Arc<AssembledRoute>> {
    upstreams
        .filter_map(|upstream| routes.get(&upstream).cloned())
        .collect()
}

impl Models {
    pub(crate) fn new(
        models: BTreeMap<String, AssembledModel>,
        routes: Vec<AssembledRoute>,
        accounts: Accounts,
        any_name: bool,
    ) -> Self {
        let routes: Routes = routes
            .into_iter()
            .map(|route| (route.upstream, Arc::new(route)))
            .collect();
        let by_name = by_name(models, &routes);
        Self {
            inner: RwLock::new(Inner {
                any_name,
                by_name,
                gone: FxHashMap::default(),
                routes,
                accounts,
                unnamed: 0,
            }),
        }
    }

    /// The accounts of other settings. Changes nothing yet.
    pub(crate) fn renewed(
        &self,
        settings: &Settings,
        clock: &Arc<dyn Clock>,
    ) -> Result<Accounts, AssemblyError> {
        self.read().accounts.renewed(settings, clock)
    }

    /// Takes over what [`Models::renewed`] gave, all of it at once. Calls in line and under way
    /// go on, also those of models that are gone.
    pub(crate) fn renew(
        &self,
        mut accounts: Accounts,
        settings: &Settings,
        any_name: bool,
        hub: &Hub,
    ) {
        let mut inner = self
            .inner
            .write()
            .unwrap_or_else(|error| error.into_inner());
        accounts.follow(&mut inner.accounts);
        let mut wanted = settings.models.clone();
        if any_name {
            // Those that callers have named so far.
            let named = inner
                .by_name
                .keys()
                .filter_map(|name| Some((name.clone(), unnamed(account_for(&accounts, name)?))));
            wanted.extend(named.collect::<Vec<_>>());
        }
        let (mut made, mut models) = (Vec::new(), BTreeMap::new());
        hub.change(|dispatcher, now, effects| {
            models = accounts.models(dispatcher, &wanted, &mut made, now);
            accounts.retire_others(dispatcher, |name| wanted.contains_key(name));
            effects.extend(accounts.take_news().into_iter().map(Effect::Notice));
            dispatcher.reconsider(now, effects);
        });
        for mut route in made {
            if let Some(before) = inner.routes.get(&route.upstream) {
                route.found_out = Arc::clone(&before.found_out);
            }
            inner.routes.insert(route.upstream, Arc::new(route));
        }
        let models = by_name(models, &inner.routes);
        let Inner { by_name, gone, .. } = &mut *inner;
        gone.extend(std::mem::replace(by_name, models));
        gone.retain(|name, _| !by_name.contains_key(name));
        inner.unnamed = if any_name { inner.by_name.len() } else { 0 };
        inner.any_name = any_name;
        inner.accounts = accounts;
    }

    /// The upstreams that learn from headers, as the books call them.
    pub(crate) fn learners(&self) -> Vec<(UpstreamId, String)> {
        let inner = self.read();
        let routes = inner.routes.values();
        routes
            .map(|route| (route.upstream, route.learner.clone()))
            .collect()
    }

    /// The same with their names and servers.
    pub(crate) fn learned_from(&self) -> Vec<(String, String, String)> {
        let inner = self.read();
        let routes = inner.routes.values();
        routes
            .map(|route| {
                let server = route.provider.authority().to_owned();
                (route.learner.clone(), route.name.to_string(), server)
            })
            .collect()
    }

    /// Whether a call can be said to at least one of a model's upstreams or its fallbacks'.
    ///
    /// # Errors
    ///
    /// Why its first one cannot be told.
    pub(crate) fn can_be_told(
        &self,
        model: &Model,
        operation: Operation,
        body: &Bytes,
    ) -> Result<(), Untranslatable> {
        let native = |route: &Arc<AssembledRoute>| operation.speaks(route.provider.dialect());
        if model.routes.iter().any(native) {
            return Ok(());
        }
        let names = model.settings.fallback.iter();
        let fallbacks: Vec<_> = names.filter_map(|name| self.known(name)).collect();
        let others = fallbacks.iter().flat_map(|other| &other.routes);
        let saying = model.saying(operation, body, StreamOf::Nothing);
        let mut first = None;
        for route in model.routes.iter().chain(others) {
            match Outgoing::of(&saying, route) {
                Ok(_) => return Ok(()),
                Err(why) => first = first.or(Some(why)),
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// The model that serves a call of `model` at an upstream, with its price: the model itself,
    /// or one of those that stand in for it.
    pub(crate) fn serving(&self, model: &Arc<Model>, upstream: UpstreamId) -> Arc<Model> {
        let leads_there = |model: &Model| {
            let mut routes = model.routes.iter();
            routes.any(|route| route.upstream == upstream)
        };
        if leads_there(model) {
            return Arc::clone(model);
        }
        let mut others = self.stand_ins(model);
        let other = others.find(|other| leads_there(other));
        other.unwrap_or_else(|| Arc::clone(model))
    }

    /// What a call of `model` costs at most that uses this: nobody knows yet who will serve it.
    pub(crate) fn most_nano_usd(&self, model: &Model, usage: &Usage) -> u64 {
        let others = self.stand_ins(model).map(|other| other.nano_usd(usage));
        others.fold(model.nano_usd(usage), u64::max)
    }

    fn stand_ins(&self, model: &Model) -> impl Iterator<Item = Arc<Model>> {
        let settings = &model.settings;
        let names = settings.fallback.iter().chain(&settings.context_fallback);
        names.filter_map(|name| self.known_or_gone(name))
    }

    /// The model of this name. Where nothing was configured, one is made for it.
    /// `made` is called after one was.
    pub(crate) fn find(&self, name: &str, hub: &Hub, made: impl FnOnce()) -> Option<Arc<Model>> {
        let inner = self.read();
        if let Some(model) = inner.by_name.get(name) {
            return Some(Arc::clone(model));
        }
        let any_name = inner.any_name;
        drop(inner);
        if !any_name || name.is_empty() || name.len() > NAME_BYTES_MAX {
            return None;
        }
        let model = self.make(name, hub)?;
        made();
        Some(model)
    }

    /// A configured model.
    pub(crate) fn known(&self, name: &str) -> Option<Arc<Model>> {
        self.read().by_name.get(name).cloned()
    }

    /// A configured model, or one that was until it was taken away: what jobs that stood in line
    /// for it cost, and how they are said, is as it was.
    pub(crate) fn known_or_gone(&self, name: &str) -> Option<Arc<Model>> {
        let inner = self.read();
        let gone = || inner.gone.get(name);
        inner.by_name.get(name).or_else(gone).cloned()
    }

    fn make(&self, name: &str, hub: &Hub) -> Option<Arc<Model>> {
        let mut inner = self
            .inner
            .write()
            .unwrap_or_else(|error| error.into_inner());
        if let Some(model) = inner.by_name.get(name) {
            return Some(Arc::clone(model));
        }
        if inner.unnamed >= UNNAMED_MAX && !inner.lets_one_go(hub) {
            return None;
        }
        let settings = unnamed(account_for(&inner.accounts, name)?);
        let Inner {
            accounts, routes, ..
        } = &mut *inner;
        let mut made = Vec::new();
        let assembled = hub.change(|dispatcher, now, effects| {
            let assembled = accounts.model(dispatcher, name, &settings, &mut made, now);
            effects.extend(accounts.take_news().into_iter().map(Effect::Notice));
            assembled
        });
        routes.extend(
            made.into_iter()
                .map(|route| (route.upstream, Arc::new(route))),
        );
        let model = Arc::new(model(name, assembled, routes));
        inner.by_name.insert(name.to_owned(), Arc::clone(&model));
        inner.unnamed += 1;
        Some(model)
    }

    /// Where a grant leads.
    pub(crate) fn route(&self, upstream: UpstreamId) -> Option<Arc<AssembledRoute>> {
        self.read().routes.get(&upstream).cloned()
    }

    /// Who is behind an upstream, whose name begins with that of its account and a slash.
    pub(crate) fn provider(&self, upstream: &str) -> Option<Provider> {
        let account = upstream
            .split_once('/')
            .map_or(upstream, |(first, _)| first);
        let inner = self.read();
        let mut providers = inner.accounts.providers();
        let found = providers.find(|(name, _)| *name == account);
        found.map(|(_, provider)| provider.clone())
    }

    /// The only account there is, if there is one only.
    pub(crate) fn only_provider(&self) -> Option<Provider> {
        let inner = self.read();
        let mut providers = inner.accounts.providers();
        let (_, only) = providers.next()?;
        providers.next().is_none().then(|| only.clone())
    }

    /// The accounts, where any name leads to one of them; none: only configured models are served.
    pub(crate) fn open_accounts(&self) -> Option<Vec<(String, Provider)>> {
        let inner = self.read();
        let accounts = inner.accounts.providers();
        inner.any_name.then(|| {
            accounts
                .map(|(name, provider)| (name.to_owned(), provider.clone()))
                .collect()
        })
    }

    /// The account to which a name leads that nobody configured.
    pub(crate) fn leads_to(&self, name: &str) -> Option<String> {
        account_for(&self.read().accounts, name)
    }

    /// The names that are known, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.read().by_name.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        // A panic while the table was changed leaves it whole: entries go in last.
        self.inner.read().unwrap_or_else(|error| error.into_inner())
    }
}

/// The account for a model that nobody configured: Anthropic's for its own names, else the
/// first other one.
fn account_for(accounts: &Accounts, model: &str) -> Option<String> {
    let wanted = if model.starts_with("claude") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    };
    let speaks = |dialect: Dialect| {
        accounts
            .providers()
            .find(|(_, provider)| provider.dialect() == dialect)
            .map(|(name, _)| name.to_owned())
    };
    let other = match wanted {
        Dialect::Anthropic => Dialect::OpenAi,
        Dialect::OpenAi => Dialect::Anthropic,
    };
    speaks(wanted).or_else(|| speaks(other))
}

/// How a model is set that nobody configured.
pub(crate) fn unnamed(account: String) -> ModelSettings {
    ModelSettings {
        upstreams: vec![RouteSettings {
            upstream: account,
            model: None,
            weight: 1.0,
            limits: LimitTable::default(),
            shared_limits: Vec::new(),
        }],
        fallback: Vec::new(),
        context_fallback: Vec::new(),
        stream_recovery: StreamRecovery::default(),
        stream_usage: StreamUsage::default(),
        max_tokens: None,
        early_headers: None,
        reserve: Vec::new(),
        on_unavailable: OnUnavailable::default(),
        price: None,
    }
}
