//! Laws on where calls go, on whose account, and when they may come again.

use std::time::Duration;

use llmq_core::{LimitSpec, Priority, Timestamp};
use llmq_strict::{Arrival, StrictProvider};

use super::World;
use crate::ideals::Owner;
use crate::own::Breach;
use crate::scenario::SILENCE_MAX;

/// An upstream that was down this recently may still be taken for broken: the longest that a
/// breaker stays open and an answer takes, and the longest that its probe is out.
const RECENT: Duration = Duration::from_secs(25).saturating_add(SILENCE_MAX);
/// What a wait that was told may be longer: its rounding, and what is added to it at random.
const PATIENCE: Duration = Duration::from_secs(4);

impl World<'_> {
    pub(super) fn tenant_of(&self, call: usize) -> usize {
        self.scenario.sources[self.calls[call].plan.source].tenant
    }

    fn queue_of(&self, call: usize) -> usize {
        self.scenario.sources[self.calls[call].plan.source].queue
    }

    fn priority_of(&self, call: usize) -> Priority {
        self.scenario.sources[self.calls[call].plan.source].priority
    }

    /// Whether calls of this priority may use what is reserved.
    pub(super) fn is_urgent(&self, priority: Priority) -> bool {
        self.scenario
            .reserve
            .is_none_or(|reserve| priority >= reserve.priority)
    }

    /// Whose limits a call meets.
    pub(super) fn owners(&self, call: usize) -> [Owner; 3] {
        let live = &self.calls[call];
        [
            Owner::Tenant(self.tenant_of(call)),
            Owner::Model(live.served_by),
            Owner::Upstream(live.upstream),
        ]
    }

    /// A call is sent to an upstream: to one of its model, or to a fallback's for cause.
    pub(super) fn choose(&mut self, call: usize, upstream: usize, arrival: &Arrival) {
        let queue = self.queue_of(call);
        let serves = |queue: usize| {
            let routes = &self.plans[queue].routes;
            routes.iter().any(|(route, _)| *route == upstream)
        };
        let tiers = std::iter::once(&queue).chain(&self.plans[queue].fallback);
        let served_by = tiers.copied().find(|tier| serves(*tier));
        let known = self.dispatcher.upstream_view(self.upstreams[upstream]);
        let live = &mut self.calls[call];
        live.limits_known = known.limits.len();
        let Some(served_by) = served_by else {
            let text = format!("call {call} was sent to {upstream}, which does not serve it");
            return self.books.fault(self.now, &text);
        };
        live.served_by = served_by;
        if served_by == queue {
            return;
        }
        self.report.fallbacks += 1;
        let own = self.plans[queue].routes.iter();
        let could = own.map(|(route, _)| *route).find(|route| {
            // A probe waits for the limits as well, which the calls that failed may have filled.
            let limits = self.scenario.upstreams[*route].limits.iter();
            let full = limits.map(|limit| limit.period).max().unwrap_or_default();
            let since = self.now.before(RECENT + full);
            let recently = self.providers[*route].was_down(since, self.now);
            !recently && self.fits(*route, arrival)
        });
        if let Some(could) = could {
            let text = format!("call {call} was sent to a fallback, and {could} could serve it");
            self.books.fault(self.now, &text);
        }
    }

    /// Whether a call is not above the whole of any of a provider's limits.
    fn fits(&self, upstream: usize, arrival: &Arrival) -> bool {
        let plan = &self.scenario.upstreams[upstream];
        let fresh = |limit: &LimitSpec| {
            StrictProvider::new(&[*limit], plan.account.charge(), Timestamp::ZERO)
        };
        plan.limits.iter().all(|limit| {
            let answer = fresh(limit).check(arrival, Timestamp::ZERO);
            !answer.is_err_and(|refusal| refusal.is_too_large())
        })
    }

    /// A provider has taken a call in: the limits that only we keep must have had room for it.
    pub(super) fn count_own(&mut self, call: usize, arrival: &Arrival) {
        let (own, breaches) = self.own.arrive(self.owners(call), arrival, self.now);
        self.calls[call].own = own;
        for breach in breaches {
            self.books.fault(self.now, &breach.to_string());
        }
    }

    /// A call is started: where it is not urgent, what is reserved stays untouched. This is
    /// judged at the start, since calls may overtake each other on their way.
    pub(super) fn check_reserve(&mut self, call: usize, arrival: &Arrival) {
        let urgent = self.is_urgent(self.priority_of(call));
        let (rest, breaches) = self.rest.arrive(self.owners(call), arrival, self.now);
        self.calls[call].rest = rest;
        // A call that is above the rest of a limit waits for the whole of it.
        let wrong = |breach: &Breach| !urgent && !breach.is_too_large();
        for breach in breaches.into_iter().filter(wrong) {
            self.books.fault(self.now, &breach.to_string());
        }
    }

    /// Whether every limit of its provider was known when a call was sent.
    pub(super) fn knew_limits(&self, call: usize) -> bool {
        let live = &self.calls[call];
        live.limits_known >= self.scenario.upstreams[live.upstream].limits.len()
    }

    /// A call goes back in line: not before its provider wants it, nor much later.
    pub(super) fn check_patience(&mut self, call: usize, not_before: Timestamp) {
        let Some(asked) = self.calls[call].asked_until.take() else {
            return;
        };
        if not_before < asked {
            let early = asked - not_before;
            let text = format!("call {call} may come again {early:?} earlier than asked");
            self.books.fault(self.now, &text);
        } else if not_before > asked + PATIENCE {
            let late = not_before - asked;
            let text = format!("call {call} may come again only {late:?} later than asked");
            self.books.fault(self.now, &text);
        }
    }

    /// Tenants that wait for the same get their shares.
    pub(super) fn check_shares(&mut self) {
        let mut waits = vec![false; self.scenario.tenants.len()];
        for ((_, _, tenant), _) in self.books.heads() {
            waits[tenant] = true;
        }
        if let Some(text) = self.shares.check(&waits) {
            self.books.fault(self.now, &text);
        }
    }
}
