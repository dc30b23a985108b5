//! The laws of translation, on bodies as the providers' pages show them.

mod refusals;
mod requests;
