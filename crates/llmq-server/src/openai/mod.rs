//! OpenAI's own ways to hand in work and to come back for it, on any provider.
//!
//! `background` makes a job of a response that its caller does not wait for. `files` are handed in
//! (`upload`) and out, and `batches` finish many calls of one; `guard` says in OpenAI's form what
//! is wrong, and `lists` is what their lists have in common. `ids` are the names that OpenAI's SDKs know things by.

mod ids;

pub(crate) mod background;

mod guard;

pub(crate) mod files;
mod lists;
mod upload;

pub(crate) mod batches;

mod routes;

pub(crate) use routes::routes;
