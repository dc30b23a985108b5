//! The laws of translation, on bodies as the providers' pages show them.

mod answers;
mod broken_streams;
mod chapter;
mod fold;
mod refusals;
mod requests;
mod round_trips;
mod samples;
mod streams;
