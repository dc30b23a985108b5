use llmq_core::Timestamp;

/// Why a call may not start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// It would pass at this instant, and not before, if nothing else changes meanwhile.
    Until(Timestamp),
    /// It waits for calls that hold a place without a date: in flight, or granted and not
    /// yet sent. Their end is an event, not an instant.
    OnRelease,
    /// The cost is above the provider's whole limit, so no waiting helps.
    Never {
        /// The provider's whole limit, in the unit of the limit.
        limit: u64,
    },
}
