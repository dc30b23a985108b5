//! The running queue.

pub mod bulk;
