//! What tenants may rely on.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use llmq::{ModelConfig, ProcessorError, QueueError, QueueManager, QueueRequest, TenantConfig};
use tokio::time::Instant;

type Manager = QueueManager<&'static str, ()>;

const MODEL: &str = "m";

/// Whose call started, and when.
type Starts = Arc<Mutex<Vec<(&'static str, Instant)>>>;

/// A manager that notes whose calls start, and when.
fn noting(config: ModelConfig) -> (Manager, Starts) {
    let manager = Manager::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&order);
    let processor = move |request: QueueRequest<&'static str>| {
        noted.lock().unwrap().push((request.params, Instant::now()));
        std::future::ready(Ok::<_, ProcessorError>(()))
    };
    manager.register_queue(config, processor).unwrap();
    (manager, order)
}

fn of(tenant: &'static str) -> QueueRequest<&'static str> {
    QueueRequest::new(MODEL, tenant).tenant(tenant)
}

#[tokio::test(start_paused = true)]
async fn tenants_share_a_limit_by_their_weights_and_an_idle_one_takes_nothing() {
    let config = ModelConfig::new(MODEL).requests_per(1, Duration::from_secs(1));
    let (manager, order) = noting(config);
    for (name, weight) in [("alice", 3.0), ("bob", 1.0), ("idle", 5.0)] {
        let tenant = TenantConfig::new(name).weight(weight);
        manager.add_tenant(&tenant).unwrap();
    }
    // All of one stand before all of the other.
    let requests = (0..80).map(|n| of(if n < 40 { "bob" } else { "alice" }));
    for answer in manager.submit_all(requests).await {
        answer.unwrap();
    }
    let order = order.lock().unwrap();
    let first = order[..40].iter();
    let alices = first.filter(|(name, _)| *name == "alice").count();
    assert!((29..=31).contains(&alices), "{alices} of 40");
}

#[tokio::test(start_paused = true)]
async fn a_tenants_own_limit_holds_over_all_models_and_delays_nobody_else() {
    let (manager, order) = noting(ModelConfig::new(MODEL));
    let minute = Duration::from_secs(60);
    let few = TenantConfig::new("few").limit("requests=2/1m".parse().unwrap());
    manager.add_tenant(&few).unwrap();
    manager.add_tenant(&TenantConfig::new("free")).unwrap();
    let start = Instant::now();
    let requests = (0..10).map(|n| of(if n < 5 { "few" } else { "free" }));
    for answer in manager.submit_all(requests).await {
        answer.unwrap();
    }
    let waited = |of: &str| -> Vec<u64> {
        let order = order.lock().unwrap();
        let of = order.iter().filter(|(name, _)| *name == of);
        of.map(|(_, at)| (*at - start).as_secs() / minute.as_secs())
            .collect()
    };
    assert_eq!(waited("free"), [0; 5]);
    assert_eq!(waited("few"), [0, 0, 1, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_tenant_is_refused_and_one_is_made_once() {
    let (manager, order) = noting(ModelConfig::new(MODEL));
    let error = manager.submit_request(of("nobody")).await.unwrap_err();
    assert!(matches!(error, QueueError::UnknownTenant { .. }), "{error}");
    assert!(order.lock().unwrap().is_empty());
    assert_eq!(manager.metrics().refused, 1);
    manager.add_tenant(&TenantConfig::new("nobody")).unwrap();
    manager.submit_request(of("nobody")).await.unwrap();
    let again = manager.add_tenant(&TenantConfig::new("nobody"));
    let error = again.unwrap_err();
    assert!(matches!(error, QueueError::InvalidConfiguration { .. }));
}
