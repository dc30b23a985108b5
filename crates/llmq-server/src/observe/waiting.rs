use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llmq_core::{Priority, Timestamp};
use llmq_dispatch::{QueueId, TicketId};
use rustc_hash::FxHashMap;
use uuid::Uuid;

/// The calls that wait for their turn, so that one can ask what a call waits for.
///
/// A call that finds room at once never comes here.
#[derive(Debug, Clone, Default)]
pub struct Waiting {
    calls: Arc<Mutex<FxHashMap<Uuid, WaitingCall>>>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingCall {
    /// Its place in line.
    pub ticket: TicketId,
    /// Its queue.
    pub queue: QueueId,
    /// How urgent it is.
    pub priority: Priority,
    /// When it arrived.
    pub since: Timestamp,
}

/// Keeps a call among those that wait until it is dropped.
#[derive(Debug)]
#[must_use = "the call is forgotten when this is dropped"]
pub struct WaitingGuard {
    waiting: Waiting,
    id: Uuid,
}

impl Waiting {
    /// Takes note of a call that begins to wait, by the number that its caller will ask for.
    pub fn enter(&self, id: Uuid, call: WaitingCall) -> WaitingGuard {
        self.lock().insert(id, call);
        WaitingGuard {
            waiting: self.clone(),
            id,
        }
    }

    /// A call that waits now.
    #[must_use]
    pub fn get(&self, id: Uuid) -> Option<WaitingCall> {
        self.lock().get(&id).copied()
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<Uuid, WaitingCall>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WaitingGuard {
    fn drop(&mut self) {
        let mut calls = self.waiting.lock();
        calls.remove(&self.id);
        // A wave of waiting calls must not keep its room for ever.
        if calls.capacity() > 1_024 && calls.len() * 8 < calls.capacity() {
            calls.shrink_to_fit();
        }
    }
}
