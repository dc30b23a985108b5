//! Which jobs stand before the dispatcher: the best of each lane, and no more.
//!
//! The store holds all that wait, this table those of them that could start next. Pure: it is
//! told what happened and says what to read and whom to send back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::Timestamp;
use llmq_dispatch::TicketId;
use llmq_store::{JobId, Lane, LaneDepth, Lease, Place, Waiting, Window};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio_util::sync::CancellationToken;

/// So many jobs of a queue stand before the dispatcher at most …
const QUEUE_MAX: usize = 1_024;
/// … and so many of each lane in any case: a lane that is seldom looked at must not run dry
/// between two looks. Only a queue with more than 32 lanes exceeds the bound above.
const LANE_MIN: usize = 32;

/// So many places are noted while a lane is read; with more it is read again from its head.
const NOTED_MAX: usize = 64;
/// By so much the calendar may move between two looks without its having jumped.
const SLEW: Duration = Duration::from_secs(1);

/// The jobs that stand before the dispatcher or run, and how far each lane was read.
///
/// Its law: a due job of the store is held here, or its lane is marked (`more`, `from_head`,
/// `reading`). A marked lane is read at once or when its window is half empty.
#[derive(Debug)]
pub(super) struct Table {
    queue_max: usize,
    lane_min: usize,
    held: FxHashMap<JobId, Held>,
    lanes: FxHashMap<Arc<Lane>, Reach>,
    lanes_of: FxHashMap<String, usize>,
    /// Lanes that the last reconciliation found to break the law.
    suspects: FxHashSet<Arc<Lane>>,
}

/// Where somebody came into a lane.
#[derive(Debug, Clone, Copy)]
pub(super) enum Came {
    /// At this place; others of the same call stand behind it.
    At(Place),
    /// Nobody knows where.
    Somewhere,
}

/// A job that this process has taken up.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lane: Arc<Lane>,
    /// Its place while it stands in the window.
    place: Option<Place>,
    /// Cancelled when it is not to go on: it ended otherwise, or went back to the store.
    leave: CancellationToken,
    /// It ended otherwise, or is somebody else's: an attempt is worth nothing.
    is_unwanted: bool,
    /// It was read while it was on its way out of here: whoever comes to its lane's head finds it.
    was_met: bool,
    /// Its place before the dispatcher.
    pub(super) ticket: Option<TicketId>,
    /// The attempt that runs.
    pub(super) lease: Option<Lease>,
}

/// How far a lane was read.
#[derive(Debug, Default)]
struct Reach {
    window: BTreeSet<(Place, JobId)>,
    /// Everything up to here was read.
    last: Option<Place>,
    /// The store is asked right now; who came meanwhile may be missing from its answer.
    reading: bool,
    /// Where they came.
    noted: Vec<Place>,
    /// Somebody waits behind it.
    more: bool,
    /// Somebody may have come before it.
    from_head: bool,
    /// When the next one comes due that is not yet.
    due_at: Option<Timestamp>,
}

/// What to read of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) after: Option<Place>,
    pub(super) count: usize,
}

/// Jobs that begin to stand before the dispatcher, each with what ends that.
pub(super) type Taken = Vec<(Waiting, CancellationToken)>;

impl Default for Table {
    fn default() -> Self {
        Self::with_room(QUEUE_MAX, LANE_MIN)
    }
}

impl Table {
    fn with_room(queue_max: usize, lane_min: usize) -> Self {
        Self {
            queue_max,
            lane_min,
            held: FxHashMap::default(),
            lanes: FxHashMap::default(),
            lanes_of: FxHashMap::default(),
            suspects: FxHashSet::default(),
        }
    }

    /// Somebody came into a lane, or may have.
    pub(super) fn came(&mut self, lane: &Arc<Lane>, came: Came) {
        if !self.lanes.contains_key(lane) {
            *self.lanes_of.entry(lane.queue.clone()).or_default() += 1;
            self.lanes.insert(Arc::clone(lane), Reach::default());
        }
        if let Some(reach) = self.lanes.get_mut(lane) {
            reach.more = true;
            match came {
                Came::At(place) if reach.reading && reach.noted.len() < NOTED_MAX => {
                    reach.noted.push(place);
                }
                // A large insert takes its places long before it is seen.
                Came::At(place) => {
                    reach.from_head |= reach.reading || Some(place) <= reach.last;
                }
                Came::Somewhere => reach.from_head = true,
            }
        }
    }

    /// Whether nobody waits in a lane, as far as is known here.
    pub(super) fn is_free(&self, lane: &Lane) -> bool {
        self.lanes.get(lane).is_none_or(|reach| !reach.is_marked())
    }

    /// What is to be read of a lane, if its window is half empty or somebody came before it.
    pub(super) fn wanted(&self, lane: &Lane) -> Option<Wanted> {
        let reach = self.lanes.get(lane)?;
        let size = self.size(&lane.queue);
        let full = reach.window.len();
        if reach.from_head {
            return Some(Wanted {
                after: None,
                count: full.max(size),
            });
        }
        (reach.more && full * 2 <= size).then(|| Wanted {
            after: reach.last,
            count: size - full,
        })
    }

    /// As [`wanted`](Self::wanted), for whoever now asks the store for it, and then tells what
    /// came of that: [`read`](Self::read) or [`unread`](Self::unread).
    pub(super) fn begin_read(&mut self, lane: &Lane) -> Option<Wanted> {
        let wanted = self.wanted(lane)?;
        let reach = self.lanes.get_mut(lane)?;
        reach.reading = true;
        // Whoever comes from now on marks it anew.
        reach.from_head = false;
        reach.more = false;
        Some(wanted)
    }

    /// Takes what was read of a lane into its window. Of a queue that now has more than its
    /// share, the worst are sent back.
    pub(super) fn read(&mut self, lane: &Arc<Lane>, wanted: Wanted, window: &Window) -> Taken {
        let Self { held, lanes, .. } = self;
        let Some(reach) = lanes.get_mut(lane) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        for waiting in &window.jobs {
            if let Some(held) = held.get_mut(&waiting.job) {
                held.was_met |= held.leave.is_cancelled();
                continue;
            }
            let held_now = Held::new(Arc::clone(lane), Some(waiting.place));
            let leave = held_now.leave.clone();
            held.insert(waiting.job, held_now);
            reach.window.insert((waiting.place, waiting.job));
            taken.push((*waiting, leave));
        }
        reach.take_in(wanted, window);
        self.tidy(lane);
        if !taken.is_empty() {
            self.send_back(&lane.queue);
        }
        taken
    }

    /// The store could not be asked: what was wanted of the lane still is.
    pub(super) fn unread(&mut self, lane: &Lane, wanted: Wanted) {
        if let Some(reach) = self.lanes.get_mut(lane) {
            reach.reading = false;
            reach.more = true;
            reach.from_head |= wanted.after.is_none() || !reach.noted.is_empty();
            reach.noted.clear();
        }
    }

    /// A job is taken up without having stood in the window: it is about to be accepted and started.
    /// Whether it was not held before: an id may be that of another.
    pub(super) fn hold(&mut self, job: JobId, lane: Arc<Lane>) -> bool {
        let is_new = !self.held.contains_key(&job);
        if is_new {
            self.held.insert(job, Held::new(lane, None));
        }
        is_new
    }

    /// A job has left the line: it runs. Tells what ends that from now on (not what sends those
    /// who wait back), and whether its lane is to be read again.
    pub(super) fn started(
        &mut self,
        job: JobId,
        lease: Lease,
    ) -> (CancellationToken, Option<Arc<Lane>>) {
        let mut leave = CancellationToken::new();
        if let Some(held) = self.held.get_mut(&job) {
            held.lease = Some(lease);
            if held.is_unwanted {
                // It was cancelled between the store's word and this one.
                leave = held.leave.clone();
            } else {
                held.leave = leave.clone();
            }
        }
        (leave, self.out_of_window(job))
    }

    /// A job that ran waits again, before the dispatcher as before.
    pub(super) fn requeued(&mut self, job: JobId, ticket: TicketId) {
        if let Some(held) = self.held.get_mut(&job) {
            held.lease = None;
            held.ticket = Some(ticket);
        }
    }

    /// A job has its place before the dispatcher.
    pub(super) fn lined_up(&mut self, job: JobId, ticket: TicketId) {
        if let Some(held) = self.held.get_mut(&job) {
            held.ticket = Some(ticket);
        }
    }

    /// What is done for a job here is to end.
    pub(super) fn leave(&mut self, job: JobId) {
        if let Some(held) = self.held.get_mut(&job) {
            held.is_unwanted = true;
            held.leave.cancel();
        }
    }

    /// A job is done with here. Tells whether its lane is to be read again.
    pub(super) fn release(&mut self, job: JobId) -> Option<Arc<Lane>> {
        let again = self.out_of_window(job);
        let held = self.held.remove(&job)?;
        if held.was_met {
            self.came(&held.lane, Came::Somewhere);
            return Some(held.lane);
        }
        again
    }

    pub(super) fn get(&self, job: JobId) -> Option<&Held> {
        self.held.get(&job)
    }

    /// The attempts that run.
    pub(super) fn leases(&self) -> Vec<Lease> {
        self.held.values().filter_map(|held| held.lease).collect()
    }

    /// Lanes of which somebody has come due, and when the next one of them will.
    pub(super) fn due(&mut self, now: Timestamp) -> (Vec<Arc<Lane>>, Option<Timestamp>) {
        let mut next: Option<Timestamp> = None;
        let mut due = Vec::new();
        for (lane, reach) in &mut self.lanes {
            match reach.due_at {
                Some(at) if at <= now => {
                    reach.due_at = None;
                    reach.from_head = true;
                    due.push(Arc::clone(lane));
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        (due, next)
    }

    /// Compares the lanes with those of the store. Answers which are to be read, and of those the
    /// ones that broke the law: in two looks in a row somebody waited there whom nobody here knew.
    pub(super) fn reconcile(&mut self, depths: &[LaneDepth]) -> (Vec<Arc<Lane>>, Vec<Arc<Lane>>) {
        let mut look = Vec::new();
        let mut unmarked = FxHashMap::default();
        for depth in depths {
            match self.lanes.get_key_value(&depth.lane) {
                Some((_, reach)) if reach.reading => {}
                Some((lane, reach)) if reach.expects_later(depth.due_at) => {
                    look.push(Arc::clone(lane));
                }
                Some((_, reach)) if reach.is_marked() => {}
                Some((lane, _)) => {
                    unmarked.insert(Arc::clone(lane), depth.due);
                }
                None => {
                    unmarked.insert(Arc::new(depth.lane.clone()), depth.due + depth.delayed);
                }
            }
        }
        if !unmarked.is_empty() {
            for held in self.held.values().filter(|held| held.lease.is_none()) {
                if let Some(waiting) = unmarked.get_mut(&held.lane) {
                    *waiting = waiting.saturating_sub(1);
                }
            }
        }
        let before = std::mem::take(&mut self.suspects);
        let found = unmarked.into_iter().filter(|(_, waiting)| *waiting > 0);
        self.suspects = found.map(|(lane, _)| lane).collect();
        let lost: Vec<_> = self.suspects.intersection(&before).cloned().collect();
        look.extend(lost.iter().cloned());
        for lane in &look {
            self.came(lane, Came::Somewhere);
        }
        (look, lost)
    }

    fn out_of_window(&mut self, job: JobId) -> Option<Arc<Lane>> {
        let held = self.held.get_mut(&job)?;
        let lane = Arc::clone(&held.lane);
        if let Some(place) = held.place.take()
            && let Some(reach) = self.lanes.get_mut(&lane)
        {
            reach.window.remove(&(place, job));
        }
        let again = self.wanted(&lane).is_some();
        self.tidy(&lane);
        again.then_some(lane)
    }

    /// How many jobs of each lane of a queue may stand before the dispatcher.
    fn size(&self, queue: &str) -> usize {
        let lanes = self.lanes_of.get(queue).copied().unwrap_or(1).max(1);
        (self.queue_max / lanes).max(self.lane_min)
    }

    /// Forgets a lane in which nobody waits.
    fn tidy(&mut self, lane: &Lane) {
        let reach = self.lanes.get(lane);
        let empty = reach.is_some_and(|reach| !reach.is_marked() && reach.due_at.is_none());
        if !empty {
            return;
        }
        self.lanes.remove(lane);
        if let Some(count) = self.lanes_of.get_mut(&lane.queue) {
            *count -= 1;
            if *count == 0 {
                self.lanes_of.remove(&lane.queue);
            }
        }
    }

    /// Lanes that hold more than their share, since others came, send their last ones back: the
    /// least urgent lanes first.
    fn send_back(&mut self, queue: &str) {
        let of_queue = |lane: &Arc<Lane>| lane.queue == queue;
        let mut lanes: Vec<Arc<Lane>> = self
            .lanes
            .keys()
            .filter(|lane| of_queue(lane))
            .cloned()
            .collect();
        let mut all: usize = lanes.iter().map(|lane| self.lanes[lane].window.len()).sum();
        if all <= self.queue_max {
            return;
        }
        lanes.sort_by_key(|lane| lane.priority);
        let size = self.size(queue);
        for lane in lanes {
            let Some(reach) = self.lanes.get_mut(&lane) else {
                continue;
            };
            while all > self.queue_max && reach.window.len() > size {
                let Some((place, job)) = reach.window.pop_last() else {
                    break;
                };
                all -= 1;
                reach.more = true;
                reach.last = reach.last.min(Some(Place(place.0.saturating_sub(1))));
                if let Some(held) = self.held.get_mut(&job) {
                    held.place = None;
                    held.leave.cancel();
                }
            }
        }
    }
}

impl Held {
    fn new(lane: Arc<Lane>, place: Option<Place>) -> Self {
        Self {
            lane,
            place,
            leave: CancellationToken::new(),
            is_unwanted: false,
            was_met: false,
            ticket: None,
            lease: None,
        }
    }
}

impl Reach {
    /// Whether somebody waits, or may.
    fn is_marked(&self) -> bool {
        !self.window.is_empty() || self.more || self.from_head || self.reading
    }

    /// Whether somebody comes due earlier than was told, or came due: the calendar jumped.
    fn expects_later(&self, due_at: Option<Timestamp>) -> bool {
        let jumped = |expected: Timestamp| due_at.is_none_or(|at| at > expected + SLEW);
        self.due_at.is_some_and(jumped)
    }

    /// What was `wanted` was read.
    fn take_in(&mut self, wanted: Wanted, window: &Window) {
        let end = window.jobs.last().map(|waiting| waiting.place);
        let is_cut = window.jobs.len() >= wanted.count;
        self.last = match wanted.after {
            // Between its end and what was read before, somebody may have come.
            None if is_cut => end,
            _ => self.last.max(end),
        };
        let is_missing = |place: &Place| {
            let is_read = window.jobs.binary_search_by_key(place, |job| job.place);
            Some(*place) <= self.last && is_read.is_err()
        };
        self.from_head |= self.noted.iter().any(is_missing);
        self.noted.clear();
        self.reading = false;
        self.more |= is_cut;
        self.due_at = match wanted.after {
            None => window.due_at,
            // Who has come due since that was told stands before what was read.
            Some(_) => self.due_at.into_iter().chain(window.due_at).min(),
        };
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
