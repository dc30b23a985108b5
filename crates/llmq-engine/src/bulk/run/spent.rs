//! Which limits were learned, and what all limits had spent, for the next process.
//!
//! At a clean stop every window is saved. While the run goes on only limits of a day and more
//! are: with what they may use before the next save already counted as used, so that no crash
//! is a way past them. After a crash the shorter ones are taken as fully spent at the last
//! sign of life. Learned limits follow the same rules as configured ones.

use std::collections::BTreeMap;
use std::time::Duration;

use llmq_core::{LimitKind, LimitSpec, Now, WallTime};
use llmq_dispatch::{Dispatcher, LimitId, UpstreamId};
use serde::{Deserialize, Serialize};

/// Limits of this length and more are saved ahead of their use.
const LONG: Duration = Duration::from_secs(86_400);
/// Calls may have been sent for this long after the last sign of life that is on disk.
const AFTER_LAST_SIGN: Duration = Duration::from_secs(2);

/// What is on disk of the limits' books.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Spent {
    /// Whether the run had stopped: then this is all that was used.
    clean: bool,
    limits: BTreeMap<String, Parts>,
    /// The limits that headers told of and nobody configured, by upstream and server.
    #[serde(default)]
    learned: BTreeMap<String, Vec<String>>,
}

/// The limits that a run keeps: those that were stated, and those that it learns meanwhile.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    /// Those that were stated, and those that an earlier process had learned.
    pub(super) limits: Vec<(LimitId, String)>,
    /// The upstreams, with their names.
    pub(super) upstreams: Vec<(UpstreamId, String)>,
    /// Those whose headers are learned from, by name and server: see [`learner`].
    pub(super) learners: Vec<(UpstreamId, String)>,
}

/// What the side file calls an upstream whose headers are learned from. Another server under the
/// same name has limits of its own.
pub(super) fn learner(upstream: &str, server: &str) -> String {
    format!("{upstream} at {server}")
}

impl Kept {
    /// Every limit of now, with its name.
    fn all(&self, dispatcher: &mut Dispatcher, now: Now) -> Vec<(LimitId, String)> {
        let mut all = self.limits.clone();
        for (upstream, _) in &self.learners {
            for id in dispatcher.learned_limits(*upstream) {
                if all.iter().all(|(other, _)| *other != id) {
                    all.push((id, dispatcher.limit_view(id, now).name));
                }
            }
        }
        all
    }

    fn learned(&self, dispatcher: &mut Dispatcher) -> BTreeMap<String, Vec<String>> {
        let mut learned = BTreeMap::new();
        for (upstream, name) in &self.learners {
            let ids = dispatcher.learned_limits(*upstream).into_iter();
            let texts: Vec<String> = ids
                .map(|id| dispatcher.limit_mut(id).spec().to_string())
                .collect();
            if !texts.is_empty() {
                learned.insert(name.clone(), texts);
            }
        }
        learned
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Parts {
    /// (age in ms, amount), oldest first.
    used: Vec<(u64, u64)>,
}

/// What a limit may use before its books are written again: a hundredth.
fn portion(count: u64) -> u64 {
    count.div_ceil(100)
}

/// The next portion of a limit whose books have just been written; none for one that is not
/// written ahead.
pub(super) fn next_portion(dispatcher: &mut Dispatcher, id: LimitId) -> Option<u64> {
    is_long(dispatcher, id).then(|| portion(dispatcher.limit_mut(id).spec().count))
}

fn is_long(dispatcher: &mut Dispatcher, id: LimitId) -> bool {
    let spec = dispatcher.limit_mut(id).spec();
    spec.kind != LimitKind::Concurrency && spec.period >= LONG
}

impl Spent {
    /// The books as they must be on disk now: those of long limits with the next portion.
    pub(super) fn of(dispatcher: &mut Dispatcher, kept: &Kept, clean: bool, now: Now) -> Self {
        let mut spent = Self {
            clean,
            limits: BTreeMap::new(),
            learned: kept.learned(dispatcher),
        };
        for (id, name) in kept.all(dispatcher, now) {
            let long = is_long(dispatcher, id);
            if !clean && !long {
                continue;
            }
            let limit = dispatcher.limit_mut(id);
            let mut used: Vec<(u64, u64)> = limit
                .saved(now.mono)
                .into_iter()
                .map(|(age, used)| (millis(age), used))
                .collect();
            if !clean {
                let ahead = portion(limit.spec().count).saturating_add(limit.held());
                match used.last_mut() {
                    // One part, since a bucket takes each as spent in one instant, and would
                    // stand still for what nobody has spent.
                    Some((0, amount)) => *amount = amount.saturating_add(ahead),
                    _ => used.push((0, ahead)),
                }
            }
            spent.limits.insert(name, Parts { used });
        }
        spent
    }

    /// The limits that earlier processes learned at a [`learner`]. What cannot be read is passed
    /// over: it is learned again.
    pub(super) fn learned_at(&self, learner: &str) -> Vec<LimitSpec> {
        let texts = self.learned.get(learner).into_iter().flatten();
        texts.filter_map(|text| text.parse().ok()).collect()
    }

    /// Lets every long limit be used as far as [`Spent::of`] has written ahead.
    pub(super) fn allow(dispatcher: &mut Dispatcher, limits: &[(LimitId, String)], now: Now) {
        let mut effects = Vec::new();
        for (id, _) in limits {
            if let Some(more) = next_portion(dispatcher, *id) {
                dispatcher.allow(*id, Some(more), now, &mut effects);
            }
        }
        debug_assert!(effects.is_empty(), "nothing waits while a run is set up");
    }

    /// Puts into the books what an earlier process had used by `alive_at`.
    pub(super) fn restore(
        &self,
        dispatcher: &mut Dispatcher,
        limits: &[(LimitId, String)],
        alive_at: WallTime,
        now: Now,
    ) {
        // A clock that was set back makes this zero: then all counts as just used.
        let gone = now.wall.since(alive_at);
        for (id, name) in limits {
            let limit = dispatcher.limit_mut(*id);
            match self.limits.get(name) {
                Some(parts) => {
                    let used: Vec<(Duration, u64)> = parts
                        .used
                        .iter()
                        .map(|(age, used)| (Duration::from_millis(*age), *used))
                        .collect();
                    limit.restore(&used, gone, now.mono);
                }
                None if self.clean => {}
                None => {
                    let last = now.mono.before(gone.saturating_sub(AFTER_LAST_SIGN));
                    limit.exhaust(last, now.mono);
                }
            }
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use llmq_core::{CallSize, Host};
    use llmq_dispatch::{LimitSetup, Rules, Scope, UpstreamSetup};
    use llmq_limit::charge_rule;

    use super::*;

    const NAME: &str = "rpd openai/m";

    fn books(limit: &str, now: Now) -> (Dispatcher, Kept) {
        let spec: llmq_core::LimitSpec = limit.parse().unwrap();
        let mut dispatcher = Dispatcher::new(Rules::default(), 0);
        let setup = LimitSetup {
            name: NAME.to_owned(),
            spec,
            rule: charge_rule(Host::OpenAi, spec.kind),
            scope: Scope::Upstream,
        };
        let id = dispatcher.add_limit(setup, now);
        let kept = Kept {
            limits: vec![(id, NAME.to_owned())],
            ..Kept::default()
        };
        (dispatcher, kept)
    }

    // A killed run with a daily bucket stood still for a minute and a half: the hundredth that
    // was written ahead emptied the pace of spending below zero.
    #[test]
    fn what_was_written_ahead_is_counted_and_does_not_hold_up_the_next_process() {
        let now = Now::default().after(Duration::from_secs(1_000_000));
        let (mut before, kept) = books("requests=5000/1d:bucket", now);
        let limit = before.limit_mut(kept.limits[0].0);
        limit.restore(&[(Duration::ZERO, 1_000)], Duration::ZERO, now.mono);
        let spent = Spent::of(&mut before, &kept, false, now);

        let (mut after, kept) = books("requests=5000/1d:bucket", now);
        spent.restore(&mut after, &kept.limits, now.wall, now);
        let limit = after.limit_mut(kept.limits[0].0);
        let counted: u64 = limit.saved(now.mono).iter().map(|(_, used)| used).sum();
        assert_eq!(counted, 1_050);
        let soon = now.after(Duration::from_secs(3)).mono;
        let cost = limit.cost(&CallSize::default(), 0);
        assert_eq!(limit.check(cost, 0, soon, Duration::ZERO), Ok(()));
    }

    fn learned(limit: &str, now: Now) -> (Dispatcher, Kept, LimitId) {
        let (mut dispatcher, mut kept) = books("requests=9/2s", now);
        let upstream = dispatcher.add_upstream(UpstreamSetup::default(), now);
        let spec: LimitSpec = limit.parse().unwrap();
        let setup = LimitSetup {
            name: format!("{} up", spec.name()),
            spec,
            rule: charge_rule(Host::Unknown, spec.kind),
            scope: Scope::Upstream,
        };
        let id = dispatcher.add_learned_limit(upstream, setup, now);
        kept.learners = vec![(upstream, learner("up", "host:1"))];
        (dispatcher, kept, id)
    }

    #[test]
    fn learned_limits_are_saved_like_configured_ones() {
        let now = Now::default().after(Duration::from_secs(1_000_000));
        for (text, clean, expected) in [
            // As it was.
            ("requests=500/1m", true, 40),
            ("requests=500/1d", true, 40),
            // Taken as used up.
            ("requests=500/1m", false, 500),
            // With what may be used before the next save.
            ("requests=500/1d", false, 45),
        ] {
            let (mut before, kept, id) = learned(text, now);
            let limit = before.limit_mut(id);
            limit.restore(&[(Duration::ZERO, 40)], Duration::ZERO, now.mono);
            let spent = serde_json::to_value(Spent::of(&mut before, &kept, clean, now)).unwrap();
            let spent: Spent = serde_json::from_value(spent).unwrap();
            assert_eq!(spent.learned_at("up at host:2"), [], "another server");
            assert_eq!(spent.learned_at("up at host:1"), [text.parse().unwrap()]);

            let (mut after, kept, id) = learned(text, now);
            let limits = kept.all(&mut after, now);
            spent.restore(&mut after, &limits, now.wall, now);
            let saved = after.limit_mut(id).saved(now.mono);
            let counted: u64 = saved.iter().map(|(_, used)| used).sum();
            assert_eq!(counted, expected, "{text}, clean: {clean}");
        }
    }

    #[test]
    fn books_of_a_build_that_did_not_save_learned_limits_are_read() {
        let spent: Spent = serde_json::from_str(r#"{"clean":true,"limits":{}}"#).unwrap();
        assert_eq!(spent.learned_at("up at host:1"), []);
    }
}
