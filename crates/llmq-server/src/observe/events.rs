use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmq_core::{Now, WallTime};
use serde_json::Value;
use tokio::sync::watch;

/// So many events are kept …
const KEPT_MAX: usize = 100_000;
/// … of so many bytes together, since a bound on the number alone is none on memory …
const KEPT_BYTES_MAX: usize = 32 << 20;
/// … and for so long.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3_600);

/// What happened lately, for those who listen and for those who come back.
///
/// Publishing never waits: whoever listens reads from the same ring at its own pace, and one
/// that is too slow is told so by a reset.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<Ring>,
    /// The number of the newest event.
    newest: watch::Sender<u64>,
    /// Tells numbers of this process from those of earlier ones.
    epoch: u64,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    newest: u64,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// 1 is the first one of a process; no number is left out.
    pub(crate) number: u64,
    /// Such as `queue.paused`.
    pub(crate) kind: &'static str,
    /// JSON on one line.
    pub(crate) data: String,
    at: Now,
}

/// Where a listener stands: the events of one process up to a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    epoch: u64,
    number: u64,
}

/// What a listener gets next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// These, in order.
    Events(Vec<Arc<Event>>),
    /// What it missed is not known any more; it goes on from here.
    Reset(Cursor),
}

impl Events {
    /// Nothing happened so far. `started` tells this process from earlier ones.
    #[must_use]
    pub fn new(started: WallTime) -> Self {
        Self {
            ring: Mutex::default(),
            newest: watch::Sender::new(0),
            epoch: u64::try_from(started.as_micros()).unwrap_or(0),
        }
    }

    /// Tells that something happened. `data` is an object; its time is added as `at`.
    pub fn publish(&self, kind: &'static str, data: Value, now: Now) {
        let data = with_time(kind, data, now.wall);
        let newest = {
            let mut ring = self.lock();
            ring.newest += 1;
            let event = Event {
                number: ring.newest,
                kind,
                data,
                at: now,
            };
            ring.bytes += event.size();
            ring.events.push_back(Arc::new(event));
            ring.forget_old(now);
            ring.newest
        };
        // Two publishers may come here in either order.
        self.newest.send_if_modified(|known| {
            let newer = newest > *known;
            *known = newest.max(*known);
            newer
        });
    }

    /// Where a listener stands that wants only what is yet to come.
    pub(crate) fn end(&self) -> Cursor {
        self.cursor(self.lock().newest)
    }

    /// At most `max` events after a cursor. Empty: it has seen them all.
    pub(crate) fn after(&self, cursor: Cursor, max: usize, now: Now) -> Next {
        let mut ring = self.lock();
        ring.forget_old(now);
        let oldest = ring.newest + 1 - u64::try_from(ring.events.len()).unwrap_or(0);
        let known = cursor.epoch == self.epoch
            && cursor.number + 1 >= oldest
            && cursor.number <= ring.newest;
        if !known {
            return Next::Reset(self.cursor(ring.newest));
        }
        let seen = usize::try_from(cursor.number + 1 - oldest).unwrap_or(usize::MAX);
        Next::Events(ring.events.iter().skip(seen).take(max).cloned().collect())
    }

    fn cursor(&self, number: u64) -> Cursor {
        Cursor {
            epoch: self.epoch,
            number,
        }
    }

    /// Tells when there is something new.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn forget_old(&mut self, now: Now) {
        while let Some(first) = self.events.front() {
            let old = now.mono - first.at.mono > KEPT_FOR;
            if !old && self.events.len() <= KEPT_MAX && self.bytes <= KEPT_BYTES_MAX {
                break;
            }
            self.bytes = self.bytes.saturating_sub(first.size());
            self.events.pop_front();
        }
    }
}

impl Event {
    fn size(&self) -> usize {
        self.data.len() + size_of::<Self>() + size_of::<Arc<Self>>()
    }
}

fn with_time(kind: &str, data: Value, at: WallTime) -> String {
    let mut object = serde_json::Map::new();
    object.insert("type".to_owned(), kind.into());
    object.insert("at".to_owned(), super::time::text(at).into());
    if let Value::Object(data) = data {
        object.extend(data);
    }
    Value::Object(object).to_string()
}

impl Cursor {
    /// A place that no process ever had.
    pub(crate) const UNKNOWN: Self = Self {
        epoch: u64::MAX,
        number: 0,
    };

    /// A cursor after one more event.
    pub(crate) fn past(self, event: &Event) -> Self {
        Self {
            number: event.number,
            ..self
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

/// The text is no cursor of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let (epoch, number) = text.trim().split_once('-').ok_or(NoCursor)?;
        let read = |part: &str| part.parse().map_err(|_| NoCursor);
        let number: u64 = read(number)?;
        // The next number must exist.
        if number == u64::MAX {
            return Err(NoCursor);
        }
        Ok(Self {
            epoch: read(epoch)?,
            number,
        })
    }
}
