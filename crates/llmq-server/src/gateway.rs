//! What a running gateway is made of.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::tz::TimeZone;
use llmq_core::{Clock, Verdict};
use llmq_engine::books::{Memory, Wanted};
use llmq_engine::config::{
    Ambiguous, OnUnavailable, RetrySettings, ServerSettings, Settings, StoreSettings,
};
use llmq_engine::{AssemblyError, Hub, SystemClock, Tasks, assemble};
use llmq_store_sqlite::{OpenError, Place, Store, StoreError};
use tokio_rustls::TlsAcceptor;

use crate::jobs::{Catalog, Desk};
use crate::keys::{AuthPolicy, HasKeys, KeyRing, KeyRingError, KeyRingOptions};
use crate::made::Made;
use crate::model_list::Listed;
use crate::models::Models;
use crate::observe::{CallLog, Observed, Parts, Traces};
use crate::openai::batches;
use crate::shelf::{self, Keeping, StoreShelf};
use crate::tenants::Tenants;
use crate::{Bounds, TlsError, tls};

/// How a gateway is to run, beside its settings.
#[derive(Debug)]
pub struct GatewayOptions {
    /// Any model name leads to an account: for a gateway without a configuration.
    pub any_model: bool,
    /// Where keys and accepted requests are kept.
    pub store: Store,
    /// Where a line is written for each call.
    pub log: CallLog,
    /// Where a span is sent for each call; none: nowhere.
    pub traces: Option<Traces>,
    /// How much patience and room there is for those who connect.
    pub bounds: Bounds,
}

impl GatewayOptions {
    /// Nothing is kept and nothing logged; only configured models are served.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn in_memory(clock: &SystemClock) -> Result<Self, OpenError> {
        Ok(Self {
            any_model: false,
            store: Store::open(&Place::Memory, clock.now().wall)?,
            log: CallLog::off(),
            traces: None,
            bounds: Bounds::default(),
        })
    }
}

/// How much a store takes and how long it keeps things, as the configuration says it.
#[must_use]
pub fn store_settings(settings: &Settings) -> llmq_store::Settings {
    let capacity = settings.store.capacity;
    llmq_store::Settings {
        max_jobs: capacity.jobs,
        max_bytes: capacity.bytes,
        high_watermark: capacity.high_watermark,
        low_watermark: capacity.low_watermark,
        keep_results: settings.store.keep_results,
        lost_attempt: match settings.retry.ambiguous {
            Ambiguous::Retry => Verdict::Retry,
            Ambiguous::Fail => Verdict::GiveUp,
        },
        ..llmq_store::Settings::default()
    }
}

/// A gateway cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// A key or an address of an upstream cannot be used.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    /// The keys cannot be read.
    #[error(transparent)]
    Keys(#[from] KeyRingError),
    /// What was spent of limits cannot be read or written.
    #[error("the books of limits cannot be read or written")]
    Books(#[from] StoreError),
    /// The files for https cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Accepted requests cannot be read.
    #[error("the accepted requests cannot be read")]
    Jobs(#[source] StoreError),
    /// Anybody who reaches the address could spend the accounts' money.
    #[error(
        "server.auth = \"none\" is only accepted on a loopback address, and {0} is none: use \
         \"auto\" or \"keys\", and make a key with `llmq keys create`"
    )]
    OpenToAll(std::net::SocketAddr),
}

/// A running gateway: the line, the models, who may call.
pub struct Gateway {
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: SystemClock,
    pub(crate) models: Arc<Models>,
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) log: Arc<CallLog>,
    pub(crate) traces: Option<Arc<Traces>>,
    pub(crate) bounds: Bounds,
    pub(crate) live: ArcSwap<Live>,
    /// None: the store is nowhere, and nothing is kept.
    keeping: Option<Keeping>,
    /// Who made what calls may name later.
    pub(crate) made: Arc<Made>,
    pub(crate) desk: Desk,
    /// Which models the accounts list, where callers may name any.
    pub(crate) listed: Listed,
    /// Of files that are on their way in.
    pub(crate) file_bytes_coming: AtomicU64,
    /// The batches that something happened to.
    pub(crate) batches: Arc<batches::Touched>,
}

impl HasKeys for Arc<Gateway> {
    fn key_ring(&self) -> &KeyRing {
        &self.keys
    }
}

/// What is asked of the settings for each connection and request, or compared with others.
pub(crate) struct Live {
    pub(crate) server: ServerSettings,
    pub(crate) store: StoreSettings,
    pub(crate) retry: RetrySettings,
    /// Whether a caller's choice of an account reaches any upstream.
    pub(crate) passes_account: bool,
    /// Whether calls of any model become jobs while nobody can serve them.
    pub(crate) keeps_calls: bool,
    /// For https; none: http.
    pub(crate) tls: Option<TlsAcceptor>,
}

impl Live {
    pub(crate) fn of(settings: &Settings) -> Result<Self, TlsError> {
        let server = settings.server.clone();
        Ok(Self {
            tls: server.tls.as_ref().map(tls::acceptor).transpose()?,
            server,
            store: settings.store.clone(),
            retry: settings.retry,
            passes_account: settings
                .upstreams
                .values()
                .any(|upstream| !upstream.pass_headers.is_empty()),
            keeps_calls: settings
                .models
                .values()
                .any(|model| model.on_unavailable == OnUnavailable::Queue),
        })
    }
}

/// Who may call by these settings; none: everybody, at an address that others reach.
pub(crate) fn ring_options(settings: &Settings) -> Option<KeyRingOptions> {
    Some(KeyRingOptions {
        auth: AuthPolicy::of(settings.server.auth, settings.server.listen.ip())?,
        // The settings were checked: the name is a time zone's.
        time_zone: TimeZone::get(&settings.quota.time_zone).unwrap_or(TimeZone::UTC),
    })
}

/// What can be seen of a dispatcher with these settings.
pub(crate) fn parts(settings: &Settings, hub: &Arc<Hub>, any_model: bool) -> Parts {
    let providers = settings.upstreams.iter();
    Parts {
        hub: Arc::clone(hub),
        providers: providers
            .map(|(name, upstream)| (name.clone(), upstream.provider.as_str()))
            .collect(),
        any_model,
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("models", &self.models)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Sets up what `settings` say, with its timer as one of `tasks`. Connects to nothing.
    ///
    /// # Errors
    ///
    /// [`GatewayError`]: a key or an address that cannot be used, or nobody to ask for keys.
    pub async fn new(
        settings: &Settings,
        options: GatewayOptions,
        clock: SystemClock,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, GatewayError> {
        let jobs = Arc::new(options.store.clone());
        Self::over(jobs, settings, options, clock, tasks).await
    }

    /// The same with accepted requests, batches and files in a store of their own.
    pub(crate) async fn over(
        jobs: Arc<dyn llmq_store::Store>,
        settings: &Settings,
        options: GatewayOptions,
        clock: SystemClock,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, GatewayError> {
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let ring = ring_options(settings);
        let ring = ring.ok_or(GatewayError::OpenToAll(settings.server.listen))?;
        let live = Live::of(settings)?;
        let store = options.store;
        let keys = KeyRing::open(store.clone(), Arc::clone(&shared), ring, tasks).await?;
        let wanted = Wanted::default();
        let asked = wanted.open();
        let memory = match store.place() {
            Place::Memory => None,
            Place::File(_) => {
                tasks.spawn(touch(store.clone(), clock.clone(), tasks.clone()));
                let earlier = shelf::earlier(&store).await?;
                Some(Memory::new(earlier, wanted.clone()))
            }
        };
        let mut assembly = assemble(settings, memory.clone(), &shared, clock.now())?;
        let news = assembly.accounts.take_news();
        let hub = llmq_engine::run(assembly.dispatcher, clock.clone(), tasks);
        tasks.spawn(save_usage(Arc::clone(&keys), tasks.clone()));
        let seen = parts(settings, &hub, options.any_model);
        let observed = Observed::new(seen, clock.clone(), Arc::clone(&jobs), tasks);
        let observed = Arc::new(observed);
        let (hears, asks) = (Arc::clone(&observed), wanted.clone());
        llmq_engine::listen(&hub, move |notice| {
            asks.hear(&notice);
            hears.notice(&notice);
        });
        for notice in news {
            observed.notice(&notice);
        }
        let tenants = Arc::new(Tenants::new(assembly.tenant, memory.clone()));
        let models = Arc::new(Models::new(
            assembly.models,
            assembly.routes,
            assembly.accounts,
            options.any_model,
        ));
        let keeping = match &memory {
            None => None,
            Some(memory) => {
                let earlier = memory.earlier().clone();
                let shelf = StoreShelf::new(store, Arc::clone(&models), earlier);
                Some(Keeping::begin(Arc::clone(&hub), shelf, wanted, asked).await?)
            }
        };
        let touched = Arc::new(batches::Touched::default());
        let traces = options.traces.map(Arc::new);
        let log = Arc::new(options.log);
        let made = Arc::new(Made::new(settings.upstreams.len()));
        let catalog = Catalog {
            models: Arc::clone(&models),
            tenants: Arc::clone(&tenants),
            keys: Arc::clone(&keys),
            hub: Arc::clone(&hub),
            clock: clock.clone(),
            observed: Arc::clone(&observed),
            traces: traces.clone(),
            log: Arc::clone(&log),
            made: Arc::clone(&made),
            batches: Arc::clone(&touched),
        };
        let desk = Desk::open(settings, jobs, catalog, tasks)
            .await
            .map_err(GatewayError::Jobs)?;
        let gateway = Arc::new(Self {
            desk,
            listed: Listed::default(),
            file_bytes_coming: AtomicU64::new(0),
            batches: touched,
            keys,
            observed,
            log,
            traces,
            tenants,
            hub,
            clock,
            models,
            bounds: options.bounds,
            live: ArcSwap::from_pointee(live),
            keeping,
            made,
        });
        tasks.spawn(batches::keep(Arc::clone(&gateway), tasks.clone()));
        Ok(gateway)
    }

    /// Writes down what keys have used and what was spent of limits, when no call is under way
    /// any more.
    ///
    /// # Errors
    ///
    /// The store cannot write: what was drawn ahead of use then counts as used, and short windows
    /// as spent.
    pub async fn close(&self) -> Result<(), StoreError> {
        if let Some(keeping) = &self.keeping {
            keeping.end().await?;
        }
        if let Some(traces) = self.traces.clone() {
            // A panic there has been told, and lost spans at worst.
            let _ = tokio::task::spawn_blocking(move || traces.close()).await;
        }
        self.keys.save_last_usage().await
    }

    /// Starts no accepted request any more, lets those that run end for at most `grace`, and gives
    /// back what has not.
    pub async fn stop_requests(&self, grace: Duration) {
        self.desk.runner.stop(grace).await;
    }

    /// How long a call may wait that does not say so itself.
    pub(crate) fn max_wait(&self) -> Duration {
        self.live.load().server.max_wait
    }

    /// How often what is accepted is tried.
    pub(crate) fn max_attempts(&self) -> u32 {
        self.live.load().retry.max_attempts
    }

    /// How many bytes a call's body may have.
    pub(crate) fn max_body_bytes(&self) -> u64 {
        self.live.load().server.max_body_bytes
    }
}

/// Says each second that this process is alive, for the next one, also while its store takes
/// nothing: calls go on meanwhile, and what they use of limits is in no book.
async fn touch(store: Store, clock: SystemClock, tasks: Tasks) {
    const EVERY: Duration = Duration::from_secs(1);
    loop {
        let (touched, now) = (store.clone(), clock.now().wall);
        let touching = tokio::task::spawn_blocking(move || touched.touch(now));
        if let Ok(Err(error)) = touching.await {
            tracing::debug!(%error, "the lock file of the store could not be touched");
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = tasks.cancelled() => return,
        }
    }
}

/// Keeps what keys have used on disk, a second behind at most. A crash in between frees nothing:
/// budgets are drawn ahead of use.
async fn save_usage(keys: Arc<KeyRing>, tasks: Tasks) {
    const EVERY: Duration = Duration::from_secs(1);
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = tasks.cancelled() => return,
        }
        if let Err(error) = keys.save_usage().await {
            tracing::warn!(%error, "what keys have used could not be written");
        }
    }
}
