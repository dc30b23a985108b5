//! The order of waiting jobs in memory, for stores that one process owns.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use llmq_core::{Now, Timestamp, WallTime};

use crate::steady::Steady;
use crate::{Lane, LaneDepth, POSITION_MAX, Place, Position};

/// The order of all waiting jobs, by a key of the store's own (`K`).
#[derive(Debug)]
pub struct Order<K> {
    lanes: BTreeMap<Lane, Line<K>>,
}

/// When a waiting job may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DueAt {
    /// At once.
    Now,
    /// After a wait, in steady time.
    After(WallTime),
    /// At an instant of the calendar.
    On(WallTime),
}

/// Places are unique in a store.
#[derive(Debug)]
struct Line<K> {
    due: BTreeMap<Place, K>,
    /// Waits, in steady time.
    waits: BTreeMap<(WallTime, Place), K>,
    /// Instants of the calendar.
    calendar: BTreeMap<(WallTime, Place), K>,
    /// The places of both.
    later: BTreeSet<Place>,
}

impl<K> Default for Order<K> {
    fn default() -> Self {
        Self {
            lanes: BTreeMap::new(),
        }
    }
}

impl<K> Default for Line<K> {
    fn default() -> Self {
        Self {
            due: BTreeMap::new(),
            waits: BTreeMap::new(),
            calendar: BTreeMap::new(),
            later: BTreeSet::new(),
        }
    }
}

impl<K: Copy> Order<K> {
    /// A job comes to wait.
    pub fn insert(&mut self, lane: &Lane, place: Place, key: K, due: DueAt) {
        if !self.lanes.contains_key(lane) {
            self.lanes.insert(lane.clone(), Line::default());
        }
        let Some(line) = self.lanes.get_mut(lane) else {
            return;
        };
        if due != DueAt::Now {
            line.later.insert(place);
        }
        match due {
            DueAt::Now => line.due.insert(place, key),
            DueAt::After(at) => line.waits.insert((at, place), key),
            DueAt::On(at) => line.calendar.insert((at, place), key),
        };
    }

    /// A job waits no more; `due` is what it was inserted with.
    pub fn remove(&mut self, lane: &Lane, place: Place, due: DueAt) {
        let Some(line) = self.lanes.get_mut(lane) else {
            return;
        };
        if line.due.remove(&place).is_none() {
            match due {
                DueAt::Now => None,
                DueAt::After(at) => line.waits.remove(&(at, place)),
                DueAt::On(at) => line.calendar.remove(&(at, place)),
            };
            line.later.remove(&place);
        }
        if line.is_empty() {
            self.lanes.remove(lane);
        }
    }

    /// The lanes in which somebody waits.
    pub fn lanes(&mut self, steady: Steady, now: Now) -> Vec<LaneDepth> {
        let depth = |(lane, line): (&Lane, &mut Line<K>)| {
            line.promote(steady, now);
            LaneDepth {
                lane: lane.clone(),
                due: line.due.len() as u64,
                delayed: line.later.len() as u64,
                due_at: line.due_at(steady, now),
            }
        };
        self.lanes.iter_mut().map(depth).collect()
    }

    /// The first `n` due jobs of a lane behind `after`, and when its next one comes due.
    pub fn next(
        &mut self,
        lane: &Lane,
        after: Option<Place>,
        n: usize,
        steady: Steady,
        now: Now,
    ) -> (Vec<(Place, K)>, Option<Timestamp>) {
        let Some(line) = self.lanes.get_mut(lane) else {
            return (Vec::new(), None);
        };
        line.promote(steady, now);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let first = line.due.range((from, Bound::Unbounded)).take(n);
        let first = first.map(|(place, key)| (*place, *key)).collect();
        (first, line.due_at(steady, now))
    }

    /// All that wait in the lanes of a queue, in no order that means something.
    pub fn of_queue(&self, queue: &str) -> impl Iterator<Item = K> {
        let lanes = self.lanes.range(first_of(queue)..);
        let lanes = lanes.take_while(move |(lane, _)| lane.queue == queue);
        lanes.flat_map(|(_, line)| line.keys())
    }

    /// Where a job of `lane` at `place` stands in its queue.
    #[must_use]
    pub fn position(&self, lane: &Lane, place: Place) -> Position {
        let mut before: u64 = 0;
        // Lanes are sorted by queue first.
        let of_queue = self.lanes.range(first_of(&lane.queue)..);
        for (other, line) in of_queue.take_while(|(other, _)| other.queue == lane.queue) {
            if other.priority < lane.priority {
                continue;
            }
            before += if other.priority > lane.priority {
                line.len()
            } else {
                let left = POSITION_MAX.saturating_sub(before);
                line.count_before(place, usize::try_from(left).unwrap_or(usize::MAX))
            };
            if before >= POSITION_MAX {
                return Position::AtLeast(POSITION_MAX);
            }
        }
        Position::Exactly(before + 1)
    }

    /// The same for many: each line is walked once, and not from its end for each of them.
    #[must_use]
    pub fn positions(&self, wanted: &[(Lane, Place)]) -> Vec<Position> {
        let rank = |(lane, place): &(Lane, Place)| (lane.queue.clone(), lane.priority, *place);
        let mut sorted: Vec<usize> = (0..wanted.len()).collect();
        sorted.sort_by_cached_key(|at| rank(&wanted[*at]));
        let mut positions = vec![Position::Exactly(1); wanted.len()];
        let lane = |at: &usize| &wanted[*at].0;
        let is_beside = |a: &usize, b: &usize| {
            lane(a).queue == lane(b).queue && lane(a).priority == lane(b).priority
        };
        for beside in sorted.chunk_by(is_beside) {
            // One alone is counted from the nearer end.
            if let [at] = beside {
                positions[*at] = self.position(lane(at), wanted[*at].1);
                continue;
            }
            let places: Vec<Place> = beside.iter().map(|at| wanted[*at].1).collect();
            let before = self.count_before(lane(&beside[0]), &places);
            for (at, before) in beside.iter().zip(before) {
                positions[*at] = match before {
                    POSITION_MAX.. => Position::AtLeast(POSITION_MAX),
                    _ => Position::Exactly(before + 1),
                };
            }
        }
        positions
    }

    /// How many go before each of these places, in their order, in lanes as urgent as `lane`.
    /// What is above [`POSITION_MAX`] is not counted to its end.
    fn count_before(&self, lane: &Lane, places: &[Place]) -> Vec<u64> {
        let mut before = vec![0; places.len()];
        let of_queue = self.lanes.range(first_of(&lane.queue)..);
        for (other, line) in of_queue.take_while(|(other, _)| other.queue == lane.queue) {
            if other.priority > lane.priority {
                before.iter_mut().for_each(|before| *before += line.len());
            } else if other.priority == lane.priority {
                // Who stands behind another has no fewer before it.
                let open = before.partition_point(|before| *before < POSITION_MAX);
                line.add_before(&places[..open], &mut before[..open]);
            }
        }
        before
    }
}

impl<K: Copy> Line<K> {
    fn is_empty(&self) -> bool {
        self.due.is_empty() && self.later.is_empty()
    }

    fn len(&self) -> u64 {
        (self.due.len() + self.later.len()) as u64
    }

    fn keys(&self) -> impl Iterator<Item = K> {
        let later = self.waits.values().chain(self.calendar.values());
        self.due.values().chain(later).copied()
    }

    /// What has waited long enough is due.
    fn promote(&mut self, steady: Steady, now: Now) {
        let (due, later) = (&mut self.due, &mut self.later);
        promote(&mut self.waits, due, later, steady.at(now));
        promote(&mut self.calendar, due, later, now.wall);
    }

    fn due_at(&self, steady: Steady, now: Now) -> Option<Timestamp> {
        let wait = self
            .waits
            .first_key_value()
            .map(|((at, _), _)| steady.when(*at, now));
        let calendar = self
            .calendar
            .first_key_value()
            .map(|((at, _), _)| now.when(*at));
        [wait, calendar].into_iter().flatten().min()
    }

    /// Adds how many go before each of `places`, which are in their order; those that are not due
    /// yet included.
    fn add_before(&self, places: &[Place], before: &mut [u64]) {
        let max = usize::try_from(POSITION_MAX).unwrap_or(usize::MAX);
        let later: Vec<Place> = self.later.iter().take(max).copied().collect();
        // Those that were just accepted stand at the end of a long line.
        let first = places.first().copied().unwrap_or(Place(0));
        let near = 4 * places.len();
        let behind = self.due.range(first..).take(near + 1).count();
        let (from, mut passed) = if behind <= near {
            (first, (self.due.len() - behind) as u64)
        } else {
            (Place(0), 0)
        };
        let mut due = self.due.range(from..).take(max).peekable();
        for (place, before) in places.iter().zip(before) {
            while due.next_if(|(other, _)| *other < place).is_some() {
                passed += 1;
            }
            *before += passed + later.partition_point(|other| other < place) as u64;
        }
    }

    /// How many go before `place`, those that are not due yet included; no more than `max` of
    /// either are counted.
    fn count_before(&self, place: Place, max: usize) -> u64 {
        let due = count_due_before(&self.due, place, max);
        let later = self.later.range(..place).take(max).count();
        (due + later) as u64
    }
}

/// Counts those before `place` or those from it on, whichever end is nearer: whoever came last is
/// told its place in no time, however many wait.
fn count_due_before<K>(due: &BTreeMap<Place, K>, place: Place, max: usize) -> usize {
    let last = due.last_key_value().map(|(last, _)| *last);
    if last.is_none_or(|last| last <= place) {
        return (due.len() - usize::from(last == Some(place))).min(max);
    }
    let mut before = due.range(..place).take(max);
    let mut behind = due.range(place..);
    let mut steps = 0;
    loop {
        if before.next().is_none() {
            return steps;
        }
        if behind.next().is_none() {
            return (due.len() - steps).min(max);
        }
        steps += 1;
    }
}

fn promote<K>(
    delayed: &mut BTreeMap<(WallTime, Place), K>,
    due: &mut BTreeMap<Place, K>,
    later: &mut BTreeSet<Place>,
    now: WallTime,
) {
    while let Some(first) = delayed.first_entry()
        && first.key().0 <= now
    {
        let ((_, place), key) = first.remove_entry();
        later.remove(&place);
        due.insert(place, key);
    }
}

fn first_of(queue: &str) -> Lane {
    Lane {
        queue: queue.to_owned(),
        priority: llmq_core::Priority::new(0).unwrap_or_default(),
        tenant: String::new(),
        key: None,
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use super::*;

    /// A page of a list asks for a thousand at once.
    #[test]
    fn many_are_told_what_each_is_told() {
        let mut random = fastrand::Rng::with_seed(9);
        for size in [10, 300, 30_000] {
            let mut order = Order::default();
            let mut all = Vec::new();
            for place in 1..=size {
                let mut lane = first_of(["a", "b"][random.usize(..2)]);
                lane.priority = llmq_core::Priority::new(random.u8(..2)).unwrap();
                lane.tenant = random.u8(..3).to_string();
                let at = WallTime::from_micros(random.i64(..1_000));
                let due = match random.u8(..40) {
                    0 => DueAt::After(at),
                    1 => DueAt::On(at),
                    _ => DueAt::Now,
                };
                order.insert(&lane, Place(place), place, due);
                all.push((lane, Place(place)));
            }
            let before = |(lane, place): &(Lane, Place)| {
                let goes_before = |(other, at): &&(Lane, Place)| {
                    other.queue == lane.queue
                        && (Reverse(other.priority), at) < (Reverse(lane.priority), place)
                };
                match all.iter().filter(goes_before).count() as u64 {
                    POSITION_MAX.. => Position::AtLeast(POSITION_MAX),
                    before => Position::Exactly(before + 1),
                }
            };
            let last = all[all.len() - 9..].to_vec();
            let mut some = all.clone();
            random.shuffle(&mut some);
            some.truncate(500);
            for wanted in [some, last] {
                let told = order.positions(&wanted);
                for ((lane, place), told) in wanted.iter().zip(told) {
                    assert_eq!(told, before(&(lane.clone(), *place)), "{place:?} of {size}");
                    assert_eq!(order.position(lane, *place), told, "{place:?} of {size}");
                }
            }
        }
    }

    /// Who came first is due last.
    #[test]
    fn those_that_are_delayed_are_counted_whenever_they_are_due() {
        const SIZE: u64 = 20_000;
        let mut order = Order::default();
        let lane = first_of("a");
        for place in 1..=SIZE {
            let at = WallTime::from_micros(i64::try_from(SIZE - place).unwrap());
            order.insert(&lane, Place(place), place, DueAt::On(at));
        }
        let told = [
            (1, Position::Exactly(1)),
            (5_001, Position::Exactly(5_001)),
            (15_001, Position::AtLeast(POSITION_MAX)),
        ];
        let wanted = told.map(|(place, _)| (lane.clone(), Place(place)));
        assert_eq!(order.positions(&wanted), told.map(|(_, position)| position));
        for (place, position) in told {
            assert_eq!(order.position(&lane, Place(place)), position);
        }
        // Those that have come due are delayed no more.
        let now = Now {
            wall: WallTime::from_micros(9_999),
            ..Now::default()
        };
        let depths = order.lanes(Steady::new(Now::default()), now);
        assert_eq!((depths[0].due, depths[0].delayed), (10_000, 10_000));
        order.remove(&lane, Place(1), DueAt::On(WallTime::from_micros(19_999)));
        assert_eq!(
            order.position(&lane, Place(5_001)),
            Position::Exactly(5_000)
        );
    }
}
