//! Figures for Prometheus.
//!
//! Plain atomics rather than a metrics library: those of the libraries that were looked at take
//! a lock for each value of a histogram or look a call's labels up in a locked map, several
//! times a call.

mod gauges;
mod histogram;
mod names;
mod page;
mod render;
mod series;
mod table;

use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use llmq_core::FailureClass;
use rustc_hash::{FxHashMap, FxHashSet};

use histogram::{ADDED, Histogram};
use names::Stay;
use series::Sendings;
use table::{Moved, Table};

use super::record::CallRecord;

pub(crate) use gauges::write_gauges;
pub(crate) use page::{CONTENT_TYPE, Page};
#[cfg(feature = "otel")]
pub(crate) use series::operation_name;

/// Counts calls and attempts, and shows the counts as Prometheus reads them.
///
/// Counting takes no lock, and allocates nothing once a combination of labels has been seen.
/// Names that [`Metrics::configure`] was not told of count as `other`, so that callers cannot
/// make labels.
#[derive(Debug)]
pub struct Metrics {
    table: ArcSwap<Table>,
    /// By whether the answer was a stream.
    added: [Histogram; 2],
    calls: AtomicU64,
    failed: AtomicU64,
    attempts: AtomicU64,
    rate_limited: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    not_logged: AtomicU64,
}

/// Sums over everything since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) attempts: u64,
    pub(crate) rate_limited: u64,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            table: ArcSwap::default(),
            added: [Histogram::new(&ADDED), Histogram::new(&ADDED)],
            calls: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            rate_limited: AtomicU64::new(0),
            input_tokens: AtomicU64::new(0),
            output_tokens: AtomicU64::new(0),
            not_logged: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// Nothing counted, and no names known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the names of a configuration be labels: its models, and its upstreams with their
    /// providers (`openai`, `anthropic` …). Names of earlier configurations stay.
    pub fn configure<'a>(
        &self,
        models: impl IntoIterator<Item = &'a str>,
        upstreams: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        self.label(models, upstreams, Stay::ForGood);
    }

    /// The same where callers name the models: names that were told so before and are not told now
    /// are forgotten, and what was counted under them goes on as `other`.
    pub fn follow<'a>(
        &self,
        models: impl IntoIterator<Item = &'a str>,
        upstreams: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        self.label(models, upstreams, Stay::WhileKnown);
    }

    fn label<'a>(
        &self,
        models: impl IntoIterator<Item = &'a str>,
        upstreams: impl IntoIterator<Item = (&'a str, &'a str)>,
        stay: Stay,
    ) {
        let models: FxHashSet<&str> = models.into_iter().collect();
        let upstreams: FxHashMap<&str, &str> = upstreams.into_iter().collect();
        let mut moved = Moved::default();
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            for model in &models {
                table.models.add(model, stay);
            }
            for (upstream, provider) in &upstreams {
                let number = table.upstreams.add(upstream, stay);
                table.providers.insert(number, (*provider).into());
                table.sendings_of(number);
            }
            moved = table.keep(&models, &upstreams.keys().copied().collect());
            table
        });
        // Once it is certain which table is the next one. A call that another thread is counting
        // under such a name at this instant is in neither.
        moved.add();
    }

    /// Counts a call that is over.
    pub fn call(&self, call: &CallRecord<'_>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if call.outcome.is_some() || call.status >= 400 {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(usage) = call.usage {
            self.input_tokens
                .fetch_add(usage.input_tokens, Ordering::Relaxed);
            self.output_tokens
                .fetch_add(usage.output_tokens, Ordering::Relaxed);
        }
        self.added[usize::from(call.stream)].record_time(call.added);
        let table = self.table.load();
        let key = table.key(call);
        match (table.series.get(&key), table.waits.get(&key.model)) {
            (Some(series), Some(waits)) => {
                series.count(call);
                waits.count(call.priority, call.queued);
            }
            _ => self.first_call(call),
        }
    }

    /// Counts a call whose line the log had no room for.
    pub(crate) fn not_logged(&self) {
        self.not_logged.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one sending of a call: answered, or with what it failed.
    pub fn attempt(&self, upstream: &str, failure: Option<FailureClass>) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.with_sendings(upstream, |sendings| sendings.count(failure));
    }

    /// Counts one whose caller left before its end.
    pub(crate) fn attempt_cancelled(&self, upstream: &str) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.with_sendings(upstream, |sendings| {
            sendings.cancelled.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Counts a 429 of an upstream, and whether our own books should have foreseen it.
    pub(crate) fn rate_limited(&self, upstream: &str, ours: bool) {
        self.rate_limited.fetch_add(1, Ordering::Relaxed);
        self.with_sendings(upstream, |sendings| {
            sendings.rate_limited[usize::from(ours)].fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Counts that an upstream was taken as down.
    pub(crate) fn breaker_opened(&self, upstream: &str) {
        self.with_sendings(upstream, |sendings| {
            sendings.breaker_opened.fetch_add(1, Ordering::Relaxed);
        });
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals {
            calls: self.calls.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            attempts: self.attempts.load(Ordering::Relaxed),
            rate_limited: self.rate_limited.load(Ordering::Relaxed),
            input_tokens: self.input_tokens.load(Ordering::Relaxed),
            output_tokens: self.output_tokens.load(Ordering::Relaxed),
        }
    }

    fn with_sendings(&self, upstream: &str, count: impl FnOnce(&Sendings)) {
        let table = self.table.load();
        let number = table.upstreams.number(upstream);
        match table.sendings.get(&number) {
            Some(sendings) => count(sendings),
            None => count(&self.grow(|table| table.sendings_of(table.upstreams.number(upstream)))),
        }
    }

    #[cold]
    fn first_call(&self, call: &CallRecord<'_>) {
        let (series, waits) = self.grow(|table| table.series_of(table.key(call)));
        series.count(call);
        waits.count(call.priority, call.queued);
    }

    /// Adds to the table what `find` makes in it, unless another thread did already.
    #[cold]
    fn grow<T>(&self, find: impl Fn(&mut Table) -> T) -> T {
        let mut found = None;
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            found = Some(find(&mut table));
            table
        });
        found.expect("the table is replaced at least once")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use llmq_core::{Priority, Usage};
    use llmq_provider::Operation;
    use proptest::prelude::*;

    use super::*;
    use crate::observe::record::tests::record;

    fn metrics() -> Metrics {
        let metrics = Metrics::new();
        metrics.configure(
            ["gpt", "claude"],
            [("openai", "openai"), ("anthropic", "anthropic")],
        );
        metrics
    }

    /// The page's samples; fails where the page is not as Prometheus wants it.
    fn samples(metrics: &Metrics) -> BTreeMap<String, f64> {
        let mut page = Page::default();
        metrics.write(&mut page);
        let (mut family, mut families, mut samples) = (String::new(), Vec::new(), BTreeMap::new());
        for line in page.finish().lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap().to_owned();
                assert!(!families.contains(&family), "{family} begins twice");
                families.push(family.clone());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(rest.starts_with(&family), "{line}");
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(name.starts_with(&family), "{line} is outside its family");
                let before = samples.insert(name.to_owned(), value.parse().unwrap());
                assert_eq!(before, None, "{name} twice");
            }
        }
        samples
    }

    fn sum(samples: &BTreeMap<String, f64>, name: &str) -> f64 {
        let named = samples
            .iter()
            .filter(|(sample, _)| sample.split('{').next() == Some(name));
        named.map(|(_, value)| value).sum()
    }

    prop_compose! {
        fn any_call()(
            model in prop::sample::select(vec!["gpt", "claude", "unheard-of", "other"]),
            upstream in prop::option::of(prop::sample::select(vec!["openai", "anthropic", "gone"])),
            operation in prop::sample::select(Operation::ALL.to_vec()),
            priority in 0..=100u8,
            stream: bool,
            status in 100..600u16,
            outcome in prop::option::of(prop::sample::select(FailureClass::ALL.to_vec())),
            first in prop::option::of(0..2_000u64),
            attempts in 0..3u32,
            tokens in prop::option::of((0..10_000u64, 0..10_000u64)),
        ) -> CallRecord<'static> {
            CallRecord {
                model,
                upstream,
                operation,
                priority: Priority::new(priority).unwrap(),
                stream,
                status,
                outcome,
                attempts,
                first_token: first.map(Duration::from_millis),
                usage: tokens.map(|(input_tokens, output_tokens)| Usage {
                    input_tokens,
                    output_tokens,
                    ..Usage::default()
                }),
                ..record()
            }
        }
    }

    proptest! {
        /// Whatever calls look like, each is counted once everywhere, and the page can be read.
        #[test]
        fn every_call_is_counted_once(calls in prop::collection::vec(any_call(), 0..30)) {
            let metrics = metrics();
            for call in &calls {
                metrics.call(call);
            }
            let samples = samples(&metrics);
            let count = f64::from(u32::try_from(calls.len()).unwrap());
            for name in [
                "llmq_calls_total",
                "gen_ai_server_request_duration_seconds_count",
                "llmq_queue_wait_seconds_count",
                "llmq_added_seconds_count",
            ] {
                prop_assert_eq!(sum(&samples, name), count, "{}", name);
            }
            let sent = calls.iter().filter(|call| call.attempts > 0).count();
            let sent = f64::from(u32::try_from(sent).unwrap());
            let name = "gen_ai_client_operation_duration_seconds_count";
            prop_assert_eq!(sum(&samples, name), sent, "{}", name);
            let names = samples.keys().any(|name| name.contains("unheard") || name.contains("gone"));
            prop_assert!(!names, "a caller made a label");
        }
    }

    #[test]
    fn a_calls_time_at_upstreams_is_without_its_wait_and_without_ours() {
        let metrics = metrics();
        metrics.call(&CallRecord {
            took: Duration::from_millis(900),
            queued: Duration::from_millis(500),
            added: Duration::from_millis(150),
            ..record()
        });
        let name = "gen_ai_client_operation_duration_seconds_sum";
        assert!((sum(&samples(&metrics), name) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn tokens_are_counted_as_the_conventions_say() {
        let metrics = metrics();
        let usage = Usage {
            input_tokens: 12,
            output_tokens: 5,
            cache_read_tokens: 8,
            cache_write_tokens: 0,
        };
        metrics.call(&CallRecord {
            usage: Some(usage),
            stream: true,
            first_token: Some(Duration::from_millis(50)),
            ..record()
        });
        let samples = samples(&metrics);
        let labels = "gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"openai\",\
                      gen_ai_request_model=\"gpt\"";
        let check = |name: &str, value: f64| assert_eq!(samples.get(name), Some(&value), "{name}");
        for (kind, tokens) in [("input", 12.0), ("output", 5.0)] {
            check(
                &format!(
                    "gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type=\"{kind}\",\
                     llmq_upstream=\"openai\"}}"
                ),
                tokens,
            );
        }
        // 100 ms for the four tokens after the first.
        check(
            &format!(
                "gen_ai_server_time_per_output_token_seconds_sum{{{labels},llmq_upstream=\"openai\"}}"
            ),
            0.025,
        );
        check(
            "llmq_cached_input_tokens_total{model=\"gpt\",operation=\"chat\",upstream=\"openai\"}",
            8.0,
        );
    }

    #[test]
    fn what_the_log_of_calls_leaves_out_is_counted() {
        let metrics = metrics();
        let left_out = || samples(&metrics)["llmq_call_log_left_out_total"];
        assert!(left_out().abs() < 1e-9);
        metrics.not_logged();
        assert!((left_out() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn attempts_are_counted_by_class() {
        let metrics = metrics();
        metrics.attempt("openai", None);
        metrics.attempt("openai", Some(FailureClass::Overload));
        metrics.attempt("unheard-of", Some(FailureClass::Ambiguous));
        let samples = samples(&metrics);
        for (outcome, upstream) in [
            ("ok", "openai"),
            ("overload", "openai"),
            ("ambiguous", "other"),
        ] {
            let name =
                format!("llmq_attempts_total{{outcome=\"{outcome}\",upstream=\"{upstream}\"}}");
            assert_eq!(samples.get(&name), Some(&1.0), "{name}");
        }
        assert_eq!(metrics.totals().attempts, 3);
    }

    #[test]
    fn counts_survive_another_configuration() {
        let metrics = metrics();
        metrics.call(&record());
        metrics.configure(["new"], []);
        metrics.call(&record());
        metrics.call(&CallRecord {
            model: "new",
            ..record()
        });
        let samples = samples(&metrics);
        let of = |model: &str| {
            samples
                [&format!("llmq_queue_wait_seconds_count{{model=\"{model}\",priority=\"high\"}}")]
        };
        assert_eq!((of("gpt"), of("new")), (2.0, 1.0));
    }

    /// Where any name is served, each that a caller made up stayed a label for as long as the
    /// process lived. Then its counts went with it, so that the sums fell.
    #[test]
    fn names_that_callers_made_go_and_their_counts_go_on_as_other() {
        let metrics = metrics();
        metrics.call(&record());
        let names: Vec<[String; 2]> = (0..3_000)
            .map(|number| [format!("wrong-{number}"), format!("openai/wrong-{number}")])
            .collect();
        for names in names.chunks(1_000) {
            let models = names.iter().map(|[model, _]| model.as_str());
            let upstreams = names
                .iter()
                .map(|[_, upstream]| (upstream.as_str(), "openai"));
            metrics.follow(models, upstreams);
            for [model, upstream] in names {
                metrics.attempt(upstream, None);
                metrics.call(&CallRecord {
                    model,
                    upstream: Some(upstream),
                    ..record()
                });
            }
        }
        // One that has gone is nobody's label any more.
        metrics.attempt("openai/wrong-0", None);
        metrics.call(&CallRecord {
            model: "wrong-0",
            upstream: Some("openai/wrong-0"),
            ..record()
        });
        let samples = samples(&metrics);
        let calls = |model: &str, upstream: &str| {
            let name = format!("llmq_calls_total{{model=\"{model}\"");
            let mut calls = samples.iter().filter(|(sample, _)| {
                sample.starts_with(&name) && sample.contains(&format!("upstream=\"{upstream}\""))
            });
            calls.next().map(|(_, count)| *count)
        };
        assert_eq!(calls("gpt", "openai"), Some(1.0));
        assert_eq!(calls("wrong-2999", "openai/wrong-2999"), Some(1.0));
        assert_eq!(calls("other", "other"), Some(2_001.0));
        assert_eq!(sum(&samples, "llmq_calls_total"), 3_002.0);
        assert_eq!(sum(&samples, "llmq_attempts_total"), 3_001.0);
        assert_eq!(sum(&samples, "llmq_queue_wait_seconds_count"), 3_002.0);
        let name = "gen_ai_server_request_duration_seconds_count";
        assert_eq!(sum(&samples, name), 3_002.0);
        let gone = samples.keys().filter(|name| {
            let wrong = name
                .split("wrong-")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            wrong.is_some_and(|number| number.parse::<u32>().unwrap() < 2_000)
        });
        assert_eq!(gone.count(), 0);
        let kept = metrics.table.load();
        let sizes = [kept.series.len(), kept.waits.len()];
        assert_eq!(sizes, [1_002, 1_002], "a thousand, `gpt` and `other`");
        assert_eq!(metrics.totals().calls, 3_002);
    }

    /// New combinations are added by whichever thread meets them first; none may take away
    /// what another has counted.
    #[test]
    fn threads_that_meet_new_labels_together_lose_nothing() {
        let metrics = metrics();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for operation in Operation::ALL {
                        for model in ["gpt", "claude", "x"] {
                            metrics.call(&CallRecord {
                                model,
                                operation,
                                ..record()
                            });
                        }
                    }
                });
            }
        });
        let expected = f64::from(u32::try_from(4 * 3 * Operation::ALL.len()).unwrap());
        assert_eq!(sum(&samples(&metrics), "llmq_calls_total"), expected);
    }
}
