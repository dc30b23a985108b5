//! The built command as a user meets it: what it says, what it writes, how it ends.

mod common;

mod bad_input;
mod plan;
mod rows;
mod settings;
mod stopping;
mod weather;
