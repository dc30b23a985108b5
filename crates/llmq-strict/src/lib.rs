//! A strict model of how providers enforce their limits: the judge of our own limiter.
//!
//! Start with [`StrictProvider`]: it is told of each call's arrival, of what the call produces
//! and of its end, and admits or refuses as a provider would. [`Charge`] says when tokens are
//! counted, [`Refusal`] what a 429 knows, [`Book`] what rate-limit headers show.
//!
//! The crate depends on `llmq-core` alone, so the build itself shows that nothing here is
//! shared with the limiter in `llmq-limit`. The algorithms differ from the limiter's on purpose:
//! a sliding window is the exact log of what was charged, not slices of it.
//!
//! Everything is pure: no clock, no I/O, no randomness. Time is an argument that does not run
//! backwards; an instant earlier than the latest one seen is read as that latest one.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod call;
mod provider;

mod meter;

mod bucket;
mod fixed;
mod sliding;

pub use call::{Arrival, CallId, Charge, DEFAULT_OUTPUT_CAP, Refusal};
pub use provider::{Book, StrictProvider};
