//! `llmq store`: looking after the embedded store's file.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use llmq_core::Clock;
use llmq_engine::SystemClock;
use llmq_store_sqlite::{Checked, Place, backup, check, compact};
use serde::Serialize;

use crate::cli::{Format, Global};
use crate::exit::{FAILED, Failure};
use crate::output;

/// The embedded store's file: check it, copy it while it is in use, make it small.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq store check --store sqlite:llmq.db --history
  llmq store backup --store sqlite:llmq.db llmq-2026-01-31.db
  llmq store compact --store sqlite:llmq.db

check and backup may run beside a server. compact needs the server stopped, and room on the disk
for the file once more. check exits with 1 when it finds something.")]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
    /// Which store
    #[arg(
        long,
        value_name = "URL",
        default_value = "sqlite:llmq.db",
        env = "LLMQ_STORE_URL",
        global = true
    )]
    store: String,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Read all of it: structure, checksums of every row, request and answer, counters
    #[command(after_help = "Example:\n  llmq store check --store sqlite:llmq.db --history")]
    Check {
        /// Hold what it tells of its jobs against the promises too
        #[arg(long)]
        history: bool,
    },
    /// Copy its state at one moment to a new file
    #[command(after_help = "\
Example:
  llmq store backup --store sqlite:llmq.db llmq-2026-01-31.db")]
    Backup {
        /// The new file
        to: PathBuf,
    },
    /// Give back the room of what was removed
    #[command(after_help = "Example:\n  llmq store compact --store sqlite:llmq.db")]
    Compact,
}

/// Carries out `llmq store`.
///
/// # Errors
///
/// A [`Failure`]: no such store, a store that cannot be used, or something was found.
pub(crate) fn store(args: StoreArgs, global: &Global) -> Result<(), Failure> {
    let path = path_of(&args.store)?;
    match args.command {
        StoreCommand::Check { history } => {
            let checked = check(&path, history).map_err(|error| Failure::of_store(&error))?;
            show(&checked, history, global.format)?;
            if checked.is_sound() {
                Ok(())
            } else {
                // What is wrong was said.
                Err(Failure::silent(FAILED))
            }
        }
        StoreCommand::Backup { to } => {
            let bytes = backup(&path, &to).map_err(|error| Failure::of_store(&error))?;
            say!("{} bytes in {}", bytes, to.display());
            Ok(())
        }
        StoreCommand::Compact => {
            let now = SystemClock::new().now().wall;
            let (before, after) = compact(&path, now).map_err(|error| Failure::of_store(&error))?;
            say!("{before} bytes before, {after} after");
            Ok(())
        }
    }
}

fn path_of(store: &str) -> Result<PathBuf, Failure> {
    match store.parse::<Place>() {
        Ok(Place::File(path)) if path.is_file() => Ok(path),
        Ok(Place::File(path)) => Err(Failure::usage(format!(
            "there is no store at {}; --store says which one is meant",
            path.display()
        ))),
        Ok(Place::Memory) => Err(Failure::usage(
            "memory: ends with its process, so there is nothing to look after",
        )),
        Err(error) => Err(Failure::wrong(&error)),
    }
}

/// What was found, as `--format json` shows it.
#[derive(Debug, Serialize)]
struct Found<'a> {
    sound: bool,
    jobs: u64,
    blobs: u64,
    events: u64,
    findings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    broken_promises: Option<&'a [String]>,
}

fn show(checked: &Checked, history: bool, format: Format) -> Result<(), Failure> {
    if format != Format::Table {
        let found = Found {
            sound: checked.is_sound(),
            jobs: checked.jobs,
            blobs: checked.blobs,
            events: checked.events,
            findings: &checked.findings,
            broken_promises: history.then_some(checked.broken.as_slice()),
        };
        return output::print(&output::json(&found, format)?);
    }
    let mut text = format!(
        "read {} jobs, {} requests, answers and parts of files, {} events\n",
        checked.jobs, checked.blobs, checked.events
    );
    for finding in &checked.findings {
        text.push_str(&format!("wrong: {finding}\n"));
    }
    for broken in &checked.broken {
        text.push_str(&format!("broken promise: {broken}\n"));
    }
    if checked.is_sound() {
        text.push_str("nothing is wrong\n");
    }
    output::print(&text)
}
