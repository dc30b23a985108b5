//! Accepted requests and webhooks over HTTP, with the stand-in provider behind the gateway.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod background;
mod bad_input;
mod batch_faults;
mod batches;
mod events;
mod files;
mod full;
mod keys;
mod plain_calls;
mod requests;
mod told;
mod webhooks;
mod world;
