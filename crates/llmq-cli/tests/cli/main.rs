//! The built command as a user meets it: what it says, what it writes, how it ends.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;
#[expect(dead_code, reason = "the tests of bad weather use all of it")]
#[path = "../support/provider.rs"]
mod provider;
#[cfg(unix)]
#[expect(dead_code, reason = "the tests of bad weather use all of it")]
#[path = "../support/running.rs"]
mod running;

mod bad_input;
mod keys;
mod places;
mod plan;
mod rows;
mod settings;
mod stopping;
mod weather;
