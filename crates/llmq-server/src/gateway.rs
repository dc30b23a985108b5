//! What a running gateway is made of.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::Clock;
use llmq_dispatch::TenantId;
use llmq_engine::config::{ServerSettings, Settings};
use llmq_engine::{AssemblyError, Hub, SystemClock, Tasks, assemble};

use crate::models::Models;

/// How a gateway is to run, beside its settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct GatewayOptions {
    /// Any model name leads to an account: for a gateway without a configuration.
    pub any_model: bool,
}

/// A running gateway: the line, the models, who may call.
pub struct Gateway {
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: SystemClock,
    pub(crate) models: Models,
    pub(crate) tenant: TenantId,
    pub(crate) settings: ServerSettings,
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
    /// [`AssemblyError`] for a key or an address that cannot be used.
    pub fn new(
        settings: &Settings,
        options: GatewayOptions,
        clock: SystemClock,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, AssemblyError> {
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let assembly = assemble(settings, &shared, clock.now())?;
        let hub = llmq_engine::run(assembly.dispatcher, clock.clone(), tasks);
        Ok(Arc::new(Self {
            hub,
            clock,
            models: Models::new(
                assembly.models,
                assembly.routes,
                assembly.accounts,
                options.any_model,
            ),
            tenant: assembly.tenant,
            settings: settings.server.clone(),
        }))
    }

    /// How long a call may wait that does not say so itself.
    pub(crate) fn max_wait(&self) -> Duration {
        self.settings.max_wait
    }
}
