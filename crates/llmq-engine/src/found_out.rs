use std::sync::atomic::{AtomicBool, Ordering};

/// What shows of an upstream while it is used, and no configuration told.
///
/// ```
/// use llmq_engine::FoundOut;
/// let found = FoundOut::default();
/// assert!(!found.refuses_stream_usage());
/// found.refused_stream_usage();
/// assert!(found.refuses_stream_usage());
/// ```
#[derive(Debug, Default)]
pub struct FoundOut {
    refuses_stream_usage: AtomicBool,
}

impl FoundOut {
    /// Whether it has refused a call for its `stream_options`.
    #[must_use]
    pub fn refuses_stream_usage(&self) -> bool {
        self.refuses_stream_usage.load(Ordering::Relaxed)
    }

    /// It has, and is not asked for a stream's usage again.
    pub fn refused_stream_usage(&self) {
        self.refuses_stream_usage.store(true, Ordering::Relaxed);
    }
}
