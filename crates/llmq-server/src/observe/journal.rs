//! The store's log of events: what happened to requests, recorded with each change, and what the
//! gateway tells of itself. It outlives this process.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use llmq_core::Clock;
use llmq_engine::{SystemClock, Tasks};
use llmq_store::{EventId, NewEvent, Store, StoredEvent, Subject};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::events::{Cursor, NoCursor};
use super::observed::Observed;
use super::time;

/// So many events of the gateway's own may wait to be recorded. More come only while the store
/// cannot record; those are lost, and their loss is logged.
const WAITING_MAX: usize = 10_000;
/// So many are recorded together.
const TOGETHER_MAX: usize = 500;

/// Where events are recorded and read.
pub(crate) struct Journal {
    pub(crate) store: Arc<dyn Store>,
    sender: mpsc::Sender<NewEvent>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Observed {
    /// Events are recorded in `store` from here on, and listeners read them there.
    pub(crate) fn keep_events(&self, store: Arc<dyn Store>, tasks: &Tasks) {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        let journal = Journal {
            store: Arc::clone(&store),
            sender,
        };
        if self.journal.set(journal).is_ok() {
            tasks.spawn(record(store, waiting, self.clock.clone(), tasks.clone()));
        }
    }

    /// Tells that something happened. Never waits.
    pub(crate) fn publish(&self, kind: &'static str, data: Value) {
        let Some(journal) = self.journal.get() else {
            return self.events.publish(kind, data, self.now());
        };
        // The store itself tells of these, with the change.
        if matches!(kind, "queue.paused" | "queue.resumed") {
            return;
        }
        let name = |of: &str| data.get(of).and_then(Value::as_str).map(str::to_owned);
        let subject = match (name("queue"), name("upstream")) {
            (Some(queue), _) => Subject::Queue(queue),
            (None, upstream) => Subject::Other(upstream.unwrap_or_default()),
        };
        let event = NewEvent {
            kind: kind.to_owned(),
            tenant: None,
            subject,
            data,
        };
        if journal.sender.try_send(event).is_err() {
            tracing::warn!(kind, "an event was lost: the store cannot record");
        }
    }
}

async fn record(
    store: Arc<dyn Store>,
    mut waiting: mpsc::Receiver<NewEvent>,
    clock: SystemClock,
    tasks: Tasks,
) {
    let mut together = Vec::new();
    loop {
        tokio::select! {
            count = waiting.recv_many(&mut together, TOGETHER_MAX) => {
                if count == 0 {
                    return;
                }
            }
            () = tasks.cancelled() => return,
        }
        let events = std::mem::take(&mut together);
        let count = events.len();
        if let Err(error) = store.publish(events, clock.now()).await {
            tracing::warn!(count, %error, "events could not be recorded");
        }
    }
}

/// An event's place in the log of one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) log: u64,
    pub(crate) number: EventId,
}

impl Place {
    /// What tells the log of `store` from those of others.
    pub(crate) fn log_of(store: &dyn Store) -> u64 {
        store.id().as_u64_pair().0
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.log, self.number.0)
    }
}

impl FromStr for Place {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let Cursor { epoch, number } = text.parse()?;
        Ok(Self {
            log: epoch,
            number: EventId(number),
        })
    }
}

/// An event as listeners get it: JSON on one line.
pub(crate) fn said(event: &StoredEvent) -> String {
    let mut said = Map::new();
    said.insert("type".to_owned(), json!(event.event.kind));
    said.insert("at".to_owned(), json!(time::text(event.at)));
    match &event.event.subject {
        Subject::Job {
            id,
            queue,
            status,
            attempts,
        } => {
            said.insert("queue_id".to_owned(), json!(id));
            said.insert("model".to_owned(), json!(queue));
            said.insert("status".to_owned(), json!(status));
            said.insert("attempts".to_owned(), json!(attempts));
        }
        Subject::Batch(id) => {
            said.insert("batch_id".to_owned(), json!(id));
        }
        Subject::Queue(name) => {
            said.insert("queue".to_owned(), json!(name));
        }
        Subject::Other(_) => {}
    }
    if let Some(tenant) = &event.event.tenant {
        said.insert("tenant".to_owned(), json!(tenant));
    }
    if let Value::Object(data) = &event.event.data {
        said.extend(data.clone());
    }
    Value::Object(said).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_and_no_other_text_does() {
        let place = Place {
            log: u64::MAX,
            number: EventId(7),
        };
        assert_eq!(place.to_string().parse(), Ok(place));
        assert!("7".parse::<Place>().is_err());
    }
}
