//! Calls against servers that misbehave on purpose: how far each one got must be told right.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod answers;
mod connections;
mod echo;
mod faults;
mod http2;
mod recorder;
mod server;
