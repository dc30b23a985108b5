use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmq_core::CallSize;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::config::ModelConfig;
use crate::engine::{Engine, Place};
use crate::live::{End, Live};
use crate::metrics::Counters;
use crate::processor::Processor;
use crate::registry::Registry;
use crate::request::QueueRequest;

/// Says how large a call with these parameters is.
pub(crate) type Estimator<P> = Box<dyn Fn(&P) -> CallSize + Send + Sync>;

/// What all clones of a queue and all its requests share.
pub(crate) struct Inner<P, T> {
    pub(crate) model: Arc<str>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) place: Place,
    pub(crate) processor: Processor<P, T>,
    pub(crate) counters: Counters,
    estimator: Option<Estimator<P>>,
    timeout: Option<Duration>,
    registry: Mutex<Registry<T>>,
    pub(super) in_flight: AtomicU64,
    idle: Notify,
    is_closed: AtomicBool,
    /// Whether headers were told: they are compared with what was sent before them.
    pub(super) hears: AtomicBool,
}

impl<P, T> Inner<P, T> {
    pub(super) fn new(
        config: &ModelConfig,
        engine: Arc<Engine>,
        place: Place,
        processor: Processor<P, T>,
        estimator: Option<Estimator<P>>,
    ) -> Self {
        Self {
            model: Arc::clone(&config.model_id),
            engine,
            place,
            processor,
            counters: Counters::default(),
            estimator,
            timeout: config.timeout,
            registry: Mutex::new(Registry::new(config.history)),
            in_flight: AtomicU64::new(0),
            idle: Notify::new(),
            is_closed: AtomicBool::new(false),
            hears: AtomicBool::new(false),
        }
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry<T>> {
        // Nothing of the caller's runs under this lock but the cloning of a result.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    pub(crate) fn timeout_of(&self, request: &QueueRequest<P>) -> Option<Duration> {
        request.timeout.or(self.timeout)
    }

    /// How large a request's call is. What the caller gave for that is called, and may panic.
    pub(super) fn size_of(&self, request: &QueueRequest<P>) -> CallSize {
        let estimated = || self.estimator.as_ref().map(|size| size(&request.params));
        request.size.or_else(estimated).unwrap_or_default()
    }

    /// Whether it matters when a call was sent.
    pub(crate) fn dates(&self) -> bool {
        self.place.dates || self.hears.load(Ordering::Relaxed) || self.engine.tenants.date()
    }

    /// One request fewer is in flight.
    pub(super) fn leave(&self) {
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.notify_waiters();
        }
    }

    /// Accepts nothing more.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Waits until nothing is in flight.
    pub(super) async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            idle.as_mut().enable();
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Ends everything in flight; which requests that was.
    pub(super) fn end_all(&self) -> Vec<Uuid> {
        let live: Vec<_> = self.registry().live().cloned().collect();
        // What is over is about to be recorded, and was asked nothing.
        let is_ended = |live: &&Arc<Live<T>>| live.end(End::ShutDown) || live.asked().is_some();
        live.iter().filter(is_ended).map(|live| live.id).collect()
    }
}
