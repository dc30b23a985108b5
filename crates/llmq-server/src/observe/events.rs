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
    pub(super) epoch: u64,
    pub(super) number: u64,
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

#[cfg(test)]
mod tests {
    use llmq_core::Timestamp;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn at(seconds: u64) -> Now {
        Now {
            mono: Timestamp::ZERO + Duration::from_secs(seconds),
            wall: WallTime::from_micros(0) + Duration::from_secs(seconds),
        }
    }

    fn some(count: u64) -> Events {
        let events = Events::new(WallTime::from_micros(7));
        for n in 0..count {
            events.publish("x", json!({"n": n}), at(0));
        }
        events
    }

    fn numbers(next: Next) -> Vec<u64> {
        match next {
            Next::Events(events) => events.iter().map(|event| event.number).collect(),
            Next::Reset(cursor) => panic!("reset to {cursor}"),
        }
    }

    proptest! {
        /// Whoever reads in pieces of any size sees every event once and in order.
        #[test]
        fn nothing_is_left_out_and_nothing_comes_twice(
            count in 0..50u64,
            from in 0..50u64,
            max in 1..20usize,
        ) {
            let events = some(count);
            let mut cursor = events.cursor(from.min(count));
            let mut seen = Vec::new();
            loop {
                let Next::Events(next) = events.after(cursor, max, at(0)) else {
                    panic!("nothing was forgotten");
                };
                let Some(last) = next.last() else { break };
                prop_assert!(next.len() <= max);
                cursor = cursor.past(last);
                seen.extend(next.iter().map(|event| event.number));
            }
            let expected: Vec<u64> = (from.min(count) + 1..=count).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn a_cursor_reads_back(epoch: u64, number in 0..u64::MAX) {
            let cursor = Cursor { epoch, number };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn no_text_breaks_the_reader(text: String) {
            let _ = text.parse::<Cursor>();
        }
    }

    #[test]
    fn events_are_kept_for_a_day() {
        let events = some(1);
        let day = 24 * 3_600;
        assert_eq!(numbers(events.after(events.cursor(0), 9, at(day))), [1]);
        assert_eq!(
            events.after(events.cursor(0), 9, at(day + 1)),
            Next::Reset(events.cursor(1))
        );
    }

    #[test]
    fn a_hundred_thousand_are_kept() {
        let events = some(100_001);
        assert_eq!(numbers(events.after(events.cursor(1), 1, at(0))), [2]);
        assert_eq!(
            events.after(events.cursor(0), 1, at(0)),
            Next::Reset(events.end())
        );
    }

    /// A bound on their number alone would let long names fill the memory.
    #[test]
    fn long_events_are_bounded_by_their_bytes() {
        let events = Events::new(WallTime::from_micros(7));
        let long = "x".repeat(1 << 20);
        for _ in 0..100 {
            events.publish("x", json!({ "name": long }), at(0));
        }
        let ring = events.lock();
        assert!(ring.bytes <= KEPT_BYTES_MAX);
        let held: usize = ring.events.iter().map(|event| event.size()).sum();
        assert_eq!(held, ring.bytes);
        assert_eq!(ring.events.len(), 31);
    }

    #[test]
    fn another_process_is_not_taken_for_this_one() {
        let events = some(3);
        let other = Events::new(WallTime::from_micros(8));
        assert_eq!(
            events.after(other.cursor(1), 9, at(0)),
            Next::Reset(events.end())
        );
        // Nor what this one has not said yet.
        assert!(matches!(
            events.after(events.cursor(4), 9, at(0)),
            Next::Reset(_)
        ));
    }
}
