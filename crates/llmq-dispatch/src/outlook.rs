//! When a waiting call may start: what goes before it, and how soon its limits let that go.

use std::time::Duration;

use llmq_core::{Algorithm, LimitSpec, Now, Priority, Timestamp};
use llmq_limit::Denied;
use smallvec::SmallVec;

use crate::dispatcher::Dispatcher;
use crate::events::Call;
use crate::ids::{LaneId, LimitId, QueueId, TenantId, TicketId, UpstreamId};
use crate::order::Spot;
use crate::ticket::State;

/// A waiting call's prospects, as things stand now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// Calls that go before it: of its own line, and of other lines that wait for the same and
    /// are more urgent, older or next in turn.
    pub ahead: u64,
    /// When it may start, taking those before it to be as large as it is. None where nobody can
    /// know: it waits for calls in flight to end.
    pub start: Option<Timestamp>,
}

/// So many lines that wait for the same are counted; what stands in others is left out.
const LANES_COUNTED: usize = 256;

impl Dispatcher {
    /// The prospects of a call that was submitted; none for an unknown one. Takes time linear in
    /// the lines that wait for the same, up to a bound.
    #[must_use]
    pub fn outlook(&mut self, id: TicketId, now: Now) -> Option<Outlook> {
        let ticket = self.ticket(id)?;
        let (call, seq) = (ticket.call, ticket.seq);
        Some(match ticket.state {
            State::Delayed(at) => Outlook {
                ahead: 0,
                start: Some(at),
            },
            State::Running(_) => Outlook {
                ahead: 0,
                start: None,
            },
            State::Waiting(lane) => self.look_ahead(&call, Some(lane), seq, now),
        })
    }

    /// Those of a call that would be submitted now.
    #[must_use]
    pub fn outlook_of(&mut self, call: &Call, now: Now) -> Outlook {
        let key = (call.queue, call.priority, call.tenant, Box::default());
        let lane = self.lane_of.get(&key).copied();
        self.look_ahead(call, lane, u64::MAX, now)
    }

    fn look_ahead(&mut self, call: &Call, lane: Option<LaneId>, seq: u64, now: Now) -> Outlook {
        let own = lane.map_or(0, |lane| self.lanes[lane.index()].ahead_of(seq));
        let own = u64::try_from(own).unwrap_or(u64::MAX);
        let ways = self.ways_of(call, lane);
        if ways.is_empty() {
            return Outlook {
                ahead: own,
                start: None,
            };
        }
        let place = Place { lane, seq, own };
        let ahead = ways.iter().map(|(queue, upstream)| {
            let spots = self.spots_on(call, *queue, *upstream).into_iter();
            let others = spots.map(|spot| self.others_before(spot, call, place));
            own.saturating_add(others.max().unwrap_or(0))
        });
        let ahead = ahead.min().unwrap_or(own);
        // Those before it spread over all ways.
        let each = ahead / u64::try_from(ways.len()).unwrap_or(1);
        let starts: SmallVec<[Option<Timestamp>; 4]> = ways
            .into_iter()
            .map(|(queue, upstream)| self.start_on(call, queue, upstream, each, now))
            .collect();
        Outlook {
            ahead,
            start: starts.into_iter().flatten().min(),
        }
    }

    /// The ways for which the call waits, or would: its own model's, else those of fallbacks.
    fn ways_of(&self, call: &Call, lane: Option<LaneId>) -> SmallVec<[(QueueId, UpstreamId); 4]> {
        let parked = lane.map(|lane| &self.lanes[lane.index()].parked);
        let waits_at = |spot: Spot| {
            parked.is_none_or(|parked| {
                parked.is_empty() || parked.iter().any(|(other, _)| *other == spot)
            })
        };
        let queue = &self.queues[call.queue.index()];
        if queue.paused {
            return SmallVec::new();
        }
        let on_the_way = |served_by: QueueId| {
            let routes = self.queues[served_by.index()].setup.routes.iter();
            let ways = routes.map(move |route| (served_by, route.upstream));
            ways.filter(|(queue, upstream)| {
                let spots = self.spots_on(call, *queue, *upstream);
                spots.into_iter().any(waits_at)
            })
            .collect::<SmallVec<[(QueueId, UpstreamId); 4]>>()
        };
        let own = on_the_way(call.queue);
        if !own.is_empty() {
            return own;
        }
        let fallbacks = queue.setup.fallback.iter();
        let fallbacks = fallbacks.filter(|queue| !self.queues[queue.index()].paused);
        fallbacks.flat_map(|queue| on_the_way(*queue)).collect()
    }

    /// Where a call may have to wait on a way.
    pub(crate) fn spots_on(
        &self,
        call: &Call,
        served_by: QueueId,
        upstream: UpstreamId,
    ) -> SmallVec<[Spot; 8]> {
        let limits = self.limits_on(call, served_by, upstream);
        let limits = limits.into_iter().map(Spot::Limit);
        limits
            .chain([Spot::Gate(upstream), Spot::LowGate(upstream)])
            .collect()
    }

    fn limits_on(
        &self,
        call: &Call,
        served_by: QueueId,
        upstream: UpstreamId,
    ) -> SmallVec<[LimitId; 8]> {
        let tenant = &self.tenants[call.tenant.index()].limits;
        let model = &self.queues[served_by.index()].setup.limits;
        let upstream = &self.upstreams[upstream.index()].limits;
        tenant
            .iter()
            .chain(model)
            .chain(upstream)
            .copied()
            .collect()
    }

    /// Calls of other lines that go before it at a spot.
    fn others_before(&self, spot: Spot, call: &Call, place: Place) -> u64 {
        let mine = place.lane.map(|lane| &self.lanes[lane.index()]);
        let priority = mine.map_or(call.priority, |lane| lane.priority);
        let rank = place.lane.and_then(|lane| self.rank_at(spot, lane));
        let mut before = 0_u64;
        for other in self.waiters(spot).iter().take(LANES_COUNTED) {
            let lane = &self.lanes[other.lane.index()];
            if Some(other.lane) == place.lane {
                continue;
            }
            let count = match lane.priority.cmp(&priority) {
                std::cmp::Ordering::Less => break,
                std::cmp::Ordering::Greater => lane.len(),
                std::cmp::Ordering::Equal if lane.tenant == call.tenant => {
                    u64::try_from(lane.ahead_of(place.seq)).unwrap_or(u64::MAX)
                }
                // Tenants take turns, by their weights.
                std::cmp::Ordering::Equal => {
                    let is_next = rank.is_none_or(|rank| other < rank);
                    let turns = self.turns(lane.tenant, call.tenant, place.own);
                    lane.len().min(turns.saturating_add(u64::from(is_next)))
                }
            };
            before = before.saturating_add(count);
        }
        before
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a number of calls that wait, times a ratio of weights that are positive"
    )]
    fn turns(&self, other: TenantId, own: TenantId, turns: u64) -> u64 {
        let weight = |tenant: TenantId| self.tenants[tenant.index()].weight;
        (turns as f64 * weight(other) / weight(own)) as u64
    }

    /// When it may start on a way, with `ahead` calls of its size before it.
    fn start_on(
        &mut self,
        call: &Call,
        served_by: QueueId,
        upstream: UpstreamId,
        ahead: u64,
        now: Now,
    ) -> Option<Timestamp> {
        let on_way = &mut self.upstreams[upstream.index()];
        let mut start = now.mono;
        if let Some(gate) = on_way.gate_state(now) {
            start = start.max(gate.until?);
        }
        if let Some(until) = on_way.low_closed.filter(|_| call.priority < Priority::HIGH) {
            start = start.max(until);
        }
        let (margin, mean_output) = (on_way.margin.at(now.mono), on_way.mean_output());
        for id in self.limits_on(call, served_by, upstream) {
            let limit = &mut self.limits[id.index()].limit;
            let cost = limit.cost(&call.size, mean_output);
            let before = cost.total().saturating_mul(ahead);
            let spec = *limit.spec();
            let (rest, beyond) = split(&spec, before);
            let opens = match limit.check(cost, rest, now.mono, margin) {
                Ok(()) => now.mono,
                Err(Denied::Until(at)) => at,
                Err(Denied::OnRelease | Denied::Never { .. }) => return None,
            };
            // Where calls in flight are counted, nobody knows when those before it will end.
            if spec.period == Duration::ZERO && before > 0 {
                return None;
            }
            start = start.max(opens + beyond);
        }
        Some(start)
    }
}

/// How much of what goes before a call the limit is to have room for beside it, and how long the
/// rest of that takes.
fn split(spec: &LimitSpec, before: u64) -> (u64, Duration) {
    match spec.algorithm {
        // What it holds goes first; the rest comes in drop by drop.
        Algorithm::Bucket { .. } => {
            let rest = before.min(spec.count - spec.count / 8);
            let nanos = u128::from(before - rest) * spec.period.as_nanos() / u128::from(spec.count);
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            (rest, Duration::from_nanos(nanos))
        }
        // Whole windows go first, and then as much of one as is left.
        Algorithm::Sliding | Algorithm::Fixed => {
            let windows = u32::try_from(before / spec.count).unwrap_or(u32::MAX);
            (before % spec.count, spec.period.saturating_mul(windows))
        }
    }
}

/// Where in its line a call stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    lane: Option<LaneId>,
    seq: u64,
    /// Calls of its line before it.
    own: u64,
}
