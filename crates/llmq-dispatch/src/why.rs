//! What each ticket waits for, and what the books look like from outside.

use std::collections::BTreeMap;
use std::fmt;

use llmq_core::{FailureClass, LimitSpec, Now, Priority, Timestamp};
use llmq_limit::{BreakerState, Limit, QuotaMonitor};
use smallvec::SmallVec;

use crate::dispatcher::Dispatcher;
use crate::events::Effect;
use crate::ids::{LimitId, QueueId, TicketId, UpstreamId};
use crate::lane::Lane;
use crate::order::Spot;
use crate::queue::Queue;
use crate::setup::Scope;
use crate::ticket::State;
use crate::upstream::Upstream;

/// What a ticket waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// What stands in its way; empty when it is being tried or has started.
    pub blockers: Vec<Blocker>,
    /// Calls of its own line before it.
    pub ahead: usize,
    /// When its line may move next, if that is known.
    pub until: Option<Timestamp>,
    /// Whether it has its grant.
    pub started: bool,
}

/// How far a call has come: what whoever keeps it elsewhere must know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Attempts that count. One that runs may still turn out not to, and is not among them.
    pub attempts: u32,
    /// Refusals in a row that were no fault of its own.
    pub throttles: u32,
    /// It stands in line no earlier than then.
    pub not_before: Option<Timestamp>,
}

/// One thing in a ticket's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// A limit, by name, such as `tpm openai/gpt-4o-mini`.
    Limit(String),
    /// An upstream that takes nothing, by name, and the failure that closed it, if one did.
    Upstream(String, Option<FailureClass>),
    /// The daily quota of an upstream, by name, that is kept for higher priorities.
    Quota(String),
    /// Its queue is paused.
    Paused,
    /// It may not start before an instant: a retry, or its own wish.
    NotBefore(Timestamp),
}

impl fmt::Display for Blocker {
    /// In the words of headers, logs and job states.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(name) => f.write_str(name),
            Self::Upstream(name, Some(class)) => write!(f, "{class} {name}"),
            Self::Upstream(name, None) => write!(f, "upstream {name}"),
            Self::Quota(name) => write!(f, "quota {name}"),
            Self::Paused => f.write_str("paused"),
            Self::NotBefore(_) => f.write_str("retry"),
        }
    }
}

/// A limit as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitView {
    /// Its name, such as `tpm openai/gpt-4o-mini`.
    pub name: String,
    /// The limit.
    pub spec: LimitSpec,
    /// The share in use, 0 to 1, above 1 in debt.
    pub in_use: f64,
    /// The learned charge factor.
    pub factor: f64,
    /// Lines that wait for it.
    pub waiting_lanes: usize,
    /// Whether nobody configured it and headers told of it.
    pub learned: bool,
}

/// An upstream as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamView {
    /// Its name.
    pub name: String,
    /// Calls in flight or granted.
    pub in_flight: u64,
    /// Its breaker.
    pub breaker: BreakerState,
    /// What closed it and until when (none: until a person acts).
    pub closed: Option<(FailureClass, Option<Timestamp>)>,
    /// Its limits.
    pub limits: Vec<LimitId>,
}

/// A queue as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueView {
    /// Calls that wait, run or are delayed.
    pub jobs: u64,
    /// Calls that run.
    pub running: u64,
    /// Bytes of all of them, as told at submission.
    pub bytes: u64,
    /// Whether a person paused it.
    pub paused: bool,
    /// Whether it takes no new calls and finishes those it has.
    pub draining: bool,
    /// Whether it stands still because every upstream of it is closed until a day turns or a
    /// person acts.
    pub parked: bool,
    /// Whether the configuration no longer offers it: it drains for that.
    pub retired: bool,
}

/// Calls of one priority that wait in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DepthView {
    /// The priority that they were submitted with.
    pub priority: Priority,
    /// How many wait in line. Those that may not start before an instant are not in line.
    pub waiting: u64,
}

impl Dispatcher {
    /// What a ticket waits for; none for an unknown one.
    #[must_use]
    pub fn why(&self, id: TicketId) -> Option<Why> {
        let ticket = self.ticket(id)?;
        let lane = match ticket.state {
            State::Delayed(at) => {
                return Some(Why {
                    blockers: vec![Blocker::NotBefore(at)],
                    ahead: 0,
                    until: Some(at),
                    started: false,
                });
            }
            State::Running(_) => {
                return Some(Why {
                    blockers: Vec::new(),
                    ahead: 0,
                    until: None,
                    started: true,
                });
            }
            State::Waiting(lane) => lane,
        };
        let ahead = self.lanes[lane.index()].ahead_of(ticket.seq);
        let blockers = if self.queues[ticket.call.queue.index()].paused {
            vec![Blocker::Paused]
        } else {
            self.lanes[lane.index()]
                .parked
                .iter()
                .map(|(spot, _)| self.blocker(*spot))
                .collect()
        };
        Some(Why {
            blockers,
            ahead,
            until: self.could_start(id),
            started: false,
        })
    }

    /// How far a call has come; none for an unknown one.
    #[must_use]
    pub fn standing(&self, id: TicketId) -> Option<Standing> {
        let ticket = self.ticket(id)?;
        let is_running = matches!(ticket.state, State::Running(_));
        Some(Standing {
            attempts: ticket.attempts.saturating_sub(u32::from(is_running)),
            throttles: ticket.throttles,
            not_before: match ticket.state {
                State::Delayed(at) => Some(at),
                State::Waiting(_) | State::Running(_) => None,
            },
        })
    }

    fn blocker(&self, spot: Spot) -> Blocker {
        match spot {
            Spot::Limit(limit) => Blocker::Limit(self.limits[limit.index()].name.clone()),
            Spot::Gate(upstream) => {
                let upstream = &self.upstreams[upstream.index()];
                let class = upstream.refused_by().map(|(class, _)| class);
                Blocker::Upstream(upstream.name.clone(), class)
            }
            Spot::LowGate(upstream) => {
                Blocker::Quota(self.upstreams[upstream.index()].name.clone())
            }
        }
    }

    /// A limit's state.
    #[must_use]
    pub fn limit_view(&mut self, id: LimitId, now: Now) -> LimitView {
        let slot = &mut self.limits[id.index()];
        LimitView {
            name: slot.name.clone(),
            spec: *slot.limit.spec(),
            in_use: slot.limit.in_use(now.mono),
            factor: slot.limit.factor().value(),
            waiting_lanes: slot.waiters.len(),
            learned: slot.learned.is_some(),
        }
    }

    /// A limit's name, such as `tpm openai/gpt-4o-mini`.
    #[must_use]
    pub fn limit_name(&self, id: LimitId) -> &str {
        &self.limits[id.index()].name
    }

    /// A limit's books, for saving and restoring them.
    #[must_use]
    pub fn limit_mut(&mut self, id: LimitId) -> &mut Limit {
        &mut self.limits[id.index()].limit
    }

    /// Lets `more` of a limit be used before the books must be written again; none lifts the
    /// rule. See [`Notice::PortionLow`](crate::Notice::PortionLow).
    pub fn allow(&mut self, id: LimitId, more: Option<u64>, now: Now, effects: &mut Vec<Effect>) {
        self.limits[id.index()].limit.allow(more);
        self.touch(Spot::Limit(id));
        self.pump(now, effects);
    }

    /// Lets a limit be used as far as the books on disk say: see [`Limit::allow_to`].
    pub fn allow_to(
        &mut self,
        id: LimitId,
        reach: u64,
        portion: u64,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.limits[id.index()].limit.allow_to(reach, portion);
        self.touch(Spot::Limit(id));
        self.pump(now, effects);
    }

    /// The quota monitor of an upstream, to be saved.
    #[must_use]
    pub fn quota(&self, id: UpstreamId) -> Option<&QuotaMonitor> {
        self.upstreams[id.index()].quota.as_ref()
    }

    /// When the first call of a queue may start, and what it waits for, while nothing of it
    /// runs and all of it waits for instants that are known.
    #[must_use]
    pub fn stands_until(&self, id: QueueId) -> Option<(Timestamp, String)> {
        let queue = &self.queues[id.index()];
        if queue.running > 0 {
            return None;
        }
        let mut first: Option<(Timestamp, String)> = None;
        for lane in queue.lanes.iter().map(|lane| &self.lanes[lane.index()]) {
            if lane.is_empty() {
                continue;
            }
            let (at, spot) = self.lane_stands_until(lane)?;
            if first.as_ref().is_none_or(|(other, _)| at < *other) {
                let name = match self.blocker(spot) {
                    Blocker::Limit(name) | Blocker::Upstream(name, _) | Blocker::Quota(name) => {
                        name
                    }
                    Blocker::Paused | Blocker::NotBefore(_) => String::new(),
                };
                first = Some((at, name));
            }
        }
        first
    }

    /// When a lane's head may start, and the last spot that it waits for until then.
    fn lane_stands_until(&self, lane: &Lane) -> Option<(Timestamp, Spot)> {
        let (_, ticket) = lane.head()?;
        let call = self.ticket(ticket)?.call;
        let spots = lane.parked.iter();
        let spots = spots.map(|(spot, _)| Some((self.opens_at(*spot)?, *spot)));
        let spots = spots.collect::<Option<SmallVec<[_; 4]>>>()?;
        let fallbacks = &self.queues[lane.queue.index()].setup.fallback;
        let served_by = fallbacks.iter().chain([&lane.queue]);
        let ways = served_by.flat_map(|queue| {
            let routes = self.queues[queue.index()].setup.routes.iter();
            routes.map(|route| self.spots_on(&call, *queue, route.upstream))
        });
        // The spots of one way open one by one, and the first way that is open is taken.
        let last = ways.filter_map(|way| {
            let mine = spots.iter().filter(|(_, spot)| way.contains(spot));
            mine.max().copied()
        });
        last.min()
    }

    /// Every queue that is offered, or has calls to finish.
    pub fn queue_ids(&self) -> impl Iterator<Item = QueueId> + use<> {
        let shown = |(_, queue): &(usize, &Queue)| !queue.retired || queue.content.jobs > 0;
        let shown = self.queues.iter().enumerate().filter(shown);
        let ids: Vec<QueueId> = shown.map(|(index, _)| QueueId::at(index)).collect();
        ids.into_iter()
    }

    /// The public model name of a queue.
    #[must_use]
    pub fn queue_name(&self, id: QueueId) -> &str {
        &self.queues[id.index()].setup.name
    }

    /// Every upstream that is offered, or has calls to finish. The offered ones come first.
    pub fn upstream_ids(&self) -> impl Iterator<Item = UpstreamId> + use<> {
        let shown =
            |(_, upstream): &(usize, &Upstream)| !upstream.retired || upstream.in_flight > 0;
        let shown = self.upstreams.iter().enumerate().filter(shown);
        let mut ids: Vec<UpstreamId> = shown.map(|(index, _)| UpstreamId::at(index)).collect();
        ids.sort_by_key(|id| self.upstreams[id.index()].retired);
        ids.into_iter()
    }

    /// Every upstream, also those that are offered no more: what was used there is used. They come
    /// first: of two with one name the later one is in force.
    pub fn all_upstream_ids(&self) -> impl Iterator<Item = UpstreamId> + use<> {
        let mut ids: Vec<UpstreamId> = (0..self.upstreams.len()).map(UpstreamId::at).collect();
        ids.sort_by_key(|id| !self.upstreams[id.index()].retired);
        ids.into_iter()
    }

    /// How many lanes there are, those included that are kept for their next call.
    #[must_use]
    pub fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// Every limit, also those that no upstream has any more. They come first: of two with one name
    /// the later one is in force.
    pub fn limit_ids(&self) -> impl Iterator<Item = LimitId> + use<> {
        let mut are_held: Vec<bool> = self
            .limits
            .iter()
            .map(|slot| matches!(slot.scope, Scope::Tenant | Scope::Model))
            .collect();
        for upstream in self.upstreams.iter().filter(|upstream| !upstream.retired) {
            for limit in &upstream.limits {
                are_held[limit.index()] = true;
            }
        }
        let mut ids: Vec<LimitId> = (0..self.limits.len()).map(LimitId::at).collect();
        ids.sort_by_key(|id| are_held[id.index()]);
        ids.into_iter()
    }

    /// An upstream's state.
    #[must_use]
    pub fn upstream_view(&self, id: UpstreamId) -> UpstreamView {
        let upstream = &self.upstreams[id.index()];
        UpstreamView {
            name: upstream.name.clone(),
            in_flight: upstream.in_flight,
            breaker: upstream.breaker.state(),
            closed: upstream.refused_by(),
            limits: upstream.limits.clone(),
        }
    }

    /// Whether an upstream takes calls now, as far as its limits have room: neither down, nor
    /// closed, nor at the end of its day's quota.
    #[must_use]
    pub fn is_usable(&self, id: UpstreamId, now: Now) -> bool {
        let gate = self.upstreams[id.index()].gate_state(now);
        gate.is_none_or(|gate| gate.soon)
    }

    /// Whether an upstream serves calls, now or after a wait of ordinary length: it is neither
    /// broken nor refuses us, and its day has not ended. That a limit is used up is no reason.
    #[must_use]
    pub fn is_in_service(&self, id: UpstreamId, now: Now) -> bool {
        let upstream = &self.upstreams[id.index()];
        let is_down = upstream.gate_state(now).is_some_and(|gate| gate.down);
        let day_is_over = upstream.quota_closed.is_some()
            || upstream
                .closed
                .is_some_and(|closed| closed.class == FailureClass::QuotaDay);
        !is_down && !day_is_over
    }

    /// A queue's state.
    #[must_use]
    pub fn queue_view(&self, id: QueueId) -> QueueView {
        let queue = &self.queues[id.index()];
        QueueView {
            jobs: queue.content.jobs,
            running: queue.running,
            bytes: queue.content.bytes,
            paused: queue.paused,
            draining: queue.draining,
            parked: queue.parked,
            retired: queue.retired,
        }
    }

    /// What waits in a queue, by priority, lowest first; priorities of which nothing waits are
    /// left out. Takes time linear in the queue's lines.
    #[must_use]
    pub fn depths(&self, id: QueueId) -> Vec<DepthView> {
        let mut depths = BTreeMap::new();
        for lane in &self.queues[id.index()].lanes {
            let lane = &self.lanes[lane.index()];
            if !lane.is_empty() {
                *depths.entry(lane.base).or_default() += lane.len();
            }
        }
        depths
            .into_iter()
            .map(|(priority, waiting)| DepthView { priority, waiting })
            .collect()
    }

    /// The upstreams that serve a queue, fallbacks apart, in the order in which they were stated.
    #[must_use]
    pub fn upstreams_of(&self, id: QueueId) -> Vec<UpstreamId> {
        let routes = self.queues[id.index()].setup.routes.iter();
        routes.map(|route| route.upstream).collect()
    }
}
