use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use llmq_core::WallTime;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::files::{beside, replace};
use super::input::{InputError, InputSource};

/// The version of the side file that this build writes, and the newest that it reads.
pub const SIDE_VERSION: u32 = 1;
/// Settings up to this length are kept as they are, so that a message can name both values.
const PLAIN_MAX: usize = 80;

/// What a resumed run must know beside the results: the file `OUTPUT.llmq`.
///
/// It is written whole: a new file, synced, then renamed. Whoever reads it sees the old or the
/// new one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// The version of this form.
    pub version: u32,
    /// What the input was; unknown for standard input.
    pub input: Option<InputPrint>,
    /// What the prompts were made with.
    pub settings: PromptSettings,
    /// The last sign of life, touched about once a second while the run goes on. After a crash
    /// short windows are taken as fully spent at this moment.
    pub alive_at: Option<WallTime>,
    /// What was spent of each window at a clean stop, in the form of its owner.
    #[serde(default)]
    pub windows: serde_json::Value,
    /// The state of the quota monitor, in the form of its owner.
    #[serde(default)]
    pub quota: serde_json::Value,
}

/// What tells one input from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputPrint {
    /// The length of the file as it lies on the disk.
    pub bytes: u64,
    /// XXH3 of its content.
    pub xxh3: u64,
    /// How many rows it has, if they were counted.
    pub rows: Option<u64>,
    /// For a file that is longer than an earlier one: whether it begins with all of that.
    #[serde(skip)]
    pub begins_with_earlier: bool,
}

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

/// Why the side file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SideError {
    /// A newer build wrote it.
    #[error("{} was written by a newer llmq (its form is version {found}, this llmq reads up to \
             version {SIDE_VERSION}); use that llmq", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// It cannot be understood.
    #[error("{} cannot be understood; remove it to go on without the check that the input and \
             the settings are the same", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// It cannot be read or written.
    #[error("cannot read or write {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Side {
    /// The side file of a first run.
    #[must_use]
    pub fn new(input: Option<InputPrint>, settings: PromptSettings) -> Self {
        Self {
            version: SIDE_VERSION,
            input,
            settings,
            alive_at: None,
            windows: serde_json::Value::Null,
            quota: serde_json::Value::Null,
        }
    }

    /// Where the side file of `output` lies.
    #[must_use]
    pub fn path_of(output: &Path) -> PathBuf {
        beside(output, ".llmq")
    }

    /// Reads the side file of `output`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// [`SideError`]; a newer version is refused by its number.
    pub fn load(output: &Path) -> Result<Option<Self>, SideError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let path = Self::path_of(output);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SideError::File { path, source }),
        };
        let damaged = |source| SideError::Damaged {
            path: path.clone(),
            source,
        };
        let Versioned { version: found } = serde_json::from_slice(&text).map_err(damaged)?;
        if found > u64::from(SIDE_VERSION) {
            return Err(SideError::Newer { path, found });
        }
        serde_json::from_slice(&text).map(Some).map_err(damaged)
    }

    /// Writes the side file of `output`. When this returns, it survives a power cut.
    ///
    /// # Errors
    ///
    /// [`SideError::File`]; the old one is then still there.
    pub fn save(&self, output: &Path) -> Result<(), SideError> {
        let path = Self::path_of(output);
        let written = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|text| replace(&path, |file| file.write_all(&text)));
        written.map_err(|source| SideError::File { path, source })
    }

    /// This run from the start, with other input or settings. What the account has spent
    /// remains: starting again is no way past a quota.
    #[must_use]
    pub fn restarted(self, input: Option<InputPrint>, settings: PromptSettings) -> Self {
        Self {
            input,
            settings,
            ..self
        }
    }
}

impl InputPrint {
    /// Reads the whole of `input` once; `None` for standard input and pipes, which can be read
    /// only once.
    ///
    /// With `earlier`, the print of a shorter file, it also tells whether this one begins
    /// with it.
    ///
    /// # Errors
    ///
    /// [`InputError::Open`] and [`InputError::Read`].
    pub fn of(input: &InputSource, earlier: Option<&Self>) -> Result<Option<Self>, InputError> {
        let InputSource::File(path) = input else {
            return Ok(None);
        };
        // What cannot be opened at all is told by the opening below.
        if path.exists() && !input.can_be_read_again() {
            return Ok(None);
        }
        let file = File::open(path).map_err(|source| InputError::Open {
            input: input.clone(),
            source,
        })?;
        let print = Self::of_reader(file, earlier).map_err(|source| InputError::Read {
            input: input.clone(),
            line: 1,
            source,
        });
        print.map(Some)
    }

    fn of_reader(mut reader: impl Read, earlier: Option<&Self>) -> io::Result<Self> {
        let mut hash = Xxh3Default::new();
        let mut bytes = 0;
        let mut begins_with_earlier = false;
        if let Some(earlier) = earlier {
            bytes += hash_all(&mut reader.by_ref().take(earlier.bytes), &mut hash)?;
            begins_with_earlier = bytes == earlier.bytes && hash.digest() == earlier.xxh3;
        }
        bytes += hash_all(&mut reader, &mut hash)?;
        Ok(Self {
            bytes,
            xxh3: hash.digest(),
            rows: None,
            begins_with_earlier,
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.bytes, self.xxh3) == (other.bytes, other.xxh3)
    }
}

fn hash_all(reader: &mut impl Read, hash: &mut Xxh3Default) -> io::Result<u64> {
    const BUFFER: usize = 256 * 1024;
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
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
    let bytes = format!("{} bytes", grouped(print.bytes));
    match print.rows {
        Some(rows) => format!("{} rows ({bytes})", grouped(rows)),
        None => bytes,
    }
}

/// `42888` as `42,888`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
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
        let mut old = print(old, None);
        old.rows = Some(42_888);
        let side = Side::new(Some(old), PromptSettings::default());
        let new = print(new, Some(&old));
        compare(&side, Some(&new), &PromptSettings::default()).to_string()
    }

    #[test]
    fn what_happened_to_the_input_is_told() {
        assert_eq!(told("a\nb\n", "a\nb\n"), "");
        assert_eq!(
            told("a\nb\n", "a\nb\nc\n"),
            "input grew: it begins with the same 42,888 rows (4 bytes), and 2 bytes were added"
        );
        let changed = "input changed: 42,888 rows (4 bytes) before, ";
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

    #[test]
    fn it_is_read_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out.jsonl");
        assert_eq!(Side::load(&output).unwrap(), None);
        let mut side = Side::new(Some(print("abc", None)), settings(&[("model", "m")]));
        side.alive_at = Some(WallTime::from_micros(7));
        side.quota = serde_json::json!({ "used": 3 });
        for _ in 0..2 {
            side.save(&output).unwrap();
            assert_eq!(Side::load(&output).unwrap(), Some(side.clone()));
            side.alive_at = Some(WallTime::from_micros(8));
        }
        let names = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(names, 1, "nothing is left beside it");
        let restarted = side.clone().restarted(None, PromptSettings::default());
        assert_eq!(restarted.quota, side.quota);
    }

    #[test]
    fn a_newer_or_damaged_one_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out.jsonl");
        fs::write(Side::path_of(&output), r#"{"version":2,"else":[]}"#).unwrap();
        let error = Side::load(&output).unwrap_err();
        assert!(matches!(error, SideError::Newer { found: 2, .. }));
        assert!(
            error
                .to_string()
                .contains("out.jsonl.llmq was written by a newer llmq")
        );
        fs::write(Side::path_of(&output), "{\"version\":1").unwrap();
        let error = Side::load(&output).unwrap_err();
        assert!(matches!(error, SideError::Damaged { .. }));
    }

    #[test]
    fn thousands_are_grouped() {
        let check = |number, expected| assert_eq!(grouped(number), expected);
        check(0, "0");
        check(999, "999");
        check(1_000, "1,000");
        check(42_888, "42,888");
        check(1_234_567, "1,234,567");
    }
}
