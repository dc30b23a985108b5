//! Which line a model's calls wait in.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use llmq_core::Now;
use llmq_dispatch::{QueueId, UpstreamId};
use llmq_engine::config::{
    LimitTable, ModelSettings, OnUnavailable, RouteSettings, StreamRecovery, StreamUsage,
};
use llmq_engine::{Accounts, AssembledModel, AssembledRoute, Hub};
use llmq_provider::Dialect;
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
    /// What a call cost, in billionths of a dollar; 0 where no price is configured.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a price is not negative, and a call costs far less than 2^63 nano dollars"
    )]
    pub(crate) fn nano_usd(&self, usage: &llmq_core::Usage) -> u64 {
        let price = self.settings.price;
        price.map_or(0, |price| {
            (price.of(usage.input_tokens, usage.output_tokens) * 1e9).round() as u64
        })
    }
}

/// Models that nobody configured are made as callers name them, this many at most.
const UNNAMED_MAX: usize = 1_000;
/// A longer name is no model's.
const NAME_BYTES_MAX: usize = 200;

/// The public models and the upstreams they lead to.
#[derive(Debug)]
pub(crate) struct Models {
    inner: RwLock<Inner>,
    /// Whether any name leads to an account: nothing was configured.
    any_name: bool,
}

#[derive(Debug)]
struct Inner {
    by_name: FxHashMap<String, Arc<Model>>,
    routes: Routes,
    accounts: Accounts,
    unnamed: usize,
}

type Routes = FxHashMap<UpstreamId, Arc<AssembledRoute>>;

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
        let by_name = models.into_iter().map(|(name, model)| {
            let model = Model {
                name: name.clone(),
                queue: model.queue,
                settings: model.settings,
                routes: of(&routes, model.upstreams.iter().copied()),
            };
            (name, Arc::new(model))
        });
        let by_name = by_name.collect();
        Self {
            inner: RwLock::new(Inner {
                by_name,
                routes,
                accounts,
                unnamed: 0,
            }),
            any_name,
        }
    }

    /// The model of this name. Where nothing was configured, one is made for it.
    /// `made` is called after one was.
    pub(crate) fn find(
        &self,
        name: &str,
        hub: &Hub,
        now: Now,
        made: impl FnOnce(),
    ) -> Option<Arc<Model>> {
        if let Some(model) = self.read().by_name.get(name) {
            return Some(Arc::clone(model));
        }
        if !self.any_name || name.is_empty() || name.len() > NAME_BYTES_MAX {
            return None;
        }
        let model = self.make(name, hub, now)?;
        made();
        Some(model)
    }

    /// A configured model.
    pub(crate) fn known(&self, name: &str) -> Option<Arc<Model>> {
        self.read().by_name.get(name).cloned()
    }

    fn make(&self, name: &str, hub: &Hub, now: Now) -> Option<Arc<Model>> {
        let mut inner = self
            .inner
            .write()
            .unwrap_or_else(|error| error.into_inner());
        if let Some(model) = inner.by_name.get(name) {
            return Some(Arc::clone(model));
        }
        if inner.unnamed >= UNNAMED_MAX {
            return None;
        }
        let settings = unnamed(account_for(&inner.accounts, name)?);
        let Inner {
            accounts, routes, ..
        } = &mut *inner;
        let mut made = Vec::new();
        let (queue, ways) = hub.with(|dispatcher| {
            let setup = accounts
                .queue(dispatcher, name, &settings, &mut made, now)
                .ok()?;
            let ways = setup.routes.clone();
            Some((dispatcher.add_queue(setup), ways))
        })?;
        routes.extend(
            made.into_iter()
                .map(|route| (route.upstream, Arc::new(route))),
        );
        let model = Arc::new(Model {
            name: name.to_owned(),
            queue,
            settings,
            routes: of(routes, ways.iter().map(|way| way.upstream)),
        });
        inner.by_name.insert(name.to_owned(), Arc::clone(&model));
        inner.unnamed += 1;
        Some(model)
    }

    /// Where a grant leads.
    pub(crate) fn route(&self, upstream: UpstreamId) -> Option<Arc<AssembledRoute>> {
        self.read().routes.get(&upstream).cloned()
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

fn unnamed(account: String) -> ModelSettings {
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
