//! The built command as a user meets it: what it says, what it writes, how it ends.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

mod bad_input;
mod plan;
mod rows;
mod settings;
mod stopping;
mod weather;
