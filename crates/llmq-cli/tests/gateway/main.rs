//! `llmq serve` as it is run: killed, stopped, started again, told other settings.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "the tests of the other commands use all of it")]
#[path = "../cli/common.rs"]
mod common;
#[expect(dead_code, reason = "the tests of the other commands use all of it")]
#[path = "../support/provider.rs"]
mod provider;
#[path = "../support/running.rs"]
mod running;
mod world;

mod books;
mod keys;
mod probing;
mod queues;
mod settings;
mod starting;
