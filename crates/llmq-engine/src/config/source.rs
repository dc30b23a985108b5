use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use toml::Table;

use super::error::{ConfigErrors, LoadError};
use super::reader::Reader;
use super::settings::Settings;
use super::{DEFAULT_TOML, check};

/// What every variable begins with.
const PREFIX: &str = "LLMQ_";

/// The configuration as it was written: plain values in layers, not yet checked.
///
/// ```
/// use llmq_engine::config::Config;
/// let config = Config::parse("mine.toml", "[retry]\nmax_attempts = 7")?
///     .with_env([("LLMQ_RETRY_JITTER".to_owned(), "0.2".to_owned())])
///     .with_flag("quota.pause_threshold", "--quota-threshold", "0.9");
/// let settings = config.check()?;
/// assert_eq!(settings.retry.max_attempts, 7);
/// assert_eq!(settings.retry.backoffs.jitter, 0.2);
/// assert_eq!(settings.quota.pause_threshold, 0.9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub(super) defaults: Table,
    pub(super) file: Table,
    pub(super) env: BTreeMap<String, String>,
    pub(super) flags: BTreeMap<String, Flag>,
}

/// A value given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flag {
    pub(super) name: String,
    pub(super) value: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The default.
    Default,
    /// The configuration file.
    File,
    /// The environment variable of this name.
    Env(String),
    /// The flag of this name.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Env(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One value that is in force; secrets are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The setting's path.
    pub path: String,
    /// Its value as TOML.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

impl Default for Config {
    /// [`DEFAULT_TOML`], and nothing else.
    fn default() -> Self {
        Self {
            defaults: DEFAULT_TOML
                .parse()
                .expect("the defaults are compiled in, and a test reads them"),
            file: Table::new(),
            env: BTreeMap::new(),
            flags: BTreeMap::new(),
        }
    }
}

impl Config {
    /// The defaults under the file at `path`.
    ///
    /// # Errors
    ///
    /// [`LoadError`] when it cannot be read or is not TOML.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// The defaults under `text`; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`LoadError::Syntax`] when it is not TOML.
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Self, LoadError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let file = text.parse::<Table>().map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let before = text.get(..at).unwrap_or(text);
            LoadError::Syntax {
                path: path.as_ref().to_owned(),
                line: before.matches('\n').count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        Ok(Self {
            file,
            ..Self::default()
        })
    }

    /// The same with environment variables over the file. Only those that begin with `LLMQ_` and
    /// stand for a setting are used; one that seems to be meant for a setting and stands for none
    /// is a mistake. Empty ones count as unset.
    #[must_use]
    pub fn with_env(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = |(name, value): &(String, String)| name.starts_with(PREFIX) && !value.is_empty();
        self.env.extend(variables.into_iter().filter(ours));
        self
    }

    /// The same with the setting at `path` given by the flag `name`; it beats everything.
    #[must_use]
    pub fn with_flag(mut self, path: &str, name: &str, value: impl Into<String>) -> Self {
        let flag = Flag {
            name: name.to_owned(),
            value: value.into(),
        };
        self.flags.insert(path.to_owned(), flag);
        self
    }

    /// Turns the values into settings of the right types.
    ///
    /// # Errors
    ///
    /// [`ConfigErrors`] with all mistakes at once, unknown keys included.
    pub fn check(&self) -> Result<Settings, ConfigErrors> {
        let reader = Reader::new(self);
        let settings = check::read(&reader);
        reader.check_variables();
        let (mistakes, _) = reader.finish();
        if mistakes.is_empty() {
            Ok(settings)
        } else {
            Err(ConfigErrors(mistakes))
        }
    }

    /// Every value in force and where it comes from, by path; mistaken ones are left out.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let reader = Reader::new(self);
        let _settings = check::read(&reader);
        reader.finish().1
    }
}
