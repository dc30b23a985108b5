//! Which jobs stand before the dispatcher: the best of each lane, and no more.
//!
//! The store holds all that wait, this table those of them that could start next. Pure: it is
//! told what happened and says what to read and whom to send back.

use std::collections::BTreeSet;
use std::sync::Arc;

use llmq_core::Timestamp;
use llmq_dispatch::TicketId;
use llmq_store::{JobId, Lane, Lease, Place, Waiting, Window};
use rustc_hash::FxHashMap;
use tokio_util::sync::CancellationToken;

/// So many jobs of a queue stand before the dispatcher at most …
const QUEUE_MAX: usize = 4_096;
/// … and so many of each lane in any case: a lane that is seldom looked at must not run dry
/// between two looks. Only a queue with more than 128 lanes exceeds the bound above.
const LANE_MIN: usize = 32;

/// The jobs that stand before the dispatcher or run, and how far each lane was read.
#[derive(Debug, Default)]
pub(super) struct Table {
    held: FxHashMap<JobId, Held>,
    lanes: FxHashMap<Arc<Lane>, Reach>,
    lanes_of: FxHashMap<String, usize>,
}

/// A job that this process has taken up.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lane: Arc<Lane>,
    /// Its place while it stands in the window.
    place: Option<Place>,
    /// Cancelled when it is not to go on: it ended otherwise, or went back to the store.
    pub(super) leave: CancellationToken,
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

impl Table {
    /// Somebody came into a lane, or may have.
    pub(super) fn came(&mut self, lane: &Arc<Lane>, before: bool) {
        if !self.lanes.contains_key(lane) {
            *self.lanes_of.entry(lane.queue.clone()).or_default() += 1;
            self.lanes.insert(Arc::clone(lane), Reach::default());
        }
        if let Some(reach) = self.lanes.get_mut(lane) {
            reach.more = true;
            reach.from_head |= before;
        }
    }

    /// Whether nobody waits in a lane, as far as is known here.
    pub(super) fn is_free(&self, lane: &Lane) -> bool {
        self.lanes
            .get(lane)
            .is_none_or(|reach| reach.window.is_empty() && !reach.more && !reach.from_head)
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

    /// Takes what was read of a lane into its window. Of a queue that now has more than its
    /// share, the worst are sent back.
    pub(super) fn read(&mut self, lane: &Arc<Lane>, wanted: Wanted, window: &Window) -> Taken {
        let Self { held, lanes, .. } = self;
        let Some(reach) = lanes.get_mut(lane) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        let mut stopped = false;
        for waiting in &window.jobs {
            match held.get(&waiting.job) {
                // It was sent back a moment ago, and is still on its way out.
                Some(held) if held.place.is_none() && held.leave.is_cancelled() => {
                    stopped = true;
                    break;
                }
                Some(_) => {
                    reach.last = reach.last.max(Some(waiting.place));
                    continue;
                }
                None => reach.last = reach.last.max(Some(waiting.place)),
            }
            let leave = CancellationToken::new();
            held.insert(
                waiting.job,
                Held {
                    lane: Arc::clone(lane),
                    place: Some(waiting.place),
                    leave: leave.clone(),
                    ticket: None,
                    lease: None,
                },
            );
            reach.window.insert((waiting.place, waiting.job));
            taken.push((*waiting, leave));
        }
        reach.from_head = false;
        reach.more = stopped || window.jobs.len() >= wanted.count;
        reach.due_at = window.due_at;
        self.tidy(lane);
        if !taken.is_empty() {
            self.send_back(&lane.queue);
        }
        taken
    }

    /// A job is taken up without having stood in the window.
    pub(super) fn hold(&mut self, job: JobId, lane: Arc<Lane>) {
        let held = Held {
            lane,
            place: None,
            leave: CancellationToken::new(),
            ticket: None,
            lease: None,
        };
        self.held.insert(job, held);
    }

    /// A job has left the line: it runs. Tells what ends that from now on (not what sends those
    /// who wait back), and whether its lane is to be read again.
    pub(super) fn started(
        &mut self,
        job: JobId,
        lease: Lease,
    ) -> (CancellationToken, Option<Arc<Lane>>) {
        let leave = CancellationToken::new();
        if let Some(held) = self.held.get_mut(&job) {
            held.lease = Some(lease);
            held.leave = leave.clone();
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

    /// A job is done with here. Tells whether its lane is to be read again.
    pub(super) fn release(&mut self, job: JobId) -> Option<Arc<Lane>> {
        let again = self.out_of_window(job);
        self.held.remove(&job);
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

    fn out_of_window(&mut self, job: JobId) -> Option<Arc<Lane>> {
        let held = self.held.get_mut(&job)?;
        let place = held.place.take()?;
        let lane = Arc::clone(&held.lane);
        if let Some(reach) = self.lanes.get_mut(&lane) {
            reach.window.remove(&(place, job));
        }
        let again = self.wanted(&lane).is_some();
        self.tidy(&lane);
        again.then_some(lane)
    }

    /// How many jobs of each lane of a queue may stand before the dispatcher.
    fn size(&self, queue: &str) -> usize {
        let lanes = self.lanes_of.get(queue).copied().unwrap_or(1).max(1);
        (QUEUE_MAX / lanes).max(LANE_MIN)
    }

    /// Forgets a lane in which nobody waits.
    fn tidy(&mut self, lane: &Lane) {
        let empty = self.lanes.get(lane).is_some_and(|reach| {
            reach.window.is_empty() && !reach.more && !reach.from_head && reach.due_at.is_none()
        });
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
        if all <= QUEUE_MAX {
            return;
        }
        lanes.sort_by_key(|lane| lane.priority);
        let size = self.size(queue);
        for lane in lanes {
            let Some(reach) = self.lanes.get_mut(&lane) else {
                continue;
            };
            while all > QUEUE_MAX && reach.window.len() > size {
                let Some((place, job)) = reach.window.pop_last() else {
                    break;
                };
                all -= 1;
                reach.more = true;
                reach.last = Some(Place(place.0.saturating_sub(1)));
                if let Some(held) = self.held.get_mut(&job) {
                    held.place = None;
                    held.leave.cancel();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use llmq_core::{CallSize, Priority};

    use super::*;

    fn lane(queue: &str, priority: Priority, tenant: &str) -> Arc<Lane> {
        Arc::new(Lane {
            queue: queue.to_owned(),
            priority,
            tenant: tenant.to_owned(),
        })
    }

    fn jobs(places: std::ops::Range<u64>) -> Window {
        let waiting = |place| Waiting {
            job: JobId::new(),
            place: Place(place),
            size: CallSize::default(),
            attempts: 0,
            max_attempts: 5,
            throttles: 0,
            expires_at: None,
        };
        Window {
            jobs: places.map(waiting).collect(),
            due_at: None,
        }
    }

    #[test]
    fn a_lane_is_read_on_when_its_window_is_half_empty_and_not_before() {
        let (mut table, lane) = (Table::default(), lane("m", Priority::NORMAL, "a"));
        table.came(&lane, false);
        let wanted = table.wanted(&lane).unwrap();
        assert_eq!((wanted.after, wanted.count), (None, QUEUE_MAX));
        let taken = table.read(&lane, wanted, &jobs(0..4_096));
        assert_eq!(table.wanted(&lane), None);
        let lease = |job| Lease {
            job,
            token: llmq_store::LeaseToken(1),
        };
        let mut asked_at = None;
        for (at, (waiting, _)) in taken.iter().enumerate() {
            if table.started(waiting.job, lease(waiting.job)).1.is_some() {
                asked_at = asked_at.or(Some(at + 1));
            }
        }
        assert_eq!(asked_at, Some(QUEUE_MAX / 2));
        let wanted = table.wanted(&lane).unwrap();
        assert_eq!(
            (wanted.after, wanted.count),
            (Some(Place(4_095)), QUEUE_MAX)
        );
        table.read(&lane, wanted, &jobs(0..0));
        assert_eq!(table.lanes.len(), 0, "a lane without jobs is forgotten");
    }

    #[test]
    fn a_job_is_taken_up_once_however_often_it_is_read() {
        let (mut table, lane) = (Table::default(), lane("m", Priority::NORMAL, "a"));
        table.came(&lane, false);
        let (wanted, window) = (table.wanted(&lane).unwrap(), jobs(0..10));
        assert_eq!(table.read(&lane, wanted, &window).len(), 10);
        table.came(&lane, true);
        let wanted = table.wanted(&lane).unwrap();
        assert_eq!(wanted.after, None);
        assert_eq!(table.read(&lane, wanted, &window).len(), 0);
    }

    #[test]
    fn a_better_newcomer_goes_in_and_the_worst_go_back() {
        let mut table = Table::default();
        let low = lane("m", Priority::LOW, "a");
        table.came(&low, false);
        let wanted = table.wanted(&low).unwrap();
        let taken = table.read(&low, wanted, &jobs(0..4_096));
        let high = lane("m", Priority::HIGH, "a");
        table.came(&high, false);
        let wanted = table.wanted(&high).unwrap();
        assert_eq!(wanted.count, QUEUE_MAX / 2);
        assert_eq!(table.read(&high, wanted, &jobs(0..10)).len(), 10);
        let back: Vec<usize> = (0..taken.len())
            .filter(|at| taken[*at].1.is_cancelled())
            .collect();
        assert_eq!(back, (4_086..4_096).collect::<Vec<_>>());
        // They are read again in their turn.
        for (waiting, _) in &taken {
            table.release(waiting.job);
        }
        let wanted = table.wanted(&low).unwrap();
        assert_eq!(wanted.after, Some(Place(4_085)));
    }

    #[test]
    fn every_lane_has_its_own_window_however_many_there_are() {
        let mut table = Table::default();
        for tenant in 0..1_000 {
            table.came(&lane("m", Priority::NORMAL, &tenant.to_string()), false);
        }
        let wanted = table.wanted(&lane("m", Priority::NORMAL, "7")).unwrap();
        assert_eq!(wanted.count, LANE_MIN);
    }

    #[test]
    fn a_lane_is_looked_at_from_its_head_when_somebody_comes_due() {
        let (mut table, lane) = (Table::default(), lane("m", Priority::NORMAL, "a"));
        table.came(&lane, false);
        let at = Timestamp::from_nanos(50);
        let window = Window {
            due_at: Some(at),
            ..jobs(5..6)
        };
        let wanted = table.wanted(&lane).unwrap();
        table.read(&lane, wanted, &window);
        assert_eq!(table.due(Timestamp::from_nanos(49)), (vec![], Some(at)));
        assert_eq!(table.due(at), (vec![Arc::clone(&lane)], None));
        assert_eq!(table.wanted(&lane).unwrap().after, None);
    }
}
