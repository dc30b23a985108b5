//! What is true of a call whatever provider serves it and whatever store keeps it.
//!
//! Read [`Status`] and [`transition`] first: they are the life of a job. Then [`FailureClass`]
//! and [`FailureClass::rule`], the one table that says what happens after a failure, with
//! [`Backoffs`] for how long; then [`LimitSpec`], how a limit is written down; then [`Now`] and
//! [`Clock`], the pair of times that every decision takes as an argument.
//!
//! Nothing here does I/O, starts a task or reads a clock.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod status;
mod transition;

mod priority;

mod failure;

mod backoff;

mod call;
mod host;
mod limit_spec;

mod time;

pub use backoff::{Backoff, Backoffs};
pub use call::{CallSize, Usage};
pub use failure::{FailureClass, Pause, RetryRule, Wait};
pub use host::Host;
pub use limit_spec::{
    Algorithm, LimitKind, LimitSpec, ParseLimitError, parse_count, parse_duration,
};
pub use priority::{ParsePriorityError, Priority};
pub use status::{ParseStatusError, Status};
pub use time::{Clock, Now, Timestamp, WallTime};
pub use transition::{Event, IllegalTransition, Verdict, transition};
