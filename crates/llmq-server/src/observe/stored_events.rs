//! `GET /api/events` over the store's log: it resumes where a listener left off, after a restart
//! too.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use llmq_store::{EventId, EventPage, StoreError};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::journal::{Place, said};
use super::observed::Observed;
use crate::keys::{Caller, KeyRing};

/// So many events are read together at most.
const TOGETHER_MAX: usize = 256;

/// Who listens.
pub(super) struct Hears {
    pub(super) caller: Caller,
    /// Where it is asked whether they still may; none: nobody is asked.
    pub(super) keys: Option<Arc<KeyRing>>,
}

impl Hears {
    fn still_may(&self) -> bool {
        self.keys
            .as_ref()
            .is_none_or(|keys| keys.lets_in(&self.caller))
    }
}

/// One listener's place in the log.
pub(super) struct Listener {
    observed: Arc<Observed>,
    news: watch::Receiver<EventId>,
    hears: Hears,
    log: u64,
    after: EventId,
    /// What it saw last is not known here.
    lost: bool,
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    /// Goes on after the event of this id, or with what is yet to come.
    pub(super) fn new(
        observed: Arc<Observed>,
        last: Option<&str>,
        hears: Hears,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let journal = &observed.journal;
        let news = journal.store.newest_event();
        let newest = *news.borrow();
        let log = Place::log_of(journal.store.as_ref());
        let seen = last.map(|last| last.parse::<Place>().ok());
        let known = |place: &Place| place.log == log && place.number <= newest;
        let (after, lost) = match seen {
            None => (newest, false),
            Some(place) => match place.filter(known) {
                Some(place) => (place.number, false),
                None => (newest, true),
            },
        };
        Self {
            observed,
            news,
            hears,
            log,
            after,
            lost,
            _permit: permit,
        }
    }

    /// What goes out next; none: the server ends, its store cannot be read, or the listener's key
    /// is not in use any more.
    pub(super) async fn next(&mut self, keep_alive: Duration) -> Option<String> {
        loop {
            // What comes after this is seen as a change.
            self.news.mark_unchanged();
            let frames = self.frames().await;
            if !self.hears.still_may() {
                return None;
            }
            match frames {
                Ok(frames) if !frames.is_empty() => return Some(frames),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "events cannot be read: a listener is let go");
                    return None;
                }
            }
            tokio::select! {
                biased;
                () = self.observed.draining.cancelled() => return None,
                changed = self.news.changed() => changed.ok()?,
                () = tokio::time::sleep(keep_alive) => return Some(":\n\n".to_owned()),
            }
        }
    }

    /// Events that are there already and that the caller may see.
    async fn frames(&mut self) -> Result<String, StoreError> {
        let mut frames = String::new();
        if std::mem::take(&mut self.lost) {
            self.reset(&mut frames);
            return Ok(frames);
        }
        let store = &self.observed.journal.store;
        while frames.is_empty() {
            match store.events(self.after, TOGETHER_MAX).await? {
                EventPage::Events(events) if events.is_empty() => break,
                EventPage::Events(events) => {
                    for event in events {
                        self.after = event.id;
                        let tenant = event.event.tenant.as_deref();
                        let may_hear = match tenant {
                            Some(tenant) => self.hears.caller.tenant_for(Some(tenant)).is_ok(),
                            None => self.hears.caller.sees_all() || !event.event.is_for_operators(),
                        };
                        if may_hear {
                            frame(&mut frames, self.place(), &event.event.kind, &said(&event));
                        }
                    }
                }
                EventPage::Gap { .. } => {
                    self.after = *self.news.borrow();
                    self.reset(&mut frames);
                }
            }
        }
        Ok(frames)
    }

    fn reset(&self, frames: &mut String) {
        frame(frames, self.place(), "reset", "{\"type\":\"reset\"}");
    }

    fn place(&self) -> Place {
        Place {
            log: self.log,
            number: self.after,
        }
    }
}

/// One event. JSON on one line has no line ends that could break it.
fn frame(frames: &mut String, place: Place, kind: &str, data: &str) {
    // Writing to a string cannot fail.
    let _ = write!(frames, "id: {place}\nevent: {kind}\ndata: {data}\n\n");
}
