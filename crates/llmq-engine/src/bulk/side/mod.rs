//! What a resumed run must know beside the results: the file `OUTPUT.llmq`.

mod changes;
mod print;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use llmq_core::WallTime;
use serde::{Deserialize, Serialize};

pub use changes::{Change, Changes, PromptSettings, compare};
pub use print::InputPrint;

use crate::files::{beside, replace};

/// The version of the side file that this build writes, and the newest that it reads.
pub const SIDE_VERSION: u32 = 1;

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
    /// What was spent of limits, what was learned of them and how the provider counts: long limits
    /// ahead of their use while the run goes on, each window at a clean stop. In the form of its
    /// owner.
    #[serde(default)]
    pub windows: serde_json::Value,
    /// The state of the quota monitor, in the form of its owner.
    #[serde(default)]
    pub quota: serde_json::Value,
    /// What a server finishes as batches, and whose results are not written yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handed_in: Vec<HandedIn>,
}

/// Rows that a server finishes as a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedIn {
    /// The server's file of their calls. It is also the idempotency key of the batch, so that one
    /// is made of it however often it is asked for.
    pub file: String,
    /// The batch, once it is known.
    pub batch: Option<String>,
    /// Where its calls go, such as `/v1/chat/completions`.
    pub endpoint: String,
    /// The model that they ask for.
    pub model: String,
    /// The number of its first row in the input, from 1.
    pub first: u64,
    /// The number of its last row. Between the two are all rows of this endpoint and model that
    /// had no result then, and rows of others, or of a part that was there already.
    pub last: u64,
    /// How many rows it has.
    pub rows: u64,
    /// The model is the rows' own, and not the run's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub names_model: bool,
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
            handed_in: Vec::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out.jsonl");
        assert_eq!(Side::load(&output).unwrap(), None);
        let input = InputPrint::of_reader("abc".as_bytes(), None).unwrap();
        let mut settings = PromptSettings::default();
        settings.set("model", "m");
        let mut side = Side::new(Some(input), settings);
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
}
