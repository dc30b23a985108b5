//! Batches: many calls in one file, and their answers in another.
//!
//! `routes` takes a batch in and tells of it. `steward` leads each one from state to state: its
//! `reading` comes line by line, `lines` says what each is worth, and `output` is written when all
//! have ended. `notes` is what is kept with a batch, and `object` how it is shown.

mod notes;

mod object;
mod routes;

mod steward;

mod lines;
mod reading;

mod output;

#[cfg(test)]
mod tests;

pub(super) use routes::{__path_cancel, __path_create, __path_list, __path_show};
pub(super) use routes::{cancel, create, list, show};
pub(crate) use steward::{Touched, keep};
