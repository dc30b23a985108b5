//! For programs that use an llmq server.
//!
//! [`webhooks`] holds what a program needs that is told by webhook what became of its requests:
//! the check that a message is from llmq, and a small receiver where there is no web server yet.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod webhooks;
