//! What is so at the moment, on the page at `/metrics`.

use std::collections::BTreeMap;

use llmq_api::{BreakerWord, LimitState, QueueMotion, QueueState, UpstreamState};
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

/// A limit that several upstreams share is shown once, and of those with the same labels the one
/// that is used most.
fn write_limits(page: &mut Page, upstreams: &[UpstreamState]) {
    let mut limits: BTreeMap<(&str, String), &LimitState> = BTreeMap::new();
    for limit in upstreams.iter().flat_map(|upstream| &upstream.limits) {
        let labels = (limit.name.as_str(), without_count(&limit.limit));
        let shown = limits.entry(labels).or_insert(limit);
        if limit.in_use > shown.in_use {
            *shown = limit;
        }
    }
    let name = "llmq_limit_used_ratio";
    page.family(
        name,
        Kind::Gauge,
        "The share of a limit that is in use, above 1 in debt.",
    );
    for ((whose, what), limit) in &limits {
        let labels = [("limit", what.as_str()), ("name", *whose)];
        page.sample(name, &labels, limit.in_use);
    }
    let name = "llmq_limit_waiting_lines";
    page.family(name, Kind::Gauge, "Lines that wait for a limit.");
    for ((whose, what), limit) in &limits {
        let labels = [("limit", what.as_str()), ("name", *whose)];
        page.sample(name, &labels, limit.waiting_lines);
    }
}

/// `tokens=4M/1m:bucket` as `tokens/1m:bucket`: counts that are found or learned move, and each
/// would be a series of its own.
fn without_count(limit: &str) -> String {
    let (kind, rest) = limit.split_once('=').unwrap_or((limit, ""));
    match rest.split_once('/') {
        Some((_, window)) => format!("{kind}/{window}"),
        None => kind.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(limits: &[(&str, f64)]) -> UpstreamState {
        let limits = limits.iter().map(|(limit, in_use)| LimitState {
            name: "a/m".to_owned(),
            limit: (*limit).to_owned(),
            in_use: *in_use,
            learned: false,
            charge_factor: 1.0,
            waiting_lines: 0,
        });
        UpstreamState {
            name: "a/m".to_owned(),
            provider: None,
            usable: true,
            in_flight: 0,
            breaker: BreakerWord::Closed,
            breaker_until: None,
            closed_by: None,
            closed_until: None,
            limits: limits.collect(),
            quota: None,
        }
    }

    /// Each step of an adaptive concurrency made another series.
    #[test]
    fn a_limit_keeps_its_series_when_its_count_moves() {
        for count in ["16", "17", "2k"] {
            let mut page = Page::default();
            let limits = [
                (format!("concurrency={count}"), 0.5),
                (format!("tokens={count}/1m:bucket"), 0.0),
            ];
            let limits = limits
                .each_ref()
                .map(|(limit, in_use)| (limit.as_str(), *in_use));
            write_limits(&mut page, &[upstream(&limits)]);
            let page = page.finish();
            for line in [
                "llmq_limit_used_ratio{limit=\"concurrency\",name=\"a/m\"} 0.5\n",
                "llmq_limit_used_ratio{limit=\"tokens/1m:bucket\",name=\"a/m\"} 0\n",
                "llmq_limit_waiting_lines{limit=\"concurrency\",name=\"a/m\"} 0\n",
            ] {
                assert!(page.contains(line), "{line} is not in\n{page}");
            }
        }
    }

    #[test]
    fn limits_that_differ_in_their_count_alone_are_one_sample_of_the_fullest() {
        let mut page = Page::default();
        let limits = [
            ("tokens=9/1m", 0.2),
            ("tokens=3/1m", 0.6),
            ("tokens=5/1m", 0.4),
        ];
        write_limits(&mut page, &[upstream(&limits)]);
        let page = page.finish();
        let samples = page
            .lines()
            .filter(|line| line.starts_with("llmq_limit_used"));
        let expected = "llmq_limit_used_ratio{limit=\"tokens/1m\",name=\"a/m\"} 0.6";
        assert_eq!(samples.collect::<Vec<_>>(), [expected]);
    }
}
