use std::error::Error;
use std::sync::Arc;

/// Why a store did not carry something out. Nothing of a change that failed was recorded.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot record or read now: the disk is full or broken, the server is away. Whoever
    /// tries again later may succeed; [`Store::health`](crate::Store::health) says when.
    #[error("the store is not available: {reason}")]
    Unavailable {
        /// What is wrong, for people.
        reason: String,
        /// What the system said, if it said something.
        source: Option<Arc<dyn Error + Send + Sync>>,
    },
    /// What is stored is not what was written: its checksum differs, or it cannot be read at all.
    #[error("the store is damaged: {what}")]
    Damaged {
        /// Which thing, and what is wrong with it.
        what: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// One that is not available, with its source.
    pub fn unavailable(
        reason: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self::Unavailable {
            reason: reason.into(),
            source: Some(Arc::new(source)),
        }
    }

    /// One that is damaged.
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }
}
