//! What the dispatcher has to tell, as lines of the log: the same for a run, a gateway and the
//! library.

use std::sync::{Mutex, PoisonError};

use llmq_core::{Now, WallTime};
use llmq_dispatch::{LimitId, Notice, UpstreamId};
use llmq_limit::QuotaEvent;

use crate::Hub;

/// Writes what happens to upstreams to the log.
#[derive(Debug, Default)]
pub struct NoticeLog {
    /// Upstreams that were told to be down and not yet to be back.
    down: Mutex<Vec<UpstreamId>>,
}

impl NoticeLog {
    /// Writes one line, or none: an outage is told once, though each probe that finds it going on
    /// opens the breaker again. `reason` says why an upstream does not answer, where that is
    /// known. Must not be called under the hub's lock.
    pub fn hear(
        &self,
        notice: &Notice,
        hub: &Hub,
        now: Now,
        reason: impl FnOnce(UpstreamId) -> Option<String>,
    ) {
        let name = |id: UpstreamId| hub.with(|dispatcher| dispatcher.upstream_view(id).name);
        match notice {
            Notice::RateLimited { upstream, ours } => {
                tracing::warn!(upstream = name(*upstream), ours, "rate_limited");
            }
            Notice::UpstreamPaused {
                upstream,
                class,
                until,
            } => {
                let wall = until.map(|until| now.wall_at(until));
                tracing::warn!(
                    upstream = name(*upstream),
                    %class,
                    resume_at = wall.map(shown),
                    "upstream_paused"
                );
            }
            Notice::BreakerOpened(upstream) => {
                if self.goes_down(*upstream) {
                    let reason = reason(*upstream);
                    tracing::warn!(upstream = name(*upstream), reason, "breaker_opened");
                }
            }
            Notice::BreakerClosed(upstream) => {
                self.is_back(*upstream);
                tracing::info!(upstream = name(*upstream), "breaker_closed");
            }
            Notice::Concurrency(upstream, change) => tracing::info!(
                upstream = name(*upstream),
                old = change.old,
                new = change.new,
                reason = ?change.reason,
                "concurrency_changed"
            ),
            Notice::UpstreamReopened {
                upstream,
                class,
                closed_for,
            } => tracing::info!(
                upstream = name(*upstream),
                %class,
                paused_for_s = closed_for.as_secs_f64(),
                "upstream_reopened"
            ),
            Notice::HeaderGarbled { upstream, header } => {
                tracing::warn!(upstream = name(*upstream), header, "header_garbled");
            }
            Notice::LimitLearned(upstream, limit) => {
                let limit = spec(hub, *limit, now);
                tracing::info!(upstream = name(*upstream), limit, "limit_learned");
            }
            Notice::LimitForgotten(upstream, limit) => {
                let limit = spec(hub, *limit, now);
                tracing::info!(upstream = name(*upstream), limit, "limit_forgotten");
            }
            Notice::Quota(upstream, event) => log_quota(&name(*upstream), event),
            other => tracing::debug!(?other, "notice"),
        }
    }

    fn goes_down(&self, upstream: UpstreamId) -> bool {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = !down.contains(&upstream);
        if is_news {
            down.push(upstream);
        }
        is_news
    }

    fn is_back(&self, upstream: UpstreamId) {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        down.retain(|other| *other != upstream);
    }
}

fn spec(hub: &Hub, limit: LimitId, now: Now) -> String {
    let view = hub.with(|dispatcher| dispatcher.limit_view(limit, now));
    view.spec.to_string()
}

/// Writes what a quota has to tell to the log: one structured event each.
pub fn log_quota(upstream: &str, event: &QuotaEvent) {
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
        }
        QuotaEvent::Resumed { paused_for } => {
            tracing::info!(
                upstream,
                paused_for_s = paused_for.as_secs_f64(),
                "quota_resumed"
            );
        }
        QuotaEvent::StateLost { reason } => {
            tracing::warn!(upstream, reason, "quota_state_lost");
        }
        other => tracing::debug!(?other, "quota"),
    }
}

/// An instant in whole seconds.
pub(crate) fn shown(at: WallTime) -> String {
    jiff::Timestamp::from_microsecond(at.as_micros())
        .map_or_else(|_| "?".to_owned(), |at| format!("{at:.0}"))
}
