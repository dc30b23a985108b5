use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::CONTENT_TYPE;
use llmq_core::{Clock, Now};
use llmq_dispatch::{Notice, QueueId, UpstreamId};
use llmq_engine::{Hub, SystemClock};

use super::events::Events;
use super::metrics::{self, Metrics, Page};
use super::waiting::Waiting;

/// Everything that can be seen of a running gateway.
#[derive(Debug)]
pub struct Observed {
    /// What is counted.
    pub metrics: Metrics,
    /// What happens.
    pub events: Events,
    /// Calls that wait for their turn.
    pub waiting: Waiting,
    parts: ArcSwap<Parts>,
    draining: AtomicBool,
    clock: SystemClock,
    started: Now,
}

/// What a configuration made: replaced when another one is taken over.
#[derive(Debug)]
pub struct Parts {
    /// The running dispatcher.
    pub hub: Arc<Hub>,
    /// Its queues with the names of their models.
    pub queues: Vec<(QueueId, String)>,
    /// Its upstreams: name, as records of calls name them, and provider (`openai` …).
    pub upstreams: Vec<(UpstreamId, String, String)>,
}

impl Observed {
    /// Looks at a gateway that has just started.
    #[must_use]
    pub fn new(parts: Parts, clock: SystemClock) -> Self {
        let started = clock.now();
        let observed = Self {
            metrics: Metrics::new(),
            events: Events::new(started.wall),
            waiting: Waiting::default(),
            parts: ArcSwap::from_pointee(parts),
            draining: AtomicBool::new(false),
            clock,
            started,
        };
        observed.name_labels();
        observed
    }

    /// Looks at what another configuration made from here on.
    pub fn replace(&self, parts: Parts) {
        self.parts.store(Arc::new(parts));
        self.name_labels();
    }

    /// The gateway takes no new calls from here on: it is not ready any more.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Takes note of what the dispatcher has to tell: for [`llmq_engine::listen`].
    pub fn notice(&self, notice: &Notice) {
        let parts = self.parts.load();
        let name = |id: UpstreamId| parts.upstream(id).unwrap_or("other");
        match notice {
            Notice::RateLimited { upstream, ours } => {
                self.metrics.rate_limited(name(*upstream), *ours);
            }
            Notice::BreakerOpened(upstream) => self.metrics.breaker_opened(name(*upstream)),
            _ => {}
        }
    }

    fn name_labels(&self) {
        let parts = self.parts.load();
        self.metrics.configure(
            parts.queues.iter().map(|(_, name)| name.as_str()),
            parts
                .upstreams
                .iter()
                .map(|(_, name, provider)| (name.as_str(), provider.as_str())),
        );
    }
}

impl Parts {
    fn upstream(&self, id: UpstreamId) -> Option<&str> {
        let found = self.upstreams.iter().find(|(other, ..)| *other == id)?;
        Some(&found.1)
    }
}

/// The routes that show it.
pub fn router(observed: Arc<Observed>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(observed)
}

async fn metrics(State(observed): State<Arc<Observed>>) -> Response {
    let mut page = Page::default();
    observed.metrics.write(&mut page);
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], page.finish()).into_response()
}
