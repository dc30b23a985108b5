mod many;
mod register;
mod requests;
mod shutdown;
mod steer;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use llmq_core::{Backoffs, LimitSpec};
use rustc_hash::FxHashMap;

use crate::config::check_limit;
use crate::engine::Engine;
use crate::error::QueueError;
use crate::hooks::Hooks;
use crate::queue::Queue;
use crate::tenant::TenantConfig;

pub use shutdown::ShutdownReport;

/// All queues of one program whose parameters are of type `P` and results of type `T`, one for
/// each model.
///
/// A manager can be cloned; every clone is the same. Queues of one manager can share limits
/// ([`QueueManager::share_limit`]); two managers know nothing of each other.
///
/// ```
/// # use llmq::{ModelConfig, QueueError, QueueManager, QueueRequest};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), QueueError> {
/// let manager = QueueManager::new();
/// manager.register_queue(
///     ModelConfig::new("echo").requests_per_minute(500).concurrent(8),
///     |request: QueueRequest<String>| async move { Ok::<_, QueueError>(request.params.len()) },
/// )?;
/// let response = manager.submit_request(QueueRequest::new("echo", "Hello".to_owned())).await?;
/// assert_eq!(response.result, Some(5));
/// # Ok(())
/// # }
/// ```
pub struct QueueManager<P, T> {
    shared: Arc<Shared<P, T>>,
}

struct Shared<P, T> {
    hooks: Option<Arc<dyn Hooks>>,
    backoffs: Backoffs,
    /// Made when the first queue is registered, since that happens on a runtime.
    engine: Mutex<Option<Arc<Engine>>>,
    queues: RwLock<FxHashMap<Arc<str>, Queue<P, T>>>,
}

/// A manager that is being set up.
#[must_use]
pub struct QueueManagerBuilder {
    hooks: Option<Arc<dyn Hooks>>,
    backoffs: Backoffs,
}

impl QueueManagerBuilder {
    /// Lets `hooks` hear what happens to every request.
    pub fn hooks(self, hooks: impl Hooks) -> Self {
        Self {
            hooks: Some(Arc::new(hooks)),
            ..self
        }
    }

    /// How long to wait before another attempt.
    pub fn backoffs(self, backoffs: Backoffs) -> Self {
        Self { backoffs, ..self }
    }

    /// The manager.
    #[must_use]
    pub fn build<P, T>(self) -> QueueManager<P, T> {
        QueueManager {
            shared: Arc::new(Shared {
                hooks: self.hooks,
                backoffs: self.backoffs,
                engine: Mutex::new(None),
                queues: RwLock::new(FxHashMap::default()),
            }),
        }
    }
}

impl<P, T> Clone for QueueManager<P, T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<P, T> Default for QueueManager<P, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P, T> fmt::Debug for QueueManager<P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueManager")
            .field("models", &self.models())
            .finish()
    }
}

impl QueueManager<(), ()> {
    /// Sets up a manager with hooks or backoffs of its own.
    pub fn builder() -> QueueManagerBuilder {
        QueueManagerBuilder {
            hooks: None,
            backoffs: Backoffs::default(),
        }
    }
}

impl<P, T> QueueManager<P, T> {
    /// A manager without queues, without hooks and with the default backoffs.
    #[must_use]
    pub fn new() -> Self {
        QueueManager::builder().build()
    }

    /// The registered models, in the order of their names.
    #[must_use]
    pub fn models(&self) -> Vec<Arc<str>> {
        let mut models: Vec<_> = self.queues().keys().cloned().collect();
        models.sort_unstable();
        models
    }

    fn queues(&self) -> RwLockReadGuard<'_, FxHashMap<Arc<str>, Queue<P, T>>> {
        self.shared
            .queues
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn queues_mut(&self) -> RwLockWriteGuard<'_, FxHashMap<Arc<str>, Queue<P, T>>> {
        self.shared
            .queues
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn engine(&self) -> Result<Arc<Engine>, QueueError> {
        let mut engine = self
            .shared
            .engine
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*engine {
            engine.check_runtime("manager")?;
            return Ok(Arc::clone(engine));
        }
        let started = Engine::start(self.shared.backoffs, self.shared.hooks.clone())?;
        *engine = Some(Arc::clone(&started));
        Ok(started)
    }

    /// Makes a limit that several models keep together, such as an account's; they refer to it
    /// with [`ModelConfig::shared_limit`](crate::ModelConfig::shared_limit).
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] when the limit cannot be meant, its name is taken,
    /// or there is no tokio runtime.
    pub fn share_limit(&self, name: &str, limit: LimitSpec) -> Result<(), QueueError> {
        check_limit(&limit)
            .map_err(|words| QueueError::invalid(name, format!("{limit}: {words}")))?;
        self.engine()?.share_limit(name, limit)
    }
}

impl<P, T> QueueManager<P, T> {
    /// Makes a tenant, to whom requests can be charged with [`QueueRequest::tenant`](crate::QueueRequest::tenant). It is
    /// known to all queues.
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] when a setting cannot be meant, there is a tenant
    /// of this name, or no tokio runtime.
    ///
    /// ```
    /// # use llmq::{ModelConfig, QueueError, QueueManager, QueueRequest, TenantConfig};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), QueueError> {
    /// let manager = QueueManager::new();
    /// manager.register_queue(
    ///     ModelConfig::new("m").requests_per_minute(500),
    ///     |request: QueueRequest<String>| async move { Ok::<_, QueueError>(request.params.len()) },
    /// )?;
    /// // While both wait for a limit, alice gets three quarters of it.
    /// manager.add_tenant(&TenantConfig::new("alice").weight(3.0))?;
    /// manager.add_tenant(&TenantConfig::new("bob"))?;
    /// let request = QueueRequest::new("m", "Hello".to_owned()).tenant("alice");
    /// assert_eq!(manager.submit_request(request).await?.result, Some(5));
    /// # Ok(())
    /// # }
    /// ```
    pub fn add_tenant(&self, tenant: &TenantConfig) -> Result<(), QueueError> {
        tenant.check()?;
        self.engine()?.add_tenant(tenant)
    }
}
