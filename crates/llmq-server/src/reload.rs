//! Another configuration for a running gateway: taken over whole, or refused whole.

use std::sync::Arc;

use llmq_core::Clock;
use llmq_engine::config::Settings;

use crate::gateway::{Live, parts, ring_options};
use crate::{Gateway, GatewayError};

/// Why another configuration is not taken over. What was in force goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// It would not do at the start either.
    #[error(transparent)]
    Unusable(#[from] GatewayError),
    /// It needs another start.
    #[error("{0} cannot change while the gateway runs: restart it for that")]
    NeedsRestart(&'static str),
}

/// What is in force now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloaded {
    /// Public models that are configured.
    pub models: usize,
    /// Accounts that are configured.
    pub upstreams: usize,
}

impl Gateway {
    /// Takes other settings over while calls go on. Limits that stay keep what is used of them;
    /// models and upstreams that go finish the calls they have; the files for https are read
    /// again. `any_model` is as in [`GatewayOptions`](crate::GatewayOptions).
    ///
    /// # Errors
    ///
    /// [`ReloadError`]; nothing has changed then.
    pub fn reload(&self, settings: &Settings, any_model: bool) -> Result<Reloaded, ReloadError> {
        // All that can fail comes first.
        let before = self.live.load_full();
        if settings.server.listen != before.server.listen {
            return Err(ReloadError::NeedsRestart("server.listen"));
        }
        if settings.store != before.store {
            return Err(ReloadError::NeedsRestart("store"));
        }
        if settings.retry.ambiguous != before.retry.ambiguous {
            return Err(ReloadError::NeedsRestart("retry.ambiguous"));
        }
        let ring = ring_options(settings);
        let ring = ring.ok_or(GatewayError::OpenToAll(settings.server.listen))?;
        let live = Live::of(settings).map_err(GatewayError::from)?;
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let accounts = self.models.renewed(settings, &clock);
        let accounts = accounts.map_err(GatewayError::from)?;

        self.models.renew(accounts, settings, any_model, &self.hub);
        self.desk.runner.models_changed();
        self.keys.set_options(ring);
        self.desk.reach.allow(settings.webhooks.allow.clone());
        self.made.has_accounts(settings.upstreams.len());
        self.live.store(Arc::new(live));
        let seen = parts(settings, &self.hub, any_model);
        self.observed.replace(seen);
        Ok(Reloaded {
            models: settings.models.len(),
            upstreams: settings.upstreams.len(),
        })
    }
}
