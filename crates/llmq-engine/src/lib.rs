//! The running queue.
