//! Logs for programs that have no logging of their own.
//!
//! The library speaks through [`tracing`]; whoever has set that up already needs nothing from
//! here.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The variable that says what is logged, such as `debug` or `llmq=debug,warn`.
pub const FILTER_VARIABLE: &str = "LLMQ_LOG";

/// A log that could not be set up: there is one already.
#[derive(Debug, thiserror::Error)]
#[error("the program has a log already")]
pub struct LoggingError(#[from] TryInitError);

/// Writes the log to standard error as text, from `info` up unless [`FILTER_VARIABLE`] says
/// otherwise.
///
/// # Errors
///
/// [`LoggingError`] when the program has a log already; that one stays.
///
/// ```
/// llmq::logging::init().unwrap();
/// assert!(llmq::logging::init().is_err());
/// ```
pub fn init() -> Result<(), LoggingError> {
    init_as(Format::Text)
}

/// The same in a format of choice.
///
/// # Errors
///
/// [`LoggingError`] when the program has a log already; that one stays.
pub fn init_as(format: Format) -> Result<(), LoggingError> {
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => builder.finish().try_init()?,
        Format::Json => builder.json().finish().try_init()?,
    }
    Ok(())
}
