//! Jobs: their tables, and all that can happen to them.
//!
//! Read `desk` first: work on jobs happens at a desk, which is the file and what the writer knows
//! of it (`index`), in one transaction. `accept`, `attempts` and `tend` are the transitions, each
//! checked before anything is written; `bulk` and `batches` are inserts of several transactions,
//! `given_up` is what becomes of one that is not published; `files` are what batches read and write;
//! `lines` looks; `row`, `blobs`, `names`,
//! `queues`, `events` and `outbox` are the tables, `backlog` is who waits in which line of the
//! outbox, and `load` reads them when the store is opened, but for what `unreadable` knows of
//! damaged pages. `audit` reads all of them to say what is wrong. `api` is the
//! [`Store`](llmq_store::Store) of it.

mod accept;
mod api;
mod attempts;
pub(crate) mod audit;
mod backlog;
mod batches;
mod blobs;
mod bulk;
mod desk;
mod events;
mod files;
mod given_up;
mod index;
mod lines;
mod load;
mod names;
mod outbox;
mod queues;
mod row;
mod tend;
mod unreadable;

pub(crate) use blobs::sum as blob_sum;
pub(crate) use bulk::{Begun, Bulk, Slice};
pub(crate) use desk::{Desk, Done, Fault};
pub(crate) use index::Index;
pub use load::Opened;
pub(crate) use load::{id, new_id};
pub(crate) use outbox::{addressee_of, is_of_value};
pub(crate) use unreadable::Unreadable;
