//! What every store promises.
//!
//! Read [`Store`] first, then [`Jobs`], which is the life of a job: each method is one transition,
//! and its documentation says what survives a crash after it returns. [`NewJob`] is what is
//! accepted, [`Start`] and [`Report`] begin and end an attempt, [`Settings`] say how much is taken
//! and how long it is kept. [`MemoryStore`] keeps all of it for as long as its process lives.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use llmq_core::{Now, Status};
//! use llmq_store::{MemoryStore, NewJob, Jobs, Report, Settings, Start, StoredAnswer, Worker};
//!
//! let store = MemoryStore::new(Settings::default());
//! let now = Now::default(); // from a clock
//! let job = NewJob::new("gpt-4o-mini", "default", r#"{"model":"gpt-4o-mini"}"#);
//! let id = job.id;
//! store.enqueue(vec![job], now).await?;
//!
//! let start = Start { job: id, worker: Worker::new("here"), lease: Duration::from_secs(30), upstream: None };
//! let started = store.start(vec![start], now).await?.remove(0)?;
//! let answer = StoredAnswer { status: 200, headers: Vec::new(), body: "{}".into() };
//! let report = Report::Completed { answer, usage: None, cost_nano_usd: None };
//! let job = store.report(started.lease, report, now).await?;
//! assert_eq!(job.status, Status::Completed);
//! # Ok(()) }
//! ```

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod ids;
mod job;

mod enqueue;
mod lease;

mod store;

mod jobs;
mod lines;
mod reads;

mod events;
mod webhooks;

mod batches;

// What stores have in common, for those who write one.
mod capacity;
mod order;
mod outbox;
mod steady;

mod error;

mod memory;

mod history;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use batches::{
    Batch, BatchCounts, BatchStatus, BatchUpdate, Batches, Files, STAGE_MAX, StoredFile,
};
pub use capacity::Capacity;
pub use enqueue::{EnqueueError, Enqueued, FullOf, Settings, note_positions};
pub use error::StoreError;
pub use events::{EventId, EventKind, EventPage, Events, NewEvent, StoredEvent, Subject};
pub use history::{Entry, HistoryOptions, Rule, Violation, check_history};
pub use ids::{BatchId, EndpointId, FileId, JobId};
pub use job::{Callback, Details, Idempotency, Job, JobError, Member, NewJob, StoredAnswer};
pub use jobs::{ENQUEUE_MAX, Jobs, Tended};
pub use lease::{
    Cancelled, GiveBack, Lease, LeaseToken, Moved, Report, ReportError, Start, StartError, Started,
    Worker,
};
pub use lines::{
    Counts, Lane, LaneDepth, Lines, POSITION_MAX, Place, Position, Queue, QueueState, Waiting,
    Window,
};
pub use memory::MemoryStore;
pub use order::{DueAt, Order};
pub use outbox::{Addressee, targets};
pub use reads::{EXAMINED_MAX, Filter, PAGE_MAX, Page, Reads};
pub use steady::{Steady, Stood};
pub use store::{Health, Store};
pub use webhooks::{
    Attempted, Delivery, DeliveryId, DeliveryState, Due, Endpoint, NextTry, OFFERED, Take, Target,
    Webhooks, is_offered,
};
