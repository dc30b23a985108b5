//! What is so at the moment, on the page at `/metrics`.

use llmq_api::{BreakerWord, QueueMotion, QueueState, UpstreamState};
use llmq_core::Priority;

use super::page::{Kind, Page};
use super::series::{LEVELS, level};

/// Writes the state of all queues and upstreams.
pub(crate) fn write_gauges(page: &mut Page, queues: &[QueueState], upstreams: &[UpstreamState]) {
    write_queues(page, queues);
    write_upstreams(page, upstreams);
    write_limits(page, upstreams);
}

fn write_queues(page: &mut Page, queues: &[QueueState]) {
    let name = "llmq_queue_depth";
    page.family(name, Kind::Gauge, "Calls that wait for their turn.");
    for queue in queues {
        for ((_, level), waiting) in LEVELS.iter().zip(depths(queue)) {
            let labels = [("model", queue.name.as_str()), ("priority", level)];
            page.sample(name, &labels, waiting);
        }
    }
    let name = "llmq_queue_accepted";
    page.family(name, Kind::Gauge, "Accepted requests that have not ended.");
    for queue in queues {
        let Some(accepted) = queue.accepted else {
            continue;
        };
        for (status, count) in [
            ("queued", accepted.queued),
            ("processing", accepted.processing),
        ] {
            let labels = [("model", queue.name.as_str()), ("status", status)];
            page.sample(name, &labels, count);
        }
    }
    let name = "llmq_queue_running";
    page.family(name, Kind::Gauge, "Calls that run.");
    for queue in queues {
        page.sample(name, &[("model", &queue.name)], queue.running);
    }
    let name = "llmq_queue_bytes";
    page.family(name, Kind::Gauge, "Bytes of the calls that wait or run.");
    for queue in queues {
        page.sample(name, &[("model", &queue.name)], queue.bytes);
    }
    let name = "llmq_queue_state";
    page.family(name, Kind::Gauge, "1 for the state that a queue is in.");
    for queue in queues {
        for (motion, word) in [
            (QueueMotion::Running, "running"),
            (QueueMotion::Paused, "paused"),
            (QueueMotion::Draining, "draining"),
            (QueueMotion::Parked, "parked"),
        ] {
            let labels = [("model", queue.name.as_str()), ("state", word)];
            page.sample(name, &labels, u8::from(queue.state == motion));
        }
    }
}

/// How many wait at each named level.
fn depths(queue: &QueueState) -> [u64; LEVELS.len()] {
    let mut sums = [0; LEVELS.len()];
    for depth in &queue.depths {
        let priority = Priority::new(depth.priority).unwrap_or_default();
        sums[level(priority)] += depth.waiting;
    }
    sums
}

fn write_upstreams(page: &mut Page, upstreams: &[UpstreamState]) {
    let name = "llmq_upstream_in_flight";
    page.family(name, Kind::Gauge, "Calls in flight at an upstream.");
    for upstream in upstreams {
        page.sample(name, &[("upstream", &upstream.name)], upstream.in_flight);
    }
    let name = "llmq_upstream_usable";
    page.family(
        name,
        Kind::Gauge,
        "Whether an upstream takes calls, as far as its limits have room.",
    );
    for upstream in upstreams {
        let usable = u8::from(upstream.usable);
        page.sample(name, &[("upstream", &upstream.name)], usable);
    }
    let name = "llmq_breaker_state";
    page.family(
        name,
        Kind::Gauge,
        "1 for the state that an upstream's breaker is in.",
    );
    for upstream in upstreams {
        for (breaker, word) in [
            (BreakerWord::Closed, "closed"),
            (BreakerWord::Open, "open"),
            (BreakerWord::HalfOpen, "half_open"),
        ] {
            let labels = [("state", word), ("upstream", upstream.name.as_str())];
            page.sample(name, &labels, u8::from(upstream.breaker == breaker));
        }
    }
    let name = "llmq_quota_used_ratio";
    page.family(
        name,
        Kind::Gauge,
        "The used share of an upstream's day, where its limit is known.",
    );
    for upstream in upstreams {
        let used = upstream.quota.as_ref().and_then(|day| day.used_percent);
        if let Some(used) = used {
            page.sample(name, &[("upstream", &upstream.name)], used / 100.0);
        }
    }
}

/// A limit that several upstreams share is shown once.
fn write_limits(page: &mut Page, upstreams: &[UpstreamState]) {
    let mut limits: Vec<_> = upstreams
        .iter()
        .flat_map(|upstream| &upstream.limits)
        .collect();
    limits.sort_by(|a, b| (&a.name, &a.limit).cmp(&(&b.name, &b.limit)));
    limits.dedup_by(|a, b| a.name == b.name && a.limit == b.limit);
    let name = "llmq_limit_used_ratio";
    page.family(
        name,
        Kind::Gauge,
        "The share of a limit that is in use, above 1 in debt.",
    );
    for limit in &limits {
        let labels = [("limit", limit.limit.as_str()), ("name", &limit.name)];
        page.sample(name, &labels, limit.in_use);
    }
    let name = "llmq_limit_waiting_lines";
    page.family(name, Kind::Gauge, "Lines that wait for a limit.");
    for limit in &limits {
        let labels = [("limit", limit.limit.as_str()), ("name", &limit.name)];
        page.sample(name, &labels, limit.waiting_lines);
    }
}
