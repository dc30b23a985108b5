//! The page at `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use llmq_core::FailureClass;

use super::Metrics;
use super::histogram::Histogram;
use super::page::{Kind, Labels, Page};
use super::series::{LEVELS, STATUSES, Series, operation_name};
use super::table::{Key, Table};
use crate::observe::record::ErrorType;

impl Metrics {
    /// Writes everything that was counted.
    pub(crate) fn write(&self, page: &mut Page) {
        let table = self.table.load();
        let rows = table.rows();
        write_genai(page, &rows);
        write_calls(page, &rows);
        write_waits(page, &table);
        write_sendings(page, &table);
        page.family(
            "llmq_added_seconds",
            Kind::Histogram,
            "Time that a call spent in llmq itself, neither waiting for its turn nor for an upstream.",
        );
        for (stream, added) in ["false", "true"].iter().zip(&self.added) {
            page.histogram("llmq_added_seconds", &[("stream", stream)], added);
        }
        let name = "llmq_call_log_left_out_total";
        page.family(
            name,
            Kind::Counter,
            "Lines that the log of calls had no room for, since its disk is too slow.",
        );
        page.sample(name, &[], self.not_logged.load(Ordering::Relaxed));
    }
}

/// One combination of labels, with what was counted under it.
struct Row<'a> {
    model: &'a str,
    upstream: &'a str,
    provider: &'a str,
    operation: &'static str,
    series: Arc<Series>,
}

impl Row<'_> {
    /// The labels of the OpenTelemetry conventions for GenAI, and the upstream.
    fn labels(&self) -> [(&str, &str); 4] {
        [
            ("gen_ai_operation_name", self.operation),
            ("gen_ai_provider_name", self.provider),
            ("gen_ai_request_model", self.model),
            ("llmq_upstream", self.upstream),
        ]
    }
}

impl Table {
    /// Every combination, in the order of the labels.
    fn rows(&self) -> Vec<Row<'_>> {
        let row = |(key, series): (&Key, &Arc<Series>)| Row {
            model: self.models.name(key.model),
            upstream: key
                .upstream
                .map_or("", |number| self.upstreams.name(number)),
            provider: key
                .upstream
                .and_then(|number| self.providers.get(&number))
                .map_or("", |provider| provider),
            operation: operation_name(key.operation),
            series: Arc::clone(series),
        };
        let mut rows: Vec<Row<'_>> = self.series.iter().map(row).collect();
        rows.sort_by(|a, b| a.labels().cmp(&b.labels()));
        rows
    }
}

fn write_genai(page: &mut Page, rows: &[Row<'_>]) {
    let name = "gen_ai_server_request_duration_seconds";
    page.family(
        name,
        Kind::Histogram,
        "From a call's arrival to the last byte of its answer, by what it ended with.",
    );
    by_end(page, name, rows, |series| &series.took);
    let name = "gen_ai_client_operation_duration_seconds";
    page.family(
        name,
        Kind::Histogram,
        "A call's time at its upstreams, over all attempts, by what it ended with.",
    );
    by_end(page, name, rows, |series| &series.sent);
    let name = "gen_ai_server_time_to_first_token_seconds";
    page.family(
        name,
        Kind::Histogram,
        "From a call's arrival to the first token of its answer.",
    );
    for row in rows {
        optional(page, name, &row.labels(), &row.series.first_token);
    }
    let name = "gen_ai_server_time_per_output_token_seconds";
    page.family(
        name,
        Kind::Histogram,
        "Mean time of a call's tokens after the first one.",
    );
    for row in rows {
        optional(page, name, &row.labels(), &row.series.next_token);
    }
    let name = "gen_ai_client_token_usage";
    page.family(
        name,
        Kind::Histogram,
        "Tokens of a call, as its upstream counted them.",
    );
    for row in rows {
        let [a, b, c, d] = row.labels();
        for (kind, tokens) in [("input", &row.series.input), ("output", &row.series.output)] {
            let kind = ("gen_ai_token_type", kind);
            optional(page, name, &[a, b, c, kind, d], tokens);
        }
    }
}

/// Histograms with one for each way in which a call can end.
fn by_end<const N: usize>(
    page: &mut Page,
    name: &str,
    rows: &[Row<'_>],
    ends: impl Fn(&Series) -> &[OnceLock<Histogram>; N],
) {
    for row in rows {
        for (index, times) in ends(&row.series).iter().enumerate() {
            let [a, b, c, d] = row.labels();
            let error = ("error_type", ErrorType::at(index).as_str());
            optional(page, name, &[error, a, b, c, d], times);
        }
    }
}

fn write_calls(page: &mut Page, rows: &[Row<'_>]) {
    let name = "llmq_calls_total";
    page.family(name, Kind::Counter, "Calls that are over, by their status.");
    for row in rows {
        for (stream, counts) in ["false", "true"].iter().zip(&row.series.calls) {
            for (place, count) in counts.iter().enumerate() {
                let status = STATUSES
                    .get(place)
                    .map_or_else(|| "other".to_owned(), |status| status.to_string());
                let labels = [
                    ("model", row.model),
                    ("operation", row.operation),
                    ("status", &status),
                    ("stream", stream),
                    ("upstream", row.upstream),
                ];
                counted(page, name, &labels, count);
            }
        }
    }
    let name = "llmq_cached_input_tokens_total";
    page.family(
        name,
        Kind::Counter,
        "Input tokens that upstreams read from their caches.",
    );
    for row in rows {
        let labels = [
            ("model", row.model),
            ("operation", row.operation),
            ("upstream", row.upstream),
        ];
        counted(page, name, &labels, &row.series.cached_input);
    }
}

fn write_waits(page: &mut Page, table: &Table) {
    let name = "llmq_queue_wait_seconds";
    page.family(
        name,
        Kind::Histogram,
        "How long calls waited for their turn.",
    );
    let mut waits: Vec<_> = table.waits.iter().collect();
    waits.sort_by_key(|(model, _)| **model);
    for (model, waits) in waits {
        for ((_, level), queued) in LEVELS.iter().zip(&waits.by_level) {
            let labels = [("model", table.models.name(*model)), ("priority", level)];
            optional(page, name, &labels, queued);
        }
    }
}

fn write_sendings(page: &mut Page, table: &Table) {
    let mut upstreams: Vec<_> = table.sendings.iter().collect();
    upstreams.sort_by_key(|(upstream, _)| **upstream);
    let name = "llmq_attempts_total";
    page.family(
        name,
        Kind::Counter,
        "Sendings of calls, by the class of their failure; `ok` was answered, and the caller of \
         `cancelled` left.",
    );
    for (upstream, sendings) in &upstreams {
        let classes = FailureClass::ALL.iter().map(|class| class.as_str());
        let known = ["ok"].into_iter().chain(classes).zip(&sendings.by_outcome);
        for (class, count) in known.chain([("cancelled", &sendings.cancelled)]) {
            let labels = [
                ("outcome", class),
                ("upstream", table.upstreams.name(**upstream)),
            ];
            counted(page, name, &labels, count);
        }
    }
    let name = "llmq_rate_limited_total";
    page.family(
        name,
        Kind::Counter,
        "429s received; `ours` are those that llmq's own books should have foreseen.",
    );
    for (upstream, sendings) in &upstreams {
        let upstream = table.upstreams.name(**upstream);
        for (ours, count) in ["false", "true"].iter().zip(&sendings.rate_limited) {
            let labels = [("ours", *ours), ("upstream", upstream)];
            page.sample(name, &labels, count.load(Ordering::Relaxed));
        }
    }
    let name = "llmq_breaker_opened_total";
    page.family(
        name,
        Kind::Counter,
        "How often an upstream was taken as down.",
    );
    for (upstream, sendings) in &upstreams {
        let labels = [("upstream", table.upstreams.name(**upstream))];
        let count = sendings.breaker_opened.load(Ordering::Relaxed);
        page.sample(name, &labels, count);
    }
}

/// A histogram that nothing may have been recorded in.
fn optional(page: &mut Page, name: &str, labels: &Labels<'_>, histogram: &OnceLock<Histogram>) {
    if let Some(histogram) = histogram.get() {
        page.histogram(name, labels, histogram);
    }
}

/// A count, unless it is nought: most statuses never occur.
fn counted(page: &mut Page, name: &str, labels: &Labels<'_>, count: &AtomicU64) {
    let count = count.load(Ordering::Relaxed);
    if count > 0 {
        page.sample(name, labels, count);
    }
}
