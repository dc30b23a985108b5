use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// A directory to run in, and the command in it, without the caller's own settings.
pub(crate) struct World {
    directory: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

const FOREIGN: [&str; 4] = [
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
];

impl World {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// A file of rows that need nothing else.
    pub(crate) fn with_rows(self, rows: usize) -> Self {
        let mut csv = "name,country\n".to_owned();
        for row in 1..=rows {
            csv.push_str(&format!("Place {row},Land\n"));
        }
        self.write("in.csv", csv);
        self
    }

    /// The command in this directory; a home for further arguments and variables.
    pub(crate) fn command<I, S>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmq"));
        command.current_dir(&self.directory).args(arguments);
        let ours =
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LLMQ_"));
        for (name, _) in ours {
            command.env_remove(name);
        }
        for name in FOREIGN {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn run(&self, line: &str) -> Outcome {
        outcome(&mut self.command(words(line)))
    }

    /// Results by custom id, of one output file.
    pub(crate) fn results(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

pub(crate) fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The words of a command line; `'…'` holds blanks together.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

impl Outcome {
    /// Ended with `code`, and stderr holds each of `parts`.
    pub(crate) fn says(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {self:#?}");
        }
    }
}

/// A line of options for the stand-in inside, which answers after 20 ms.
pub(crate) const MOCK: &str = "--provider mock --progress none";

pub(crate) fn exists(path: &Path) -> bool {
    path.exists()
}
