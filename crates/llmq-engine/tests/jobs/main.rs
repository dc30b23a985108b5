//! Accepted jobs, with a real store and a provider that does what it is told.

mod accepted;
mod ends;
mod restarts;
mod world;
