//! Accepted requests over HTTP: handed in, watched, fetched; and the webhooks that tell of them.
//!
//! [`Desk`] holds it all. `wanted` checks what is handed in, `state` says how it stands, `routes`
//! are the requests and `webhooks` the endpoints; `plain` makes jobs of calls that came by a
//! provider's API, and `live` hands the stream of one on while it comes. `catalog` is what the runner must know of the models.

mod catalog;

mod desk;

mod wanted;

mod listing;
mod state;

mod routes;

mod live;
mod plain;
mod result;

mod webhooks;

mod guard;

pub(crate) use catalog::Catalog;
pub(crate) use desk::{COME_AGAIN, Desk, unavailable};
pub(crate) use guard::sees;
pub(crate) use plain::{
    Later, accepted, as_refusal, asks_for_job, by_key, of_call, queued_instead,
};
pub(crate) use routes::{Routes, routes};
pub(crate) use wanted::{checked_key, note};
