//! The running queue: the dispatcher joined to a clock, a timer and the network.
//!
//! Read [`run`] first: it sets a dispatcher running and gives the [`Hub`] at which calls are
//! submitted. A [`Ticket`] waits in line, a [`Grant`] is leave to send, and [`AfterFailure`] says
//! what follows when that went wrong. [`bulk`] finishes files on top of it. A gateway has more
//! beside it: [`config`] says what there is, [`assemble`] makes a dispatcher of that, [`books`]
//! outlive the process, [`jobs`] are accepted for later, and [`webhooks`] tell of their ends.
//! [`Tasks`] owns every background task, and [`SystemClock`] is the only place where time is
//! read.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod clock;
mod tasks;

mod hub;
mod notices;

pub mod books;

mod assembly;
mod found_out;
pub mod outcome;

mod speech;

mod asked;

mod files;
mod text;

pub mod bulk;
pub mod config;
pub mod jobs;
pub mod webhooks;

pub use asked::{Asked, Retelling, STREAM_ENDS_WITHIN, end_of, heed, tell_output};
pub use assembly::{Accounts, AssembledModel, AssembledRoute, Assembly, AssemblyError, assemble};
pub use clock::SystemClock;
pub use files::replace_file;
pub use found_out::FoundOut;
pub use hub::{AfterFailure, Grant, Hub, Listener, Running, Ticket, listen, run};
pub use notices::{NoticeLog, log_quota};
pub use speech::{Outgoing, Saying, StreamOf, refuses_stream_options, spoken};
pub use tasks::Tasks;
pub use text::grouped;
