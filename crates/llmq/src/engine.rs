use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use llmq_core::{Backoffs, Host, LimitKind, LimitSpec, Now};
use llmq_dispatch::{
    Capacity, Dispatcher, Effect, Event, LimitSetup, Notice, QueueSetup, Rules, Scope,
    Surroundings, UpstreamSetup,
};
use llmq_dispatch::{LimitId, QueueId, TenantId, UpstreamId};
use llmq_engine::{Hub, NoticeLog, SystemClock, Tasks, listen, run};
use llmq_limit::{BreakerConfig, QuotaEvent, QuotaMonitor, QuotaRules, charge_rule};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::config::{ModelConfig, same_slot};
use crate::error::QueueError;
use crate::hooks::Hooks;
use crate::quota::{going_on, saved, write};
use crate::quota_files::{QuotaFile, QuotaFiles};
use crate::tenant::{TenantConfig, Tenants};

/// The dispatcher of one manager, running, with what all its queues share.
pub(crate) struct Engine {
    pub(crate) hub: Arc<Hub>,
    /// For requests that name none.
    pub(crate) nobody: TenantId,
    pub(crate) tenants: Tenants,
    pub(crate) hooks: Option<Arc<dyn Hooks>>,
    /// Requests that nobody drives himself.
    pub(crate) tasks: Tasks,
    timer: Tasks,
    runtime: Handle,
    has_ended: AtomicBool,
    endings: Mutex<Vec<Weak<dyn EndsWithRuntime>>>,
    shared_limits: Mutex<HashMap<String, LimitId>>,
    quota_files: Arc<QuotaFiles>,
    /// Of every model that was ever registered: the provider does not forget either.
    places: Mutex<HashMap<Arc<str>, Place>>,
}

/// What holds requests.
pub(crate) trait EndsWithRuntime: Send + Sync {
    /// Nothing happens at its time any more: whatever is in flight must end.
    fn runtime_ended(&self);
}

/// Where a model stands in the dispatcher.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) queue: QueueId,
    pub(crate) upstream: UpstreamId,
    /// Its own limits.
    pub(crate) limits: Vec<(LimitId, LimitSpec)>,
    pub(crate) host: Host,
    /// Whether it matters when a call was sent.
    pub(crate) dates: bool,
    /// Where the count of its day is kept.
    quota_file: Option<Arc<QuotaFile>>,
}

impl Engine {
    /// Starts a dispatcher without queues on the present tokio runtime.
    pub(crate) fn start(
        backoffs: Backoffs,
        hooks: Option<Arc<dyn Hooks>>,
    ) -> Result<Arc<Self>, QueueError> {
        let runtime = Handle::try_current().map_err(|_| {
            QueueError::invalid(
                "llmq",
                "it needs a tokio runtime: call this from inside one",
            )
        })?;
        let rules = Rules {
            backoffs,
            ..Rules::default()
        };
        let (seed, _) = Uuid::new_v4().as_u64_pair();
        let mut dispatcher = Dispatcher::new(rules, seed);
        let nobody = dispatcher.add_tenant(1.0, Vec::new());
        let timer = Tasks::new();
        let hub = run(dispatcher, SystemClock::new(), &timer);
        let weak = Arc::downgrade(&hub);
        let log = NoticeLog::default();
        let quota_files = Arc::new(QuotaFiles::new(runtime.clone()));
        let files = Arc::clone(&quota_files);
        listen(&hub, move |notice| {
            if let Notice::SaveQuota(upstream, _) = &notice {
                files.ask(*upstream, Weak::clone(&weak));
            }
            if let Some(hub) = weak.upgrade() {
                log.hear(&notice, &hub, hub.surroundings().now(), |_| None);
            }
        });
        let engine = Arc::new(Self {
            hub,
            nobody,
            tenants: Tenants::default(),
            hooks,
            tasks: Tasks::new(),
            timer,
            runtime,
            has_ended: AtomicBool::new(false),
            endings: Mutex::new(Vec::new()),
            shared_limits: Mutex::new(HashMap::new()),
            quota_files,
            places: Mutex::new(HashMap::new()),
        });
        let (last, timer) = (AtRuntimesEnd(Arc::downgrade(&engine)), engine.timer.clone());
        engine.timer.spawn(async move {
            let _last = last;
            timer.cancelled().await;
        });
        Ok(engine)
    }

    /// Tells `queue` when the runtime ends.
    pub(crate) fn end_with_runtime(&self, queue: Weak<dyn EndsWithRuntime>) {
        let mut endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        endings.retain(|queue| queue.strong_count() > 0);
        endings.push(queue);
    }

    /// Whether the runtime on which it was started has dropped its tasks.
    pub(crate) fn runtime_has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Refuses what would wait for a timer that is gone.
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] when the runtime has ended.
    pub(crate) fn check_runtime(&self, what: &str) -> Result<(), QueueError> {
        match self.runtime_has_ended() {
            false => Ok(()),
            true => Err(runtime_is_gone(what)),
        }
    }

    /// Waits, on whatever runtime, until its own has ended: so what waits for its timer is refused.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn runtime_ends(&self, what: &str) -> QueueError {
        self.timer.cancelled().await;
        runtime_is_gone(what)
    }

    fn runtime_ended(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.timer.cancel();
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        let queues: Vec<_> = endings.iter().filter_map(Weak::upgrade).collect();
        drop(endings);
        for queue in queues {
            queue.runtime_ended();
        }
    }

    pub(crate) fn now(&self) -> Now {
        self.hub.surroundings().now()
    }

    /// Runs something that nobody waits for, on the runtime that the engine was started on.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _inside = self.runtime.enter();
        drop(self.tasks.spawn(task));
    }

    /// Adds a limit that several models share.
    pub(crate) fn share_limit(&self, name: &str, spec: LimitSpec) -> Result<(), QueueError> {
        let mut shared = self.shared_limits();
        if shared.contains_key(name) {
            return Err(QueueError::invalid(
                name,
                "there is a shared limit of this name",
            ));
        }
        let now = self.now();
        let setup = LimitSetup {
            name: name.to_owned(),
            spec,
            rule: charge_rule(Host::Unknown, spec.kind),
            scope: Scope::Account,
        };
        let id = self.hub.with(|dispatcher| dispatcher.add_limit(setup, now));
        shared.insert(name.to_owned(), id);
        Ok(())
    }

    /// Adds a tenant that was checked.
    pub(crate) fn add_tenant(&self, tenant: &TenantConfig) -> Result<(), QueueError> {
        let now = self.now();
        let limit = |spec: &LimitSpec| LimitSetup {
            name: format!("{} {}", spec.name(), tenant.name),
            spec: *spec,
            rule: charge_rule(Host::Unknown, spec.kind),
            scope: Scope::Tenant,
        };
        self.tenants.insert(tenant, || {
            self.hub.with(|dispatcher| {
                let limits = tenant.limits.iter().map(limit);
                let limits = limits
                    .map(|setup| dispatcher.add_limit(setup, now))
                    .collect();
                dispatcher.add_tenant(tenant.weight, limits)
            })
        })
    }

    /// Who a request is charged to; none for a tenant that is unknown.
    pub(crate) fn tenant(&self, name: Option<&str>) -> Option<TenantId> {
        match name {
            None => Some(self.nobody),
            Some(name) => self.tenants.find(name),
        }
    }

    fn shared_limits(&self) -> MutexGuard<'_, HashMap<String, LimitId>> {
        self.shared_limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a model that was checked. One that was here before goes on in its old place: what it
    /// used and learned stays, and what still runs of it counts.
    pub(crate) fn add_model(&self, config: &ModelConfig) -> Result<Place, QueueError> {
        let shared = self.find_shared(config)?;
        let rules = match &config.quota {
            Some(quota) => Some(quota.check().map_err(|errors| {
                QueueError::invalid(Arc::clone(&config.model_id), errors.to_string())
            })?),
            None => None,
        };
        let mut places = self.places();
        let before = places.get(&config.model_id);
        let old_file = before.and_then(|place| place.quota_file.clone());
        let old_held = old_file.as_ref().map(|file| file.hold());
        let saved = self.begin_day(config, before, rules.as_ref())?;
        let file = config.quota_file.clone().map(QuotaFile::new);
        let _held = file.as_ref().map(|file| file.hold());
        if let Some(before) = before {
            // What waits may start in its new place at once, and ask for more of the day.
            self.quota_files.keep(before.upstream, file.as_ref());
        }
        let place = self.hub.change(|dispatcher, now, effects| {
            let (mut quota, news) = quota_of(dispatcher, before, rules, saved.as_deref(), now);
            if let (Some(quota), Some(_)) = (&mut quota, &config.quota_file) {
                // It is on disk already.
                let _ = quota.draw(now);
            }
            let limits = limits_of(dispatcher, config, before, now);
            let own = limits.iter().map(|(id, _)| *id);
            let setup = UpstreamSetup {
                name: config.model_id.to_string(),
                limits: own.chain(shared.iter().copied()).collect(),
                breaker: config.breaker.unwrap_or_else(no_breaker),
                quota,
                quota_is_saved: config.quota_file.is_some(),
                learn_as: Some(config.host),
                ..UpstreamSetup::default()
            };
            let upstream = match before {
                Some(before) => {
                    let ended = dispatcher.change_upstream(before.upstream, setup, now);
                    effects.extend(ended.into_iter().map(Effect::Notice));
                    before.upstream
                }
                None => dispatcher.add_upstream(setup, now),
            };
            let setup = QueueSetup {
                capacity: Capacity {
                    jobs: config.capacity,
                    bytes: u64::MAX,
                    // Exactly what was asked for: full at the count, open again below it.
                    high_watermark: 1.0,
                    low_watermark: 1.0,
                },
                max_attempts: config.max_attempts,
                ..QueueSetup::to(config.model_id.to_string(), upstream)
            };
            let queue = match before {
                Some(before) => {
                    dispatcher.change_queue(before.queue, setup);
                    dispatcher.handle(Event::Resume(before.queue), now, effects);
                    dispatcher.reconsider(now, effects);
                    before.queue
                }
                None => dispatcher.add_queue(setup),
            };
            dispatcher.remember_calls(queue, config.history);
            let told = news.into_iter().map(|event| Notice::Quota(upstream, event));
            effects.extend(told.map(Effect::Notice));
            let dates = |spec: &LimitSpec| spec.kind != LimitKind::Concurrency;
            Place {
                queue,
                upstream,
                // A call of which nobody says that it was sent is not counted against the day.
                dates: config.quota.is_some()
                    || !shared.is_empty()
                    || limits.iter().any(|(_, spec)| dates(spec)),
                limits,
                host: config.host,
                quota_file: file.clone(),
            }
        });
        self.quota_files.keep(place.upstream, file.as_ref());
        if let Some(old) = old_held {
            old.replaced();
        }
        places.insert(Arc::clone(&config.model_id), place.clone());
        Ok(place)
    }

    /// What was saved of a model's day, if that is kept in a file; the first portion of it is on
    /// disk when this returns.
    fn begin_day(
        &self,
        config: &ModelConfig,
        before: Option<&Place>,
        rules: Option<&QuotaRules>,
    ) -> Result<Option<String>, QueueError> {
        let (Some(path), Some(rules)) = (&config.quota_file, rules) else {
            return Ok(None);
        };
        let wrong = |reason: String| {
            let reason = format!("quota_file {}: {reason}", path.display());
            Err(QueueError::invalid(Arc::clone(&config.model_id), reason))
        };
        let upstream = before.map(|place| place.upstream);
        if self.quota_files.is_taken(path, upstream) {
            return wrong("another model keeps its count there".to_owned());
        }
        let (saved, now) = (saved(path), self.now());
        let (quota, _) = self.hub.with(|dispatcher| {
            let rules = Some(rules.clone());
            quota_of(dispatcher, before, rules, saved.as_deref(), now)
        });
        let Some(mut quota) = quota else {
            return Ok(saved);
        };
        let _ = quota.draw(now);
        match write(path, &quota.to_state()) {
            Ok(()) => Ok(saved),
            Err(error) => wrong(error.to_string()),
        }
    }

    /// The count of a model's day as it is when no more is started, if it is kept in a file.
    pub(crate) async fn end_day(&self, place: &Place) {
        if let Some(file) = &place.quota_file {
            file.end(place.upstream, &self.hub).await;
        }
    }

    /// A model that is no longer offered: what runs of it ends, and its books are kept.
    pub(crate) fn retire(&self, place: &Place) {
        self.hub.with(|dispatcher| {
            dispatcher.retire_queue(place.queue);
            dispatcher.retire_upstream(place.upstream);
        });
    }

    fn places(&self) -> MutexGuard<'_, HashMap<Arc<str>, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_shared(&self, config: &ModelConfig) -> Result<Vec<LimitId>, QueueError> {
        let shared = self.shared_limits();
        let find = |name: &String| {
            shared.get(name).copied().ok_or_else(|| {
                let reason = format!("there is no shared limit `{name}`");
                QueueError::invalid(Arc::clone(&config.model_id), reason)
            })
        };
        config.shared_limits.iter().map(find).collect()
    }
}

fn runtime_is_gone(what: &str) -> QueueError {
    QueueError::invalid(
        what,
        "the tokio runtime on which its timer ran has ended: make a new one on a runtime that lasts",
    )
}

/// Held by a task that ends with the engine, or else with the runtime.
struct AtRuntimesEnd(Weak<Engine>);

impl Drop for AtRuntimesEnd {
    fn drop(&mut self) {
        if let Some(engine) = self.0.upgrade() {
            engine.runtime_ended();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.timer.cancel();
    }
}

/// What was counted of the day goes on under the rules of now.
fn quota_of(
    dispatcher: &Dispatcher,
    before: Option<&Place>,
    rules: Option<QuotaRules>,
    saved: Option<&str>,
    now: Now,
) -> (Option<QuotaMonitor>, Vec<QuotaEvent>) {
    let Some(rules) = rules else {
        return (None, Vec::new());
    };
    let (monitor, news) = match before.and_then(|place| dispatcher.quota(place.upstream)) {
        Some(before) => before.under(rules, now),
        None => going_on(rules, saved, now),
    };
    (Some(monitor), news)
}

/// A model's own limits: those that it had before, or that were learned, with their books, and new
/// ones.
fn limits_of(
    dispatcher: &mut Dispatcher,
    config: &ModelConfig,
    before: Option<&Place>,
    now: Now,
) -> Vec<(LimitId, LimitSpec)> {
    let mut limits = Vec::with_capacity(config.limits.len());
    for spec in &config.limits {
        let setup = LimitSetup {
            name: format!("{} {}", spec.name(), config.model_id),
            spec: *spec,
            rule: charge_rule(config.host, spec.kind),
            scope: Scope::Upstream,
        };
        let old = before.and_then(|place| {
            let same = |(_, old): &&(LimitId, LimitSpec)| same_slot(old, spec);
            let stated = place.limits.iter().find(same).map(|(id, _)| *id);
            stated.or_else(|| dispatcher.learned_as(place.upstream, spec))
        });
        let id = match old {
            Some(old) if dispatcher.restate_limit(old, &setup, now) => old,
            Some(old) => dispatcher.replace_limit(old, setup, now),
            None => dispatcher.add_limit(setup, now),
        };
        limits.push((id, *spec));
    }
    limits
}

/// One that never opens.
fn no_breaker() -> BreakerConfig {
    BreakerConfig {
        failures_in_row: u32::MAX,
        failure_share: 2.0,
        ..BreakerConfig::default()
    }
}
