//! What shuts an upstream: failures, its breaker, the day's quota.

use std::time::Duration;

use llmq_core::{FailureClass, Now, Pause, Timestamp};
use llmq_limit::{BreakerChange, CallRole, PauseScope, QuotaEvent};

use crate::dispatcher::Dispatcher;
use crate::events::{Effect, Notice};
use crate::ids::{QueueId, UpstreamId};
use crate::order::Spot;
use crate::ticket::Running;
use crate::upstream::{Closed, Upstream};

impl Dispatcher {
    pub(crate) fn tell_breaker(
        &mut self,
        running: &Running,
        class: FailureClass,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let upstream = &mut self.upstreams[running.upstream.index()];
        let role = Upstream::role(running.probe);
        // A call from before an outage tells nothing of what came after it.
        let stale = running
            .sent
            .is_some_and(|sent| !upstream.breaker.is_current(sent.at));
        if role == CallRole::Normal && stale {
            return;
        }
        let change = if class.rule().trips_breaker {
            upstream.breaker.failed(role, now)
        } else {
            // It answered: whatever else is wrong, it is not down.
            upstream.breaker.succeeded(role, now)
        };
        match change {
            Some(BreakerChange::Opened { .. }) => {
                effects.push(Effect::Notice(Notice::BreakerOpened(running.upstream)));
            }
            Some(BreakerChange::Closed) => {
                effects.push(Effect::Notice(Notice::BreakerClosed(running.upstream)));
                self.touch(Spot::Gate(running.upstream));
            }
            None => {}
        }
    }

    /// Closes the upstream of a call, or those that use the credential with which it was sent.
    pub(crate) fn close(
        &mut self,
        running: &Running,
        class: FailureClass,
        until: Option<Timestamp>,
        pause: Pause,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let credential = running.credential.filter(|_| pause == Pause::Credential);
        for index in 0..self.upstreams.len() {
            let upstream = &mut self.upstreams[index];
            let same = match credential {
                Some(_) => upstream.credential == credential,
                None => index == running.upstream.index(),
            };
            if same && upstream.close(class, until, now.mono) {
                let upstream = UpstreamId::at(index);
                self.retime_gate(upstream, now);
                self.touch(Spot::Gate(upstream));
                effects.push(Effect::Notice(Notice::UpstreamPaused {
                    upstream,
                    class,
                    until,
                }));
            }
        }
        self.update_parked(now);
    }

    /// What shut an upstream may be over, whether anybody waits for that or not.
    pub(crate) fn gate_due(&mut self, id: UpstreamId, now: Now, effects: &mut Vec<Effect>) {
        self.poll_quota(id, now, effects);
        let upstream = &mut self.upstreams[id.index()];
        let is_over = |closed: &Closed| closed.until.is_some_and(|until| until <= now.mono);
        if upstream.closed.as_ref().is_some_and(is_over)
            && let Some(closed) = upstream.open_again(now)
        {
            if closed.class == FailureClass::NoAccess {
                upstream.begin_trial(now.mono);
            }
            effects.push(Effect::Notice(reopened(id, closed, now)));
        }
        self.touch(Spot::Gate(id));
        self.touch(Spot::LowGate(id));
        self.update_parked(now);
        self.retime_gate(id, now);
    }

    /// A person says that an upstream takes calls again.
    pub(crate) fn reopen(&mut self, id: UpstreamId, now: Now, effects: &mut Vec<Effect>) {
        let upstream = &mut self.upstreams[id.index()];
        effects.extend(
            upstream
                .open_again(now)
                .map(|closed| Effect::Notice(reopened(id, closed, now))),
        );
        if let Some(quota) = &mut upstream.quota {
            let events = quota.lift(now);
            self.tell_quota(id, events, now, effects);
        }
        self.opened.push(Spot::Gate(id));
        self.update_parked(now);
        self.retime_gate(id, now);
    }

    /// The provider has refused for a limit of a day or longer: the upstream pauses until it
    /// named, else for as long as is configured. False where nobody watches the day.
    pub(crate) fn refused_for_the_day(
        &mut self,
        id: UpstreamId,
        until: Option<Timestamp>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> bool {
        /// Calls that were in flight together name ends that lie a little apart.
        const SAME_END: Duration = Duration::from_secs(60);
        let Some(quota) = &mut self.upstreams[id.index()].quota else {
            return false;
        };
        let until = until.map(|until| now.wall_at(until));
        let is_known = quota.should_pause(now).is_some_and(|advice| {
            advice.scope == PauseScope::All
                && until.is_none_or(|until| until <= advice.resume_at + SAME_END)
        });
        if !is_known {
            let events = quota.pause(FailureClass::QuotaDay.as_str(), until, now);
            self.tell_quota(id, events, now, effects);
        }
        true
    }

    /// Counts a started call against the day.
    pub(crate) fn count_request(&mut self, id: UpstreamId, now: Now, effects: &mut Vec<Effect>) {
        let (events, state) = self.upstreams[id.index()].count_request(now);
        effects.extend(state.map(|state| Effect::Notice(Notice::SaveQuota(id, state))));
        self.tell_quota(id, events, now, effects);
    }

    /// Takes a call that was never sent out of the day's count again.
    pub(crate) fn uncount_request(
        &mut self,
        running: &Running,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Some(quota) = &mut self.upstreams[running.upstream.index()].quota else {
            return;
        };
        let events = quota.forget_request(running.counted_at, now);
        self.tell_quota(running.upstream, events, now, effects);
    }

    pub(crate) fn poll_quota(&mut self, id: UpstreamId, now: Now, effects: &mut Vec<Effect>) {
        let Some(quota) = &mut self.upstreams[id.index()].quota else {
            return;
        };
        let events = quota.poll(now);
        self.tell_quota(id, events, now, effects);
    }

    pub(crate) fn tell_quota(
        &mut self,
        id: UpstreamId,
        events: Vec<QuotaEvent>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        effects.extend(
            events
                .into_iter()
                .map(|event| Effect::Notice(Notice::Quota(id, event))),
        );
        if self.upstreams[id.index()].heed_quota(now) {
            self.touch(Spot::Gate(id));
            self.touch(Spot::LowGate(id));
            self.update_parked(now);
        }
        self.retime_gate(id, now);
    }

    /// The day's count is on disk.
    pub(crate) fn quota_saved(&mut self, id: UpstreamId) {
        self.upstreams[id.index()].saving = false;
        self.touch(Spot::Gate(id));
    }

    /// Works out which queues stand still by a quota: their calls' time to live stands still too.
    pub(crate) fn update_parked(&mut self, now: Now) {
        for index in 0..self.queues.len() {
            let queue = &self.queues[index];
            let routes = &queue.setup.routes;
            let parked = !routes.is_empty()
                && routes.iter().all(|route| {
                    let upstream = &self.upstreams[route.upstream.index()];
                    let by_quota = |closed: Closed| {
                        matches!(closed.class, FailureClass::QuotaDay | FailureClass::Money)
                    };
                    upstream.closed.is_some_and(by_quota) || upstream.low_closed.is_some()
                });
            if parked != queue.parked {
                let queue = &mut self.queues[index];
                queue.parked = parked;
                queue.update_clock(now.mono);
                self.retime_deadline(QueueId::at(index), now);
            }
        }
    }
}

pub(crate) fn reopened(upstream: UpstreamId, closed: Closed, now: Now) -> Notice {
    Notice::UpstreamReopened {
        upstream,
        class: closed.class,
        closed_for: now.mono - closed.since,
    }
}
