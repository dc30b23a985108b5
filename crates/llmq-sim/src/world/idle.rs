//! Whether room lies idle while work waits.

use std::cmp::Reverse;
use std::time::Duration;

use llmq_core::{Priority, Timestamp};
use llmq_limit::BreakerState;

use super::World;
use crate::books::LaneKey;
use crate::ideals::Owner;
use crate::judge::Room;

/// What holds from one step to the next.
#[derive(Debug, Default)]
pub(super) struct Waits {
    since: Timestamp,
    heads: Vec<Head>,
}

/// The first call of a lane, and since when there is room for it. Between two steps nothing
/// changes but the time, so the instants at which room comes are known exactly.
#[derive(Debug)]
struct Head {
    rank: Reverse<Priority>,
    queue: usize,
    tenant: usize,
    /// Until when its tenant's limits and its model's shut it out, whatever margins say.
    shut: [Timestamp; 2],
    /// Since when those have room, whatever delays inside the margin.
    own: Room,
    /// The same for each provider that it may be sent to.
    ways: Vec<Room>,
    /// Every provider at which it can stand in line.
    lines: Vec<usize>,
    /// Every provider of its own that is up is taken for broken; since when it has room there.
    broken: Option<Room>,
}

/// Which of the two rooms is looked at.
type Side = fn(&Room) -> Option<Timestamp>;

impl Head {
    fn ready(&self, at: Timestamp, side: Side) -> bool {
        let open = |room: &Room| side(room).is_some_and(|since| since <= at);
        open(&self.own) && self.ways.iter().any(open)
    }

    /// Whether `other`, which has no room, keeps this one back all the same.
    fn waits_behind(&self, other: &Self, at: Timestamp) -> bool {
        let [tenant, model] = other.shut.map(|until| at < until);
        if tenant {
            self.tenant == other.tenant
        } else if model {
            self.queue == other.queue
        } else {
            self.lines.iter().any(|line| other.lines.contains(line))
        }
    }

    fn instants(&self, side: Side) -> impl Iterator<Item = Timestamp> {
        let rooms = std::iter::once(&self.own).chain(&self.ways);
        rooms.filter_map(side).chain(self.shut)
    }
}

impl Waits {
    /// Whether a call could be sent at `at`: one that has room, and before which none stands
    /// that waits for the same and has none. Those equally urgent may come in any order.
    fn is_idle(&self, at: Timestamp, side: Side) -> bool {
        self.heads.iter().any(|head| {
            let first = || {
                let before = self.heads.iter().filter(|other| other.rank <= head.rank);
                before
                    .filter(|other| !other.ready(at, side))
                    .all(|other| !head.waits_behind(other, at))
            };
            head.ready(at, side) && first()
        })
    }

    /// How much of the time until `until` is idle.
    fn idle(&self, until: Timestamp, side: Side) -> Duration {
        let all = self.heads.iter().flat_map(|head| head.instants(side));
        let mut edges: Vec<Timestamp> = all
            .filter(|at| *at > self.since && *at < until)
            .chain([self.since, until])
            .collect();
        edges.sort_unstable();
        edges.dedup();
        let spans = edges.windows(2);
        let idle = spans.filter(|span| self.is_idle(span[0], side));
        idle.map(|span| span[1] - span[0]).sum()
    }
}

impl World<'_> {
    /// Adds the time from the last step to `until` to what it belongs to.
    pub(super) fn account(&mut self, until: Timestamp) {
        let waits = &self.waits;
        if waits.heads.is_empty() || waits.since == until {
            return;
        }
        let span = until - waits.since;
        if waits.heads.iter().all(|head| head.broken.is_some()) {
            self.report.breaker += span;
            let rooms = waits.heads.iter().filter_map(|head| head.broken?.plain);
            if let Some(room) = rooms.min() {
                self.report.late += until - room.max(waits.since);
            }
            return;
        }
        self.report.waiting += span;
        self.report.idle += waits.idle(until, |room| room.plain);
        self.report.idle_unpaced += waits.idle(until, |room| room.paced);
    }

    /// Sees what waits, and since when there is room for it.
    pub(super) fn look(&mut self) {
        let mut heads: Vec<(LaneKey, usize)> = self.books.heads().collect();
        if self.scenario.is_plain() {
            // All stand in one line, where only the first matter.
            let first = heads.first().map(|(lane, _)| lane.0);
            heads.retain(|(lane, _)| Some(lane.0) == first);
        }
        self.waits = Waits {
            since: self.now,
            heads: heads
                .into_iter()
                .map(|(lane, call)| self.head(lane, call))
                .collect(),
        };
    }

    fn head(&self, (rank, queue, tenant): LaneKey, call: usize) -> Head {
        let arrival = self.arrival(call);
        let may_be = self.may_be(call);
        let room = |owner| {
            let urgent = self.is_urgent(rank.0);
            self.ideals
                .room_for(owner, &arrival, may_be, urgent, self.now)
        };
        let owners = [Owner::Tenant(tenant), Owner::Model(queue)];
        let plan = &self.plans[queue];
        let own: Vec<usize> = plan.routes.iter().map(|(upstream, _)| *upstream).collect();
        let others = plan
            .fallback
            .iter()
            .flat_map(|other| &self.plans[*other].routes);
        let others: Vec<usize> = others.map(|(upstream, _)| *upstream).collect();
        let unbroken = |upstream: &usize| !self.is_broken(*upstream);
        let up = |upstream: &usize| self.providers[*upstream].outage(self.now).is_none();
        let mut choice: Vec<usize> = own.iter().copied().filter(unbroken).collect();
        if choice.is_empty() {
            choice = others.iter().copied().filter(unbroken).collect();
        }
        let rooms = |from: &[usize]| -> Vec<Room> {
            let from = from.iter().copied().filter(up);
            from.map(|upstream| room(Owner::Upstream(upstream)))
                .collect()
        };
        Head {
            rank,
            queue,
            tenant,
            shut: owners.map(|owner| self.own.shut_until(owner, &arrival, self.now)),
            own: room(owners[0]).and(room(owners[1])),
            broken: choice
                .is_empty()
                .then(|| rooms(&own).into_iter().fold(Room::default(), Room::or)),
            ways: rooms(&choice),
            lines: own.into_iter().chain(others).collect(),
        }
    }

    /// The most that the call's input may be, as far as its estimate tells once it is known by
    /// what share all estimates are off.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a token count that is not negative"
    )]
    fn may_be(&self, index: usize) -> u64 {
        let plan = &self.calls[index].plan;
        let estimates = self.scenario.estimates;
        if estimates.noise == 0.0 {
            return plan.usage.input_tokens;
        }
        let middle = f64::from(plan.size.input_tokens) / (1.0 + estimates.bias);
        (middle / (1.0 - estimates.noise)).ceil() as u64
    }

    pub(super) fn is_broken(&self, upstream: usize) -> bool {
        let view = self.dispatcher.upstream_view(self.upstreams[upstream]);
        view.breaker != BreakerState::Closed
    }
}
