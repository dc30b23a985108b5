//! What the dispatcher tells becomes counts, events and lines of the log.

use llmq_dispatch::{LimitId, Notice, UpstreamId};
use llmq_limit::{PauseScope, QuotaEvent};
use serde_json::{Value, json};

use super::look::at_text;
use super::observed::Observed;
use crate::shown;

impl Observed {
    /// Takes note of what the dispatcher has to tell: for [`llmq_engine::listen`].
    pub fn notice(&self, notice: &Notice) {
        let now = self.now();
        // Concurrency moves all the time, and what is to be saved is nobody's news.
        if !matches!(notice, Notice::Concurrency(..) | Notice::SaveQuota(..)) {
            self.log.hear(notice, &self.parts().hub, now, |_| None);
        }
        let publish = |kind, data| self.publish(kind, data);
        match notice {
            Notice::RateLimited { upstream, ours } => {
                let upstream = self.upstream_name(*upstream);
                self.metrics.rate_limited(&upstream, *ours);
                let data = json!({"upstream": upstream, "ours": ours});
                publish("upstream.rate_limited", data);
            }
            Notice::UpstreamPaused {
                upstream,
                class,
                until,
            } => {
                let until = until.map(|at| at_text(at, now));
                let upstream = self.upstream_name(*upstream);
                let data = json!({"upstream": upstream, "class": class, "until": until});
                publish("upstream.paused", data);
            }
            Notice::UpstreamReopened {
                upstream,
                class,
                closed_for,
            } => {
                let upstream = self.upstream_name(*upstream);
                let paused_s = closed_for.as_secs_f64();
                let data = json!({"upstream": upstream, "class": class, "paused_s": paused_s});
                publish("upstream.reopened", data);
            }
            Notice::HeaderGarbled { upstream, header } => {
                let upstream = self.upstream_name(*upstream);
                let data = json!({"upstream": upstream, "header": header});
                publish("upstream.header_garbled", data);
            }
            Notice::BreakerOpened(upstream) => {
                let upstream = self.upstream_name(*upstream);
                self.metrics.breaker_opened(&upstream);
                publish("breaker.opened", json!({"upstream": upstream}));
            }
            Notice::BreakerClosed(upstream) => {
                let upstream = self.upstream_name(*upstream);
                publish("breaker.closed", json!({"upstream": upstream}));
            }
            Notice::Quota(upstream, event) => self.quota_event(*upstream, event),
            Notice::LimitLearned(upstream, limit) => {
                publish("limit.learned", self.limit_data(*upstream, *limit));
            }
            Notice::LimitForgotten(upstream, limit) => {
                publish("limit.forgotten", self.limit_data(*upstream, *limit));
            }
            _ => {}
        }
    }

    fn quota_event(&self, upstream: UpstreamId, event: &QuotaEvent) {
        let upstream = self.upstream_name(upstream);
        let (kind, data) = match event {
            QuotaEvent::Alert {
                level,
                used_percent,
            } => {
                use llmq_limit::AlertLevel as L;
                let kind = match level {
                    L::Warning => "quota.warning",
                    L::Critical => "quota.critical",
                    L::Emergency => "quota.emergency",
                };
                let data = json!({"upstream": upstream, "used_percent": used_percent});
                (kind, data)
            }
            QuotaEvent::Paused(advice) => {
                let data = json!({
                    "upstream": upstream,
                    "reason": advice.reason.to_string(),
                    "resume_at": shown::instant(advice.resume_at),
                    "below": matches!(advice.scope, PauseScope::BelowHigh).then_some("high"),
                });
                ("quota.paused", data)
            }
            QuotaEvent::Resumed { paused_for } => {
                let data = json!({"upstream": upstream, "paused_s": paused_for.as_secs_f64()});
                ("quota.resumed", data)
            }
            _ => return,
        };
        self.publish(kind, data);
    }

    fn limit_data(&self, upstream: UpstreamId, limit: LimitId) -> Value {
        let now = self.now();
        let upstream = self.upstream_name(upstream);
        let limit = self
            .parts()
            .hub
            .with(|dispatcher| dispatcher.limit_view(limit, now));
        json!({"upstream": upstream, "name": limit.name, "limit": limit.spec.to_string()})
    }

    fn upstream_name(&self, id: UpstreamId) -> String {
        self.parts().upstream_name(id)
    }
}
