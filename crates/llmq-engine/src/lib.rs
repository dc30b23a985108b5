//! The running queue: the dispatcher joined to a clock, a timer and the network.
//!
//! Read [`run`] first: it sets a dispatcher running and gives the [`Hub`] at which calls are
//! submitted. A [`Ticket`] waits in line, a [`Grant`] is leave to send, and [`AfterFailure`] says
//! what follows when that went wrong. [`bulk`] finishes files on top of it. [`Tasks`] owns every
//! background task, and [`SystemClock`] is the only place where time is read.

mod clock;
mod tasks;

mod hub;

pub mod bulk;
pub mod config;

pub use clock::SystemClock;
pub use hub::{AfterFailure, Grant, Hub, Listener, Running, Ticket, listen, run};
pub use tasks::Tasks;
