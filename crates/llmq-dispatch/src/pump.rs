//! Which lane is tried next: the order at each spot, and how lanes move between spots.

use std::cmp::Reverse;

use llmq_core::{Now, Timestamp};
use smallvec::SmallVec;

use crate::admit::{Assessed, Blocked};
use crate::dispatcher::Dispatcher;
use crate::events::{Effect, Notice};
use crate::ids::{LaneId, TicketId};
use crate::order::{Rank, Spot, WaitList};

/// What became of a lane that was tried.
#[derive(Debug, PartialEq, Eq)]
enum Tried {
    /// Its head started.
    Started,
    /// Its head waits.
    Blocked,
    /// It has no head, or its queue stands still.
    Idle,
}

/// A call that can be sent nowhere.
#[derive(Debug, PartialEq, Eq)]
struct Never {
    ticket: TicketId,
    /// The limit that it is above the whole of, and its count; none: no upstream is left to it.
    above: Option<(String, u64)>,
}

/// Lanes that were asked whether they go before another one, and cannot.
type LookedAt = SmallVec<[LaneId; 4]>;

/// No more are asked before one goes.
const LOOKED_AT_MAX: usize = 64;

/// A head that was moved between spots of one scope this often keeps its place at all of them:
/// a call that needs much of two limits would otherwise find one of them empty each time.
const MOVES_MAX: u32 = 8;

impl Dispatcher {
    /// Starts all that can start.
    pub(crate) fn pump(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.start_all(now, effects);
        while let Some(lane) = self.emptied.pop() {
            self.tidy(lane);
        }
        let short = self.short.drain(..).map(Notice::PortionLow);
        effects.extend(short.map(Effect::Notice));
    }

    fn start_all(&mut self, now: Now, effects: &mut Vec<Effect>) {
        loop {
            // Those that wait go before newcomers, which would else take what was just freed.
            if let Some(spot) = self.next_opened() {
                self.open(spot, now, effects);
            } else if let Some((_, _, lane)) = self.ready.pop_first() {
                self.lanes[lane.index()].ready = None;
                if self.try_lane(lane, now, effects) == Tried::Started {
                    self.make_ready(lane);
                }
            } else {
                return;
            }
        }
    }

    /// Of the spots that may have room, the one where the best lane of all waits: when several
    /// open at one instant, nothing goes at one before its better at another.
    fn next_opened(&mut self) -> Option<Spot> {
        let waits = |spot: &Spot| self.waiters(*spot).best();
        let (index, _) =
            self.opened.iter().enumerate().min_by_key(|(_, spot)| {
                waits(spot).map_or((true, None), |best| (false, Some(best)))
            })?;
        Some(self.opened.swap_remove(index))
    }

    /// A spot may have room: its best lane is tried, and the spot again unless that stays.
    fn open(&mut self, spot: Spot, now: Now, effects: &mut Vec<Effect>) {
        let Some(best) = self.waiters(spot).best() else {
            return self.set_wake(spot, None);
        };
        if !self.refresh_tag(spot, best) {
            match self.try_lane(best.lane, now, effects) {
                // Its next head stands in the same order, behind those that are now better.
                Tried::Started => self.rerank(best.lane),
                Tried::Idle => self.unpark(best.lane),
                Tried::Blocked => {}
            }
            if self.waiters(spot).best() == Some(best) {
                return;
            }
        }
        self.touch_again(spot);
    }

    /// Puts a spot among those that may have room, if it is not there.
    fn touch_again(&mut self, spot: Spot) {
        if !self.opened.contains(&spot) {
            self.opened.push(spot);
        }
    }

    /// Brings a rank up to date with what its tenant has had meanwhile; true if it moved.
    fn refresh_tag(&mut self, spot: Spot, rank: Rank) -> bool {
        let lane = &self.lanes[rank.lane.index()];
        let fresh = Rank {
            tag: self.tag_at(spot, rank.lane).max(rank.tag),
            priority: Reverse(lane.priority),
            ..rank
        };
        if !self.many_tenants() || fresh == rank || fresh.tag == rank.tag {
            return false;
        }
        self.waiters_mut(spot).remove(&rank);
        self.waiters_mut(spot).insert(fresh);
        for (at, parked) in &mut self.lanes[rank.lane.index()].parked {
            if *at == spot {
                *parked = fresh;
            }
        }
        true
    }

    /// Tries to start the lane's head.
    fn try_lane(&mut self, id: LaneId, now: Now, effects: &mut Vec<Effect>) -> Tried {
        let mut looked_at = LookedAt::new();
        loop {
            match self.try_head(id, &mut looked_at, now, effects) {
                Ok(tried) => return tried,
                Err(Never { ticket, above }) => {
                    self.lanes[id.index()].remove_head();
                    self.after_removal(id);
                    self.forget(ticket);
                    effects.push(match above {
                        Some((limit, count)) => Effect::TooLarge {
                            ticket,
                            limit,
                            count,
                        },
                        None => Effect::NoUpstream { ticket },
                    });
                }
            }
        }
    }

    /// Tries to start one head. Lanes that wait at a limit on its way and would pass it now go
    /// first: what a limit lets through may grow without anybody's being told, as time passes.
    fn try_head(
        &mut self,
        id: LaneId,
        looked_at: &mut LookedAt,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<Tried, Never> {
        looked_at.push(id);
        loop {
            self.overtaken.clear();
            let lane = &self.lanes[id.index()];
            let Some((_, ticket)) = lane.head() else {
                return Ok(Tried::Idle);
            };
            if self.queues[lane.queue.index()].paused {
                return Ok(Tried::Idle);
            }
            let way = match self.assess(id, ticket, now) {
                Assessed::Go(way) => way,
                Assessed::Wait(blocked) => {
                    self.park(id, &blocked, now);
                    return Ok(Tried::Blocked);
                }
                Assessed::TooLarge { limit, count } => {
                    let above = Some((limit, count));
                    return Err(Never { ticket, above });
                }
                Assessed::NoUpstream => {
                    return Err(Never {
                        ticket,
                        above: None,
                    });
                }
            };
            let mut better = self.overtaken.iter().copied();
            let better = better.find(|lane| !looked_at.contains(lane));
            if let Some(better) = better.filter(|_| looked_at.len() < LOOKED_AT_MAX) {
                let depth = looked_at.len();
                // What can be sent nowhere is found out in its own turn.
                if self.try_head(better, looked_at, now, effects) == Ok(Tried::Started) {
                    self.rerank(better);
                    // Whose turn it is after that is asked again.
                    looked_at.truncate(depth);
                }
                continue;
            }
            self.start(id, ticket, way, now, effects);
            return Ok(Tried::Started);
        }
    }

    /// The lane has another head than before, or its head another rank.
    pub(crate) fn head_changed(&mut self, id: LaneId) {
        let lane = &self.lanes[id.index()];
        if lane.parked.is_empty() {
            self.make_ready(id);
            return;
        }
        let spots: SmallVec<[Spot; 4]> = lane.parked.iter().map(|(spot, _)| *spot).collect();
        self.rerank(id);
        self.opened.extend(spots);
    }

    /// Puts the lane among those to be tried.
    pub(crate) fn make_ready(&mut self, id: LaneId) {
        self.unready(id);
        let lane = &mut self.lanes[id.index()];
        let Some((seq, _)) = lane.head() else { return };
        if lane.parked.is_empty() && !self.queues[lane.queue.index()].paused {
            lane.ready = Some(seq);
            self.ready.insert((Reverse(lane.priority), seq, id));
        }
    }

    pub(crate) fn unready(&mut self, id: LaneId) {
        let lane = &mut self.lanes[id.index()];
        if let Some(seq) = lane.ready.take() {
            // The priority may have risen since it was put there.
            if !self.ready.remove(&(Reverse(lane.priority), seq, id)) {
                self.ready.retain(|(_, _, other)| *other != id);
            }
        }
    }

    /// The lane waits at these spots. A head that comes back to the same spots keeps its place.
    fn park(&mut self, id: LaneId, blocked: &Blocked, now: Now) {
        let lane = &mut self.lanes[id.index()];
        if lane.parked.is_empty() && lane.moves == 0 {
            lane.parked_at = now.mono;
        }
        let here = |spot: &Spot| lane.parked.iter().any(|(parked, _)| parked == spot);
        let same_scope = lane.parked_scope == Some(blocked.scope);
        let all_here = blocked.spots.iter().all(|(spot, _)| here(spot));
        let stays =
            all_here && (blocked.spots.len() == lane.parked.len() || lane.moves >= MOVES_MAX);
        if !stays {
            let mut spots: SmallVec<[Spot; 4]> =
                blocked.spots.iter().map(|(spot, _)| *spot).collect();
            if same_scope && !lane.parked.is_empty() {
                lane.moves += 1;
                if lane.moves >= MOVES_MAX {
                    let old = lane
                        .parked
                        .iter()
                        .map(|(spot, _)| *spot)
                        .filter(|spot| !spots.contains(spot));
                    let old: SmallVec<[Spot; 4]> = old.collect();
                    spots.extend(old);
                }
            }
            lane.parked_scope = Some(blocked.scope);
            self.move_to(id, &spots);
        }
        for (spot, wake) in &blocked.spots {
            if self
                .waiters(*spot)
                .best()
                .is_some_and(|best| best.lane == id)
            {
                self.set_wake(*spot, *wake);
            }
        }
    }

    fn move_to(&mut self, id: LaneId, spots: &[Spot]) {
        let old = std::mem::take(&mut self.lanes[id.index()].parked);
        for (spot, rank) in &old {
            if !spots.contains(spot) {
                self.leave_spot(*spot, rank);
            }
        }
        for spot in spots {
            let kept = old.iter().find(|(at, _)| at == spot).map(|(_, rank)| *rank);
            let rank = match kept.or_else(|| self.rank_at(*spot, id)) {
                Some(rank) => rank,
                None => continue,
            };
            self.waiters_mut(*spot).insert(rank);
            self.lanes[id.index()].parked.push((*spot, rank));
        }
    }

    /// A lane leaves a spot; if it was the best there, the next one may pass.
    fn leave_spot(&mut self, spot: Spot, rank: &Rank) {
        let list = self.waiters_mut(spot);
        let was_best = list.best().as_ref() == Some(rank);
        list.remove(rank);
        if list.is_empty() {
            self.set_wake(spot, None);
        } else if was_best {
            self.opened.push(spot);
        }
    }

    /// The lane waits nowhere.
    pub(crate) fn unpark(&mut self, id: LaneId) {
        let lane = &mut self.lanes[id.index()];
        lane.moves = 0;
        lane.parked_scope = None;
        for (spot, rank) in std::mem::take(&mut lane.parked) {
            self.leave_spot(spot, &rank);
        }
    }

    /// Gives the lane the rank of its present head wherever it waits. Where it is the best, the
    /// new head is to be tried: it may pass where the old one could not.
    pub(crate) fn rerank(&mut self, id: LaneId) {
        if self.lanes[id.index()].is_empty() {
            return self.unpark(id);
        }
        let parked = std::mem::take(&mut self.lanes[id.index()].parked);
        self.lanes[id.index()].moves = 0;
        for (spot, old) in parked {
            let rank = self.rank_at(spot, id).unwrap_or(old);
            let list = self.waiters_mut(spot);
            let was_best = list.best() == Some(old);
            list.remove(&old);
            list.insert(rank);
            // Another lane that is the best there now may pass as well.
            let is_best = list.best() == Some(rank);
            if was_best || is_best {
                self.touch_again(spot);
            }
            self.lanes[id.index()].parked.push((spot, rank));
        }
    }

    /// The rank that the lane's head has, or would have, at a spot.
    pub(crate) fn rank_at(&self, spot: Spot, id: LaneId) -> Option<Rank> {
        let lane = &self.lanes[id.index()];
        let (seq, _) = lane.head()?;
        Some(Rank {
            priority: Reverse(lane.priority),
            tag: self.tag_at(spot, id),
            seq,
            lane: id,
        })
    }

    fn tag_at(&self, spot: Spot, id: LaneId) -> u64 {
        if !self.many_tenants() {
            return 0;
        }
        // Those that wait for a gate will wait for the upstream's limits behind it, and what is
        // free there when it opens is shared like everything else.
        let fair = match spot {
            Spot::Limit(limit) => &self.limits[limit.index()].fair,
            Spot::Gate(upstream) | Spot::LowGate(upstream) => {
                let upstream = &self.upstreams[upstream.index()];
                let first = upstream.limits.first();
                first.map_or(&upstream.fair, |limit| &self.limits[limit.index()].fair)
            }
        };
        fair.tag(self.lanes[id.index()].tenant)
    }

    /// The lane has lost its head to something else than a start.
    pub(crate) fn after_removal(&mut self, id: LaneId) {
        if self.lanes[id.index()].is_empty() {
            self.stop_aging(id);
            self.emptied.push(id);
        }
        self.rerank(id);
    }

    pub(crate) fn waiters(&self, spot: Spot) -> &WaitList {
        match spot {
            Spot::Limit(limit) => &self.limits[limit.index()].waiters,
            Spot::Gate(upstream) => &self.upstreams[upstream.index()].gate,
            Spot::LowGate(upstream) => &self.upstreams[upstream.index()].low_gate,
        }
    }

    pub(crate) fn waiters_mut(&mut self, spot: Spot) -> &mut WaitList {
        match spot {
            Spot::Limit(limit) => &mut self.limits[limit.index()].waiters,
            Spot::Gate(upstream) => &mut self.upstreams[upstream.index()].gate,
            Spot::LowGate(upstream) => &mut self.upstreams[upstream.index()].low_gate,
        }
    }

    /// Something changed at a spot: whoever waits there is tried again.
    pub(crate) fn touch(&mut self, spot: Spot) {
        if !self.waiters(spot).is_empty() && self.opened.last() != Some(&spot) {
            self.opened.push(spot);
        }
    }

    /// Whether the lane has been moved about so often that it keeps its place everywhere.
    pub(crate) fn is_impatient(&self, id: LaneId) -> Option<Timestamp> {
        let lane = &self.lanes[id.index()];
        (lane.moves >= MOVES_MAX).then_some(lane.parked_at)
    }
}
