use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{InputPrint, Side};
use crate::grouped;

/// Settings up to this length are kept as they are, so that a message can name both values.
const PLAIN_MAX: usize = 80;

/// Everything but the input that a prompt or its answer depends on.
///
/// ```
/// use llmq_engine::bulk::PromptSettings;
/// let mut settings = PromptSettings::default();
/// settings.set("model", "gpt-4o-mini");
/// settings.set("template", "Introduce {{name}}.");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PromptSettings(BTreeMap<String, String>);

impl PromptSettings {
    /// Takes note of a setting, such as `template`, `system`, `model`, `params`, `id` or
    /// `format`. Long values are kept as their hash.
    pub fn set(&mut self, name: &str, value: &str) {
        let kept = if value.len() <= PLAIN_MAX {
            value.to_owned()
        } else {
            format!("xxh3:{:016x}", xxh3_64(value.as_bytes()))
        };
        self.0.insert(name.to_owned(), kept);
    }
}

/// One thing that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The input has other content.
    InputChanged {
        /// Before.
        old: InputPrint,
        /// Now.
        new: InputPrint,
    },
    /// The input begins as before and is longer: the rows that are done are the same ones.
    InputGrew {
        /// Before.
        old: InputPrint,
        /// Now.
        new: InputPrint,
    },
    /// A setting has another value, or is new, or is gone.
    Setting {
        /// Its name.
        name: String,
        /// Before.
        old: Option<String>,
        /// Now.
        new: Option<String>,
    },
}

/// All that is not as it was; empty when a run can go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(pub Vec<Change>);

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What changed from `old` to the present input and settings.
///
/// An input that is unknown on either side (standard input) counts as the same.
#[must_use]
pub fn compare(old: &Side, input: Option<&InputPrint>, settings: &PromptSettings) -> Changes {
    let mut changes = Vec::new();
    if let (Some(old), Some(new)) = (old.input, input.copied())
        && !old.is_same(&new)
    {
        changes.push(if new.begins_with_earlier {
            Change::InputGrew { old, new }
        } else {
            Change::InputChanged { old, new }
        });
    }
    let mut names: Vec<&String> = old.settings.0.keys().chain(settings.0.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let (old, new) = (old.settings.0.get(name), settings.0.get(name));
        if old != new {
            changes.push(Change::Setting {
                name: name.clone(),
                old: old.cloned(),
                new: new.cloned(),
            });
        }
    }
    Changes(changes)
}

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, change) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "; " };
            write!(f, "{comma}{change}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InputChanged { old, new } => {
                write!(f, "input changed: {} before, {} now", size(old), size(new))
            }
            Self::InputGrew { old, new } => write!(
                f,
                "input grew: it begins with the same {}, and {} bytes were added",
                size(old),
                grouped(new.bytes.saturating_sub(old.bytes))
            ),
            Self::Setting { name, old, new } => match (old, new) {
                (Some(old), Some(new)) if is_hash(old) || is_hash(new) => {
                    write!(f, "{name} changed")
                }
                (Some(old), Some(new)) => write!(f, "{name} changed from {old:?} to {new:?}"),
                (None, _) => write!(f, "{name} was not set before"),
                (_, None) => write!(f, "{name} is not set any more"),
            },
        }
    }
}

fn is_hash(value: &str) -> bool {
    value.starts_with("xxh3:")
}

fn size(print: &InputPrint) -> String {
    format!("{} bytes", grouped(print.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(content: &str, earlier: Option<&InputPrint>) -> InputPrint {
        InputPrint::of_reader(content.as_bytes(), earlier).unwrap()
    }

    fn settings(pairs: &[(&str, &str)]) -> PromptSettings {
        let mut settings = PromptSettings::default();
        for (name, value) in pairs {
            settings.set(name, value);
        }
        settings
    }

    fn told(old: &str, new: &str) -> String {
        let old = print(old, None);
        let side = Side::new(Some(old), PromptSettings::default());
        let new = print(new, Some(&old));
        compare(&side, Some(&new), &PromptSettings::default()).to_string()
    }

    #[test]
    fn what_happened_to_the_input_is_told() {
        assert_eq!(told("a\nb\n", "a\nb\n"), "");
        assert_eq!(
            told("a\nb\n", "a\nb\nc\n"),
            "input grew: it begins with the same 4 bytes, and 2 bytes were added"
        );
        let changed = "input changed: 4 bytes before, ";
        assert_eq!(told("a\nb\n", "a\nc\n"), format!("{changed}4 bytes now"));
        assert_eq!(told("a\nb\n", "a\nc\nd\n"), format!("{changed}6 bytes now"));
        assert_eq!(told("a\nb\n", "a\n"), format!("{changed}2 bytes now"));
    }

    #[test]
    fn what_happened_to_the_settings_is_told() {
        let long = "x".repeat(200);
        let old = settings(&[
            ("model", "a"),
            ("template", &long),
            ("system", "s"),
            ("id", "i"),
        ]);
        let side = Side::new(None, old.clone());
        assert!(compare(&side, None, &old).is_empty());
        let other = format!("{long}y");
        let new = settings(&[
            ("model", "b"),
            ("template", &other),
            ("id", "i"),
            ("params", "{}"),
        ]);
        assert_eq!(
            compare(&side, None, &new).to_string(),
            "model changed from \"a\" to \"b\"; params was not set before; \
             system is not set any more; template changed"
        );
    }
}
