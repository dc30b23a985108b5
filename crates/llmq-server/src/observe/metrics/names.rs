use std::sync::Arc;

use rustc_hash::FxHashMap;

/// Names that may be labels, each with its number; every other name is `other`.
///
/// Names are only added, so that a number keeps its meaning when a configuration is taken over.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    numbers: FxHashMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

impl Default for Names {
    fn default() -> Self {
        let mut names = Self {
            numbers: FxHashMap::default(),
            names: Vec::new(),
        };
        names.add("other");
        names
    }
}

impl Names {
    pub(crate) fn add(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(0);
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        number
    }

    /// A name's number; that of `other` where nobody configured it.
    pub(crate) fn number(&self, name: &str) -> u32 {
        self.numbers.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("other", |name| name)
    }
}
