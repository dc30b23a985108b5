//! Jobs of a model that nothing serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use llmq_core::Status;
use llmq_store::Store;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::world::{Act, Upstream, World, job};

over_each_store! {
    it_is_said_once_and_they_go_on_as_soon_as_something_serves_it,
}

/// Counts warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

async fn it_is_said_once_and_they_go_on_as_soon_as_something_serves_it(store: Arc<dyn Store>) {
    let upstream = Upstream::start(|_| Act::Answer("hi".to_owned())).await;
    let world = World::over(store, &upstream, "").await;
    let warnings = Warnings::default();
    let _counted = tracing::subscriber::set_default(warnings.clone());
    world.models.is_unserved.store(true, Ordering::SeqCst);
    let jobs = (0..20).map(|_| job()).collect();
    let accepted = world.runner.accept_many(jobs).await.unwrap();
    while warnings.0.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // Another change, that serves it as little: it is said again, once.
    world.runner.models_changed();
    while warnings.0.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    let begun = tokio::time::Instant::now();
    world.models.is_unserved.store(false, Ordering::SeqCst);
    world.runner.models_changed();
    for one in &accepted {
        assert_eq!(world.end(one.id).await.status, Status::Completed);
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "nobody sleeps");
    assert_eq!(warnings.0.load(Ordering::SeqCst), 2, "not one for each job");
}
