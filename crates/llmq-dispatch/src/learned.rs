//! Limits that nobody configured: kept as answers state them, from one process to the next.

use std::cmp::Ordering;
use std::time::Duration;

use llmq_core::{LimitSpec, Now, Timestamp};
use llmq_limit::{HeaderSource, Observation, RateLimitHeaders, charge_rule, default_algorithm};

use crate::dispatcher::Dispatcher;
use crate::events::{Effect, Notice};
use crate::heard_of::Worth;
use crate::hearing::is_seen;
use crate::ids::{LimitId, UpstreamId};
use crate::order::Spot;
use crate::setup::{LimitSetup, Scope};
use crate::ticket::Running;
use crate::upstream::LEARNED_MAX;

/// So many answers must speak of other limits of the kind, and of this one never …
const DOUBTS: u32 = 50;
/// … for its whole period, or this long, before a limit from an earlier process is forgotten.
const DOUBTED_MAX: Duration = Duration::from_secs(60);

/// What is known of a limit that answers told of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Learned {
    /// An answer of this process has stated it: from then on it is kept, since some providers
    /// show only one window of several.
    stated: bool,
    /// Answers that spoke of its kind and not of it, and when the first one came.
    doubts: Option<(Timestamp, u32)>,
}

impl Learned {
    /// An answer has just stated it.
    pub(crate) fn stated() -> Self {
        Self {
            stated: true,
            ..Self::remembered()
        }
    }

    /// An earlier process had learned it.
    fn remembered() -> Self {
        Self {
            stated: false,
            doubts: None,
        }
    }

    /// Whether an answer of this process has stated it.
    pub(crate) fn is_stated(&self) -> bool {
        self.stated
    }

    fn is_refuted(&self, period: Duration, now: Timestamp) -> bool {
        self.doubts
            .is_some_and(|(since, count)| count >= DOUBTS && now - since >= period.min(DOUBTED_MAX))
    }
}

impl Dispatcher {
    /// Adds a limit that an earlier process learned from an upstream's headers.
    ///
    /// Like one that is learned now it follows what the headers state, up and down. When they
    /// state others of its kind and never this one, it is forgotten
    /// ([`Notice::LimitForgotten`]).
    pub fn add_learned_limit(
        &mut self,
        upstream: UpstreamId,
        setup: LimitSetup,
        now: Now,
    ) -> LimitId {
        self.add_learned(upstream, setup, Learned::remembered(), now)
    }

    /// A person states another count: from now on no header raises it above this one.
    pub fn set_count(&mut self, id: LimitId, count: u64, now: Now, effects: &mut Vec<Effect>) {
        let slot = &mut self.limits[id.index()];
        slot.configured = Some(count);
        slot.learned = None;
        slot.limit.set_count(count, now.mono);
        self.touch(Spot::Limit(id));
        self.pump(now, effects);
    }

    /// The limits of an upstream that were learned, by this process or an earlier one.
    #[must_use]
    pub fn learned_limits(&self, upstream: UpstreamId) -> Vec<LimitId> {
        let limits = self.upstreams[upstream.index()].limits.iter();
        limits
            .copied()
            .filter(|id| self.limits[id.index()].learned.is_some())
            .collect()
    }

    /// The one of them that counts the same as `spec` in the same period.
    #[must_use]
    pub fn learned_as(&self, upstream: UpstreamId, spec: &LimitSpec) -> Option<LimitId> {
        let mut learned = self.learned_limits(upstream).into_iter();
        learned.find(|id| {
            let learned = self.limits[id.index()].limit.spec();
            (learned.kind, learned.period) == (spec.kind, spec.period)
        })
    }

    pub(crate) fn add_learned(
        &mut self,
        upstream: UpstreamId,
        setup: LimitSetup,
        learned: Learned,
        now: Now,
    ) -> LimitId {
        let id = self.add_limit(setup, now);
        let slot = &mut self.limits[id.index()];
        slot.learned = Some(learned);
        slot.configured = None;
        self.upstreams[upstream.index()].limits.push(id);
        id
    }

    /// The provider states the count of a limit. A lower one is heeded at once, a higher one when
    /// three answers agree, and none above what a person stated; nor one that the answer to a
    /// later call has contradicted.
    pub(crate) fn heed_count(
        &mut self,
        running: &Running,
        id: LimitId,
        seen: &Observation,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let (Some(stated), Some(_)) = (seen.limit, seen.window) else {
            return;
        };
        let slot = &mut self.limits[id.index()];
        let spec = *slot.limit.spec();
        let count = slot.configured.map_or(stated, |most| stated.min(most));
        if count < spec.count && slot.scope == Scope::Account {
            // Other upstreams of the account may have more: this one has a limit of its own.
            return self.learn_limit(running, seen, now, effects);
        }
        let upstream = running.upstream;
        let heard_of = &mut self.upstreams[upstream.index()].heard_of;
        let (as_of, word) = (running.as_of(), running.word(seen, now));
        let worth = heard_of.states(spec.kind, stated, spec.period, as_of, word);
        let agreed = worth == Worth::Agreed;
        match count.cmp(&spec.count) {
            _ if worth == Worth::Outdated => return,
            Ordering::Less if !agreed => slot.limit.set_count_for_now(count, now.mono),
            Ordering::Equal if agreed => return slot.limit.believe(),
            Ordering::Less | Ordering::Greater if agreed => slot.limit.set_count(count, now.mono),
            _ => return,
        }
        self.touch(Spot::Limit(id));
        effects.push(Effect::Notice(Notice::LimitLearned(upstream, id)));
    }

    /// The limit of an upstream that was learned beside a shared one, for the same window.
    pub(crate) fn own_beside(&self, upstream: UpstreamId, shared: LimitId) -> Option<LimitId> {
        self.learned_as(upstream, self.limits[shared.index()].limit.spec())
    }

    /// An answer told of a limit that nobody stated.
    pub(crate) fn learn_limit(
        &mut self,
        running: &Running,
        seen: &Observation,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        // Without a window the number means nothing: a day's would pass for a minute's.
        let (Some(count), Some(window)) = (seen.limit, seen.window) else {
            return;
        };
        let id = running.upstream;
        let known = self.upstreams[id.index()]
            .limits
            .iter()
            .any(|limit| self.is_told(*limit, seen));
        let upstream = &mut self.upstreams[id.index()];
        let Some(host) = upstream.learn_as else {
            return;
        };
        if known {
            return;
        }
        let heard_of = &mut upstream.heard_of;
        let (as_of, word) = (running.as_of(), running.word(seen, now));
        if heard_of.states(seen.kind, count, window, as_of, word) != Worth::Agreed {
            return;
        }
        let word = heard_of.word(seen.kind, window);
        if self.learned_limits(id).len() >= LEARNED_MAX {
            return;
        }
        let spec = LimitSpec::per(seen.kind, count, window, default_algorithm(host, window));
        let name = format!("{} {}", spec.name(), self.upstreams[id.index()].name);
        let rule = charge_rule(host, seen.kind);
        let setup = LimitSetup {
            name,
            spec,
            rule,
            scope: Scope::Upstream,
        };
        let begins = word.map_or(now.mono, |word| word.told_at);
        let as_of = Now {
            mono: begins,
            wall: now.wall_at(begins),
        };
        let limit = self.add_learned(id, setup, Learned::stated(), as_of);
        self.join(id, limit, word.as_ref(), now);
        effects.push(Effect::Notice(Notice::LimitLearned(id, limit)));
    }

    /// Whether an observation tells nothing new of which limits there are: it is of this one, and
    /// not of a lower one that an upstream has beside its account's.
    fn is_told(&self, limit: LimitId, seen: &Observation) -> bool {
        let slot = &self.limits[limit.index()];
        let spec = slot.limit.spec();
        let is_lower = seen.limit.is_some_and(|stated| stated < spec.count);
        is_seen(spec, seen) && !(is_lower && slot.scope == Scope::Account)
    }

    /// Takes note of which remembered limits an answer states, and forgets those that answers
    /// refute.
    pub(crate) fn doubt_learned(
        &mut self,
        upstream: UpstreamId,
        headers: &RateLimitHeaders,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let mut refuted = None;
        for id in &self.upstreams[upstream.index()].limits {
            let slot = &mut self.limits[id.index()];
            let spec = *slot.limit.spec();
            let Some(learned) = slot.learned.as_mut().filter(|learned| !learned.stated) else {
                continue;
            };
            let mut of_its_kind = headers
                .observations
                .iter()
                .filter(|seen| seen.kind == spec.kind && states_a_limit(seen))
                .peekable();
            if of_its_kind.peek().is_none() {
                continue;
            }
            if of_its_kind.any(|seen| is_seen(&spec, seen)) {
                learned.stated = true;
                continue;
            }
            let (_, count) = learned.doubts.get_or_insert((now.mono, 0));
            *count += 1;
            if learned.is_refuted(spec.period, now.mono) {
                refuted = Some(*id);
            }
        }
        if let Some(id) = refuted {
            self.forget_learned(upstream, id, effects);
        }
    }

    /// No call meets the limit any more; those that hold a part of it settle it as ever.
    fn forget_learned(&mut self, upstream: UpstreamId, id: LimitId, effects: &mut Vec<Effect>) {
        self.upstreams[upstream.index()]
            .limits
            .retain(|limit| *limit != id);
        self.touch(Spot::Limit(id));
        effects.push(Effect::Notice(Notice::LimitForgotten(upstream, id)));
    }
}

/// Whether it says what the limit is, and of which window: less proves nothing.
fn states_a_limit(seen: &Observation) -> bool {
    seen.source != HeaderSource::Informational && seen.limit.is_some() && seen.window.is_some()
}
