//! Laws that whatever comes from outside must keep: a module each for the readers that meet
//! bytes of strangers, with one function `check` that panics when a law is broken.
//!
//! `scripts/fuzz` runs each with libFuzzer (`targets/`), beginning with the inputs in `seeds/`;
//! an ordinary test runs them with the seeds alone. Most inputs begin with a line that says how
//! the rest is to be read, so that seeds are text that can be read and written by hand.

pub mod answer;
pub mod config;
pub mod headers;
pub mod rows;
pub mod scan;
pub mod sse;
pub mod translate;

mod pieces;
mod tree;

/// The first line without its end, and what follows it.
fn first_line(data: &[u8]) -> (&str, &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n');
    let (line, rest) = match end {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &[][..]),
    };
    (std::str::from_utf8(line).unwrap_or_default().trim(), rest)
}
