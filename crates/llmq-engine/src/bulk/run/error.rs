use crate::bulk::{InputError, JournalError, LockError, SideError, StrictError};

/// Why a run could not begin, or had to stop without being able to go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The input cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The input has bad rows, and none were wanted.
    #[error(transparent)]
    Strict(#[from] StrictError),
    /// Another process writes this output.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The output cannot be written or continued.
    #[error(transparent)]
    Output(#[from] JournalError),
    /// The side file cannot be used.
    #[error(transparent)]
    Side(#[from] SideError),
    /// This is not the run that the output belongs to.
    #[error(
        "{output} belongs to another run: {changes}. \
         Go on with --resume-anyway, or begin again with --restart"
    )]
    Changed {
        /// The output.
        output: String,
        /// What is not as it was.
        changes: String,
    },
    /// A server finishes rows of this output as batches.
    #[error(
        "rows of {output} are at a server as batches: go on with --batch, which fetches their \
         results, or begin again with --restart"
    )]
    AtServer {
        /// The output.
        output: String,
    },
    /// The quota settings cannot be used.
    #[error(transparent)]
    Quota(#[from] llmq_limit::QuotaConfigErrors),
    /// It was told to stop before its files were open. Nothing was sent.
    #[error("the run was stopped before its files were open")]
    Left,
    /// A background task ended early: a mistake of ours.
    #[error("a background task of the run ended unexpectedly: {0}")]
    Task(String),
}
