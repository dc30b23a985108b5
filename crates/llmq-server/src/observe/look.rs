//! From the dispatcher's books to what people and programs are shown.
//!
//! Each queue and upstream is looked at under a lock of its own, so that no call ever waits for
//! more than one of them to be read.

use std::collections::HashMap;
use std::time::Duration;

use llmq_api::{
    AcceptedCounts, BreakerWord, CallList, CallState, CallStatus, Depth, LimitState, QueueMotion,
    QueueState, QuotaState, UpstreamState,
};
use llmq_core::{Now, Timestamp};
use llmq_dispatch::{Blocker, LimitView, QueueId, QueueView, UpstreamId};
use llmq_limit::{BreakerState, QuotaMetrics};
use llmq_store::{Counts, StoreError};
use uuid::Uuid;

use super::observed::{Observed, Parts};
use super::waiting::WaitingCall;
use crate::keys::Caller;
use crate::shown;

impl Parts {
    /// The queue of this name.
    pub(crate) fn find_queue(&self, name: &str) -> Option<QueueId> {
        self.hub.with(|dispatcher| {
            dispatcher
                .queue_ids()
                .find(|id| dispatcher.queue_name(*id) == name)
        })
    }

    /// Every queue, by name.
    pub(crate) fn queues(&self, now: Now) -> Vec<QueueState> {
        let ids = self.hub.with(|dispatcher| dispatcher.queue_ids());
        let mut queues: Vec<QueueState> = ids.map(|id| self.queue(id, now)).collect();
        queues.sort_by(|a, b| a.name.cmp(&b.name));
        queues
    }

    /// Every upstream, by name. One that finishes its calls beside another of its name, such as the
    /// same model at the address of before, adds them to those of the one that is offered.
    pub(crate) fn upstreams(&self, now: Now) -> Vec<UpstreamState> {
        let ids = self.hub.with(|dispatcher| dispatcher.upstream_ids());
        let mut upstreams: Vec<UpstreamState> = ids.map(|id| self.upstream(id, now)).collect();
        // Keeps the offered one first.
        upstreams.sort_by(|a, b| a.name.cmp(&b.name));
        upstreams.dedup_by(|other, offered| {
            let is_same = other.name == offered.name;
            if is_same {
                offered.in_flight += other.in_flight;
            }
            is_same
        });
        upstreams
    }

    /// Whether any upstream serves calls, if not at once. Where callers name the models there is
    /// none before the first call, and nothing to say against it.
    pub(crate) fn any_in_service(&self, now: Now) -> bool {
        self.hub.with(|dispatcher| {
            let mut ids = dispatcher.upstream_ids().peekable();
            ids.peek().is_none() || ids.any(|id| dispatcher.is_in_service(id, now))
        })
    }

    pub(crate) fn queue(&self, id: QueueId, now: Now) -> QueueState {
        let (name, view, depths, stands, upstreams) = self.hub.with(|dispatcher| {
            (
                dispatcher.queue_name(id).to_owned(),
                dispatcher.queue_view(id),
                dispatcher.depths(id),
                dispatcher.stands_until(id),
                dispatcher.upstreams_of(id),
            )
        });
        let (stands_until, waiting_for) = stands.unzip();
        let depths = depths.into_iter().map(|depth| Depth {
            priority: depth.priority.value(),
            waiting: depth.waiting,
        });
        QueueState {
            name,
            state: motion(view),
            waiting: view.jobs.saturating_sub(view.running),
            running: view.running,
            bytes: view.bytes,
            depths: depths.collect(),
            accepted: None,
            waiting_for: waiting_for.filter(|words| !words.is_empty()),
            stands_until: stands_until.map(|at| at_text(at, now)),
            upstreams: upstreams
                .into_iter()
                .map(|id| self.upstream(id, now))
                .collect(),
        }
    }

    fn upstream(&self, id: UpstreamId, now: Now) -> UpstreamState {
        let (view, usable, limits, quota) = self.hub.with(|dispatcher| {
            let view = dispatcher.upstream_view(id);
            let limits = view.limits.iter();
            let limits: Vec<LimitView> = limits
                .map(|limit| dispatcher.limit_view(*limit, now))
                .collect();
            let quota = dispatcher.quota(id).map(|quota| quota.metrics(now));
            (view, dispatcher.is_usable(id, now), limits, quota)
        });
        let (breaker, breaker_until) = match view.breaker {
            BreakerState::Closed => (BreakerWord::Closed, None),
            BreakerState::Open { until } => (BreakerWord::Open, Some(at_text(until, now))),
            BreakerState::HalfOpen => (BreakerWord::HalfOpen, None),
        };
        let (closed_by, closed_until) = view.closed.unzip();
        UpstreamState {
            provider: self.provider(&view.name).map(str::to_owned),
            name: view.name,
            usable,
            in_flight: view.in_flight,
            breaker,
            breaker_until,
            closed_by: closed_by.map(|class| class.to_string()),
            closed_until: closed_until.flatten().map(|at| at_text(at, now)),
            limits: limits.into_iter().map(limit).collect(),
            quota: quota.map(day),
        }
    }
}

impl Observed {
    /// Every queue, by name, with what the store holds of each.
    pub(crate) async fn queues(&self) -> Vec<QueueState> {
        let mut queues = self.parts().queues(self.now());
        self.count_accepted(&mut queues).await;
        queues
    }

    /// One queue, with what the store holds of it.
    pub(crate) async fn queue(&self, id: QueueId) -> QueueState {
        let mut queue = self.parts().queue(id, self.now());
        self.count_accepted(std::slice::from_mut(&mut queue)).await;
        queue
    }

    /// The dispatcher knows the first accepted requests of each line only.
    async fn count_accepted(&self, queues: &mut [QueueState]) {
        let Some(stored) = counted(self.journal.store.queues()).await else {
            return;
        };
        let stored: HashMap<&str, Counts> = stored
            .iter()
            .map(|queue| (queue.name.as_str(), queue.counts))
            .collect();
        for queue in queues {
            let counts = stored.get(queue.name.as_str()).copied().unwrap_or_default();
            queue.accepted = Some(AcceptedCounts {
                queued: counts.queued,
                processing: counts.processing,
            });
        }
    }

    /// What a waiting call waits for; none: no such call waits.
    pub(crate) fn call(&self, id: Uuid, caller: &Caller) -> Option<CallState> {
        let call = self.waiting.get(id).filter(|call| sees(caller, call))?;
        self.look_at(id, &call)
    }

    /// The calls of those that the caller may see which have waited longest, the oldest first.
    pub(crate) fn calls(&self, most: usize, caller: &Caller) -> CallList {
        let (oldest, total) = self.waiting.oldest(most, |call| sees(caller, call));
        let oldest = oldest.iter();
        CallList {
            calls: oldest
                .filter_map(|(id, call)| self.look_at(*id, call))
                .collect(),
            total: u64::try_from(total).unwrap_or(u64::MAX),
            next_cursor: None,
        }
    }

    /// None: it has just ended.
    fn look_at(&self, id: Uuid, call: &WaitingCall) -> Option<CallState> {
        let now = self.now();
        let parts = self.parts();
        let (model, why, outlook) = parts.hub.with(|dispatcher| {
            let model = dispatcher.queue_name(call.queue).to_owned();
            let outlook = dispatcher.outlook(call.ticket, now);
            (model, dispatcher.why(call.ticket), outlook)
        });
        let (why, outlook) = (why?, outlook?);
        let in_line = !why.started && !matches!(why.blockers[..], [Blocker::NotBefore(_)]);
        Some(CallState {
            id: id.to_string(),
            status: if why.started {
                CallStatus::Processing
            } else {
                CallStatus::Queued
            },
            model,
            priority: call.priority.value(),
            waited_ms: waited_ms(call, now),
            position: in_line.then(|| outlook.ahead.saturating_add(1)),
            estimated_start: outlook.start.map(|at| at_text(at, now)),
            waiting_for: why.blockers.first().map(ToString::to_string),
        })
    }
}

/// A call of another tenant is told like one that is not there.
fn sees(caller: &Caller, call: &WaitingCall) -> bool {
    caller.tenant_for(Some(&call.tenant)).is_ok()
}

/// What the store says if it says it soon: whoever looks at a server whose disk hangs sees the rest.
pub(super) async fn counted<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
    const PATIENCE: Duration = Duration::from_secs(1);
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(counts)) => Some(counts),
        Ok(Err(error)) => {
            tracing::warn!(%error, "accepted requests could not be counted");
            None
        }
        Err(_) => None,
    }
}

fn waited_ms(call: &WaitingCall, now: Now) -> u64 {
    u64::try_from((now.mono - call.since).as_millis()).unwrap_or(u64::MAX)
}

fn motion(view: QueueView) -> QueueMotion {
    match (view.draining, view.paused, view.parked) {
        (_, true, _) => QueueMotion::Paused,
        (true, false, _) => QueueMotion::Draining,
        (false, false, true) => QueueMotion::Parked,
        (false, false, false) => QueueMotion::Running,
    }
}

fn limit(view: LimitView) -> LimitState {
    LimitState {
        name: view.name,
        limit: view.spec.to_string(),
        in_use: view.in_use,
        learned: view.learned,
        charge_factor: view.factor,
        waiting_lines: u64::try_from(view.waiting_lanes).unwrap_or(u64::MAX),
    }
}

fn day(quota: QuotaMetrics) -> QuotaState {
    QuotaState {
        used_today: quota.requests_used_today,
        daily_limit: quota.daily_limit,
        used_percent: quota.usage_percentage,
        paused: quota.pause_reason,
    }
}

/// A monotonic instant in the words of the wall clock.
pub(crate) fn at_text(at: Timestamp, now: Now) -> String {
    shown::instant(now.wall_at(at))
}
