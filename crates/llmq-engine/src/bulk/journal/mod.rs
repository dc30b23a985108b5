//! The output file, which is also the journal that a run resumes from.

mod error;
mod file;
mod line;
mod output;
mod scan;

pub use error::JournalError;
pub use file::{Journal, JournalFile, SYNC_INTERVAL};
pub use line::{Answer, OutputFormat, RowError, RowResult};
pub use output::{Output, OutputPaths, Resumed, forget_failed, same_file, set_aside};
pub(crate) use scan::{Tail, scan_path};
