//! The queue as it is run: a server that is killed, stopped and started again over one file.
//!
//! `LLMQ_TEST_SCALE` multiplies the kills; `LLMQ_KILLS_SEED=n` plays their moments again.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod scripted;
mod server;
mod witness;

mod evidence;

mod batches;
mod commands;
mod given_back;
mod handed_in;
mod kills;
mod stops;
mod waits;
mod webhooks;
