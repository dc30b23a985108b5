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

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use llmq_core::FailureClass;
use llmq_provider::Operation;
use rustc_hash::FxHashMap;

use histogram::{ADDED, Histogram};
use names::Names;
use series::{Sendings, Series, Waits, family};

use super::record::CallRecord;

pub(crate) use gauges::write_gauges;
pub(crate) use page::{CONTENT_TYPE, Page};

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
}

/// What has been counted so far under which names. Replaced as a whole when something new is
/// seen; the counts themselves are shared by the old one and the new.
#[derive(Debug, Default, Clone)]
struct Table {
    models: Names,
    upstreams: Names,
    providers: FxHashMap<u32, Arc<str>>,
    series: FxHashMap<Key, Arc<Series>>,
    waits: FxHashMap<u32, Arc<Waits>>,
    sendings: FxHashMap<u32, Arc<Sendings>>,
}

/// A model, an upstream (none: sent nowhere) and a family of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    model: u32,
    upstream: Option<u32>,
    operation: Operation,
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
        let models: Vec<&str> = models.into_iter().collect();
        let upstreams: Vec<(&str, &str)> = upstreams.into_iter().collect();
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            for model in &models {
                table.models.add(model);
            }
            for (upstream, provider) in &upstreams {
                let number = table.upstreams.add(upstream);
                table.providers.insert(number, (*provider).into());
                table.sendings_of(number);
            }
            table
        });
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
        let key = Key {
            model: table.models.number(call.model),
            upstream: call.upstream.map(|name| table.upstreams.number(name)),
            operation: family(call.operation),
        };
        match (table.series.get(&key), table.waits.get(&key.model)) {
            (Some(series), Some(waits)) => {
                series.count(call);
                waits.count(call.priority, call.queued);
            }
            _ => self.first_call(key, call),
        }
    }

    /// Counts one sending of a call: answered, or with what it failed.
    pub fn attempt(&self, upstream: &str, failure: Option<FailureClass>) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.with_sendings(upstream, |sendings| sendings.count(failure));
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
            None => count(&self.grow(|table| table.sendings_of(number))),
        }
    }

    #[cold]
    fn first_call(&self, key: Key, call: &CallRecord<'_>) {
        let (series, waits) = self.grow(|table| table.series_of(key));
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

impl Table {
    fn series_of(&mut self, key: Key) -> (Arc<Series>, Arc<Waits>) {
        let series = self.series.entry(key);
        let series = series.or_insert_with(|| Arc::new(Series::new()));
        let waits = self.waits.entry(key.model);
        let waits = waits.or_insert_with(|| Arc::new(Waits::new()));
        (Arc::clone(series), Arc::clone(waits))
    }

    fn sendings_of(&mut self, upstream: u32) -> Arc<Sendings> {
        let sendings = self.sendings.entry(upstream);
        Arc::clone(sendings.or_insert_with(|| Arc::new(Sendings::new())))
    }
}
