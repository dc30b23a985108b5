use async_trait::async_trait;
use uuid::Uuid;

use crate::{Batches, Events, Files, Jobs, Lines, Reads, StoreError, Webhooks};

/// A store: all that is kept of jobs, and all that can happen to them.
///
/// It is seven small traits, one an idea. Read [`Jobs`] first; [`Lines`] is how a dispatcher finds
/// what to start, [`Reads`] how people look, [`Events`] and [`Webhooks`] how they are told,
/// [`Batches`] and [`Files`] how many are handed in and out at once. Whoever uses one holds an
/// `Arc<dyn Store>`.
#[async_trait]
pub trait Store:
    Jobs + Lines + Reads + Events + Webhooks + Batches + Files + Send + Sync + 'static
{
    /// The store's own id, drawn when it was made: with an event's number it names the event
    /// among those of all stores.
    fn id(&self) -> Uuid;

    /// Whether it can record now. While it cannot, no new job is accepted and none is started;
    /// what it holds stays.
    fn health(&self) -> Health;

    /// Finishes what waits and closes it. Whoever uses it later is told [`StoreError::Closed`].
    ///
    /// # Errors
    ///
    /// [`StoreError`]: what was acknowledged is recorded all the same.
    async fn close(&self) -> Result<(), StoreError>;
}

/// Whether a store can record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Ready,
    /// It can, but only the ends of what runs: its reserve is all that is left of the disk.
    ReserveOnly {
        /// What is wrong, for people.
        reason: String,
    },
    /// It cannot.
    Unavailable {
        /// What is wrong, for people.
        reason: String,
    },
}

impl Health {
    /// Whether jobs may be accepted and started.
    #[must_use]
    pub fn takes_work(&self) -> bool {
        matches!(self, Self::Ready)
    }
}
