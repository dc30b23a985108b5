use std::collections::BTreeMap;
use std::sync::Arc;

use llmq_core::{Host, LimitKind, LimitSpec, Now, WallTime};
use llmq_dispatch::{Dispatcher, LimitId};
use llmq_limit::{QuotaEvent, QuotaMonitor, QuotaRules, default_algorithm};

use super::keeper::{Save, Wanted};
use super::spent::{Spent, next_portion};

/// What an earlier process left of its books.
#[derive(Debug, Clone, Default)]
pub struct Earlier {
    /// What was spent of limits.
    pub spent: Spent,
    /// By upstream, the state of its daily quota (JSON).
    pub quota: BTreeMap<String, String>,
    /// When that process was last alive; none: there was none.
    pub alive_at: Option<WallTime>,
    /// When it was last known to be alive though it could not record its books any more.
    pub touched_at: Option<WallTime>,
}

impl Earlier {
    /// Puts into a limit's books what was used of it by then.
    pub fn restore(&self, dispatcher: &mut Dispatcher, limit: LimitId, now: Now) {
        let Some(alive_at) = self.alive_at else {
            return;
        };
        let name = dispatcher.limit_name(limit).to_owned();
        let limit = dispatcher.limit_mut(limit);
        // What was used of a limit that is not written ahead may be newer than the books.
        let alive_at = match self.touched_at {
            Some(at) if !self.spent.limits.contains_key(&name) => at.max(alive_at),
            _ => alive_at,
        };
        self.spent.restore(limit, &name, alive_at, now);
    }

    /// The quota monitor of an upstream, with what it has to tell of being restored.
    #[must_use]
    pub fn quota(
        &self,
        upstream: &str,
        rules: QuotaRules,
        now: Now,
    ) -> (QuotaMonitor, Vec<QuotaEvent>) {
        let (mut quota, mut news) = match self.quota.get(upstream) {
            Some(state) => QuotaMonitor::restore(rules, Some(state), now),
            None => (QuotaMonitor::new(rules, now), Vec::new()),
        };
        // Whoever starts anew may have got a higher limit meanwhile: the provider is asked.
        news.extend(quota.lift(now));
        // A pause that goes on is no news to the monitor, but it is to this process.
        let paused = |event: &QuotaEvent| matches!(event, QuotaEvent::Paused(_));
        if let Some(advice) = quota.should_pause(now)
            && !news.iter().any(paused)
        {
            news.push(QuotaEvent::Paused(advice));
        }
        (quota, news)
    }

    /// What was learned at a [`learner`](super::learner) beside the limits that are `stated`,
    /// counted as `host` counts.
    #[must_use]
    pub fn learned(&self, learner: &str, host: Host, stated: &[LimitSpec]) -> Vec<LimitSpec> {
        // Headers would take one for the other: then the configured one counts.
        let is_stated = |learned: &LimitSpec| {
            let same =
                |limit: &LimitSpec| limit.kind == learned.kind && limit.period == learned.period;
            stated.iter().any(same)
        };
        let learned = self.spent.learned_at(learner).into_iter();
        learned
            .filter(|limit| limit.kind != LimitKind::Concurrency && !is_stated(limit))
            .map(|limit| {
                let algorithm = default_algorithm(host, limit.period);
                LimitSpec::per(limit.kind, limit.count, limit.period, algorithm)
            })
            .collect()
    }
}

/// The books of the process before, and the keeper of this one's: for limits that are made while
/// it runs.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    earlier: Arc<Earlier>,
    wanted: Wanted,
}

impl Memory {
    /// What was left by an earlier process, and who asks the keeper of this one.
    #[must_use]
    pub fn new(earlier: Earlier, wanted: Wanted) -> Self {
        Self {
            earlier: Arc::new(earlier),
            wanted,
        }
    }

    /// What an earlier process left.
    #[must_use]
    pub fn earlier(&self) -> &Earlier {
        &self.earlier
    }

    /// Puts into a new limit's books what was used of it. A long limit can be used as soon as the
    /// keeper has written its first portion.
    pub fn open(&self, dispatcher: &mut Dispatcher, limit: LimitId, now: Now) {
        self.earlier.restore(dispatcher, limit, now);
        self.write_ahead(dispatcher, limit);
    }

    /// The same for a limit whose books hold already what was used of it.
    pub(crate) fn write_ahead(&self, dispatcher: &mut Dispatcher, limit: LimitId) {
        if next_portion(dispatcher, limit).is_some() {
            dispatcher.limit_mut(limit).allow(Some(0));
            self.wanted.ask(Save::Portion(limit));
        }
    }
}

/// Lets the first portion of a long limit be used. Its books must be on disk before a call is
/// started: a [`Keeper`](super::Keeper) begins with writing them.
pub(crate) fn allow_first(dispatcher: &mut Dispatcher, limit: LimitId, now: Now) {
    let mut effects = Vec::new();
    if let Some(more) = next_portion(dispatcher, limit) {
        dispatcher.allow(limit, Some(more), now, &mut effects);
    }
    debug_assert!(effects.is_empty(), "nothing waits for a limit that is new");
}
