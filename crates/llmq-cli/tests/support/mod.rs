//! What tests of the command share beside their world.

mod provider;
mod running;

pub(crate) use provider::{Provider, Reply};
pub(crate) use running::Running;
