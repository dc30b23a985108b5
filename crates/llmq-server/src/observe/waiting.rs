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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingCall {
    /// Who it is charged to.
    pub tenant: Arc<str>,
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
        self.lock().get(&id).cloned()
    }

    /// The `most` of those that `sees` lets through which have waited longest, with their numbers,
    /// the oldest first; and how many it lets through.
    pub(super) fn oldest(
        &self,
        most: usize,
        sees: impl Fn(&WaitingCall) -> bool,
    ) -> (Vec<(Uuid, WaitingCall)>, usize) {
        let calls = self.lock();
        let seen = calls.iter().filter(|(_, call)| sees(call));
        let mut ages: Vec<(Timestamp, Uuid)> = seen.map(|(id, call)| (call.since, *id)).collect();
        let total = ages.len();
        if most < total {
            ages.select_nth_unstable(most);
            ages.truncate(most);
        }
        ages.sort_unstable();
        let oldest = ages.into_iter();
        let oldest = oldest.filter_map(|(_, id)| Some((id, calls.get(&id)?.clone())));
        (oldest.collect(), total)
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
