//! Whether a call may start now, and where: every limit is asked, none is touched.

use std::time::Duration;

use llmq_core::{CallSize, Now, Priority, Timestamp};
use llmq_limit::{Cost, Denied};
use smallvec::{SmallVec, smallvec};

use crate::choice::Homes;
use crate::dispatcher::{Dispatcher, LimitSlot};
use crate::events::{CallKind, Effect, Notice, Start};
use crate::ids::{LaneId, LimitId, QueueId, TicketId, UpstreamId};
use crate::order::Spot;
use crate::setup::Scope;
use crate::ticket::{Running, State};

/// The answer for the head of a lane.
#[derive(Debug)]
pub(crate) enum Assessed {
    /// It may start, there.
    Go(Way),
    /// It waits.
    Wait(Blocked),
    /// It is above the whole of this limit wherever it might go.
    TooLarge { limit: String, count: u64 },
    /// No upstream is left to it, nor is a fallback paused that may go on.
    NoUpstream,
}

/// An upstream, and the queue whose limits apply on the way to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) upstream: UpstreamId,
    pub(crate) served_by: QueueId,
    pub(crate) weight: f64,
}

/// Where a head waits, and when each spot may open.
#[derive(Debug)]
pub(crate) struct Blocked {
    pub(crate) scope: Scope,
    pub(crate) spots: SmallVec<[(Spot, Option<Timestamp>); 4]>,
}

/// What the rules need to know of a head.
#[derive(Debug, Clone, Copy)]
struct Head {
    lane: LaneId,
    /// Where it stands in the order: risen when its lane has waited long.
    priority: Priority,
    /// With which it was submitted. Age does not lift it over the pause of a quota.
    own: Priority,
    size: CallSize,
    start_by: Option<Timestamp>,
    /// It has used up its attempts where it was tried, and may only go where it was not.
    exhausted: bool,
}

enum WayAnswer {
    Go,
    Wait(Blocked),
    /// Closed for longer than the call can wait: as good as not there.
    Out(Blocked),
    TooLarge {
        limit: LimitId,
        count: u64,
    },
}

impl Dispatcher {
    /// Looks for a way for the head of a lane.
    ///
    /// Its own queue's upstreams are asked first; a fallback's only when none of those can
    /// serve it in time, and it is not paused.
    pub(crate) fn assess(&mut self, lane: LaneId, ticket: TicketId, now: Now) -> Assessed {
        let own = self.lanes[lane.index()].queue;
        let Some(call) = self.ticket(ticket).map(|ticket| ticket.call) else {
            return Assessed::Wait(Blocked {
                scope: Scope::Model,
                spots: SmallVec::new(),
            });
        };
        let head = Head {
            lane,
            priority: self.lanes[lane.index()].priority,
            own: call.priority,
            size: call.size,
            start_by: call.start_by,
            exhausted: self.ticket(ticket).is_some_and(|ticket| ticket.exhausted),
        };
        let mut waits: Option<Blocked> = None;
        let mut too_large = None;
        let mut may_resume = false;
        for tier in 0..=self.queues[own.index()].setup.fallback.len() {
            let served_by = match tier.checked_sub(1) {
                None => own,
                Some(index) => self.queues[own.index()].setup.fallback[index],
            };
            if served_by != own && self.queues[served_by.index()].paused {
                may_resume = true;
                continue;
            }
            let mut all_out = true;
            let mut best: Option<(f64, Way)> = None;
            let routes = self.queues[served_by.index()].setup.routes.len();
            let mut homes = (call.affinity != 0 && routes > 1).then(|| Homes::of(call.affinity));
            for index in 0..routes {
                let route = self.queues[served_by.index()].setup.routes[index];
                let left_out = head.exhausted && self.has_failed_at(ticket, route.upstream)
                    || self.is_barred(ticket, route.upstream);
                if left_out {
                    continue;
                }
                let way = Way {
                    upstream: route.upstream,
                    served_by,
                    weight: route.weight,
                };
                let mut open = None;
                match self.ask(&head, way, now) {
                    WayAnswer::Go => {
                        all_out = false;
                        let score = self.score(ticket, way, now);
                        if best.is_none_or(|(other, _)| score < other) {
                            best = Some((score, way));
                        }
                        // Those that have failed it are no home.
                        if homes.is_some() && !self.has_failed_at(ticket, route.upstream) {
                            open = Some((self.busy(route.upstream, now), way));
                        }
                    }
                    WayAnswer::Wait(blocked) => {
                        all_out = false;
                        merge(&mut waits, blocked);
                    }
                    WayAnswer::Out(blocked) => merge(&mut waits, blocked),
                    WayAnswer::TooLarge { limit, count } => too_large = Some((limit, count)),
                }
                if let Some(homes) = &mut homes {
                    homes.look(route.upstream, route.weight, open);
                }
            }
            if let Some(way) = homes.and_then(Homes::choose) {
                return Assessed::Go(way);
            }
            if let Some((_, way)) = best {
                return Assessed::Go(way);
            }
            if !all_out {
                break;
            }
        }
        match (waits, too_large) {
            (Some(blocked), _) => Assessed::Wait(blocked),
            (None, Some((limit, count))) => Assessed::TooLarge {
                limit: self.limits[limit.index()].name.clone(),
                count,
            },
            (None, None) if may_resume => Assessed::Wait(Blocked {
                scope: Scope::Model,
                spots: SmallVec::new(),
            }),
            (None, None) => Assessed::NoUpstream,
        }
    }

    /// Whether an upstream of its own model that has not failed this call yet can take it now.
    pub(crate) fn can_go_elsewhere(&mut self, ticket: TicketId, now: Now) -> bool {
        let Some(call) = self.ticket(ticket).map(|ticket| ticket.call) else {
            return false;
        };
        let head = Head {
            lane: self.lane_for((call.queue, call.priority, call.tenant, Box::default())),
            priority: call.priority,
            own: call.priority,
            size: call.size,
            start_by: call.start_by,
            exhausted: false,
        };
        (0..self.queues[call.queue.index()].setup.routes.len()).any(|index| {
            let route = self.queues[call.queue.index()].setup.routes[index];
            let left_out = self.has_failed_at(ticket, route.upstream)
                || self.is_barred(ticket, route.upstream);
            let way = Way {
                upstream: route.upstream,
                served_by: call.queue,
                weight: route.weight,
            };
            !left_out && matches!(self.ask(&head, way, now), WayAnswer::Go)
        })
    }

    /// Asks one way's gates and limits, narrow ones first, without side effects.
    fn ask(&mut self, head: &Head, way: Way, now: Now) -> WayAnswer {
        if let Some(answer) = self.ask_gates(head, way.upstream, now) {
            return answer;
        }
        let upstream = &mut self.upstreams[way.upstream.index()];
        let margin = upstream.margin.at(now.mono);
        let mean_output = upstream.mean_output();
        let mut blocked: Option<Blocked> = None;
        for index in 0..self.limit_count(head, way) {
            let id = self.limit_at(head, way, index);
            let scope = self.limits[id.index()].scope;
            if blocked
                .as_ref()
                .is_some_and(|blocked| blocked.scope < scope)
            {
                continue;
            }
            let wake = match self.ask_limit(head, way, id, mean_output, margin, now) {
                Ok(()) => continue,
                Err(Denied::Never { limit: count }) => {
                    return WayAnswer::TooLarge { limit: id, count };
                }
                Err(Denied::Until(at)) => Some(at),
                Err(Denied::OnRelease) => None,
            };
            match &mut blocked {
                Some(blocked) if blocked.scope == scope => {
                    blocked.spots.push((Spot::Limit(id), wake));
                }
                // Blocked by a narrower limit, it is out of the order of the wider ones.
                _ => {
                    blocked = Some(Blocked {
                        scope,
                        spots: smallvec![(Spot::Limit(id), wake)],
                    });
                }
            }
        }
        match blocked {
            Some(blocked) => WayAnswer::Wait(blocked),
            None => WayAnswer::Go,
        }
    }

    fn ask_gates(&mut self, head: &Head, id: UpstreamId, now: Now) -> Option<WayAnswer> {
        let upstream = &mut self.upstreams[id.index()];
        let at_gate = |spot, wake: Option<Timestamp>| Blocked {
            scope: Scope::Upstream,
            spots: smallvec![(spot, wake)],
        };
        if let Some(closed) = upstream.gate_state(now) {
            let blocked = at_gate(Spot::Gate(id), closed.wake);
            let in_time = match (closed.until, head.start_by) {
                (Some(until), Some(start_by)) => !closed.down && until <= start_by,
                (Some(_), None) => !closed.down,
                (None, _) => closed.soon,
            };
            return Some(if in_time {
                WayAnswer::Wait(blocked)
            } else {
                WayAnswer::Out(blocked)
            });
        }
        if head.own < Priority::HIGH
            && let Some(wake) = upstream.low_gate_state(now)
        {
            return Some(WayAnswer::Wait(at_gate(Spot::LowGate(id), Some(wake))));
        }
        None
    }

    /// All limits on a way, counted through: the tenant's, the model's, the upstream's.
    fn limit_count(&self, head: &Head, way: Way) -> usize {
        let tenant = self.lanes[head.lane.index()].tenant;
        self.tenants[tenant.index()].limits.len()
            + self.queues[way.served_by.index()].setup.limits.len()
            + self.upstreams[way.upstream.index()].limits.len()
    }

    fn limit_at(&self, head: &Head, way: Way, index: usize) -> LimitId {
        let tenant = &self.tenants[self.lanes[head.lane.index()].tenant.index()].limits;
        let model = &self.queues[way.served_by.index()].setup.limits;
        let upstream = &self.upstreams[way.upstream.index()].limits;
        let after_tenant = index.wrapping_sub(tenant.len());
        tenant
            .get(index)
            .or_else(|| model.get(after_tenant))
            .or_else(|| upstream.get(after_tenant.wrapping_sub(model.len())))
            .copied()
            .expect("index is below limit_count")
    }

    fn ask_limit(
        &mut self,
        head: &Head,
        way: Way,
        id: LimitId,
        mean_output: u64,
        margin: Duration,
        now: Now,
    ) -> Result<(), Denied> {
        let keep_back = self.keep_back(id, way.served_by, head.priority, way.upstream, now);
        let is_betting = self.upstreams[way.upstream.index()].is_betting();
        let limit = &mut self.limits[id.index()].limit;
        let cost = limit.cost(&head.size, mean_output);
        if let Err(denied) = limit.check(cost, keep_back, now.mono, margin) {
            if limit.is_portion_low() {
                self.short.push(id);
            }
            return Err(denied);
        }
        if is_betting && limit.is_bold(cost) {
            return Err(Denied::OnRelease);
        }
        self.ask_order(head, way.upstream, id, mean_output, margin, now)
    }

    /// How much of a limit a call of this priority leaves alone, in this queue and on the way to
    /// this upstream.
    fn keep_back(
        &self,
        id: LimitId,
        served_by: QueueId,
        priority: Priority,
        upstream: UpstreamId,
        now: Now,
    ) -> u64 {
        let LimitSlot { limit, scope, .. } = &self.limits[id.index()];
        let count = limit.spec().count;
        let reserve = self.queues[served_by.index()].keep_back(priority, count);
        let ramp = match scope {
            Scope::Upstream | Scope::Account => {
                self.upstreams[upstream.index()].held_back(count, now)
            }
            Scope::Tenant | Scope::Model => 0,
        };
        reserve.saturating_add(ramp)
    }

    /// There is room; but nothing takes from a limit for which a better head waits.
    fn ask_order(
        &mut self,
        head: &Head,
        upstream: UpstreamId,
        id: LimitId,
        mean_output: u64,
        margin: Duration,
        now: Now,
    ) -> Result<(), Denied> {
        let spot = Spot::Limit(id);
        let Some(best) = self
            .waiters(spot)
            .best()
            .filter(|best| best.lane != head.lane)
        else {
            return Ok(());
        };
        let parked = self.lanes[head.lane.index()]
            .parked
            .iter()
            .find(|(at, _)| *at == spot);
        let mine = parked
            .map(|(_, rank)| *rank)
            .or_else(|| self.rank_at(spot, head.lane));
        if mine.is_none_or(|mine| mine < best) {
            return Ok(());
        }
        if let Some(since) = self.is_impatient(best.lane) {
            let mine_since = self
                .is_impatient(head.lane)
                .unwrap_or(Timestamp::FAR_FUTURE);
            if since < mine_since {
                // It may be able to go by now; if so, that frees this one as well.
                return Err(Denied::OnRelease);
            }
        }
        let lane = &self.lanes[best.lane.index()];
        let waiting = lane.head().and_then(|(_, ticket)| self.ticket(ticket));
        let Some(size) = waiting.map(|ticket| ticket.call.size) else {
            return Ok(());
        };
        let keep_back = self.keep_back(id, lane.queue, lane.priority, upstream, now);
        let is_betting = self.upstreams[upstream.index()].is_betting();
        let limit = &mut self.limits[id.index()].limit;
        let cost = limit.cost(&size, mean_output);
        if is_betting && limit.is_bold(cost) {
            return Err(Denied::OnRelease);
        }
        match limit.check(cost, keep_back, now.mono, margin) {
            Ok(()) => {
                // What held it back here does so no more. Something else may.
                self.overtaken.push(best.lane);
                Ok(())
            }
            Err(Denied::Never { .. }) => Ok(()),
            Err(Denied::Until(_) | Denied::OnRelease) => Err(Denied::OnRelease),
        }
    }

    pub(crate) fn has_failed_at(&self, ticket: TicketId, upstream: UpstreamId) -> bool {
        self.ticket(ticket)
            .is_some_and(|ticket| ticket.avoid.contains(&upstream))
    }

    /// Starts a head: takes from every limit in one step.
    pub(crate) fn start(
        &mut self,
        lane_id: LaneId,
        ticket: TicketId,
        way: Way,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let head = Head {
            lane: lane_id,
            priority: self.lanes[lane_id.index()].priority,
            own: self.lanes[lane_id.index()].base,
            size: self
                .ticket(ticket)
                .map(|ticket| ticket.call.size)
                .unwrap_or_default(),
            start_by: None,
            exhausted: false,
        };
        let mean_output = self.upstreams[way.upstream.index()].mean_output();
        let tenant = self.lanes[lane_id.index()].tenant;
        let weight = self.tenants[tenant.index()].weight;
        let many_tenants = self.many_tenants();
        let mut entries = SmallVec::new();
        let mut counts_output = false;
        for index in 0..self.limit_count(&head, way) {
            let id = self.limit_at(&head, way, index);
            let slot = &mut self.limits[id.index()];
            let cost: Cost = slot.limit.cost(&head.size, mean_output);
            if many_tenants {
                let tag = slot.fair.tag(tenant);
                slot.fair.started(tenant, tag, cost.total(), weight);
            }
            entries.push((id, slot.limit.take(cost)));
            counts_output |= slot.limit.counts_output();
            if slot.limit.is_portion_low() {
                effects.push(Effect::Notice(Notice::PortionLow(id)));
            }
        }
        let upstream = &mut self.upstreams[way.upstream.index()];
        if many_tenants && upstream.limits.is_empty() {
            let tag = upstream.fair.tag(tenant);
            upstream.fair.started(tenant, tag, 1, weight);
        }
        upstream.in_flight += 1;
        let probe = upstream.begin(now);
        let credential = upstream.credential;
        self.count_request(way.upstream, now, effects);
        let lane = &mut self.lanes[lane_id.index()];
        lane.remove_head();
        lane.starts += 1;
        lane.moves = 0;
        let risen = lane.priority != lane.base;
        lane.priority = lane.base;
        if lane.is_empty() {
            self.stop_aging(lane_id);
            self.emptied.push(lane_id);
        } else if risen
            || self.lanes[lane_id.index()]
                .rises_at
                .is_some_and(|at| at < now.mono + self.rules.aging / 2)
        {
            // Timed afresh now and then rather than at each start: rising is a matter of minutes.
            self.start_aging(lane_id, now);
        }
        self.unwatch_deadlines(ticket);
        let queue = &mut self.queues[self.lanes[lane_id.index()].queue.index()];
        queue.running += 1;
        let Some(waiting) = self.ticket_mut(ticket) else {
            return;
        };
        waiting.attempts += 1;
        let attempt = waiting.attempts;
        waiting.state = State::Running(Box::new(Running {
            upstream: way.upstream,
            credential,
            entries,
            granted_at: now.mono,
            sent: None,
            counted_at: now.wall,
            probe,
        }));
        effects.push(Effect::Start(Start {
            ticket,
            upstream: way.upstream,
            attempt,
            probe,
            counts_output,
        }));
    }

    /// Whether the call has been throttled as often as its kind bears.
    pub(crate) fn is_throttled_out(&self, kind: CallKind, throttles: u32) -> bool {
        throttles >= self.throttles_max(kind)
    }
}

/// Waits at every spot of every way: the first to open is taken.
fn merge(all: &mut Option<Blocked>, more: Blocked) {
    match all {
        None => *all = Some(more),
        Some(all) => {
            all.scope = all.scope.max(more.scope);
            for spot in more.spots {
                if !all.spots.iter().any(|(at, _)| *at == spot.0) {
                    all.spots.push(spot);
                }
            }
        }
    }
}
