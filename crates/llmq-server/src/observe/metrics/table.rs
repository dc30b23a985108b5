//! Under which names what is counted.

use std::hash::Hash;
use std::sync::Arc;

use llmq_provider::Operation;
use rustc_hash::{FxHashMap, FxHashSet};

use super::names::Names;
use super::series::{Counted, Sendings, Series, Waits, family};
use crate::observe::record::CallRecord;

/// What has been counted so far under which names. Replaced as a whole when something new is
/// seen; the counts themselves are shared by the old one and the new.
#[derive(Debug, Default, Clone)]
pub(super) struct Table {
    pub(super) models: Names,
    pub(super) upstreams: Names,
    pub(super) providers: FxHashMap<u32, Arc<str>>,
    pub(super) series: FxHashMap<Key, Arc<Series>>,
    pub(super) waits: FxHashMap<u32, Arc<Waits>>,
    pub(super) sendings: FxHashMap<u32, Arc<Sendings>>,
}

/// A model, an upstream (none: sent nowhere) and a family of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) model: u32,
    pub(super) upstream: Option<u32>,
    pub(super) operation: Operation,
}

impl Table {
    /// Under what a call is counted.
    pub(super) fn key(&self, call: &CallRecord<'_>) -> Key {
        Key {
            model: self.models.number(call.model),
            upstream: call.upstream.map(|name| self.upstreams.number(name)),
            operation: family(call.operation),
        }
    }

    /// Forgets the names that callers made and that are not among these; tells where their counts
    /// are to go on.
    pub(super) fn keep(&mut self, models: &FxHashSet<&str>, upstreams: &FxHashSet<&str>) -> Moved {
        self.models.keep(models);
        self.upstreams.keep(upstreams);
        let (models, upstreams) = (&self.models, &self.upstreams);
        self.providers.retain(|number, _| upstreams.has(*number));
        let key_of = |key: Key| Key {
            model: models.kept(key.model),
            upstream: key.upstream.map(|number| upstreams.kept(number)),
            operation: key.operation,
        };
        let model = |number| models.kept(number);
        let upstream = |number| upstreams.kept(number);
        Moved {
            series: move_all(&mut self.series, key_of, Series::new),
            waits: move_all(&mut self.waits, model, Waits::new),
            sendings: move_all(&mut self.sendings, upstream, Sendings::new),
        }
    }

    pub(super) fn series_of(&mut self, key: Key) -> (Arc<Series>, Arc<Waits>) {
        let series = self.series.entry(key);
        let series = series.or_insert_with(|| Arc::new(Series::new()));
        let waits = self.waits.entry(key.model);
        let waits = waits.or_insert_with(|| Arc::new(Waits::new()));
        (Arc::clone(series), Arc::clone(waits))
    }

    pub(super) fn sendings_of(&mut self, upstream: u32) -> Arc<Sendings> {
        let sendings = self.sendings.entry(upstream);
        Arc::clone(sendings.or_insert_with(|| Arc::new(Sendings::new())))
    }
}

/// What was counted under names that are forgotten, each with what it is to be added to.
#[derive(Default)]
pub(super) struct Moved {
    series: Vec<[Arc<Series>; 2]>,
    waits: Vec<[Arc<Waits>; 2]>,
    sendings: Vec<[Arc<Sendings>; 2]>,
}

impl Moved {
    /// Adds it there. Once for each: what is added twice is counted twice.
    pub(super) fn add(&self) {
        add(&self.series);
        add(&self.waits);
        add(&self.sendings);
    }
}

/// Takes out what has another place by now; gives each with what is counted there.
fn move_all<K: Copy + Eq + Hash, T>(
    counted: &mut FxHashMap<K, Arc<T>>,
    place: impl Fn(K) -> K,
    new: impl Fn() -> T,
) -> Vec<[Arc<T>; 2]> {
    let keys = counted.keys().copied();
    let gone: Vec<K> = keys.filter(|key| place(*key) != *key).collect();
    gone.into_iter()
        .filter_map(|key| {
            let from = counted.remove(&key)?;
            let to = counted.entry(place(key));
            let to = to.or_insert_with(|| Arc::new(new()));
            Some([from, Arc::clone(to)])
        })
        .collect()
}

fn add<T: Counted>(moved: &[[Arc<T>; 2]]) {
    for [from, to] in moved {
        from.add_to(to);
    }
}
