//! Accepted jobs: kept in a store, finished once.
//!
//! Read [`Runner`] first: everything else follows from it. `accept` takes a job in, `fill` keeps a
//! window of each lane's best jobs before the dispatcher (`table` knows which), `life` takes one
//! job from its place in line to its end, `attempt` sends it and judges the answer, and `tend`
//! keeps leases alive, lets time to live pass and follows the store's health. `live` hands streams on
//! while they come. [`Directory`] is what a runner must know of the models.
//!
//! The store decides what is true. A job is started there before its first byte is sent, and its
//! result, its events and what is to be told of it are one transaction. So whatever is lost with
//! this process is found again when the next one begins.

mod directory;

mod accept;
mod runner;

mod fill;
mod table;

mod attempt;
mod life;

mod ends;
mod live;
mod tend;

pub use accept::Accepted;
pub use attempt::{ACCOUNT, AWAITED};
pub use directory::{Directory, Hold, Holding, NotHeld, Told};
pub use live::{Listening, Live};
pub use runner::{Look, Runner, RunnerOptions};
