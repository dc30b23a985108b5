//! The store's log of events: what happened to requests, recorded with each change, and what the
//! gateway tells of itself. It outlives this process.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::Clock;
use llmq_engine::webhooks::batch_name;
use llmq_engine::{SystemClock, Tasks};
use llmq_store::{EventId, NewEvent, Store, StoreError, StoredEvent, Subject};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::observed::Observed;
use crate::shown;

/// So many events of the gateway's own may wait to be recorded. More come only while the store
/// cannot record; those are lost, and their loss is logged.
const WAITING_MAX: usize = 10_000;
/// So many are recorded together.
const TOGETHER_MAX: usize = 500;
/// What could not be recorded is tried again after this.
const AGAIN: Duration = Duration::from_millis(500);

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

impl Journal {
    /// Records what is told from here on.
    pub(crate) fn begin(store: Arc<dyn Store>, clock: SystemClock, tasks: &Tasks) -> Self {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        tasks.spawn(record(Arc::clone(&store), waiting, clock, tasks.clone()));
        Self { store, sender }
    }
}

impl Observed {
    /// Tells that something happened. Never waits.
    pub(crate) fn publish(&self, kind: &'static str, data: Value) {
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
        if self.journal.sender.try_send(event).is_err() {
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
            // What was told before the end is recorded too.
            biased;
            count = waiting.recv_many(&mut together, TOGETHER_MAX) => {
                if count == 0 {
                    return;
                }
            }
            () = tasks.cancelled() => return,
        }
        let count = together.len();
        while let Err(error) = store.publish(together.clone(), clock.now()).await {
            let may_pass = matches!(error, StoreError::Unavailable { .. });
            let ends = tokio::time::timeout(AGAIN, tasks.cancelled()).await.is_ok();
            if ends || !may_pass {
                tracing::warn!(count, %error, "events are lost: the store cannot record");
                break;
            }
        }
        together.clear();
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

/// The text is no place of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (log, number) = text.trim().split_once('-').ok_or(NoPlace)?;
        let read = |part: &str| part.parse::<u64>().map_err(|_| NoPlace);
        let number = read(number)?;
        // The next number must exist.
        if number == u64::MAX {
            return Err(NoPlace);
        }
        Ok(Self {
            log: read(log)?,
            number: EventId(number),
        })
    }
}

/// An event as listeners get it: JSON on one line.
pub(crate) fn said(event: &StoredEvent) -> String {
    let mut said = Map::new();
    said.insert("type".to_owned(), json!(event.event.kind));
    said.insert("at".to_owned(), json!(shown::instant(event.at)));
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
            said.insert("batch_id".to_owned(), json!(batch_name(*id)));
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
    use llmq_store::{EventPage, MemoryStore, Settings};
    use llmq_testkit::FaultyStore;
    use proptest::prelude::*;

    use super::*;

    /// What was told while the store failed was in no log, and told to nobody.
    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_recorded_is_recorded_later() {
        let store = FaultyStore::new(Arc::new(MemoryStore::new(Settings::default())));
        store.fails("publish", 3);
        let tasks = Tasks::new();
        let journal = Journal::begin(store.clone(), SystemClock::new(), &tasks);
        for kind in ["quota.critical", "breaker.closed"] {
            let event = NewEvent {
                kind: kind.to_owned(),
                tenant: None,
                subject: Subject::Other("one".to_owned()),
                data: json!({}),
            };
            journal.sender.send(event).await.unwrap();
        }
        let mut newest = journal.store.newest_event();
        newest
            .wait_for(|newest| *newest == EventId(2))
            .await
            .unwrap();
        let page = journal.store.events(EventId(0), 10).await.unwrap();
        assert!(matches!(page, EventPage::Events(events) if events.len() == 2));
        assert_eq!(store.fails_left("publish"), 0);
    }

    proptest! {
        #[test]
        fn a_place_reads_back(log: u64, number in 0..u64::MAX) {
            let place = Place { log, number: EventId(number) };
            prop_assert_eq!(place.to_string().parse(), Ok(place));
        }

        #[test]
        fn no_text_breaks_the_reader(text: String) {
            let _ = text.parse::<Place>();
        }
    }

    #[test]
    fn no_other_text_is_a_place() {
        for text in ["7", "7-", "-7", "a-7", "1-18446744073709551615"] {
            assert_eq!(text.parse::<Place>(), Err(NoPlace), "{text}");
        }
    }
}
