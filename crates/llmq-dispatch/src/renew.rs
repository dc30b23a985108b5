//! Another configuration for a running dispatcher: what stays keeps its books, and what goes
//! lets its calls end.

use std::time::Duration;

use llmq_core::{FailureClass, Now};
use llmq_limit::{Adaptive, Breaker, BreakerState};

use crate::dispatcher::{Dispatcher, LimitSlot};
use crate::events::{Effect, Notice};
use crate::gates::reopened;
use crate::ids::{LaneId, LimitId, QueueId, UpstreamId};
use crate::order::Spot;
use crate::setup::{LimitSetup, QueueSetup, Rules, UpstreamSetup};
use crate::upstream::{Upstream, each_once};

impl Dispatcher {
    /// States a limit anew, one that was learned too: what is used of it stays used, and so does
    /// what the provider says of its count as long as the person says the same. False when it is
    /// another one, which counts something else or otherwise, or in another period: one that counts
    /// the same by another algorithm or charge rule [takes its place](Dispatcher::replace_limit).
    pub fn restate_limit(&mut self, id: LimitId, setup: &LimitSetup, now: Now) -> bool {
        let slot = &mut self.limits[id.index()];
        let (old, new) = (*slot.limit.spec(), setup.spec);
        let counts_alike = (old.kind, old.period, old.algorithm, slot.limit.rule())
            == (new.kind, new.period, new.algorithm, setup.rule);
        if !counts_alike {
            return false;
        }
        let count = count_as_stated(slot, new.count);
        slot.learned = None;
        slot.configured = Some(new.count);
        slot.name.clone_from(&setup.name);
        slot.scope = setup.scope;
        if count != old.count {
            slot.limit.set_count(count, now.mono);
        }
        true
    }

    /// States a limit anew that counts by another algorithm or charge rule now, which makes it
    /// another one. What is used of it stays used, and its count stands as in
    /// [`Dispatcher::restate_limit`]. Calls under way are counted once, as if they had met it from
    /// the first. To be followed by [`Dispatcher::change_upstream`] for each upstream that has it.
    pub fn replace_limit(&mut self, id: LimitId, setup: LimitSetup, now: Now) -> LimitId {
        let mut under_way = self.used_by_calls_under_way(id, now);
        let slot = &mut self.limits[id.index()];
        let count = count_as_stated(slot, setup.spec.count);
        // How calls are charged by one rule says nothing of another.
        let is_same_rule = slot.limit.rule() == setup.rule;
        let factor = slot.limit.learned_factor().filter(|_| is_same_rule);
        let mut used = slot.limit.saved(now.mono);
        // From the oldest on, so that what is left never counts for too short a time.
        for (_, part) in &mut used {
            let theirs = under_way.min(*part);
            *part -= theirs;
            under_way -= theirs;
        }
        let stated = setup.spec.count;
        let new = self.add_limit(setup, now);
        let limit = &mut self.limits[new.index()].limit;
        if let Some(factor) = factor {
            limit.set_factor(factor);
        }
        if count != stated {
            limit.set_count(count, now.mono);
        }
        limit.restore(&used, Duration::ZERO, now.mono);
        for upstream in self.upstreams_with(id) {
            self.join(upstream, new, None, now);
            self.upstreams[upstream.index()].limits.push(new);
        }
        new
    }

    /// Changes an upstream's limits, credential, breaker, concurrency and quota. It is opened if
    /// it waited for a person, or refused our key or for want of credit. What it learned stays
    /// unless a limit of the same kind and period is stated; a breaker that is to open as before
    /// stays as it stands; calls under way settle what they hold, and hold what a limit that joins
    /// them counts; all of their output counts there as produced after that, which holds back too
    /// much for one window. Answers what it ended, to be told. To be followed by
    /// [`Dispatcher::reconsider`].
    #[must_use = "what it ended is to be told"]
    pub fn change_upstream(
        &mut self,
        id: UpstreamId,
        setup: UpstreamSetup,
        now: Now,
    ) -> Vec<Notice> {
        let stated: Vec<_> = setup.limits.iter().map(|limit| self.spec(*limit)).collect();
        let learned = self.learned_limits(id).into_iter().filter(|limit| {
            let (kind, period) = self.spec(*limit);
            !stated.contains(&(kind, period))
        });
        let learned: Vec<LimitId> = learned.collect();
        let before = self.upstreams[id.index()].adaptive.take();
        let adaptive = setup.adaptive.map(|config| match before {
            Some((adaptive, limit)) if self.upstreams[id.index()].adaptive_by == Some(config) => {
                (adaptive, limit)
            }
            Some((_, limit)) => {
                let adaptive = Adaptive::new(config);
                self.limits[limit.index()]
                    .limit
                    .set_count(adaptive.limit(), now.mono);
                (adaptive, limit)
            }
            None => {
                let adaptive = Adaptive::new(config);
                let name = format!("concurrency {}", setup.name);
                let places = LimitSetup::places(name, adaptive.limit());
                (adaptive, self.add_limit(places, now))
            }
        });
        let upstream = &mut self.upstreams[id.index()];
        let mut limits = each_once(setup.limits);
        limits.extend(learned);
        limits.extend(adaptive.as_ref().map(|(_, limit)| *limit));
        let joined = limits.iter().copied();
        let joined = joined.filter(|limit| !upstream.limits.contains(limit));
        let joined: Vec<LimitId> = joined.collect();
        upstream.limits = limits;
        for limit in joined {
            self.join(id, limit, None, now);
        }
        let upstream = &mut self.upstreams[id.index()];
        upstream.adaptive = adaptive;
        upstream.adaptive_by = setup.adaptive;
        if upstream.credential != setup.credential {
            // Another account may have what the old one lacked.
            upstream.closures = 0;
        }
        upstream.credential = setup.credential;
        upstream.learn_as = setup.learn_as;
        upstream.ask_before_betting = setup.ask_before_betting;
        upstream.retired = false;
        // Whoever changes the configuration may have mended what only a person can mend.
        let may_be_mended = upstream.closed.is_some_and(|closed| {
            let refuses_us = matches!(closed.class, FailureClass::NoAccess | FailureClass::Money);
            refuses_us || closed.until.is_none()
        });
        let mut ended = Vec::new();
        if may_be_mended && let Some(closed) = upstream.open_again(now) {
            if closed.class == FailureClass::NoAccess && closed.until.is_some() {
                upstream.begin_trial(now.mono);
            }
            ended.push(reopened(id, closed, now));
        }
        if *upstream.breaker.config() != setup.breaker {
            if upstream.breaker.state() != BreakerState::Closed {
                ended.push(Notice::BreakerClosed(id));
            }
            upstream.breaker = Breaker::new(setup.breaker);
        }
        upstream.quota = setup.quota;
        upstream.quota_is_saved = setup.quota_is_saved;
        upstream.saving &= setup.quota_is_saved;
        upstream.heed_quota(now);
        self.retime_gate(id, now);
        ended
    }

    /// Gives the place of an upstream that [nothing came of](Dispatcher::is_unproven) to another
    /// one, which begins as any new one does.
    pub fn replace_upstream(&mut self, id: UpstreamId, setup: UpstreamSetup, now: Now) {
        self.set_wake(Spot::Gate(id), None);
        let before = self.upstreams[id.index()].adaptive.take();
        let adaptive = setup.adaptive.map(|config| {
            let name = format!("concurrency {}", setup.name);
            let places = LimitSetup::places(name, Adaptive::new(config).limit());
            let limit = match before {
                Some((_, limit)) => {
                    let slot = &mut self.limits[limit.index()];
                    slot.name = places.name;
                    slot.limit.set_count(places.spec.count, now.mono);
                    limit
                }
                None => self.add_limit(places, now),
            };
            (limit, config)
        });
        let mut upstream = Upstream::new(setup, adaptive, now);
        // A quota that was restored may be used up already.
        upstream.heed_quota(now);
        upstream.gate_timer = self.upstreams[id.index()].gate_timer;
        self.upstreams[id.index()] = upstream;
        self.retime_gate(id, now);
    }

    /// Whether nothing has come of a queue so far, and nothing will of what it holds: it is empty,
    /// nobody has changed how it runs, and no upstream of its own has ever answered a call.
    #[must_use]
    pub fn is_unproven(&self, id: QueueId) -> bool {
        let queue = &self.queues[id.index()];
        let is_idle = queue.content.jobs == 0 && !queue.paused && !queue.draining;
        let mut routes = queue.setup.routes.iter();
        is_idle
            && routes.all(|route| {
                let upstream = &self.upstreams[route.upstream.index()];
                !upstream.has_completed && upstream.in_flight == 0
            })
    }

    /// Changes everything that a queue is told at its beginning, its fallback included. To be
    /// followed by [`Dispatcher::reconsider`].
    pub fn change_queue(&mut self, id: QueueId, setup: QueueSetup) {
        let queue = &mut self.queues[id.index()];
        queue.setup = setup;
        if queue.retired {
            queue.retired = false;
            queue.draining = queue.was_draining;
        }
    }

    /// The queue is no longer offered: it takes nothing new, finishes what it has, and is not
    /// shown once that is done.
    pub fn retire_queue(&mut self, id: QueueId) {
        let queue = &mut self.queues[id.index()];
        if !queue.retired {
            queue.was_draining = queue.draining;
        }
        queue.retired = true;
        queue.draining = true;
    }

    /// No queue that is offered leads to the upstream any more: it is shown as long as calls of
    /// queues that were retired may go there.
    pub fn retire_upstream(&mut self, id: UpstreamId) {
        self.upstreams[id.index()].retired = true;
    }

    /// Changes what holds for all.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Tries every line again, since what it waits for may have changed.
    pub fn reconsider(&mut self, now: Now, effects: &mut Vec<Effect>) {
        for index in 0..self.upstreams.len() {
            self.touch(Spot::Gate(UpstreamId::at(index)));
        }
        for index in 0..self.queues.len() {
            let queue = &self.queues[index];
            if queue.paused {
                continue;
            }
            let lanes: Vec<LaneId> = queue.lanes.iter().copied().collect();
            for lane in lanes {
                self.unpark(lane);
                self.make_ready(lane);
            }
        }
        self.update_parked(now);
        self.pump(now, effects);
    }

    fn spec(&self, id: LimitId) -> (llmq_core::LimitKind, Duration) {
        let spec = self.limits[id.index()].limit.spec();
        (spec.kind, spec.period)
    }
}

/// What is in force when a person states a count: what the provider says of it, as long as the
/// person says the same, and for one that was learned no more than answers say.
fn count_as_stated(slot: &LimitSlot, stated: u64) -> u64 {
    let known = slot.limit.spec().count;
    match slot.configured {
        Some(before) if before == stated => known,
        None if slot.learned.is_some_and(|learned| learned.is_stated()) => known.min(stated),
        _ => stated,
    }
}

#[cfg(test)]
mod tests;
