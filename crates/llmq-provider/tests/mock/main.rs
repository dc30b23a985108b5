//! The stand-in provider, asked over real connections by a client that is none of ours.

mod answers;
mod caller;
mod faults;
mod limits;
mod recording;
mod refusals;
