//! A damaged file is refused, or what it held is refused when it is read, or `check` finds it:
//! it never says something else than what was written.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod filled;

mod found;
mod pages;
mod sectors;
