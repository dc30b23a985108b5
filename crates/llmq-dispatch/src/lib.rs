//! Which waiting call goes next, and where.
//!
//! Read [`Dispatcher`] first: a plain state machine that is told what happened and says what to
//! do. [`Call`] is what it is given, [`Event`] what it is told, [`Effect`] what it says;
//! [`QueueSetup`], [`UpstreamSetup`] and [`LimitSetup`] are what it knows. Then, in the order of a
//! decision: `pump` picks the lane that is tried next, `admit` asks every limit on its way and `choice` takes one of several that have room,
//! `answers` settles what came of it (`late` corrects that when more is told, `hearing` learns from it, `learned` keeps limits nobody configured, `gates` shut what it shows to be
//! closed), `timers` does what falls due, and `renew` takes another configuration over. `why` and `outlook` tell what a call waits for, and how long.
//!
//! [`Shared`] puts it behind a lock and hands out tickets that are guards.
//!
//! Nothing here does I/O, starts a task or reads a clock.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod events;
mod ids;
mod setup;

mod dispatcher;

mod lane;
mod order;
mod queue;
mod ticket;
mod upstream;

mod admit;
mod answers;
mod choice;
mod elsewhere;
mod gates;
mod heard_of;
mod hearing;
mod joining;
mod late;
mod learned;
mod pump;
mod renew;
mod timers;

mod outlook;
mod why;

mod shared;
mod sync;

pub use dispatcher::Dispatcher;
pub use events::{Bounded, Call, CallKind, Effect, Ended, Event, Notice, Outcome, Refusal, Start};
pub use ids::{LimitId, QueueId, TenantId, TicketId, UpstreamId};
pub use outlook::Outlook;
pub use setup::{Capacity, LimitSetup, QueueSetup, Reserve, Route, Rules, Scope, UpstreamSetup};
pub use shared::{AfterFailure, Grant, NoGrant, Shared, Surroundings, Ticket};
pub use why::{Blocker, DepthView, LimitView, QueueView, Standing, UpstreamView, Why};
