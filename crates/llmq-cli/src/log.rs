//! Where the program's own log goes: stderr as loud as asked, and a file in full.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::cli::Global;
use crate::exit::Failure;

/// The log of a run or a gateway.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// Write a log to FILE: pauses, changes, and failures of a run's calls and rows
    #[arg(long, value_name = "FILE", help_heading = "Progress and log")]
    pub(crate) log: Option<PathBuf>,
    /// The form of the log
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORM",
        help_heading = "Progress and log"
    )]
    pub(crate) log_format: LogFormat,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// The bar that lines of the log must not tear; there is one terminal.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Lines of the log go above `bar` from here on.
pub(crate) fn go_around(bar: ProgressBar) {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
}

/// Begins to log.
pub(crate) fn start(args: &LogArgs, global: &Global) -> Result<(), Failure> {
    let level = match (global.quiet, global.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    let words = fmt::layer()
        .with_writer(|| AroundBar)
        .with_target(false)
        .with_ansi(console::colors_enabled_stderr())
        .without_time()
        .with_filter(level);
    let file = match &args.log {
        None => None,
        Some(path) => {
            let file = File::options().create(true).append(true).open(path);
            let file = file.map_err(|error| {
                Failure::usage(format!("--log: cannot write {}: {error}", path.display()))
            })?;
            let level = level.max(LevelFilter::INFO);
            let lines = fmt::layer().with_writer(Mutex::new(file)).with_ansi(false);
            Some(match args.log_format {
                LogFormat::Text => lines.with_filter(level).boxed(),
                LogFormat::Json => lines.json().with_filter(level).boxed(),
            })
        }
    };
    tracing_subscriber::registry()
        .with(file)
        .with(words)
        .try_init()
        .map_err(|error| Failure::wrong(&error))
}

/// Stderr, with the bar taken away while a line is written.
struct AroundBar;

impl Write for AroundBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bar {
            Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
