//! Where calls go: chosen by flags, or by a model of the configuration.

mod args;
mod choose;
mod open;
mod server;

pub(crate) use args::ProviderArgs;
pub(crate) use choose::{Chosen, ChosenUpstream, choose};
pub(crate) use open::open;
pub(crate) use server::through;
