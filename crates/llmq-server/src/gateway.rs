//! What a running gateway is made of.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use llmq_core::Clock;
use llmq_engine::config::{ServerSettings, Settings};
use llmq_engine::{AssemblyError, Hub, SystemClock, Tasks, assemble};
use llmq_store_sqlite::{OpenError, Place, Store, StoreError};

use crate::keys::{AuthPolicy, KeyRing, KeyRingError, KeyRingOptions};
use crate::models::Models;
use crate::observe::{CallLog, Observed, Parts};
use crate::tenants::Tenants;

/// How a gateway is to run, beside its settings.
#[derive(Debug)]
pub struct GatewayOptions {
    /// Any model name leads to an account: for a gateway without a configuration.
    pub any_model: bool,
    /// Where keys are kept.
    pub store: Store,
    /// Where a line is written for each call.
    pub log: CallLog,
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
        })
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
    pub(crate) models: Models,
    pub(crate) tenants: Tenants,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) log: CallLog,
    pub(crate) settings: ServerSettings,
    /// Whether a caller's choice of an account reaches any upstream.
    pub(crate) passes_account: bool,
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
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let listen = settings.server.listen;
        let auth = AuthPolicy::of(settings.server.auth, listen.ip())
            .ok_or(GatewayError::OpenToAll(listen))?;
        let ring = KeyRingOptions {
            auth,
            // The settings were checked: the name is a time zone's.
            time_zone: TimeZone::get(&settings.quota.time_zone).unwrap_or(TimeZone::UTC),
        };
        let keys = KeyRing::open(options.store, Arc::clone(&shared), ring).await?;
        let assembly = assemble(settings, &shared, clock.now())?;
        let hub = llmq_engine::run(assembly.dispatcher, clock.clone(), tasks);
        let providers = settings.upstreams.iter();
        let parts = Parts {
            hub: Arc::clone(&hub),
            providers: providers
                .map(|(name, upstream)| (name.clone(), upstream.provider.as_str()))
                .collect(),
        };
        tasks.spawn(save_usage(Arc::clone(&keys), tasks.clone()));
        let observed = Arc::new(Observed::new(parts, clock.clone()));
        let hears = Arc::clone(&observed);
        llmq_engine::listen(&hub, move |notice| hears.notice(&notice));
        Ok(Arc::new(Self {
            keys,
            observed,
            log: options.log,
            tenants: Tenants::new(assembly.tenant),
            hub,
            clock,
            models: Models::new(
                assembly.models,
                assembly.routes,
                assembly.accounts,
                options.any_model,
            ),
            settings: settings.server.clone(),
            passes_account: settings
                .upstreams
                .values()
                .any(|upstream| !upstream.pass_headers.is_empty()),
        }))
    }

    /// Writes down what keys have used, when no call is under way any more.
    ///
    /// # Errors
    ///
    /// The store cannot write: what was drawn ahead of use then counts as used.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.keys.save_last_usage().await
    }

    /// How long a call may wait that does not say so itself.
    pub(crate) fn max_wait(&self) -> Duration {
        self.settings.max_wait
    }
}

/// Keeps what keys have used on disk, a second behind at most. A crash in between costs nothing:
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
