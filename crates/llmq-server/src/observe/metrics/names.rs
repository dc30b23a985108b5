use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

/// Names that may be labels, each with its number; every other name is `other`.
///
/// A number is given once. It keeps its meaning when a configuration is taken over, and goes with
/// its name.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    numbers: FxHashMap<Arc<str>, u32>,
    known: FxHashMap<u32, Known>,
    next: u32,
}

#[derive(Debug, Clone)]
struct Known {
    name: Arc<str>,
    stay: Stay,
}

/// For how long a name is a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    /// It was configured.
    ForGood,
    /// A caller named it.
    WhileKnown,
}

impl Default for Names {
    fn default() -> Self {
        let mut names = Self {
            numbers: FxHashMap::default(),
            known: FxHashMap::default(),
            next: 0,
        };
        names.add("other", Stay::ForGood);
        names
    }
}

impl Names {
    pub(crate) fn add(&mut self, name: &str, stay: Stay) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            if stay == Stay::ForGood
                && let Some(known) = self.known.get_mut(number)
            {
                known.stay = stay;
            }
            return *number;
        }
        let number = self.next;
        self.next += 1;
        let name: Arc<str> = name.into();
        self.numbers.insert(Arc::clone(&name), number);
        self.known.insert(number, Known { name, stay });
        number
    }

    /// Forgets the names that callers made and that are not among these.
    pub(crate) fn keep(&mut self, known: &FxHashSet<&str>) {
        self.known
            .retain(|_, it| it.stay == Stay::ForGood || known.contains(&*it.name));
        let Self { numbers, known, .. } = self;
        numbers.retain(|_, number| known.contains_key(number));
    }

    /// A name's number; that of `other` where nobody configured it.
    pub(crate) fn number(&self, name: &str) -> u32 {
        self.numbers.get(name).copied().unwrap_or(0)
    }

    /// A number, or that of `other` where its name is forgotten.
    pub(crate) fn kept(&self, number: u32) -> u32 {
        if self.has(number) { number } else { 0 }
    }

    pub(crate) fn has(&self, number: u32) -> bool {
        self.known.contains_key(&number)
    }

    pub(crate) fn name(&self, number: u32) -> &str {
        let known = self.known.get(&number);
        known.map_or("other", |known| &known.name)
    }
}
