use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::error::Mistake;
use super::path::KeyPath;
use super::source::{Config, Entry, Flag, Origin};

/// Names that are this alike are taken for typing errors of each other.
const LIKENESS_MIN: f64 = 0.75;

/// Reads settings out of the layers and gathers what is wrong with them.
pub(super) struct Reader<'c> {
    config: &'c Config,
    mistakes: RefCell<Vec<Mistake>>,
    entries: RefCell<Vec<Entry>>,
    /// The variables that stand for a setting.
    variables: RefCell<BTreeSet<String>>,
}

/// One table of the configuration. The keys that are asked for are the keys that exist.
pub(super) struct Section<'c, 'r> {
    reader: &'r Reader<'c>,
    path: KeyPath,
    file: Option<&'c Table>,
    defaults: Option<&'c Table>,
    asked: RefCell<Vec<&'static str>>,
    /// Whether anything in it was given, by whatever layer.
    given: Cell<bool>,
}

/// A value and where it was found.
pub(super) struct Found<'c> {
    pub(super) value: Cow<'c, Value>,
    pub(super) origin: Origin,
}

impl Found<'_> {
    /// Whether it came as text from outside, so that `5` may be a number.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.origin, Origin::Env(_) | Origin::Flag(_))
    }
}

impl<'c> Reader<'c> {
    pub(super) fn new(config: &'c Config) -> Self {
        Self {
            config,
            mistakes: RefCell::default(),
            entries: RefCell::default(),
            variables: RefCell::default(),
        }
    }

    /// Everything that is wrong, and everything that is in force.
    pub(super) fn finish(self) -> (Vec<Mistake>, Vec<Entry>) {
        (self.mistakes.into_inner(), self.entries.into_inner())
    }

    pub(super) fn root<T>(&self, read: impl FnOnce(&Section<'c, '_>) -> T) -> T {
        let section = Section {
            reader: self,
            path: KeyPath::default(),
            file: Some(&self.config.file),
            defaults: Some(&self.config.defaults),
            asked: RefCell::default(),
            given: Cell::default(),
        };
        section.read_whole(read)
    }

    /// Takes note of variables that were meant for a setting and stand for none. Not of every
    /// name that begins as ours do: a cluster sets some of its own (`LLMQ_SERVER_SERVICE_HOST`).
    pub(super) fn check_variables(&self) {
        let known = self.variables.borrow();
        for name in self.config.env.keys().filter(|name| !known.contains(*name)) {
            let section = SECTIONS.iter().find(|section| name.starts_with(*section));
            let Some(section) = section else {
                continue;
            };
            let rest = name.split_at(section.len()).1;
            let others = known.iter().filter_map(|other| other.strip_prefix(section));
            let message = match alike(rest, others) {
                Some(meant) => {
                    format!("there is no such setting; did you mean `{section}{meant}`?")
                }
                None if NAMED_SECTIONS.contains(section) => {
                    "it says more of what a configuration file names, and none names this"
                        .to_owned()
                }
                None => continue,
            };
            self.mistake(name, Origin::File, message);
        }
    }

    fn mistake(&self, path: &str, origin: Origin, message: String) {
        self.mistakes.borrow_mut().push(Mistake {
            path: path.to_owned(),
            origin,
            message,
        });
    }

    /// The flag or variable that overrides `path`.
    fn override_of(&self, path: &KeyPath) -> Option<Found<'c>> {
        let flags: &BTreeMap<String, Flag> = &self.config.flags;
        let found = |value: &str, origin| Found {
            value: Cow::Owned(Value::String(value.to_owned())),
            origin,
        };
        let stand_for_it = path.variables().map(str::to_owned);
        self.variables.borrow_mut().extend(stand_for_it);
        if let Some(flag) = flags.get(path.as_str()) {
            return Some(found(&flag.value, Origin::Flag(flag.name.clone())));
        }
        path.variables().find_map(|name| {
            let value = self.config.env.get(name)?;
            Some(found(value, Origin::Env(name.to_owned())))
        })
    }
}

impl<'c, 'r> Section<'c, 'r> {
    /// Reads the setting `key`; `None` when nobody gave it or it is mistaken.
    pub(super) fn read<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&Found<'c>) -> Result<T, String>,
    ) -> Option<T> {
        self.read_masked(key, parse, shown)
    }

    /// The same for a setting that must not be shown as it is.
    pub(super) fn read_masked<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&Found<'c>) -> Result<T, String>,
        mask: impl FnOnce(&Value) -> String,
    ) -> Option<T> {
        self.asked.borrow_mut().push(key);
        let path = self.path.child(key);
        let found = self.find(key, &path)?;
        self.given.set(true);
        match parse(&found) {
            Ok(value) => {
                self.reader.entries.borrow_mut().push(Entry {
                    path: path.to_string(),
                    value: mask(&found.value),
                    origin: found.origin,
                });
                Some(value)
            }
            Err(message) => {
                self.reader.mistake(path.as_str(), found.origin, message);
                None
            }
        }
    }

    /// The same with a value for when nobody gave one.
    pub(super) fn read_or<T>(
        &self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Found<'c>) -> Result<T, String>,
    ) -> T {
        self.read(key, parse).unwrap_or(default)
    }

    /// Reads the table `key`, which may be absent: then every key in it is.
    pub(super) fn table<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Section<'c, '_>) -> T,
    ) -> T {
        self.asked.borrow_mut().push(key);
        let path = self.path.child(key);
        let file = self.file.and_then(|table| table.get(key));
        self.subsection(&path, file, self.defaults.and_then(|table| table.get(key)))
            .read_whole(read)
    }

    /// The same, but `None` when nobody gave it or anything in it.
    pub(super) fn table_if_any<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Section<'c, '_>) -> T,
    ) -> Option<T> {
        self.asked.borrow_mut().push(key);
        let has = |table: Option<&Table>| table.is_some_and(|table| table.contains_key(key));
        let is_written = has(self.file) || has(self.defaults);
        let mistakes = self.reader.mistakes.borrow().len();
        let (value, given) = self.table(key, |section| (read(section), section.given.get()));
        if is_written || given {
            return Some(value);
        }
        // What a table lacks that is not there is no mistake.
        self.reader.mistakes.borrow_mut().truncate(mistakes);
        None
    }

    /// Reads a table whose keys are names, such as `[upstreams.NAME]`.
    pub(super) fn named<T>(
        &self,
        key: &'static str,
        read: impl Fn(&str, &Section<'c, '_>) -> T,
    ) -> BTreeMap<String, T> {
        self.asked.borrow_mut().push(key);
        let path = self.path.child(key);
        let file = self.file.and_then(|table| table.get(key));
        let whole = self.subsection(&path, file, None);
        let names = whole.file.into_iter().flatten();
        names
            .map(|(name, value)| {
                let section = whole.subsection(&path.child(name), Some(value), None);
                let entry = section.read_whole(|section| read(name, section));
                (name.clone(), entry)
            })
            .collect()
    }

    /// Reads a list of tables.
    pub(super) fn tables<T>(
        &self,
        key: &'static str,
        read: impl Fn(&Section<'c, '_>) -> T,
    ) -> Vec<T> {
        self.asked.borrow_mut().push(key);
        let path = self.path.child(key);
        let items = match self.file.and_then(|table| table.get(key)) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.wrong(key, "must be a list of tables: [ { … } ]".to_owned());
                return Vec::new();
            }
        };
        let item = |(number, value): (usize, &'c Value)| {
            self.subsection(&path.index(number), Some(value), None)
                .read_whole(&read)
        };
        items.iter().enumerate().map(item).collect()
    }

    /// The names in this table, for tables whose keys are free.
    pub(super) fn file_keys(&self) -> impl Iterator<Item = (&'c String, &'c Value)> {
        self.file.into_iter().flatten()
    }

    /// Takes note of something wrong with `key`.
    pub(super) fn wrong(&self, key: &str, message: String) {
        let path = self.path.child(key);
        let origin = self
            .find(key, &path)
            .map_or(Origin::File, |found| found.origin);
        self.reader.mistake(path.as_str(), origin, message);
    }

    /// Takes note of something wrong at `path`, counted from the root.
    pub(super) fn wrong_at(&self, path: &str, message: String) {
        self.reader.mistake(path, Origin::File, message);
    }

    /// Whether somebody gave `key`.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.find(key, &self.path.child(key)).is_some()
    }

    /// Takes note of something wrong with the table itself.
    pub(super) fn wrong_here(&self, message: String) {
        self.reader
            .mistake(self.path.as_str(), Origin::File, message);
    }

    fn find(&self, key: &str, path: &KeyPath) -> Option<Found<'c>> {
        let layer = |table: Option<&'c Table>, origin| {
            let value = table?.get(key)?;
            Some(Found {
                value: Cow::Borrowed(value),
                origin,
            })
        };
        self.reader
            .override_of(path)
            .or_else(|| layer(self.file, Origin::File))
            .or_else(|| layer(self.defaults, Origin::Default))
    }

    fn subsection(
        &self,
        path: &KeyPath,
        file: Option<&'c Value>,
        defaults: Option<&'c Value>,
    ) -> Section<'c, 'r> {
        if file.is_some_and(|value| !value.is_table()) {
            let message = "must be a table".to_owned();
            self.reader.mistake(path.as_str(), Origin::File, message);
        }
        Section {
            reader: self.reader,
            path: path.clone(),
            file: file.and_then(Value::as_table),
            defaults: defaults.and_then(Value::as_table),
            asked: RefCell::default(),
            given: Cell::default(),
        }
    }

    /// Reads the section and then tells the keys that nothing asked for.
    fn read_whole<T>(self, read: impl FnOnce(&Self) -> T) -> T {
        let value = read(&self);
        let asked = self.asked.borrow();
        for key in self.file.into_iter().flat_map(Table::keys) {
            if !asked.contains(&key.as_str()) && !asked.contains(&ANY_KEY) {
                let path = self.path.child(key);
                let message = unknown(key, &asked);
                self.reader.mistake(path.as_str(), Origin::File, message);
            }
        }
        value
    }

    /// Allows every key: the reader of the section checks them itself.
    pub(super) fn any_key(&self) {
        self.asked.borrow_mut().push(ANY_KEY);
    }
}

/// How variables of sections begin whose keys are names.
const NAMED_SECTIONS: [&str; 3] = ["LLMQ_UPSTREAMS_", "LLMQ_MODELS_", "LLMQ_LIMITS_"];
/// How variables of any section begin.
const SECTIONS: [&str; 8] = [
    NAMED_SECTIONS[0],
    NAMED_SECTIONS[1],
    NAMED_SECTIONS[2],
    "LLMQ_SERVER_",
    "LLMQ_STORE_",
    "LLMQ_QUOTA_",
    "LLMQ_RETRY_",
    "LLMQ_WEBHOOKS_",
];

/// Stands for every key; no TOML key is asked for by this name.
const ANY_KEY: &str = "*";

/// So many settings of one section can be told in a sentence.
const FEW: usize = 12;

fn unknown(key: &str, known: &[&'static str]) -> String {
    match alike(key, known.iter().copied()) {
        Some(meant) => format!("there is no such setting; did you mean `{meant}`?"),
        None if known.is_empty() || known.len() > FEW => "there is no such setting".to_owned(),
        None => format!("there is no such setting; there are {}", known.join(", ")),
    }
}

/// The one of `known` that `word` most likely stands for.
pub(super) fn alike<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    known
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// A value as TOML on one line.
fn shown(value: &Value) -> String {
    value.to_string()
}
