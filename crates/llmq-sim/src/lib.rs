//! Virtual time: a day of traffic in seconds, judged by a provider that makes no mistakes.
//!
//! Read [`Scenario`] first: a world as data, drawn from a seed. [`run`] plays it, with the real
//! dispatcher against strict providers, and gives a [`Report`]: which refusals were our own
//! fault, how much of the limits lay idle while work waited, and which laws were broken.
//! [`plan`] is the same engine as a feature: how long a file of calls will take.
//!
//! Nothing here reads a clock, and all randomness comes from the scenario's seed: a run with the
//! same scenario is the same run.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod families;
mod scenario;
mod workload;

mod books;
mod dated;
mod fair;
mod heap;
mod ideals;
mod judge;
mod others;
mod own;
mod provider;
mod report;
mod surprises;
mod world;

mod plan;

pub use families::Family;
pub use plan::{Binding, Pace, PlanNeed, PlanReport, PlanRow, PlanSetup, finish_in, plan};
pub use report::Report;
pub use scenario::{
    Account, Arrivals, Estimates, Foreign, HeaderStyle, Knowledge, Outage, OutageKind, QueuePlan,
    Scenario, SeededBug, Sizes, Source, Spread, Telling, TenantPlan, UpstreamPlan, WallJump,
};
pub use world::run;
