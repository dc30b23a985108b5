use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmq_core::{FailureClass, Now, Timestamp, WallTime};
use llmq_dispatch::{Notice, QueueId, Surroundings, UpstreamId};
use llmq_limit::QuotaEvent;
use tokio::sync::Notify;

use super::progress::{Counters, Paused};
use super::saver::Save;
use crate::Hub;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Every row has an answer.
    Done,
    /// Every row has a result, but not all an answer.
    SomeFailed,
    /// The account does not let it go on: quota, money, or a refused key.
    StoppedByAccount {
        /// What the account said.
        reason: String,
    },
    /// The provider cannot be reached.
    ProviderLost {
        /// For how long it has not answered.
        reason: String,
    },
    /// It was told to stop.
    Interrupted,
}

/// A provider that never answered is given this long.
const PATIENCE_FIRST: Duration = Duration::from_secs(30);
/// One that did answer is given this long …
const PATIENCE: Duration = Duration::from_secs(3_600);
/// … or this long by someone who does not want to wait; the same bounds pauses for quotas.
const NO_WAIT: Duration = Duration::from_secs(600);
/// How often it is looked at, beside every event.
const LOOK: Duration = Duration::from_secs(1);

/// Listens to the dispatcher for the run: logs, counts, asks for what must be saved, and decides
/// when going on has no sense.
pub(super) struct Watch {
    hub: Arc<Hub>,
    names: Vec<(UpstreamId, String)>,
    counters: Arc<Counters>,
    no_wait: bool,
    queue: QueueId,
    seen: Mutex<Seen>,
    changed: Notify,
    saving: Mutex<Option<Sender<Save>>>,
}

/// What stands in the way, per upstream.
#[derive(Default)]
struct Seen {
    routes: Vec<(UpstreamId, Route)>,
}

#[derive(Default, Clone)]
struct Route {
    /// Since when its breaker is open.
    down_since: Option<Timestamp>,
    /// Closed by the account until then; none: until a person acts.
    closed: Option<(FailureClass, Option<Timestamp>)>,
    /// Paused by the daily quota until then.
    quota: Option<(String, WallTime)>,
}

impl Watch {
    pub(super) fn new(
        hub: Arc<Hub>,
        names: &[(UpstreamId, String)],
        counters: Arc<Counters>,
        no_wait: bool,
        queue: QueueId,
    ) -> Self {
        let routes = names
            .iter()
            .map(|(id, _)| (*id, Route::default()))
            .collect();
        Self {
            hub,
            names: names.to_vec(),
            counters,
            no_wait,
            queue,
            seen: Mutex::new(Seen { routes }),
            changed: Notify::new(),
            saving: Mutex::new(None),
        }
    }

    /// Begins to listen; the receiver gets what must be saved.
    pub(super) fn listen(self: &Arc<Self>, news: Vec<(UpstreamId, QuotaEvent)>) -> Receiver<Save> {
        let (sender, receiver) = channel();
        *self.saving() = Some(sender);
        for (upstream, event) in news {
            self.quota(upstream, &event, self.hub.surroundings().now());
        }
        let watch = Arc::downgrade(self);
        crate::listen(&self.hub, move |notice| {
            if let Some(watch) = watch.upgrade() {
                watch.heard(notice);
            }
        });
        receiver
    }

    /// The saver's work is over.
    pub(super) fn stop_saving(&self) {
        self.save(Save::End);
        *self.saving() = None;
    }

    fn saving(&self) -> MutexGuard<'_, Option<Sender<Save>>> {
        self.saving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, save: Save) {
        if let Some(saving) = &*self.saving() {
            // Without a saver the run is over anyway.
            let _ = saving.send(save);
        }
    }

    fn name(&self, id: UpstreamId) -> &str {
        self.names
            .iter()
            .find(|(other, _)| *other == id)
            .map_or("?", |(_, name)| name)
    }

    fn route(&self, id: UpstreamId, change: impl FnOnce(&mut Route)) {
        if let Some((_, route)) = self
            .seen()
            .routes
            .iter_mut()
            .find(|(other, _)| *other == id)
        {
            change(route);
        }
        self.changed.notify_one();
    }

    fn heard(&self, notice: Notice) {
        let now = self.hub.surroundings().now();
        match notice {
            Notice::SaveQuota(upstream, _) => self.save(Save::Quota(upstream)),
            Notice::PortionLow(limit) => self.save(Save::Portion(limit)),
            Notice::RateLimited { upstream, ours } => {
                Counters::add(&self.counters.rate_limited, 1);
                Counters::add(&self.counters.rate_limited_ours, u64::from(ours));
                tracing::warn!(upstream = self.name(upstream), ours, "rate_limited");
            }
            Notice::UpstreamPaused {
                upstream,
                class,
                until,
            } => {
                let wall = until.map(|until| now.wall_at(until));
                tracing::warn!(
                    upstream = self.name(upstream),
                    %class,
                    resume_at = wall.map(shown),
                    "upstream_paused"
                );
                self.route(upstream, |route| route.closed = Some((class, until)));
            }
            Notice::BreakerOpened(upstream) => {
                tracing::warn!(upstream = self.name(upstream), "breaker_opened");
                self.route(upstream, |route| {
                    route.down_since.get_or_insert(now.mono);
                });
            }
            Notice::BreakerClosed(upstream) => {
                tracing::info!(upstream = self.name(upstream), "breaker_closed");
                self.route(upstream, |route| route.down_since = None);
            }
            Notice::Concurrency(upstream, change) => tracing::info!(
                upstream = self.name(upstream),
                old = change.old,
                new = change.new,
                reason = ?change.reason,
                "concurrency_changed"
            ),
            Notice::LimitLearned(upstream, limit) => {
                let view = self
                    .hub
                    .with(|dispatcher| dispatcher.limit_view(limit, now));
                tracing::info!(upstream = self.name(upstream), limit = %view.spec, "limit_learned");
                self.save(Save::Portion(limit));
            }
            Notice::LimitForgotten(upstream, limit) => {
                let view = self
                    .hub
                    .with(|dispatcher| dispatcher.limit_view(limit, now));
                tracing::info!(upstream = self.name(upstream), limit = %view.spec, "limit_forgotten");
            }
            Notice::Quota(upstream, event) => self.quota(upstream, &event, now),
            other => tracing::debug!(?other, "notice"),
        }
        self.update_pause(now);
    }

    fn quota(&self, id: UpstreamId, event: &QuotaEvent, now: Now) {
        let upstream = self.name(id);
        match event {
            QuotaEvent::Metrics(metrics) => tracing::info!(
                upstream,
                requests_used_today = metrics.requests_used_today,
                daily_limit = metrics.daily_limit,
                usage_percentage = metrics.usage_percentage,
                should_pause = metrics.should_pause,
                pause_reason = metrics.pause_reason,
                "quota_metrics"
            ),
            QuotaEvent::Alert {
                level,
                used_percent,
            } => {
                tracing::warn!(
                    upstream,
                    level = level.as_str(),
                    used_percent,
                    "quota_alert"
                );
            }
            QuotaEvent::Paused(advice) => {
                let reason = advice.reason.to_string();
                tracing::warn!(
                    upstream,
                    reason,
                    resume_at = shown(advice.resume_at),
                    "quota_paused"
                );
                self.route(id, |route| route.quota = Some((reason, advice.resume_at)));
            }
            QuotaEvent::Resumed { paused_for } => {
                tracing::info!(
                    upstream,
                    paused_for_s = paused_for.as_secs_f64(),
                    "quota_resumed"
                );
                self.route(id, |route| route.quota = None);
            }
            QuotaEvent::StateLost { reason } => {
                tracing::warn!(upstream, reason, "quota_state_lost");
            }
            other => tracing::debug!(?other, "quota"),
        }
        self.update_pause(now);
    }

    /// Why nothing can be sent on any route, if that is so.
    fn pause(&self, now: Now) -> Option<Paused> {
        let mut first: Option<Paused> = None;
        for (id, route) in &self.seen().routes {
            let closed = route
                .closed
                .filter(|(_, until)| until.is_none_or(|until| until > now.mono));
            let paused = match (&route.quota, closed) {
                (Some((reason, until)), _) if *until > now.wall => Paused {
                    reason: format!("{}: {reason}", self.name(*id)),
                    until: Some(*until),
                },
                (_, Some((class, until))) => Paused {
                    reason: format!("{}: {class}", self.name(*id)),
                    until: until.map(|until| now.wall_at(until)),
                },
                (_, None) if route.down_since.is_some() => Paused {
                    reason: format!("{}: not answering", self.name(*id)),
                    until: None,
                },
                (_, None) => return None,
            };
            let earlier = |other: &Paused| match (paused.until, other.until) {
                (Some(new), Some(old)) => new < old,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if first.as_ref().is_none_or(earlier) {
                first = Some(paused);
            }
        }
        first
    }

    fn update_pause(&self, now: Now) {
        let paused = self.pause(now);
        self.counters.with_pause(|clock| match paused {
            Some(paused) => clock.begin(paused, now),
            None => clock.end(now),
        });
    }

    /// Completes when going on has no sense.
    pub(super) async fn must_stop(&self) -> Ended {
        loop {
            let now = self.hub.surroundings().now();
            self.update_pause(now);
            if let Some(ended) = self.verdict(now) {
                return ended;
            }
            // Either is reason enough to look again.
            let _ = tokio::time::timeout(LOOK, self.changed.notified()).await;
        }
    }

    /// Whether every route is closed for too long.
    fn verdict(&self, now: Now) -> Option<Ended> {
        if self.no_wait
            && let Some((until, limit)) = self
                .hub
                .with(|dispatcher| dispatcher.stands_until(self.queue))
            && until > now.mono + NO_WAIT
        {
            let until = shown(now.wall_at(until));
            let reason = format!("{limit} is used up; it goes on at {until}");
            return Some(Ended::StoppedByAccount { reason });
        }
        let answered = Counters::get(&self.counters.answers) > 0;
        let mut verdict = None;
        for (id, route) in &self.seen().routes {
            verdict = Some(self.route_verdict(*id, route, answered, now)?);
        }
        verdict
    }

    fn route_verdict(
        &self,
        id: UpstreamId,
        route: &Route,
        answered: bool,
        now: Now,
    ) -> Option<Ended> {
        let name = self.name(id);
        let account = |reason: String| Some(Ended::StoppedByAccount { reason });
        match route.closed {
            Some((FailureClass::NoAccess, _)) => {
                return account(format!("{name} refuses the key or the model"));
            }
            // Nobody knows when money comes, so for it every wait is too long.
            Some((class, until))
                if self.no_wait
                    && (class == FailureClass::Money
                        || until.is_none_or(|until| until > now.mono + NO_WAIT)) =>
            {
                let until = until.map_or_else(
                    || "for now".to_owned(),
                    |until| format!("until {}", shown(now.wall_at(until))),
                );
                return account(format!("{name} is closed {until} ({class})"));
            }
            _ => {}
        }
        if let Some((reason, until)) = &route.quota
            && self.no_wait
            && until.since(now.wall) > NO_WAIT
        {
            return account(format!("{name}: {reason}; it goes on at {}", shown(*until)));
        }
        let patience = match (answered, self.no_wait) {
            (false, _) => PATIENCE_FIRST,
            (true, true) => NO_WAIT,
            (true, false) => PATIENCE,
        };
        let down = now.mono - route.down_since?;
        (down >= patience).then(|| Ended::ProviderLost {
            reason: format!("{name} has not answered for {} s", down.as_secs()),
        })
    }
}

/// An instant as people and logs read it, in UTC.
fn shown(at: WallTime) -> String {
    jiff::Timestamp::from_microsecond(at.as_micros())
        .map_or_else(|_| "?".to_owned(), |at| format!("{at:.0}"))
}
