//! Accepted jobs, with a real store and a provider that does what it is told.

#![expect(clippy::unwrap_used, reason = "tests and their helpers")]

#[macro_use]
mod world;

mod accepted;
mod clocks;
mod ends;
mod restarts;
mod unseen;
mod unserved;
