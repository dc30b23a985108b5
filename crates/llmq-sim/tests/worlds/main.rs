//! The promises about limits in worlds of one kind each: limits of tenants and models, reserves,
//! weights, fallbacks, limits to be learned, clocks that are set, outages. Each kind has a bug
//! that was seeded on purpose, and its checks must catch it.
//!
//! `LLMQ_SIM_SEED=n` plays that one seed of every kind; `LLMQ_TEST_SCALE` multiplies how many
//! are played.

mod clocks;
mod fallbacks;
mod kind;
mod learned;
mod outages;
mod reserve;
mod tenants;
mod weights;
