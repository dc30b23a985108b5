use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use llmq_core::{Clock, Now};
use llmq_dispatch::UpstreamId;
use llmq_engine::{Hub, NoticeLog, SystemClock, Tasks};
use llmq_store::Store;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use super::metrics::Metrics;
use super::waiting::Waiting;

/// So many may listen to events at once.
pub(crate) const LISTENERS_MAX: usize = 256;

/// Everything that can be seen of a running gateway.
pub struct Observed {
    /// What is counted.
    pub metrics: Metrics,
    /// Calls that wait for their turn.
    pub waiting: Waiting,
    pub(crate) clock: SystemClock,
    pub(crate) started: Now,
    pub(crate) listeners: Arc<Semaphore>,
    pub(crate) draining: CancellationToken,
    /// Where events are kept.
    pub(super) journal: Journal,
    /// The server's own log, not that of its calls.
    pub(super) log: NoticeLog,
    parts: ArcSwap<Parts>,
    /// Held while names are looked at and told, so that no older ones are told later.
    refreshing: Mutex<()>,
}

/// What a configuration made.
pub struct Parts {
    /// The running dispatcher.
    pub hub: Arc<Hub>,
    /// The accounts of the configuration with their providers, such as `openai`. The names of
    /// the dispatcher's upstreams begin with that of their account and a slash.
    pub providers: BTreeMap<String, &'static str>,
    /// Whether callers name the models, which then come and go.
    pub any_model: bool,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").finish_non_exhaustive()
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

impl Observed {
    /// Looks at a gateway that has just started. What happens is recorded in `store`, by one of
    /// `tasks`.
    #[must_use]
    pub fn new(parts: Parts, clock: SystemClock, store: Arc<dyn Store>, tasks: &Tasks) -> Self {
        let started = clock.now();
        let journal = Journal::begin(store, clock.clone(), tasks);
        let observed = Self {
            metrics: Metrics::new(),
            waiting: Waiting::default(),
            clock,
            started,
            listeners: Arc::new(Semaphore::new(LISTENERS_MAX)),
            draining: CancellationToken::new(),
            journal,
            log: NoticeLog::default(),
            parts: ArcSwap::from_pointee(parts),
            refreshing: Mutex::new(()),
        };
        observed.refresh();
        observed
    }

    /// Looks at what another configuration made from here on.
    pub fn replace(&self, parts: Parts) {
        self.parts.store(Arc::new(parts));
        self.refresh();
    }

    /// Looks again which models and upstreams there are: to be called when one was added to
    /// the dispatcher. Until then its calls count as those of `other`.
    pub fn refresh(&self) {
        let _one = self
            .refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let parts = self.parts();
        let (models, upstreams) = parts.names();
        let upstreams = upstreams
            .iter()
            .map(|name| (name.as_str(), parts.provider(name).unwrap_or_default()));
        let models = models.iter().map(String::as_str);
        match parts.any_model {
            true => self.metrics.follow(models, upstreams),
            false => self.metrics.configure(models, upstreams),
        }
    }

    /// The gateway takes no new calls from here on: it is not ready any more, and listeners
    /// are let go.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    pub(crate) fn now(&self) -> Now {
        self.clock.now()
    }

    pub(crate) fn parts(&self) -> arc_swap::Guard<Arc<Parts>> {
        self.parts.load()
    }
}

impl Parts {
    /// Who is behind an upstream.
    pub(crate) fn provider(&self, upstream: &str) -> Option<&'static str> {
        let account = upstream
            .split_once('/')
            .map_or(upstream, |(first, _)| first);
        self.providers.get(account).copied()
    }

    pub(crate) fn upstream_name(&self, id: UpstreamId) -> String {
        self.hub
            .with(|dispatcher| dispatcher.upstream_view(id).name)
    }

    /// The names of all queues and of all upstreams.
    fn names(&self) -> (Vec<String>, Vec<String>) {
        self.hub.with(|dispatcher| {
            let queues = dispatcher.queue_ids();
            let upstreams = dispatcher.upstream_ids();
            (
                queues
                    .map(|id| dispatcher.queue_name(id).to_owned())
                    .collect(),
                upstreams
                    .map(|id| dispatcher.upstream_view(id).name)
                    .collect(),
            )
        })
    }
}
