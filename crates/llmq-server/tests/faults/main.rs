//! What callers of the gateway see, above all when its upstreams misbehave, and when they do
//! themselves.
//!
//! Each test of a fault names it and asks twice, for a whole answer and for a stream. The
//! upstreams are scripted byte for byte; the gateway, its timers and its connections are real, so
//! waits are set short by the configuration and nothing here sleeps.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod answers;
mod world;

mod accepted;
mod accounts;
mod bad_input;
mod callers;
mod choice;
mod earlier;
mod early;
mod files;
mod passing;
mod usage;

mod limits;
mod messages;
mod models;
mod outages;
mod streams;
mod translated;
mod verdicts;
