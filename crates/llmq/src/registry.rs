use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use llmq_dispatch::TicketId;
use rustc_hash::FxHashMap;
use uuid::Uuid;

use crate::live::Live;
use crate::response::QueueResponse;

/// Every request that a queue knows of: those in flight, and the last ones that finished.
pub(crate) struct Registry<T> {
    live: FxHashMap<Uuid, Arc<Live<T>>>,
    keys: FxHashMap<Arc<str>, Arc<Live<T>>>,
    finished: FxHashMap<Uuid, (u64, Finished<T>)>,
    /// Finished ones with their numbers, oldest first. One that ran again under its old id stands
    /// in it twice.
    order: VecDeque<(Uuid, u64)>,
    /// Of the last that finished.
    number: u64,
    history: usize,
}

/// A request that has finished.
pub(crate) struct Finished<T> {
    pub(crate) response: QueueResponse<T>,
    /// Under which the dispatcher remembers what it was charged.
    pub(crate) ticket: TicketId,
}

/// What a queue knows of a request.
pub(crate) enum Found<'a, T> {
    Live(&'a Arc<Live<T>>),
    Finished(&'a mut Finished<T>),
}

/// Why a request cannot be taken in.
pub(crate) enum Taken<T> {
    /// Its id is in flight.
    Id,
    /// Its key is, for this one.
    Key(Arc<Live<T>>),
}

impl<T> Registry<T> {
    pub(crate) fn new(history: usize) -> Self {
        Self {
            live: FxHashMap::default(),
            keys: FxHashMap::default(),
            finished: FxHashMap::default(),
            order: VecDeque::new(),
            number: 0,
            history,
        }
    }

    pub(crate) fn keyed(&self, key: &str) -> Option<Arc<Live<T>>> {
        self.keys.get(key).cloned()
    }

    pub(crate) fn insert(&mut self, live: &Arc<Live<T>>) -> Result<(), Taken<T>> {
        if let Some(other) = live.key.as_ref().and_then(|key| self.keyed(key)) {
            return Err(Taken::Key(other));
        }
        match self.live.entry(live.id) {
            Entry::Occupied(_) => return Err(Taken::Id),
            Entry::Vacant(slot) => slot.insert(Arc::clone(live)),
        };
        if let Some(key) = &live.key {
            self.keys.insert(Arc::clone(key), Arc::clone(live));
        }
        Ok(())
    }

    pub(crate) fn find(&mut self, id: Uuid) -> Option<Found<'_, T>> {
        if let Some(live) = self.live.get(&id) {
            return Some(Found::Live(live));
        }
        let (_, finished) = self.finished.get_mut(&id)?;
        Some(Found::Finished(finished))
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<Live<T>>> {
        self.live.values()
    }

    /// Whether finished requests are remembered at all.
    pub(crate) fn remembers(&self) -> bool {
        self.history > 0
    }

    /// Moves a request from the live to the finished ones.
    pub(crate) fn finish(&mut self, live: &Live<T>, finished: Option<Finished<T>>) {
        self.live.remove(&live.id);
        if let Some(key) = &live.key {
            self.keys.remove(key);
        }
        let Some(finished) = finished else { return };
        self.number += 1;
        self.finished.insert(live.id, (self.number, finished));
        self.order.push_back((live.id, self.number));
        while self.order.len() > self.history {
            let Some((oldest, number)) = self.order.pop_front() else {
                return;
            };
            // The id may be that of a later one by now.
            if let Entry::Occupied(slot) = self.finished.entry(oldest)
                && slot.get().0 == number
            {
                slot.remove();
            }
        }
    }
}
